//! Runs a case.

use std::fs;
use std::path::Path;

use burn::module::ModuleDisplay;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use peft_core::method::MethodInfo;
use peft_core::nn::{ForwardContext, Routing, TaskIds};
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, checkpoint};
use peft_models::{Bert, BertClassifier, BertTokenClassifier, Llama};
use serde_json::Value;

use super::case::{
    adapter_name, as_trained, expected_of_merged, in_our_order, is_composed, is_wrong_unmerged,
    peft_type, read, right_rows, upstream_gradients,
};
use super::cnn::{ARCHITECTURE_FILE, Cnn};
use super::compare::{farthest, farthest_of_gradients, worst};
use super::composed;
use super::gradients::GradientsAsValues;
use super::rounding::{DRAWS, LastBit};
use super::routed::XLoraCase;
use super::values::{Input, InputData, Values};
use super::{Measured, Problem, Rounding, Tensors, counted, lost, shared, tolerance};

/// Loads a case through the public API and measures how far it is from upstream.
///
/// # Errors
///
/// [`Problem::Unsupported`] for a model or method that is not here; [`Problem::Failed`] for
/// everything else that keeps the case from being measured.
pub fn measure(
    base: &Path,
    case: &Path,
    methods: &[&MethodInfo],
    device: &Device,
) -> Result<Measured, Problem> {
    let autodiff = device.clone().autodiff();
    if base.join(ARCHITECTURE_FILE).exists() {
        let cnn = Cnn::load(base, &autodiff)?;
        let run = |cnn: &Cnn, input: Input, context| cnn.forward_in(input.pictures(), &context);
        return measure_model(&cnn, "cnn", [run, run], case, methods, device);
    }
    let path = base.join("config.json");
    let problem = Problem::new(&path);
    let text = fs::read_to_string(&path).map_err(|error| problem(&error))?;
    let config: Value = serde_json::from_str(&text).map_err(|error| problem(&error))?;
    match config["architectures"][0].as_str() {
        Some("BertForSequenceClassification" | "BertForMultipleChoice") => {
            let bert = BertClassifier::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run = |bert: &BertClassifier, input: Input, context| {
                bert.forward_in(input.ids(), context)
            };
            return measure_model(&bert, "bert_seq_cls", [run, run], case, methods, device);
        }
        Some("BertForTokenClassification" | "BertForQuestionAnswering") => {
            let bert =
                BertTokenClassifier::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run = |bert: &BertTokenClassifier, input: Input, context| {
                bert.forward_in(input.ids(), context)
            };
            return measure_model(&bert, "bert_token_cls", [run, run], case, methods, device);
        }
        Some(head) if head.contains("Classification") => {
            return Err(Problem::Unsupported(format!("a base that is a {head}")));
        }
        _ => {}
    }
    match config["model_type"].as_str() {
        Some("bert") => {
            let bert = Bert::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run =
                |bert: &Bert, input: Input, context| bert.forward_in(input.ids(), context).hidden;
            measure_model(&bert, "bert", [run, run], case, methods, device)
        }
        Some("llama" | "mistral" | "qwen2") => {
            let llama = Llama::load(base, &autodiff).map_err(|error| problem(&error))?;
            let llama = with_table_of(with_tokens_of(llama, case), case);
            let logits =
                |llama: &Llama, input: Input, context| llama.forward_in(input.ids(), context);
            let hidden =
                |llama: &Llama, input: Input, context| llama.hidden_in(input.ids(), context);
            let run: [TextModel<Llama>; 2] = [logits, hidden];
            measure_model(&llama, "llama", run, case, methods, device)
        }
        other => Err(Problem::Unsupported(format!(
            "model_type {}",
            other.unwrap_or("missing")
        ))),
    }
}

/// The model with the tokens that the case's file has a longer table for.
fn with_tokens_of(llama: Llama, case: &Path) -> Llama {
    // What cannot be read is found out when the adapter is loaded.
    match llama.with_vocabulary_of(case) {
        Ok(grown) if grown.counts().total > llama.counts().total => grown,
        _ => llama,
    }
}

/// The model with the table in 16 bits that the case's file has beside the adapter: upstream computes with that one. Here the
/// model keeps its own, so that the two are compared on the same values.
fn with_table_of(mut llama: Llama, case: &Path) -> Llama {
    const TABLE: &str = "base_model.model.model.embed_tokens.base_layer.weight";
    // What cannot be read is found out when the adapter is loaded.
    let tensors = checkpoint::read_tensors(&case.join(checkpoint::MODEL_FILE));
    let stored = tensors.ok().and_then(|mut tensors| tensors.remove(TABLE));
    let param = &llama.model.embed_tokens.weight;
    let fits = |data: &TensorData| {
        matches!(data.dtype(), DType::F16 | DType::BF16) && *data.shape() == param.lazy_shape()
    };
    if let Some(stored) = stored.filter(fits) {
        let value = Tensor::from_data(stored.convert::<f32>(), &param.lazy_device());
        let table = llama.model.embed_tokens.weight.clone();
        llama.model.embed_tokens.weight = table.map(|_| value);
    }
    llama
}

