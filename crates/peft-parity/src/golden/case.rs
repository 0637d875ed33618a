//! A case's folder: what is read from it, and what is upstream's error in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::method::MethodInfo;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, checkpoint};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::compare::farthest;
use super::{Problem, Tensors};

/// Tensors and metadata of a file that says what upstream computes.
pub(super) fn read(path: &Path) -> Result<(Tensors, BTreeMap<String, String>), Problem> {
    let problem = Problem::new(path);
    let bytes = fs::read(path).map_err(|error| problem(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| problem(&error))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| problem(&error))?;
    let tensors = file
        .iter()
        .map(|(key, view)| {
            let dtype = match view.dtype() {
                Dtype::F32 => burn::tensor::DType::F32,
                Dtype::I64 => burn::tensor::DType::I64,
                other => return Err(problem(&format!("{key} is {other:?}"))),
            };
            let data =
                TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
            Ok((key.to_string(), data))
        })
        .collect::<Result<_, _>>()?;
    let metadata = header.metadata().clone().unwrap_or_default();
    Ok((tensors, metadata.into_iter().collect()))
}

/// The model with a case's adapter as it was trained, where upstream trained an encoder and stored what that
/// computes.
pub(super) fn as_trained<M: PeftModule>(
    base: &M,
    case: &Path,
    name: &str,
    methods: &[&MethodInfo],
) -> Result<Option<M>, Problem> {
    let path = case.join("encoder.safetensors");
    if !path.exists() {
        return Ok(None);
    }
    let (mut encoder, _) = read(&path)?;
    let config = checkpoint::read_config(case)?;
    let info = methods
        .iter()
        .find(|info| config["peft_type"] == info.peft_type);
    let Some(info) = info else {
        return Ok(None);
    };
    let method = (info.parse)(&config)?;
    let fresh = base.attach(name, method.as_ref())?;
    let own = fresh.adapter_tensors(name)?;
    // Otherwise what is trained is what the checkpoint holds.
    if !encoder.keys().all(|key| own.contains_key(key)) {
        return Ok(None);
    }
    // A head that is saved beside it.
    let (stored, _) = read(&case.join(checkpoint::MODEL_FILE))?;
    let others = stored.into_iter().filter(|(key, _)| own.contains_key(key));
    encoder.extend(others);
    Ok(Some(fresh.with_adapter_tensors(name, encoder)?))
}

/// Cases, by how their names begin, whose configuration lacks a field, because upstream forgets to write it: what upstream
/// computed with is the value here, and what upstream computes with when it loads the folder is another.
pub const SAYS_LESS: &[(&str, &str, bool)] = &[("direft", "subtract_projection", false)];

/// The checkpoint, set to compute gradients as upstream does where those are not what they should be, with what upstream
/// forgets to write, and without what AdapterHub drops at random, as its values are those of `eval()`.
pub(super) fn upstream_gradients(case: &Path) -> Result<tempfile::TempDir, Problem> {
    let problem = Problem::new(case);
    let dir = tempfile::tempdir().map_err(|error| problem(&error))?;
    for file in fs::read_dir(case).map_err(|error| problem(&error))? {
        let file = file.map_err(|error| problem(&error))?;
        fs::copy(file.path(), dir.path().join(file.file_name()))
            .map_err(|error| problem(&error))?;
    }
    let read = checkpoint::read_config(dir.path())?;
    let mut config = read.clone();
    // Of C3A upstream's gradients are wrong; Poly's and PVeRA's were computed without the noise that training has.
    match config["peft_type"].as_str() {
        Some("C3A") => config["upstream_gradient"] = true.into(),
        Some("POLY") => config["deterministic_router"] = true.into(),
        // Its base was quantized by bitsandbytes on a CPU with AVX-512.
        Some("LORA") if config["init_lora_weights"] == "loftq" => {
            config["loftq_config"]["upstream_scales"] = true.into();
        }
        Some("PVERA") => config["deterministic"] = true.into(),
        _ => {}
    }
    if let Some((_, field, value)) = SAYS_LESS
        .iter()
        .find(|(begin, ..)| name(case).starts_with(begin))
    {
        config[*field] = (*value).into();
    }
    without_chance(&mut config["config"]);
    if config != read {
        let path = dir.path().join(checkpoint::CONFIG_FILE);
        peft_core::files::write(&path, config.to_string()).map_err(|error| problem(&error))?;
    }
    Ok(dir)
}

