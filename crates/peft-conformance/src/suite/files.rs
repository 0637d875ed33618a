//! Conformance tests of saved adapters.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::method::Method;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, checkpoint};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{NAME, Verdict, ensure, registered, text};
use crate::TinyTransformer;
use crate::fixture::{Fixture, base_values, farthest};

/// Guarantees: a saved adapter that is loaded into a fresh base, under another seed and name, gives the same outputs, bit
/// for bit, and so does that one when it is saved again. The counts are the same.
///
/// If it fails: a tensor of the state is not among its `tensors()`, a field of the configuration is not in its JSON, or
/// something is drawn again when the adapter is loaded.
pub(super) fn saved(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let model = fixture.trained(NAME, method)?;
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    model.save_adapter(NAME, &one).map_err(text)?;
    fixture.device.seed(991);
    let loaded = fixture
        .base
        .load_adapter("other", &one, &registered(method))
        .map_err(text)?;
    ensure(
        fixture.outputs(&loaded)? == fixture.outputs(&model)?,
        || "outputs changed".into(),
    )?;
    let (counts, before) = (loaded.counts(), model.counts());
    let keys = |model: &TinyTransformer, name: &str| -> Result<Vec<String>, String> {
        let tensors = model.adapter_tensors(name).map_err(text)?;
        Ok(tensors.into_keys().collect())
    };
    // Where other tensors are stored than were trained, those are what trains on: all of them but integers, which never
    // train, or as many as before, where a part is frozen.
    let tensors = loaded.adapter_tensors("other").map_err(text)?;
    let whole = tensors.values().filter(|data| !data.dtype().is_float());
    let whole: usize = whole.map(TensorData::num_elements).sum();
    let kept = if keys(&loaded, "other")? == keys(&model, NAME)? {
        counts == before
    } else {
        let as_stored = counts.stored + counts.saved_modules;
        let all = counts.trainable + whole == as_stored;
        counts.stored == before.stored && (all || counts == before)
    };
    ensure(kept, || {
        format!("{counts:?} once loaded, {before:?} before")
    })?;
    loaded.save_adapter("other", &two).map_err(text)?;
    let again = fixture
        .base
        .load_adapter(NAME, &two, &registered(method))
        .map_err(text)?;
    ensure(fixture.outputs(&again)? == fixture.outputs(&model)?, || {
        "a second round changed outputs".into()
    })
}

/// The only file of a folder whose name ends so.
fn file_ending(dir: &Path, end: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(dir).map_err(|error| error.to_string())?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found = paths.filter(|path| path.to_string_lossy().ends_with(end));
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => Err(format!("not one file `*{end}` was written")),
    }
}

/// The file of a saved adapter's tensors.
fn tensor_file(dir: &Path) -> Result<PathBuf, String> {
    file_ending(dir, ".safetensors")
}

/// The tensors of a saved adapter, by key, as bytes.
fn file_tensors(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let bytes = fs::read(tensor_file(dir)?).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
    Ok(file
        .iter()
        .map(|(key, view)| (key.to_string(), view.data().to_vec()))
        .collect())
}

/// Guarantees: the adapter's file has as many bytes of tensors as `counts()` says, and no base parameter is in it.
///
/// If it fails on the bytes: `tensors()` lists other tensors than those that the method plans. If it fails on a key: the
/// named tensor of the file is the named parameter of the base.
pub(super) fn adapter_file(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let model = fixture.trained(NAME, method)?;
    model.save_adapter(NAME, dir.path()).map_err(text)?;
    let tensors = file_tensors(dir.path())?;
    let bytes: usize = tensors.values().map(Vec::len).sum();
    let counts = model.counts();
    let declared = counts.stored_bytes + 4 * counts.saved_modules;
    ensure(bytes == declared, || {
        format!("{bytes} bytes of tensors, declared {declared}")
    })?;
    for (name, value) in base_values(&fixture.base) {
        // A short vector of zeros is no proof of anything.
        let proof = value.iter::<f32>().any(|value| value != 0.0);
        let held = tensors
            .iter()
            .find(|(_, data)| data.as_slice() == value.as_bytes());
        if let (true, Some((key, _))) = (proof, held) {
            return Err(format!("`{key}` is the base's `{name}`"));
        }
    }
    Ok(())
}

