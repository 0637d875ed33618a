//! X-LoRA's folder: the classifier, and the experts in folders of their own.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{ModuleDisplay, Param};
use burn::nn::Linear;
use burn::tensor::{Tensor, TensorData};
use peft_core::checkpoint::{self, CONFIG_FILE, MODEL_FILE, TensorSource};
use peft_core::files::{self, Files};
use peft_core::method::MethodInfo;
use peft_core::{Error, PeftModule, Result};

use crate::mixture::classifier::XLoraClassifier;
use crate::mixture::xlora::XLora;
use crate::mixture::xlora_config::XLoraConfig;

/// Upstream's name of the method.
const PEFT_TYPE: &str = "XLORA";

/// In front of the classifier's keys.
const PREFIX: &str = "base_model.internal_xlora_classifier.layers";

/// The index of each linear layer in upstream's list, where ReLU and dropout lie between them.
fn index(at: usize, config: &XLoraConfig) -> usize {
    let between = if config.xlora_dropout_p > 0.0 { 2 } else { 1 };
    at * (1 + between)
}

/// The classifier's tensors, as torch has them.
fn tensors(classifier: &XLoraClassifier, config: &XLoraConfig) -> BTreeMap<String, TensorData> {
    let mut found = BTreeMap::new();
    for (at, layer) in classifier.layers.iter().enumerate() {
        let key = |name: &str| format!("{PREFIX}.{}.{name}", index(at, config));
        let weight = layer.weight.val().transpose().into_data();
        found.insert(key("weight"), weight);
        let bias = layer.bias.as_ref().map(|bias| bias.val().into_data());
        found.extend(bias.map(|bias| (key("bias"), bias)));
    }
    found
}

/// The classifier with these tensors in it.
fn filled(
    mut classifier: XLoraClassifier,
    config: &XLoraConfig,
    mut found: BTreeMap<String, TensorData>,
) -> Result<XLoraClassifier, String> {
    let mut take = |key: String, shape: [usize; 2], rank: usize| {
        let data = found.remove(&key).ok_or_else(|| {
            format!(
                "tensor `{key}` is missing. Hugging Face PEFT 0.21 saves X-LoRA without its classifier; save that under \
                 its name in the model's `state_dict`"
            )
        })?;
        if !data.dtype().is_float() || data.shape().to_vec() != shape[2 - rank..] {
            let (found, dtype) = (data.shape().to_vec(), data.dtype());
            let expected = &shape[2 - rank..];
            return Err(format!(
                "tensor `{key}` has shape {found:?} of {dtype:?}, the configuration and the model need {expected:?} of \
                 floats"
            ));
        }
        Ok(data)
    };
    for (at, layer) in classifier.layers.iter_mut().enumerate() {
        // Not of its value: that of a fresh one is not drawn before it is looked at.
        let [d_in, d_out] = layer.weight.lazy_shape().dims();
        let key = |name: &str| format!("{PREFIX}.{}.{name}", index(at, config));
        let weight = take(key("weight"), [d_out, d_in], 2)?;
        let bias = take(key("bias"), [1, d_out], 1)?;
        *layer = Linear {
            weight: with(layer.weight.clone(), weight, Tensor::transpose),
            bias: layer
                .bias
                .clone()
                .map(|param| with(param, bias, |bias| bias)),
        };
    }
    match found.keys().next() {
        None => Ok(classifier),
        Some(key) => Err(format!("the classifier has no place for tensor `{key}`")),
    }
}

/// The parameter with the value that `laid_out` makes of the file's. That of a fresh one is never drawn.
fn with<const D: usize>(
    param: Param<Tensor<D>>,
    data: TensorData,
    laid_out: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    if !param.is_initialized() {
        let (device, id) = (param.lazy_device(), param.id);
        let value = laid_out(Tensor::from_data(data, &device)).detach();
        return param.transform_for_load(value, id);
    }
    param.map(|old| {
        let data = data.convert_dtype(old.dtype());
        let value = laid_out(Tensor::from_data(data, (&old.device(), old.dtype())));
        value.detach().set_require_grad(old.is_require_grad())
    })
}

impl<M: PeftModule + ModuleDisplay> XLora<M> {
    /// The classifier's tensors under upstream's keys.
    pub fn classifier_tensors(&self) -> BTreeMap<String, TensorData> {
        tensors(&self.classifier, &self.config)
    }

