//! Tables and heads of the base model in an adapter's file.

use std::collections::BTreeMap;

use burn::tensor::{DType, TensorData};

use crate::checkpoint::transpose::transpose;
use crate::layout::model_layout::{LayerKind, Layout, LayoutParam};
use crate::upstream::{BASE_LAYERS, LM_HEAD, MODULES_TO_SAVE, PREFIX};

/// Whether a tensor is a table or head of the base model's, which upstream writes beside an adapter of it
/// (`save_embedding_layers`); it must be as the model has it.
pub(crate) fn is_base_table(layout: &Layout, key: &str, data: &TensorData) -> Result<bool, String> {
    let Some(layer) = key
        .strip_prefix(PREFIX)
        .and_then(|name| name.strip_suffix(".weight"))
    else {
        return Ok(false);
    };
    let base = BASE_LAYERS.iter().find_map(|base| layer.strip_suffix(base));
    let name = base.unwrap_or(layer);
    let table = |param: &&LayoutParam| {
        let layer = layout.layer_of(param);
        // Upstream knows a head that is the table by a name of its own.
        let named = layer.name == name || param.is_tied() && name == LM_HEAD;
        named && param.field() == "weight" && (layer.kind == LayerKind::Embedding || layer.head)
    };
    let Some(param) = layout.params.iter().find(table) else {
        return Ok(false);
    };
    // A quantized table has the values of its format.
    let quantized = param.quantized_format().is_some();
    let own = param.stored().to_data();
    let own = if layout.is_transposed(param) {
        transpose(own)
    } else {
        own
    };
    if same_within(&own, data, quantized.then_some(1e-2)) {
        return Ok(true);
    }
    if own.shape() != data.shape() {
        return Err(format!(
            "`{key}` has {} rows of {} in the file, the model's `{name}` has {} of {}: the adapter was made on a \
             model with another vocabulary (new tokens, as a rule); load that model",
            data.shape().first().unwrap_or(&0),
            data.shape().last().unwrap_or(&0),
            own.shape().first().unwrap_or(&0),
            own.shape().last().unwrap_or(&0),
        ));
    }
    let tied = layout
        .tied_weights()
        .find(|(head, _)| head.path == param.path);
    Err(match tied {
        Some((_, table)) => format!(
            "`{key}` holds other values than the model's tied head `{name}`, which is the table `{}`: if the head \
             was trained, the configuration must say so (`{name}` in modules_to_save or target_modules, or \
             ensure_weight_tying); if not, the adapter was made on a model with another table: load that model",
            layout.layer_of(table).name
        ),
        None => format!(
            "`{key}` is a table that the base model does not have: the adapter was made on a model with another \
             `{name}` (new tokens, as a rule); load that model"
        ),
    })
}

/// Whether a tensor is a copy of one that stands in the file under its own name. Beside the table of a larger vocabulary,
/// upstream writes what it saves whole a second time, with the wrapper's name in the key, and trained rows a second time for
/// a head that is the table.
pub(crate) fn is_second_copy(
    layout: &Layout,
    tensors: &BTreeMap<String, TensorData>,
    key: &str,
    data: &TensorData,
) -> bool {
    let is_here = |other: String| other != key && tensors.get(&other) == Some(data);
    let wrapper = format!(".{MODULES_TO_SAVE}.");
    let head = format!("{PREFIX}{LM_HEAD}.");
    let of_table = |table: &str| key.replacen(&head, &format!("{PREFIX}{table}."), 1);
    let mut tables = layout.tied_heads().map(|(_, table)| table);
    is_here(key.replace(&wrapper, ".")) || tables.any(|table| is_here(of_table(&table.name)))
}

/// Whether a file's tensor holds the values that the model has. A file of 16 bits has those of its format.
pub(crate) fn same_values(own: &TensorData, stored: &TensorData) -> bool {
    same_within(own, stored, None)
}

/// The same; `coarse` is how far values of a coarser format may be, of 1 or of the value if that is larger.
fn same_within(own: &TensorData, stored: &TensorData, coarse: Option<f32>) -> bool {
    let last_place = last_place(stored.dtype()).max(last_place(own.dtype()));
    let near = |own: f32| match coarse {
        Some(coarse) => coarse * own.abs().max(1.0),
        None => last_place * own.abs() + 1e-6,
    };
    stored.dtype().is_float()
        && own.shape() == stored.shape()
        && own
            .iter::<f32>()
            .zip(stored.iter::<f32>())
            .all(|(own, stored)| (own - stored).abs() <= near(own))
}

/// What the last place of a format is of a number, at most.
fn last_place(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 1e-6,
    }
}