/// Sets to zero what AdapterHub drops at random, in a configuration of its layout and in the parts of a union.
fn without_chance(fields: &mut Value) {
    for field in ["dropout", "stochastic_depth"] {
        if let Some(rate) = fields.get_mut(field).filter(|rate| rate.is_number()) {
            *rate = 0.0.into();
        }
    }
    let parts = fields.get_mut("configs").and_then(Value::as_array_mut);
    parts.into_iter().flatten().for_each(without_chance);
}

/// Beyond this upstream's merged output is not its unmerged one's.
const MERGE_ERROR: f32 = 1e-3;

/// Cases whose merged output is upstream's bug, so that its unmerged one says what is right, each with its kind of
/// model: the table is the head as well, and merging changes both, where the adapter changes one.
pub const UPSTREAM_MERGES_WRONG: &[(&str, &str)] = &[
    ("llama", "lora_embedding"),
    ("llama", "lora_dora_embedding"),
    ("llama", "lora_table"),
    ("llama", "lora_table_bf16"),
    ("llama", "lora_tied_head"),
    ("llama", "lora_weight_tying_head"),
    ("llama", "lora_weight_tying_targets"),
];

/// Cases whose unmerged output is upstream's bug, and its gradients with it, so that its merged output says what is right,
/// each with its kind of model: OFT on a kernel of more than one element rotates overlapping patches and adds them up.
pub const UPSTREAM_IS_WRONG_UNMERGED: &[(&str, &str)] = &[("cnn", "oft_kernel3")];

/// Whether a case is one of [`UPSTREAM_IS_WRONG_UNMERGED`].
pub(super) fn is_wrong_unmerged(case: &Path, model: &str) -> bool {
    UPSTREAM_IS_WRONG_UNMERGED.contains(&(model, name(case)))
}

/// Architecture of AdapterHub's configurations with which padded rows are upstream's bug: with torch's scaled dot product, its
/// virtual tokens attend to padding, so that a text's output depends on how far it is padded. Rows without padding say what is
/// right. The values of a case whose name ends with `_eager` are not of the scaled dot product.
const SEES_PADDING: &str = "prompt_tuning";

/// Whether padded rows of a case are upstream's bug, as [`SEES_PADDING`] says: of its adapter, a part of it, or one of several.
fn sees_padding(case: &Path) -> bool {
    fn has_prompt(config: &Value) -> bool {
        let parts = config["configs"].as_array().into_iter().flatten();
        config["architecture"] == SEES_PADDING || parts.into_iter().any(has_prompt)
    }
    let sees = |dir: &Path| {
        let config = checkpoint::read_config(dir).unwrap_or_default();
        has_prompt(&config["config"])
    };
    let of_several = || is_composed(case) && parts(case).iter().any(|part| sees(part));
    !name(case).ends_with("_eager") && (sees(case) || of_several())
}

/// Outputs `[batch, tokens, d]` in the order of ours, where virtual tokens are in front of the text: in AdapterHub's
/// `prefix_after_bos` the text's first token is in front of them.
pub(super) fn in_our_order(case: &Path, data: TensorData) -> TensorData {
    /// How many virtual tokens there are behind a text's first token.
    fn behind_first(fields: &Value) -> usize {
        let parts = fields["configs"].as_array().into_iter().flatten();
        let of_parts: usize = parts.map(behind_first).sum();
        let own = (fields["combine"] == "prefix_after_bos").then(|| &fields["prompt_length"]);
        own.and_then(Value::as_u64).unwrap_or_default() as usize + of_parts
    }
    let config = checkpoint::read_config(case).unwrap_or_default();
    let virtual_tokens = behind_first(&config["config"]);
    if virtual_tokens == 0 || data.shape().len() != 3 {
        return data;
    }
    let shape = data.shape().to_vec();
    let mut values: Vec<f32> = data.iter::<f32>().collect();
    let (tokens, width) = (shape[1], shape[2]);
    for row in values.chunks_mut(tokens * width) {
        let end = row.len().min((virtual_tokens + 1) * width);
        row[..end].rotate_left(width);
    }
    TensorData::new(values, shape)
}