    /// The same with other values of the classifier, under upstream's keys.
    ///
    /// # Errors
    ///
    /// [`Error::Tensors`] where one is missing, of the wrong shape or without a place.
    pub fn with_classifier_tensors(&self, found: BTreeMap<String, TensorData>) -> Result<Self> {
        let classifier = filled(self.classifier.clone(), &self.config, found);
        let classifier = classifier.map_err(|reason| Error::Tensors {
            adapter: "X-LoRA's classifier".into(),
            reason,
        })?;
        Ok(Self {
            classifier,
            ..self.clone()
        })
    }

    /// Writes the configuration and the classifier into `dir`, and each expert into a folder there that is called as it
    /// is. Upstream's file has no tensors of the classifier; here it has those that upstream looks for.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let mut config = self.config.clone();
        config.adapters.clear();
        for expert in &self.experts {
            self.model.save_adapter(expert, dir.join(expert))?;
            config
                .adapters
                .insert(expert.clone(), expert.clone().into());
        }
        let mut json = serde_json::to_value(&config).expect("plain data");
        if let Some(fields) = json.as_object_mut() {
            fields.insert("peft_type".into(), PEFT_TYPE.into());
            fields.insert("inference_mode".into(), true.into());
        }
        let text = serde_json::to_string_pretty(&json).expect("JSON values serialize");
        let tensors = self.classifier_tensors();
        let sources = tensors
            .iter()
            .map(|(key, data)| (key.clone(), TensorSource::Data(data)));
        let mut files = Files::new(dir)?;
        checkpoint::stage_file(&mut files, MODEL_FILE, sources.collect())?;
        files.stage(CONFIG_FILE, |file| file.write_all(text.as_bytes()))?;
        files.commit()
    }

    /// Reads what [`save`](Self::save) wrote, or upstream where its file has the classifier. Each expert is loaded from
    /// the folder of its name in `dir`, else from the one that the configuration says, there or anywhere. `methods` are
    /// those that experts may be of.
    ///
    /// # Errors
    ///
    /// Unreadable or damaged files; what [`load_adapter`](PeftModule::load_adapter) and [`XLoraConfig::init`] refuse.
    pub fn load(
        base: &M,
        dir: impl AsRef<Path>,
        methods: &[&MethodInfo],
        hidden_size: usize,
    ) -> Result<Self> {
        let dir = dir.as_ref();
        let config_path = dir.join(CONFIG_FILE);
        let wrong = |reason: String, path: &Path| Error::Checkpoint {
            path: path.into(),
            reason,
        };
        let mut json = checkpoint::read_config(dir)?;
        if json["peft_type"] != PEFT_TYPE {
            let reason = format!("`peft_type` is {}, not \"{PEFT_TYPE}\"", json["peft_type"]);
            return Err(wrong(reason, &config_path));
        }
        json.as_object_mut()
            .map(|fields| fields.remove("peft_type"));
        let config: Result<XLoraConfig, _> = serde_json::from_value::<XLoraConfig>(json);
        let config = config.map_err(|error| wrong(error.to_string(), &config_path))?;
        let mut experts: Vec<&str> = config.adapters.keys().map(String::as_str).collect();
        // Files have "10" before "2".
        if let Some(numbers) = experts
            .iter()
            .map(|name| name.parse::<usize>().ok())
            .collect::<Option<Vec<_>>>()
        {
            let mut numbered: Vec<_> = numbers.into_iter().zip(experts).collect();
            numbered.sort_unstable();
            experts = numbered.into_iter().map(|(_, name)| name).collect();
        }
        let mut model = base.clone();
        for name in &experts {
            let own = dir.join(name);
            let said = config.adapters[*name].as_str().unwrap_or(name);
            let folder = if own.join(CONFIG_FILE).exists() {
                own
            } else {
                dir.join(said)
            };
            model = model.load_adapter(name, folder, methods)?;
        }
        let fresh = config.init(&model, &experts, hidden_size)?;
        let path = files::readable(dir, CONFIG_FILE, MODEL_FILE);
        let tensors = checkpoint::read_tensors(&path)?;
        let classifier = filled(fresh.classifier.clone(), &config, tensors);
        Ok(Self {
            classifier: classifier.map_err(|reason| wrong(reason, &path))?,
            ..fresh
        })
    }
}
