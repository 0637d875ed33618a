//! Effective weights that are kept between forward passes: never of another state of the model, never while something
//! is trained, and counted.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::device::cpu_devices;
use peft_core::method::Method;
use peft_core::nn::AdaptedForward as _;
use peft_core::ops::quantized::{QuantizedMatrix, QuantizedWeight};
use peft_core::quantize::{QuantizedLayer, QuantizedModule as _, WeightQuantizer};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, PeftModule as _};
use peft_reparameterization::{
    BoftConfig, C3aConfig, FourierFtConfig, HiraConfig, HiraLinear, LoraConfig, METHODS,
    PsoftConfig, SaidConfig, VeraConfig,
};

const WIDTH: usize = 8;
const IDS: [i64; 6] = [0, 5, 3, 3, 9, 1];

/// Layers that are called for their adapters, and one that is called as Burn's own.
#[derive(Module, Debug)]
struct Net {
    table: Embedding,
    convolution: Conv2d,
    first: Linear,
    plain: Linear,
}

/// Numbers that repeat nowhere, the same in every call.
struct Numbers(f64);

impl Numbers {
    fn tensor<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count = shape.iter().product();
        let values = (0..count).map(|_| {
            self.0 += 0.7;
            (self.0.sin() * 0.4) as f32
        });
        Tensor::from_data(TensorData::new(values.collect(), shape), device)
    }
}

impl ModuleMapper for Numbers {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let value = self.tensor(param.dims(), &param.device());
        param.map(|_| value)
    }
}

/// Changes the base, and adapters, as an optimizer does.
struct Scale(f64);

impl ModuleMapper for Scale {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| (value * self.0).detach())
    }
}

impl Net {
    fn new(device: &Device) -> Self {
        let linear = || LinearConfig::new(WIDTH, WIDTH).init(device);
        Self {
            table: EmbeddingConfig::new(10, WIDTH).init(device),
            convolution: Conv2dConfig::new([2, 2], [3, 1])
                .with_padding(burn::nn::PaddingConfig2d::Explicit(1, 0, 1, 0))
                .init(device),
            first: linear(),
            plain: linear(),
        }
        .map(&mut Numbers(1.0))
    }

    fn forward(&self) -> TensorData {
        let device = self.first.weight.device();
        let ids = Tensor::<1, Int>::from_data(IDS, &device).reshape([2, 3]);
        let rows = self.table.adapted(ids);
        let picture = self.convolution.adapted(rows.reshape([2, 2, 3, WIDTH / 2]));
        let hidden = picture.reshape([2, 3, WIDTH]).tanh();
        self.plain
            .forward(self.first.adapted(hidden).tanh())
            .into_data()
    }

    /// With an adapter whose values are far from the initial ones.
    fn with(&self, name: &str, method: &dyn Method, numbers: f64) -> Self {
        let model = self.attach(name, method).unwrap();
        with_values(&model, name, numbers)
    }
}

/// Other values of an adapter.
fn with_values(model: &Net, name: &str, numbers: f64) -> Net {
    let mut numbers = Numbers(numbers);
    let mut tensors = model.adapter_tensors(name).unwrap();
    for data in tensors.values_mut() {
        let count = data.shape().iter().product();
        let flat = numbers.tensor::<1>([count], &Device::default());
        *data = TensorData::new(
            flat.into_data().iter::<f32>().collect(),
            data.shape().clone(),
        );
    }
    model.with_adapter_tensors(name, tensors).unwrap()
}

/// Rows as they are.
#[derive(Debug)]
struct Plain {
    values: Vec<f32>,
    shape: [usize; 2],
}

impl QuantizedMatrix for Plain {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        let from = first * self.shape[1];
        values.copy_from_slice(&self.values[from..from + values.len()]);
    }

    fn bytes(&self) -> usize {
        4 * self.values.len()
    }

    fn format(&self) -> &'static str {
        "plain"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct AsTheyAre;

impl WeightQuantizer for AsTheyAre {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        Ok(Some(QuantizedWeight::new(Plain {
            values: values.to_vec(),
            shape: layer.shape,
        })))
    }
}

/// Methods whose layers keep weights, on all layers that they can adapt.
fn methods() -> Vec<(&'static str, Box<dyn Method>)> {
    let linear = ["first", "plain"];
    vec![
        (
            "hira",
            Box::new(HiraConfig::new(2).with_targets(["table", "convolution", "first", "plain"])),
        ),
        (
            "said",
            Box::new(SaidConfig::new(20).with_targets(["table", "first", "plain"])),
        ),
        ("c3a", Box::new(C3aConfig::new(4).with_targets(linear))),
        (
            "fourierft",
            Box::new(FourierFtConfig::new(20).with_targets(linear)),
        ),
        ("boft", Box::new(BoftConfig::new(4).with_targets(linear))),
        (
            "dora",
            Box::new(LoraConfig::new(2).with_use_dora(true).with_targets([
                "table",
                "convolution",
                "first",
                "plain",
            ])),
        ),
        ("vera", Box::new(VeraConfig::new(8).with_targets(linear))),
        // Of low rank, but its factors are computed.
        ("psoft", Box::new(PsoftConfig::new(2).with_targets(linear))),
    ]
}

