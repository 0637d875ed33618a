//! What Hugging Face calls the tensors of a GGUF file, and how it lays them out.

/// llama.cpp's names outside the layers, and Hugging Face's.
const MODEL: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// llama.cpp's names in a layer, and Hugging Face's.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What `LlamaForCausalLM` and `Qwen2ForCausalLM` call a tensor that llama.cpp calls `name`:
/// `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`. None for a tensor that they
/// do not have.
pub(crate) fn hugging_face_name(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    if !matches!(parameter, "weight" | "bias") {
        return None;
    }
    let Some(inner) = module.strip_prefix("blk.") else {
        let module = find(&MODEL, module)?;
        return Some(format!("{module}.{parameter}"));
    };
    let (layer, inner) = inner.split_once('.')?;
    // One name for one layer: neither `+1` nor `01`.
    let layer: usize = layer
        .parse()
        .ok()
        .filter(|number: &usize| number.to_string() == layer)?;
    let inner = find(&LAYER, inner)?;
    Some(format!("model.layers.{layer}.{inner}.{parameter}"))
}

/// Whether a tensor holds no weights: what rotary embeddings are computed from.
/// [`config_json`](super::config_json) reads `rope_freqs.weight`.
pub(crate) fn harmless(name: &str) -> bool {
    name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight")
}

fn find(names: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    names
        .iter()
        .find(|(found, _)| *found == name)
        .map(|(_, translated)| *translated)
}

/// Rows of a query or key projection, or entries of its bias (with one column), in Hugging Face's
/// order.
///
/// Hugging Face rotates the first half of a head against its second half; llama.cpp rotates
/// neighbours in files of the architecture `llama` (not `qwen2`), so its converter interleaves the
/// halves of each head. `heads` are those of the projection: the key-value heads for keys.
///
/// # Panics
///
/// If `values` are not `rows * columns`, or the rows not `heads` times an even number.
pub(crate) fn unpermute(values: &[f32], heads: usize, [rows, columns]: [usize; 2]) -> Vec<f32> {
    assert_eq!(values.len(), rows * columns, "values of all rows");
    assert!(
        heads > 0 && rows.is_multiple_of(2 * heads),
        "{rows} rows are no {heads} heads with halves"
    );
    let size = rows / heads;
    let half = size / 2;
    let mut sorted = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, inner) = (row / size, row % size);
        let source = head * size + inner % half * 2 + inner / half;
        sorted.extend_from_slice(&values[source * columns..][..columns]);
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face() {
        for (name, expected) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            (
                "blk.11.attn_norm.weight",
                "model.layers.11.input_layernorm.weight",
            ),
            (
                "blk.0.attn_q.weight",
                "model.layers.0.self_attn.q_proj.weight",
            ),
            ("blk.3.attn_k.bias", "model.layers.3.self_attn.k_proj.bias"),
            ("blk.3.attn_v.bias", "model.layers.3.self_attn.v_proj.bias"),
            (
                "blk.7.attn_output.weight",
                "model.layers.7.self_attn.o_proj.weight",
            ),
            (
                "blk.7.ffn_norm.weight",
                "model.layers.7.post_attention_layernorm.weight",
            ),
            (
                "blk.7.ffn_gate.weight",
                "model.layers.7.mlp.gate_proj.weight",
            ),
            ("blk.7.ffn_up.weight", "model.layers.7.mlp.up_proj.weight"),
            (
                "blk.7.ffn_down.weight",
                "model.layers.7.mlp.down_proj.weight",
            ),
        ] {
            assert_eq!(hugging_face_name(name).as_deref(), Some(expected));
        }
        for name in [
            "",
            "token_embd",
            "rope_freqs.weight",
            "blk.weight",
            "blk.0.weight",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.0.attn_q.scale",
            "blk.0.ffn_gate_exps.weight",
        ] {
            assert_eq!(hugging_face_name(name), None, "{name}");
        }
        assert!(harmless("rope_freqs.weight"));
        assert!(harmless("blk.2.attn_rot_embd.weight"));
        assert!(!harmless("output.weight"));
    }

    #[test]
    fn halves_of_heads_are_taken_apart() {
        // Two heads of six rows with two columns, a value for each place.
        let (heads, half, columns) = (2, 3, 2);
        let rows = heads * 2 * half;
        let upstream: Vec<f32> = (0..rows * columns).map(|value| value as f32).collect();
        // As llama.cpp's converter interleaves them: [heads, 2, half] to [heads, half, 2].
        let mut interleaved = Vec::new();
        for head in 0..heads {
            for place in 0..half {
                for side in 0..2 {
                    let row = (head * 2 + side) * half + place;
                    interleaved.extend_from_slice(&upstream[row * columns..][..columns]);
                }
            }
        }
        let sorted = unpermute(&interleaved, heads, [rows, columns]);
        assert!(
            sorted
                .iter()
                .zip(&upstream)
                .all(|(a, b)| a.total_cmp(b).is_eq())
        );
        assert!(
            !interleaved
                .iter()
                .zip(&upstream)
                .all(|(a, b)| a.total_cmp(b).is_eq())
        );
    }
}
