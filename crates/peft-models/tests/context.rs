//! What flows with a forward pass reaches adapters: positions, padding, values of a method, adapters of the same site.

use std::sync::{Arc, Mutex};

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_core::device::cpu_devices;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Family, HiddenAdapter, HiddenState, Layout, Method,
    MethodConfig, MethodInfo, Plan, WeightAdapter,
};
use peft_core::nn::{ForwardContext, SiteContext, TaskIds};
use peft_core::{Composition, PeftModule as _, Result};
use peft_models::{Bert, BertConfig, Llama, LmBatch};
use serde_json::{Value, json};

static PROBE: MethodInfo = MethodInfo {
    name: "probe",
    peft_type: "PROBE",
    title: "Probe",
    family: Family::Additive,
    reference: "a method of this test",
    identity_at_init: true,
    mergeable: false,
    parse: |_| unreachable!("nothing is loaded"),
    recognises: None,
};

/// What an adapter saw of a forward pass.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    positions: Vec<usize>,
    padding: Option<Vec<bool>>,
    virtual_tokens: usize,
    rows: Option<Vec<i64>>,
    tasks: Option<Vec<usize>>,
    task: Option<Task>,
}

/// A value of a method's own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Task(u8);

type Log = Arc<Mutex<Vec<Seen>>>;

impl Seen {
    fn of(context: &ForwardContext) -> Self {
        let padding = context.padding();
        let rows = context.rows();
        Self {
            positions: context.positions(0).unwrap_or_default().to_vec(),
            padding: padding.map(|padding| padding.into_data().iter::<bool>().collect()),
            virtual_tokens: context.virtual_tokens(),
            rows: rows.map(|rows| rows.into_data().iter::<i64>().collect()),
            tasks: context.tasks().map(|tasks| tasks.ids().to_vec()),
            task: context.value::<Task>().copied(),
        }
    }
}

/// What the method does at one place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// Adds `by` to the first position of each row: an intervention of ReFT's kind.
    AddToFirst,
    /// Scales a weight's product by a value of the context.
    ScaleByTask,
    /// The mean of the outputs of the adapters `a` and `b` of the same site: a fusion.
    Fuse,
}

#[derive(Module, Debug)]
struct Probe {
    by: Param<Tensor<1>>,
    #[module(skip)]
    act: Act,
    #[module(skip)]
    log: Log,
}

impl Adapter for Probe {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("by", "by")]
    }
}

impl HiddenAdapter for Probe {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        self.log.lock().unwrap().push(Seen::of(context.forward));
        if self.act == Act::Fuse {
            let output = |name| {
                let parts = context.parts_of(name, hidden.clone()).unwrap();
                parts.kept + parts.added
            };
            assert!(context.parts_of("nobody", hidden.clone()).is_none());
            return (output("a") + output("b")) / 2.0;
        }
        let [batch, _, width] = hidden.dims();
        let at = context.forward.virtual_tokens();
        let first = hidden.clone().slice([0..batch, at..at + 1, 0..width]);
        let first = first + self.by.val().reshape([1, 1, 1]);
        hidden.slice_assign([0..batch, at..at + 1, 0..width], first)
    }
}

impl WeightAdapter for Probe {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        weight
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        self.log.lock().unwrap().push(Seen::of(base.context()));
        let task = base.context().value::<Task>().map_or(1, |task| task.0);
        base.with_bias(base.product(input) * f64::from(task))
    }

    fn is_mergeable(&self) -> bool {
        false
    }
}

#[derive(Clone, Debug)]
struct ProbeConfig {
    common: Common,
    act: Act,
    by: f64,
    log: Log,
}