/// What can be done to a model, and whether outputs then differ.
type Operation<'a> = (&'a str, bool, Box<dyn Fn(&Net) -> Net + 'a>);

/// Operations that any module has.
fn of_modules(device: &Device) -> Vec<Operation<'_>> {
    let scaled = |layer: &Linear| layer.clone().map(&mut Scale(-1.5));
    vec![
        ("nothing", false, Box::new(Net::clone)),
        (
            "other values",
            true,
            Box::new(|model| with_values(model, "a", 7.0)),
        ),
        (
            "a mapper",
            true,
            Box::new(|model| model.clone().map(&mut Scale(-1.5))),
        ),
        (
            "a mapper of a part",
            true,
            Box::new(move |model| Net {
                first: scaled(&model.first),
                ..model.clone()
            }),
        ),
        (
            "a mapper of a part that is called as Burn's own",
            true,
            Box::new(move |model| Net {
                plain: scaled(&model.plain),
                ..model.clone()
            }),
        ),
        (
            "a record",
            true,
            Box::new(|model| {
                let other = model.clone().map(&mut Scale(0.5));
                model.clone().load_record(other.into_record())
            }),
        ),
        (
            "another device",
            false,
            Box::new(move |model| model.clone().to_device(device)),
        ),
        (
            "forked",
            false,
            Box::new(move |model| model.clone().fork(device)),
        ),
        (
            "in training",
            false,
            Box::new(|model| model.clone().train()),
        ),
        (
            "in training and back",
            false,
            Box::new(|model| model.clone().train().valid()),
        ),
        (
            "trained",
            true,
            Box::new(|model| {
                let trained = model.clone().train();
                // What the model computes while it is trained is not kept either.
                trained.forward();
                trained.map(&mut Scale(1.2)).valid()
            }),
        ),
    ]
}

/// Operations on adapters. A second one is of the same method; `saved` is a folder with one.
fn of_adapters<'a>(method: &'a dyn Method, saved: &'a str) -> Vec<Operation<'a>> {
    vec![
        (
            "another adapter",
            true,
            Box::new(move |model| model.with("b", method, 3.0)),
        ),
        (
            "two adapters",
            true,
            Box::new(move |model| model.with("b", method, 3.0).activate(&["a", "b"]).unwrap()),
        ),
        (
            "half of it",
            true,
            Box::new(|model| {
                let half = Composition::Weighted(vec![("a".into(), 0.5)]);
                model.set_composition(&half).unwrap()
            }),
        ),
        (
            "none",
            true,
            Box::new(|model| model.disable_adapters().unwrap()),
        ),
        (
            "none, and again",
            false,
            Box::new(|model| model.disable_adapters().unwrap().activate(&["a"]).unwrap()),
        ),
        (
            "detached",
            true,
            Box::new(|model| model.detach("a").unwrap()),
        ),
        ("unloaded", true, Box::new(|model| model.unload().unwrap())),
        (
            "a file in its place",
            true,
            Box::new(move |model| model.swap_adapter("a", saved, METHODS).unwrap()),
        ),
        (
            "a file besides",
            true,
            Box::new(move |model| model.load_adapter("b", saved, METHODS).unwrap()),
        ),
        (
            "merged",
            false,
            Box::new(|model| model.merge_adapters().unwrap()),
        ),
        (
            "merged and unmerged",
            false,
            Box::new(|model| model.merge_adapters().unwrap().unmerge_adapters()),
        ),
        (
            "merged for good",
            false,
            Box::new(|model| model.merge_and_unload().unwrap()),
        ),
    ]
}

