//! Keys of adapter files, as this crate looks for them, from what other tools have made of them.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::TensorData;

use crate::adapter::checkpoint_key::Style;
use crate::checkpoint::tensors;
use crate::layout::model_layout::Layout;
use crate::method::plan::PlannedAdapter;
use crate::upstream::{ADAPTERHUB_RENAMED, ADAPTERHUB_ROOTS, COMPILED, MODULES_TO_SAVE};

type Tensors = BTreeMap<String, TensorData>;

/// The tensors without what `torch.compile` put into their keys.
///
/// # Errors
///
/// Two keys that differ in nothing else.
pub(crate) fn of_compiled(tensors: Tensors) -> Result<Tensors, String> {
    let mut plain = Tensors::new();
    for (key, data) in tensors {
        let segments: Vec<_> = key.split('.').filter(|part| *part != COMPILED).collect();
        let short = segments.join(".");
        if plain.insert(short.clone(), data).is_some() {
            return Err(format!(
                "it holds `{short}` twice, with and without `{COMPILED}.` in the key; keep one"
            ));
        }
    }
    Ok(plain)
}

/// The tensors of a file in AdapterHub's layout as the model calls them, whichever of a bare model and one with a head it
/// was saved from (`bert.encoder` for `encoder`, or the other way round), and by whichever version.
///
/// # Errors
///
/// Two keys that the model calls the same.
pub(crate) fn of_base_model(tensors: Tensors, layout: &Layout) -> Result<Tensors, String> {
    let names = || layout.layers.iter().map(|layer| layer.name.as_str());
    let is_top = |segment: &str| names().any(|name| first(name) == segment);
    let outer_of = |segment: &str| {
        names().find_map(|name| {
            let (outer, inner) = name.split_once('.')?;
            (first(inner) == segment).then_some(outer)
        })
    };
    // What the blocks are below, in a model with a head.
    let outer = ["encoder", "layers"].into_iter().find_map(outer_of);
    let plain = |key: &str| {
        let (own, rest) = key.split_once('.')?;
        let next = first(rest);
        for of_model in [key, rest] {
            if ADAPTERHUB_ROOTS.contains(&first(of_model)) {
                return Some(match outer {
                    Some(outer) => format!("{outer}.{of_model}"),
                    None => of_model.to_string(),
                });
            }
        }
        if is_top(own) {
            return None;
        }
        match outer_of(own) {
            _ if is_top(next) => Some(rest.to_string()),
            Some(outer) => Some(format!("{outer}.{key}")),
            None => None,
        }
    };
    // By the model's names, each with the file's key.
    let mut found: BTreeMap<String, (String, TensorData)> = BTreeMap::new();
    for (key, data) in tensors {
        let segments = key.split('.').map(|segment| {
            let mut renamed = ADAPTERHUB_RENAMED.iter();
            renamed
                .find(|(old, _)| *old == segment)
                .map_or(segment, |(_, new)| new)
        });
        let current = segments.collect::<Vec<_>>().join(".");
        let name = plain(&current).unwrap_or(current);
        if let Some((other, _)) = found.get(&name) {
            return Err(format!(
                "it holds `{name}` twice, as `{other}` and as `{key}`; keep one"
            ));
        }
        found.insert(name, (key, data));
    }
    let named = found.into_iter().map(|(name, (_, data))| (name, data));
    Ok(named.collect())
}