/// The rows of `data`, `[batch, …]`, that say what is right: all, but where [`SEES_PADDING`] says that padded ones are wrong.
pub(super) fn right_rows(case: &Path, data: &TensorData, mask: &TensorData) -> TensorData {
    if !sees_padding(case) {
        return data.clone();
    }
    let (rows, mut shape) = (mask.shape()[0], data.shape().to_vec());
    let mask: Vec<i64> = mask.iter::<i64>().collect();
    let values: Vec<f32> = data.iter::<f32>().collect();
    let width = values.len() / rows.max(1);
    let whole = |row: &usize| {
        let tokens = mask.len() / rows;
        mask[row * tokens..(row + 1) * tokens]
            .iter()
            .all(|kept| *kept != 0)
    };
    let kept: Vec<usize> = (0..rows).filter(whole).collect();
    let values = kept
        .iter()
        .flat_map(|row| &values[row * width..(row + 1) * width]);
    shape[0] = kept.len();
    TensorData::new(values.copied().collect::<Vec<f32>>(), shape)
}

/// What a merged model must compute: upstream's merged output, or its unmerged one in a case of
/// [`UPSTREAM_MERGES_WRONG`].
pub(super) fn expected_of_merged<'a>(
    case: &Path,
    model: &str,
    [merged, unmerged]: [&'a TensorData; 2],
) -> Result<&'a TensorData, Problem> {
    let distance = farthest(merged, unmerged, "upstream's merged output")?;
    if distance <= MERGE_ERROR {
        return Ok(merged);
    }
    if UPSTREAM_MERGES_WRONG.contains(&(model, name(case))) {
        return Ok(unmerged);
    }
    Err(Problem::new(case)(&format!(
        "upstream's merged output is {distance:e} from its unmerged one, and the case is not named in \
         UPSTREAM_MERGES_WRONG"
    )))
}

/// The name of a case's folder.
pub(super) fn name(case: &Path) -> &str {
    case.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("")
}

/// The name that a case's adapter gets: its own, which is part of the keys of AdapterHub's files.
pub(super) fn adapter_name(case: &Path) -> String {
    let config = checkpoint::read_config(case).unwrap_or_default();
    config["name"].as_str().unwrap_or("golden").to_string()
}

/// A file with the path of the case that has the adapters, from the case's folder, where several cases have the same.
const ADAPTERS: &str = "adapters";

/// The folder that has a case's adapters in its sub-folders.
pub(super) fn adapters_of(case: &Path) -> PathBuf {
    match fs::read_to_string(case.join(ADAPTERS)) {
        Ok(path) => case.join(path.trim()),
        Err(_) => case.to_path_buf(),
    }
}

/// The sub-folders with a checkpoint, in alphabetic order.
pub(super) fn parts(case: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(adapters_of(case))
        .into_iter()
        .flatten()
        .flatten();
    let mut parts: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(checkpoint::CONFIG_FILE).exists())
        .collect();
    parts.sort();
    parts
}

/// Whether a folder is a case of several adapters: values of outputs beside folders with checkpoints.
pub(super) fn is_composed(folder: &Path) -> bool {
    folder.join("io.safetensors").exists()
        && !folder.join(checkpoint::CONFIG_FILE).exists()
        && !parts(folder).is_empty()
}

/// Whether a folder is a case: of one adapter, or of several in its sub-folders.
pub fn is_case(folder: &Path) -> bool {
    folder.join(checkpoint::CONFIG_FILE).exists() || is_composed(folder)
}

/// The `peft_type` of a case's checkpoint. For a checkpoint of AdapterHub's, its `architecture`, which is
/// `bottleneck` where the file says none; the composition for a case of several adapters; empty where there is no
/// checkpoint.
pub fn peft_type(case: &Path) -> String {
    if is_composed(case) {
        return name(case).to_string();
    }
    let text = fs::read_to_string(case.join(checkpoint::CONFIG_FILE)).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    let architecture = match &config["config"] {
        Value::Object(fields) => fields
            .get("architecture")
            .map_or("bottleneck", |value| value.as_str().unwrap_or("bottleneck")),
        _ => "",
    };
    config["peft_type"]
        .as_str()
        .unwrap_or(architecture)
        .to_string()
}