/// Guarantees: damaged files are refused with an error that names the file and the tensor, and the model stays as it was.
///
/// If it fails: the method reads tensors or fields itself and takes what it finds, in place of leaving that to core. The
/// message names the damage, and the word that the error lacks.
pub(super) fn damaged_files(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let model = fixture.trained(NAME, method)?;
    model.save_adapter(NAME, dir.path()).map_err(text)?;
    let path = tensor_file(dir.path())?;
    let file = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let good = fs::read(&path).map_err(|error| error.to_string())?;
    let config_path = file_ending(dir.path(), "_config.json")?;
    let config_file = config_path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let config = fs::read(&config_path).map_err(|error| error.to_string())?;
    let state = |model: &TinyTransformer| -> Result<_, String> {
        Ok((
            fixture.outputs(model)?,
            model.counts(),
            model.adapters(),
            base_values(model),
        ))
    };
    let (before, on_disk) = (state(&model)?, fs::read(&path).ok());

    let refused = |what: &str, fragments: &[&str]| -> Verdict {
        // Under a new name, on a model that has an adapter already.
        let error = match model.load_adapter("second", dir.path(), &registered(method)) {
            Ok(_) => return Err(format!("{what} was loaded")),
            Err(error) => error.to_string(),
        };
        for fragment in fragments {
            ensure(error.contains(fragment), || {
                format!("{what}: no `{fragment}` in: {error}")
            })?;
        }
        ensure(state(&model)? == before, || {
            format!("{what} changed the model")
        })
    };
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(|e| e.to_string());
    let key = first_key(&good)?;

    write(&path, &good[..good.len() - 1])?;
    refused("a truncated file", &[&file, "safetensors"])?;
    write(&path, &[])?;
    refused("an empty file", &[&file, "safetensors"])?;
    write(&path, &u64::MAX.to_le_bytes())?;
    refused("a header of 16 EiB", &[&file, "safetensors"])?;
    let nan = |tensor: &mut Loose| tensor.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&path, &transformed(&good, |tensors| nan(&mut tensors[0]))?)?;
    refused("a file with NaN", &[&file, "NaN"])?;
    write(
        &path,
        &transformed(&good, |tensors| tensors[0].shape.insert(0, 1))?,
    )?;
    refused("a tensor of another shape", &[&file, &key, "shape"])?;
    write(
        &path,
        &transformed(&good, |tensors| tensors[0].key.push('x'))?,
    )?;
    refused("a tensor under another name", &[&file, &key, "missing"])?;
    let extra = Loose {
        key: "extra".into(),
        data: vec![0; 4],
        dtype: Dtype::F32,
        shape: vec![1],
    };
    write(&path, &transformed(&good, |tensors| tensors.push(extra))?)?;
    refused("a tensor that belongs nowhere", &[&file, "extra"])?;
    write(
        &path,
        &transformed(&good, |tensors| tensors[0].dtype = Dtype::I32)?,
    )?;
    refused("a tensor of integers", &[&file, &key, "I32"])?;
    write(&path, &good)?;
    write(&config_path, b"{\"peft_type\": \"NO_SUCH_METHOD\"}")?;
    refused("an unknown method", &[&config_file, "NO_SUCH_METHOD"])?;
    write(&config_path, &config[..config.len() / 2])?;
    refused("half a configuration", &[&config_file, "JSON"])?;
    fs::remove_file(&config_path).map_err(|error| error.to_string())?;
    refused(
        "a folder without a configuration",
        &[checkpoint::CONFIG_FILE],
    )?;
    write(&config_path, &config)?;
    ensure(fs::read(&path).ok() == on_disk, || {
        "reading changed the file".into()
    })?;
    let loaded = fixture
        .base
        .load_adapter(NAME, dir.path(), &registered(method))
        .map_err(text)?;
    ensure(fixture.outputs(&loaded)? == before.0, || {
        "outputs changed".into()
    })
}

/// One tensor of a file, to be damaged.
struct Loose {
    key: String,
    data: Vec<u8>,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// The key that a file lists first.
fn first_key(file: &[u8]) -> Result<String, String> {
    let mut key = String::new();
    transformed(file, |tensors| key.clone_from(&tensors[0].key))?;
    Ok(key)
}

/// A file with its tensors changed; the first one is never empty, and of floats where the file has some.
fn transformed(file: &[u8], change: impl FnOnce(&mut Vec<Loose>)) -> Result<Vec<u8>, String> {
    let file = SafeTensors::deserialize(file).map_err(|error| error.to_string())?;
    let mut tensors: Vec<Loose> = file
        .iter()
        .map(|(key, view)| Loose {
            key: key.to_string(),
            data: view.data().to_vec(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
        })
        .collect();
    let is_integer =
        |tensor: &Loose| [Dtype::U8, Dtype::I16, Dtype::I32, Dtype::I64].contains(&tensor.dtype);
    tensors.sort_by_key(|tensor| (is_integer(tensor), tensor.key.clone()));
    change(&mut tensors);
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data);
        (tensor.key.as_str(), view.expect("shape and data still fit"))
    });
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

/// Guarantees: a saved adapter gives the same outputs on every CPU backend (within 1e-4).
///
/// If it fails: a value that is drawn when the adapter is loaded comes from the backend's generator and not from the
/// method's own, or an operation has other results on the named device.
pub(super) fn devices_agree(fixture: &Fixture, method: &dyn Method) -> Verdict {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let model = fixture.trained(NAME, method)?;
    model.save_adapter(NAME, dir.path()).map_err(text)?;
    for (name, device) in peft_core::device::cpu_devices() {
        let there = fixture.on(&device);
        let loaded = there
            .base
            .load_adapter(NAME, dir.path(), &registered(method))
            .map_err(text)?;
        let distance = farthest(&there.outputs(&loaded)?, &fixture.outputs(&model)?);
        ensure(distance < 1e-4, || {
            format!("outputs on {name} differ by {distance}")
        })?;
    }
    Ok(())
}