/// The first segment of a name.
fn first(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Keys of the file with those that `planned` adapters look for in their place, where the file has an adapter's
/// name inside (`lora_A.default.weight`), as state dicts do, or a prefix that this crate once wrote.
///
/// # Errors
///
/// Names of several adapters; a tensor that is missing, with what the file has instead.
pub(crate) fn renames(
    tensors: &Tensors,
    planned: &[PlannedAdapter],
    layout: &Layout,
    style: Style,
    name: &str,
) -> Result<Vec<(String, String)>, String> {
    let expected: BTreeMap<String, Option<usize>> = planned
        .iter()
        .flat_map(|planned| {
            let place = layout.place_name(&planned.path);
            tensors::keys(planned.adapter.module(), style, &place, name)
        })
        .collect();
    let mut missing: BTreeMap<&String, Option<usize>> = expected
        .iter()
        .filter(|(key, _)| !tensors.contains_key(*key))
        .map(|(key, place)| (key, *place))
        .collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let mut others: BTreeSet<&String> = tensors
        .keys()
        .filter(|key| !expected.contains_key(*key))
        .collect();
    // Where a layer's tensors have a name inside, all of them have.
    let named = |key: &String, place: &Option<usize>| place.is_none() || !tensors.contains_key(key);
    let all_named = expected.iter().all(|(key, place)| named(key, place));
    // Pairs of a key of the file and what it is looked for as, by the adapter's name that is left out.
    let mut found: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for key in &others {
        let former = style.former_spelling(key).map(|short| Shorter {
            short,
            name: String::new(),
            at: None,
        });
        let fits = |found: &Shorter| match (found.at, missing.get(&found.short)) {
            (Some(at), Some(Some(place))) => all_named && at > *place,
            (None, Some(None)) => true,
            _ => false,
        };
        if let Some(found_for) = former.into_iter().chain(shorter(key)).find(fits) {
            let renames = found.entry(found_for.name).or_default();
            renames.push(((*key).clone(), found_for.short));
        }
    }
    if found.len() > 1 {
        let names: Vec<_> = found.keys().map(|name| format!("`{name}`")).collect();
        return Err(format!(
            "its keys have names of several adapters inside: {}; keep the tensors of one",
            names.join(", ")
        ));
    }
    let renames: Vec<_> = found.into_values().flatten().collect();
    for (key, short) in &renames {
        missing.remove(short);
        others.remove(key);
    }
    match (missing.first_key_value(), others.first()) {
        (Some((key, _)), Some(other)) => Err(format!(
            "tensor `{key}` is missing; the file has {} that nobody looks for, such as `{other}`",
            others.len()
        )),
        // What is missing is said where it is looked for.
        _ => Ok(renames),
    }
}

/// What a key of a file may stand for.
struct Shorter {
    short: String,
    /// The adapter's name that is left out.
    name: String,
    /// Where in the key that was: behind the layer's name, for a tensor of a layer. `None` where it was in the wrapper
    /// of a module that is saved whole.
    at: Option<usize>,
}

fn shorter(key: &str) -> impl Iterator<Item = Shorter> {
    let parts: Vec<String> = key.split('.').map(str::to_string).collect();
    (1..parts.len()).flat_map(move |at| {
        let without = |from: usize, to: usize, at| Shorter {
            short: [&parts[..from], &parts[to..]].concat().join("."),
            name: parts[from.max(to - 1)].clone(),
            at,
        };
        // Behind `weight` and `bias` there is no name: upstream puts it in front of them.
        let last_of_module = at + 1 == parts.len() && matches!(&*parts[at - 1], "weight" | "bias");
        let mut found = Vec::new();
        if !last_of_module {
            found.push(without(at, at + 1, Some(at)));
        }
        if parts[at - 1] == MODULES_TO_SAVE {
            found.push(without(at - 1, at + 1, None));
        }
        // A magnitude is in a module of its own.
        if parts[at + 1..] == ["weight"] {
            let name = parts[at].clone();
            found.push(Shorter {
                name,
                ..without(at, at + 2, Some(at))
            });
        }
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(keys: &[&str]) -> Tensors {
        let data = || TensorData::new(vec![1.0_f32], [1]);
        keys.iter().map(|key| (key.to_string(), data())).collect()
    }

    #[test]
    fn what_torch_compile_puts_in_front_is_left_out() {
        let found = of_compiled(tensors(&[
            "_orig_mod.base_model.a.weight",
            "base_model._orig_mod.b.weight",
            "base_model.c.weight",
        ]));
        let keys: Vec<_> = found.unwrap().into_keys().collect();
        assert_eq!(
            keys,
            [
                "base_model.a.weight",
                "base_model.b.weight",
                "base_model.c.weight"
            ]
        );
        let error = of_compiled(tensors(&["_orig_mod.a", "a"])).unwrap_err();
        assert!(error.contains("`a` twice"), "{error}");
    }

    #[test]
    fn adapterhubs_files_of_models_with_and_without_a_head_are_one() {
        let layer = |name: &str| crate::layout::model_layout::Layer {
            name: name.into(),
            kind: crate::layout::model_layout::LayerKind::Linear,
            container: "Linear".into(),
            params: Vec::new(),
            head: false,
            groups: 1,
        };
        let layout = |names: &[&str]| Layout {
            params: Vec::new(),
            layers: names.iter().map(|name| layer(name)).collect(),
            sites: Vec::new(),
            model_type: None,
            model_class: None,
            decoder: None,
        };
        let bare = layout(&["embeddings.word_embeddings", "encoder.layer.0.output.dense"]);
        let with_head = layout(&["bert.encoder.layer.0.output.dense", "classifier"]);
        let llama = layout(&["model.layers.0.mlp.up_proj", "lm_head"]);
        for (layout, given, expected) in [
            (
                &bare,
                "bert.encoder.layer.0.output.adapters.a.x",
                "encoder.layer.0.output.adapters.a.x",
            ),
            (
                &bare,
                "encoder.layer.0.output.adapters.a.x",
                "encoder.layer.0.output.adapters.a.x",
            ),
            (
                &bare,
                "encoder.layer.0.output.layer_text_task_adapters.a.x",
                "encoder.layer.0.output.adapters.a.x",
            ),
            (
                &bare,
                "bert.invertible_lang_adapters.a.x",
                "invertible_adapters.a.x",
            ),
            (
                &with_head,
                "encoder.layer.0.output.dense.loras.a.x",
                "bert.encoder.layer.0.output.dense.loras.a.x",
            ),
            (&with_head, "prompt_tuning.a.x", "bert.prompt_tuning.a.x"),
            (
                &with_head,
                "bert.prompt_tuning.a.x",
                "bert.prompt_tuning.a.x",
            ),
            (
                &llama,
                "layers.0.mlp.adapters.a.x",
                "model.layers.0.mlp.adapters.a.x",
            ),
            (
                &llama,
                "model.layers.0.mlp.adapters.a.x",
                "model.layers.0.mlp.adapters.a.x",
            ),
        ] {
            let found = of_base_model(tensors(&[given]), layout).unwrap();
            assert_eq!(found.into_keys().collect::<Vec<_>>(), [expected], "{given}");
        }
    }

    #[test]
    fn an_adapters_name_is_left_out_wherever_upstream_has_it() {
        let stands_for = |key: &str, short: &str| {
            shorter(key).any(|found| found.name == "default" && found.short == short)
        };
        assert!(stands_for("q.lora_A.default.weight", "q.lora_A.weight"));
        assert!(stands_for(
            "e.lora_embedding_A.default",
            "e.lora_embedding_A"
        ));
        assert!(stands_for(
            "score.modules_to_save.default.weight",
            "score.weight"
        ));
        assert!(stands_for(
            "q.lora_magnitude_vector.default.weight",
            "q.lora_magnitude_vector"
        ));
        assert!(!stands_for("q.lora_A.weight", "q.weight"));
    }
}
