//! What AdapterHub calls the model that a prompt is in.

/// What comes before the layers in a name, with its dot: `bert.` of `bert.encoder.layer.0.attention.self`.
pub(crate) fn model_of(name: &str) -> String {
    let segments = name.split('.');
    let before = segments.take_while(|segment| !matches!(*segment, "encoder" | "layers"));
    before.fold(String::new(), |all, segment| all + segment + ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_what_the_layers_are_in() {
        assert_eq!(model_of("encoder.layer.0.attention.self"), "");
        assert_eq!(model_of("bert.encoder.layer.0.attention.self"), "bert.");
        assert_eq!(model_of("model.layers.11.self_attn"), "model.");
    }
}