impl ProbeConfig {
    fn new(act: Act, by: f64) -> Self {
        Self {
            common: Common::default(),
            act,
            by,
            log: Log::default(),
        }
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl MethodConfig for ProbeConfig {
    fn info(&self) -> &'static MethodInfo {
        &PROBE
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn check_fields(&self) -> Result<()> {
        Ok(())
    }

    fn to_json(&self) -> Value {
        json!({})
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for ProbeConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let (device, dtype) = layout.like();
        let probe = || Probe {
            by: Param::from_tensor(Tensor::full([1], self.by, (&device, dtype))),
            act: self.act,
            log: self.log.clone(),
        };
        if self.act == Act::ScaleByTask {
            for param in &layout.params {
                let layer = layout.layer_of(param);
                if layer.name.ends_with("query") && param.field() == "weight" {
                    plan.adapt_weight(param, probe());
                }
            }
            return Ok(());
        }
        for site in layout.hidden_sites(HiddenState::BlockOutput) {
            plan.adapt_hidden(site, probe());
        }
        Ok(())
    }
}

fn ids(device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from([[3_i64, 4, 5], [6, 7, 8]]), device)
}

fn padding(device: &Device) -> Tensor<2, Bool> {
    let padding = [[false, false, false], [false, false, true]];
    Tensor::from_data(TensorData::from(padding), device)
}

#[test]
fn the_residual_stream_of_both_models_is_a_site_that_knows_positions_and_padding() {
    for (name, device) in cpu_devices() {
        let bert: Bert = BertConfig::tiny().init(&device);
        let method = ProbeConfig::new(Act::AddToFirst, 2.5);
        let model = bert.attach("probe", &method).unwrap();
        let context = ForwardContext::new()
            .with_padding(Some(padding(&device)))
            .with_value(Task(7));
        let output = model.forward_in(ids(&device), context);
        let seen = method.seen();
        assert_eq!(seen.len(), bert.config().num_hidden_layers, "{name}");
        let expected = Seen {
            positions: vec![0, 1, 2],
            padding: Some(vec![false, false, false, false, false, true]),
            virtual_tokens: 0,
            rows: None,
            tasks: None,
            task: Some(Task(7)),
        };
        assert!(
            seen.iter().all(|seen| *seen == expected),
            "{name}: {seen:?}"
        );
        // The last block's output is the encoder's: its first position moved by what the last adapter adds.
        let bare = model.disable_adapters().unwrap();
        let plain = bare.forward(ids(&device), Some(padding(&device)));
        let moved = (output.hidden - plain.hidden)
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(moved > 1.0, "{name}: {moved}");

        let llama: Llama = Llama::tiny(&device);
        let model = llama.attach("probe", &method).unwrap();
        let batch = LmBatch {
            tasks: Some(TaskIds::new([3])),
            ..LmBatch::of_text(&[1, 2, 3, 4])
        };
        model.loss(&batch);
        let seen = method.seen();
        assert_eq!(seen.len(), llama.config().num_hidden_layers, "{name}");
        assert_eq!(seen[0].positions, [0, 1, 2, 3], "{name}");
        assert_eq!(seen[0].tasks, Some(vec![3]), "{name}");
        let mut cache = model.cache();
        model.next_logits(ids(&device), &mut cache);
        method.seen();
        model.next_logits(ids(&device), &mut cache);
        assert_eq!(method.seen()[0].positions, [3, 4, 5], "{name}");
    }
}

#[test]
fn rows_with_adapters_of_their_own_see_their_part_of_the_context() {
    let (_, device) = cpu_devices().remove(0);
    let bert: Bert = BertConfig::tiny().init(&device);
    let (a, b) = (
        ProbeConfig::new(Act::AddToFirst, 1.0),
        ProbeConfig::new(Act::AddToFirst, 2.0),
    );
    let model = bert.attach("a", &a).unwrap().attach("b", &b).unwrap();
    let mixed = model.set_adapter_per_row(&[Some("b"), Some("a")]).unwrap();
    let context = ForwardContext::new()
        .with_padding(Some(padding(&device)))
        .with_tasks(TaskIds::new([4, 9]));
    mixed.forward_in(ids(&device), context);
    let (a, b) = (a.seen().remove(0), b.seen().remove(0));
    assert_eq!((a.rows, b.rows), (Some(vec![1]), Some(vec![0])));
    assert_eq!((a.tasks, b.tasks), (Some(vec![9]), Some(vec![4])));
    assert_eq!(a.padding, Some(vec![false, false, true]));
    assert_eq!(b.padding, Some(vec![false, false, false]));
}

#[test]
fn a_layer_sees_values_of_the_forward_pass() {
    let (_, device) = cpu_devices().remove(0);
    let bert: Bert = BertConfig::tiny().init(&device);
    let method = ProbeConfig::new(Act::ScaleByTask, 0.0);
    let model = bert.attach("probe", &method).unwrap();
    let output = |task: Option<Task>| {
        let context = ForwardContext::new();
        let context = match task {
            Some(task) => context.with_value(task),
            None => context,
        };
        model.forward_in(ids(&device), context).hidden.into_data()
    };
    let plain = bert.forward(ids(&device), None).hidden.into_data();
    assert_eq!(output(Some(Task(1))), output(None));
    assert_ne!(output(Some(Task(3))), plain);
    assert!(method.seen().iter().any(|seen| seen.task == Some(Task(3))));
}

/// A fusion works on what other adapters of its site give, which need not act themselves.
#[test]
fn an_adapter_can_run_the_others_of_its_site() {
    let (_, device) = cpu_devices().remove(0);
    let bert: Bert = BertConfig::tiny().init(&device);
    let model = bert
        .attach("a", &ProbeConfig::new(Act::AddToFirst, 1.0))
        .unwrap()
        .attach("b", &ProbeConfig::new(Act::AddToFirst, 4.0))
        .unwrap();
    let fused = model
        .attach("fusion", &ProbeConfig::new(Act::Fuse, 0.0))
        .unwrap();
    let names = fused.composition();
    assert_eq!(names, Composition::Stack(vec!["fusion".into()]));
    let single = bert
        .attach("m", &ProbeConfig::new(Act::AddToFirst, 2.5))
        .unwrap();
    let found = fused.forward(ids(&device), None).hidden;
    let expected = single.forward(ids(&device), None).hidden;
    let error = (found - expected.clone()).abs().max().into_scalar::<f32>();
    assert!(error <= 1e-5, "{error}");
    // Where a row has the fusion and another has not, the others are run on the fusion's row only.
    let mixed = fused.set_adapter_per_row(&[None, Some("fusion")]).unwrap();
    let found = mixed.forward(ids(&device), None).hidden;
    let plain = bert.forward(ids(&device), None).hidden;
    let expected = Tensor::cat(vec![plain.narrow(0, 0, 1), expected.narrow(0, 1, 1)], 0);
    let error = (found - expected).abs().max().into_scalar::<f32>();
    assert!(error <= 1e-5, "{error}");
}