/// The tensors of an adapter under the keys of its file.
fn tensors<M: PeftModule>(model: &M, name: &str) -> Result<Tensors, Problem> {
    let config = model.adapter_config(name)?;
    if !config["config"].is_object() {
        return Ok(model.adapter_tensors(name)?);
    }
    // In memory they have Hugging Face PEFT's keys; a file in AdapterHub's layout has its own.
    let failed = |error: &dyn std::fmt::Display| Problem::Failed(error.to_string());
    let dir = tempfile::tempdir().map_err(|error| failed(&error))?;
    model.save_adapter(name, dir.path())?;
    Ok(read(&dir.path().join(checkpoint::ADAPTERHUB_FILE))?.0)
}

/// How a language model is run.
type TextModel<M> = fn(&M, Input, ForwardContext) -> Tensor<3>;

/// A loaded case, and what goes into it.
struct Loaded<'a, M, F> {
    model: M,
    /// The adapter's name.
    name: String,
    forward: F,
    device: &'a Device,
    data: InputData,
    tasks: Option<TaskIds>,
    routing: Option<Routing>,
}

impl<const D: usize, M, F> Loaded<'_, M, F>
where
    M: PeftModule + ModuleDisplay,
    F: Fn(&M, Input, ForwardContext) -> Tensor<D>,
{
    fn run(&self, model: &M, device: &Device) -> Tensor<D> {
        let (input, context) = self.inputs(device);
        (self.forward)(model, input, context)
    }

    fn inputs(&self, device: &Device) -> (Input, ForwardContext) {
        let (input, mut context) = match &self.data {
            InputData::Texts { ids, mask } => {
                let mask = Tensor::<2, Int>::from_data(mask.clone(), device);
                let context = ForwardContext::new().with_padding(Some(mask.equal_elem(0)));
                (Input::Ids(Tensor::from_data(ids.clone(), device)), context)
            }
            InputData::Pictures(pictures) => (
                Input::Pictures(Tensor::from_data(pictures.clone(), device)),
                ForwardContext::new(),
            ),
        };
        if let Some(tasks) = &self.tasks {
            context = context.with_tasks(tasks.clone());
        }
        if let Some(routing) = &self.routing {
            context = context.with_routing(routing.clone());
        }
        (input, context)
    }

    /// An X-LoRA case; `hidden` gives a model's last hidden states.
    fn xlora(
        &self,
        case: &Path,
        hidden: &F,
        values: &Values,
        methods: &[&MethodInfo],
    ) -> Result<Measured, Problem> {
        if D != 3 {
            let what = "X-LoRA on a model that gives no states of tokens";
            return Err(Problem::Unsupported(what.into()));
        }
        let loaded = XLoraCase::load(&self.model, case, methods)?;
        let run = |autodiff: bool| {
            let device = if autodiff {
                self.device.clone().autodiff()
            } else {
                self.device.clone()
            };
            let (_, context) = self.inputs(&device);
            let input = || self.inputs(&device).0;
            let first = |model: &M, context| {
                let states = hidden(model, input(), context);
                let dims = states.dims();
                states.reshape([dims[0], dims[1], dims[D - 1]])
            };
            let second = |model: &M, context| (self.forward)(model, input(), context);
            loaded.run(autodiff, context, first, second)
        };
        let output = farthest(
            &run(false).into_data(),
            &values.known(case, "output")?,
            "output",
        )?;
        let gradients = values
            .grads
            .as_ref()
            .map(|theirs| farthest_of_gradients(&loaded.gradients(run(true)), theirs, theirs));
        Ok(Measured {
            gradients: gradients.transpose()?,
            ..Measured::of_output(output, loaded.trainable(), values.trainable)
        })
    }

    fn output(&self, model: &M) -> TensorData {
        self.run(&model.valid(), self.device).into_data()
    }

    /// Those of mean(output²), by checkpoint key.
    fn gradients(&self, model: &M) -> Result<Tensors, Problem> {
        let output = self.run(model, &self.device.clone().autodiff());
        let gradients = (output.clone() * output).mean().backward();
        let mut mapper = GradientsAsValues {
            gradients: &gradients,
            inside: 0,
        };
        let model = model.clone().map(&mut mapper);
        tensors(&model, &self.name)
    }

    fn rounding(&self, theirs: Option<&Tensors>) -> Result<Rounding, Problem> {
        let output = self.output(&self.model);
        let here = theirs.map(|_| self.gradients(&self.model)).transpose()?;
        let mut rounding = Rounding {
            output: 0.0,
            gradients: 0.0,
        };
        for seed in 0..DRAWS {
            self.device.seed(seed);
            let model = self.model.clone().map(&mut LastBit);
            let moved = farthest(&self.output(&model), &output, "output")?;
            rounding.output = worst([rounding.output, moved]);
            if let (Some(here), Some(theirs)) = (&here, theirs) {
                let moved = farthest_of_gradients(&self.gradients(&model)?, here, theirs)?;
                rounding.gradients = worst([rounding.gradients, moved]);
            }
        }
        Ok(rounding)
    }
}