#[test]
fn a_model_that_kept_weights_computes_what_a_fresh_one_does() {
    for (backend, device) in cpu_devices() {
        for (name, method) in methods() {
            let what = format!("{backend}, {name}");
            let method = method.as_ref();
            let fresh = || Net::new(&device).with("a", method, 2.0);
            let folder = tempfile::tempdir().unwrap();
            let other = Net::new(&device).with("a", method, 5.0);
            other.save_adapter("a", folder.path()).unwrap();
            let before = fresh().forward();
            let folder = folder.path().to_str().unwrap();
            let operations = of_modules(&device).into_iter();
            for (operation, changes, change) in operations.chain(of_adapters(method, folder)) {
                let warm = fresh();
                warm.forward().assert_eq(&before, true);
                assert!(warm.summary().kept_bytes > 0, "{what}: nothing is kept");
                let changed = change(&warm);
                let expected = change(&fresh()).forward();
                // Twice: what the first pass kept is used in the second.
                for pass in ["first", "second"] {
                    let found = changed.forward();
                    assert_eq!(found, expected, "{what}, {operation}, {pass} pass");
                }
                if changes {
                    assert_ne!(expected, before, "{what}, {operation}: it changes nothing");
                }
                // The model that it was made from is as it was.
                assert_eq!(warm.forward(), before, "{what}, {operation}");
            }
        }
    }
}

#[test]
fn what_is_kept_is_counted() {
    for (backend, device) in cpu_devices() {
        let matrix = 4 * WIDTH * WIDTH;
        let table = 4 * 10 * WIDTH;
        let kernel = 4 * 2 * 2 * 3;
        // HiRA looks up the rows of a table, and needs no other.
        let expected = [
            ("hira", 2 * matrix + kernel),
            ("said", 2 * matrix + table),
            ("dora", 2 * matrix + table + kernel),
            ("vera", 2 * matrix),
        ];
        for (name, method) in methods() {
            let Some((_, bytes)) = expected.iter().find(|(of, _)| *of == name) else {
                continue;
            };
            let model = Net::new(&device).with("a", method.as_ref(), 2.0);
            assert_eq!(model.summary().kept_bytes, 0, "{backend}, {name}");
            model.forward();
            let summary = model.summary();
            assert_eq!(summary.kept_bytes, *bytes, "{backend}, {name}");
            assert!(summary.to_string().contains("kept weights"), "{summary}");
            assert!(peft_core::kept_weights::bytes() >= *bytes);
            // A copy shares it, and a model that is trained has none.
            assert_eq!(model.clone().summary().kept_bytes, *bytes);
            let trained = model.train();
            trained.forward();
            assert_eq!(trained.summary().kept_bytes, 0, "{backend}, {name}");
            trained.valid().forward();
            assert_eq!(trained.summary().kept_bytes, 0, "{backend}, {name}");
        }
    }
}

#[test]
fn what_gains_nothing_keeps_nothing() {
    for (backend, device) in cpu_devices() {
        let low_rank = LoraConfig::new(2).with_targets(["table", "convolution", "first"]);
        let model = Net::new(&device).with("a", &low_rank, 2.0);
        model.forward();
        assert_eq!(model.summary().kept_bytes, 0, "{backend}: low rank");

        let hira = HiraConfig::new(2).with_targets(["first"]);
        let both = || {
            let one = Net::new(&device).with("a", &hira, 2.0);
            one.with("b", &hira, 3.0)
        };
        let by_row = |model: &Net| model.set_adapter_per_row(&[Some("a"), Some("b")]).unwrap();
        let warm = both();
        warm.forward();
        let rows = by_row(&warm);
        assert_eq!(rows.forward(), by_row(&both()).forward(), "{backend}");
        assert_eq!(rows.summary().kept_bytes, 0, "{backend}: rows");

        let packed = Net::new(&device).pack_weights(&AsTheyAre).unwrap();
        let packed = packed.with("a", &hira, 2.0);
        packed.forward();
        assert_eq!(packed.summary().kept_bytes, 0, "{backend}: quantized");
        // As soon as the base is dense, it is worth it.
        let dense = packed.unpack_weights().unwrap();
        dense.forward();
        assert!(dense.summary().kept_bytes > 0, "{backend}: dense again");
    }
}

#[test]
fn what_is_no_number_is_gone_with_its_reason() {
    for (backend, device) in cpu_devices() {
        let hira = HiraConfig::new(2).with_targets(["first", "plain"]);
        let model = Net::new(&device).with("a", &hira, 2.0);
        let before = model.forward();
        let set = |model: &Net, value: f64| {
            model
                .edit_adapter::<HiraLinear>("a", |_, state| {
                    state.hira_b = state.hira_b.clone().map(|b| b.zeros_like() + value);
                })
                .unwrap()
        };
        let broken = set(&model, f64::NAN);
        for _ in 0..2 {
            assert!(broken.forward().iter::<f32>().all(f32::is_nan), "{backend}");
        }
        let mended = set(&broken, 0.25);
        let expected = set(&model, 0.25).forward();
        assert!(expected.iter::<f32>().all(f32::is_finite), "{backend}");
        for _ in 0..2 {
            assert_eq!(mended.forward(), expected, "{backend}");
        }
        assert_eq!(model.forward(), before, "{backend}");
    }
}