fn measure_model<M: PeftModule + ModuleDisplay, const D: usize>(
    base: &M,
    kind: &str,
    [forward, hidden]: [impl Fn(&M, Input, ForwardContext) -> Tensor<D>; 2],
    case: &Path,
    methods: &[&MethodInfo],
    device: &Device,
) -> Result<Measured, Problem> {
    let values = Values::read(case)?;
    let mut loaded = Loaded {
        model: base.clone(),
        name: adapter_name(case),
        forward,
        device,
        data: values.data(case)?,
        tasks: values.io.get("task_ids").map(|ids| {
            let ids: Vec<usize> = ids.iter::<u64>().map(|id| id as usize).collect();
            TaskIds::new(ids)
        }),
        routing: None,
    };
    if peft_type(case) == "XLORA" {
        return loaded.xlora(case, &hidden, &values, methods);
    }
    let unmerged = in_our_order(case, values.known(case, "output")?);
    let right = |data: &TensorData| match values.io.get("attention_mask") {
        Some(mask) => right_rows(case, data, mask),
        None => data.clone(),
    };
    if is_composed(case) {
        (loaded.model, loaded.routing) = composed::load(base, case, methods)?;
        let found = right(&loaded.output(&loaded.model));
        let output = farthest(&found, &right(&unmerged), "output")?;
        let trainable = loaded.model.counts().trainable;
        return Ok(Measured::of_output(output, trainable, values.trainable));
    }
    let dir = upstream_gradients(case)?;
    let place = (dir.path(), loaded.name.as_str());
    let output = |model: &M| loaded.output(model);
    let found = lost::found(base, place, methods, output, &unmerged)?;
    let mut lost = 0;
    loaded.model = match found {
        Some((model, count)) => {
            lost = count;
            model
        }
        None => base
            .load_adapter(&loaded.name, dir.path(), methods)
            .map_err(lost::refused)?,
    };
    let wrong_unmerged = is_wrong_unmerged(case, kind);
    let unmerged = if wrong_unmerged {
        values.known(case, "merged")?
    } else {
        unmerged
    };
    let found = right(&loaded.output(&loaded.model));
    if found.num_elements() == 0 {
        return Err(Problem::new(case)(
            &"no row says what is right: all are padded",
        ));
    }
    let mut output = farthest(&found, &right(&unmerged), "output")?;
    if let Some(model) = as_trained(base, dir.path(), &loaded.name, methods)? {
        let trained = farthest(&loaded.output(&model), &unmerged, "output as trained")?;
        output = worst([output, trained]);
        loaded.model = model;
    }
    let adapter = tensors(&loaded.model, &loaded.name)?;
    let twice = shared::counted_twice(&adapter);
    let expected = values
        .trainable
        .map(|count| counted::trained(case, count.saturating_sub(twice), &adapter))
        .transpose()?;
    let trainable = loaded.model.counts().trainable;
    let mut measured = Measured {
        counted: expected.and_then(|(_, rule)| rule),
        lost,
        ..Measured::of_output(output, trainable, expected.map(|(count, _)| count))
    };
    if let Some(merged) = values.io.get("merged") {
        let plain = loaded.model.valid().merge_and_unload()?;
        let output = loaded.run(&plain, device).into_data();
        let expected = expected_of_merged(case, kind, [merged, &unmerged])?;
        measured.merged = Some(farthest(&output, expected, "merged output")?);
    }
    let theirs = values
        .grads
        .filter(|_| !wrong_unmerged)
        .map(|tensors| shared::summed(tensors, &adapter));
    if let Some(theirs) = &theirs {
        let ours = loaded.gradients(&loaded.model)?;
        measured.gradients = Some(farthest_of_gradients(&ours, theirs, theirs)?);
    }
    if !measured.fits(tolerance(case)) {
        measured.rounding = Some(loaded.rounding(theirs.as_ref())?);
    }
    Ok(measured)
}
