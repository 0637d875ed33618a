//! Ladder side-tuning: what the side network computes, where its values come from, and that nothing goes back into the
//! model.

mod reference;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_additive::{Activation, LstConfig, LstInit, Rung};
use peft_conformance::TinyTransformer;
use peft_core::calibration::{Calibrate as _, CalibrationConfig};
use peft_core::device::cpu_devices;
use peft_core::nn::{AdaptedForward as _, ForwardContext, HiddenState, SiteContext};
use peft_core::state::AdapterState as _;
use peft_core::{Error, HiddenSite, PeftModule as _};
use reference::{numbers, plus, reference};

/// Numbers that repeat nowhere, for every parameter.
struct Numbers(f64);

impl Numbers {
    fn tensor<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count = shape.iter().product();
        let values = (0..count).map(|_| {
            self.0 += 0.7;
            (self.0.sin() * 0.6) as f32
        });
        Tensor::from_data(TensorData::new(values.collect(), shape), device)
    }
}

impl ModuleMapper for Numbers {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let value = self.tensor(param.dims(), &param.device());
        let trained = param.is_require_grad();
        param.map(|_| value.set_require_grad(trained))
    }
}

/// Blocks that are linear layers of 6 features.
#[derive(Module, Debug)]
struct Net {
    blocks: Vec<Block>,
}

#[derive(Module, Debug)]
struct Block {
    linear: Linear,
    site: HiddenSite,
}

const WIDTH: usize = 6;

impl Net {
    fn new(blocks: usize, device: &Device) -> Self {
        let block = |_| Block {
            linear: LinearConfig::new(WIDTH, WIDTH).init(device),
            site: HiddenSite::new(HiddenState::BlockOutput, WIDTH),
        };
        let net = Self {
            blocks: (0..blocks).map(block).collect(),
        };
        net.map(&mut Numbers(0.3))
    }

    fn forward(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.blocks.iter().fold(x, |x, block| {
            let output = block.linear.adapted(x.clone()).tanh();
            block
                .site
                .forward(output, &SiteContext::of_block(context, x))
        })
    }

    /// What goes into the first block, and what comes out of each.
    fn states(&self, x: Tensor<3>) -> Vec<Tensor<3>> {
        let mut states = vec![x];
        for block in &self.blocks {
            let last = states[states.len() - 1].clone();
            states.push(block.linear.adapted(last).tanh());
        }
        states
    }
}

/// The adapter with values far from the initial ones.
fn noisy<M: peft_core::PeftModule>(model: &M) -> M {
    let mut numbers = Numbers(2.0);
    model
        .edit_adapter::<Rung>("a", |_, rung| *rung = rung.clone().map(&mut numbers))
        .unwrap()
}

#[test]
fn the_side_network_computes_what_the_paper_says() {
    let filler = [[false, false, false, false], [false, false, false, true]];
    for (backend, device) in cpu_devices() {
        for (blocks, leave_out) in [(3, vec![]), (3, vec![0]), (3, vec![1, 2]), (1, vec![])] {
            for causal in [false, true] {
                let what = format!("{backend}, {blocks} blocks but {leave_out:?}, {causal}");
                let config = LstConfig::new()
                    .with_reduction_factor(2)
                    .with_gate_temperature(0.7)
                    .with_init(LstInit::Random)
                    .with_non_linearity(Activation::Relu)
                    .with_leave_out(leave_out.clone());
                let base = Net::new(blocks, &device);
                let model = noisy(&base.attach("a", &config).unwrap());
                let x = Numbers(5.0).tensor([2, 4, WIDTH], &device);
                let padding = Tensor::<2, Bool>::from_data(filler, &device);
                let context = ForwardContext::new().with_padding(Some(padding));
                let context = if causal {
                    context.with_causal()
                } else {
                    context
                };
                let found = numbers(model.forward(x.clone(), &context));
                let rungs = model.adapter_states::<Rung>("a").unwrap();
                let rungs: Vec<Rung> = rungs.into_iter().map(|(_, rung)| rung).collect();
                let states: Vec<Vec<f64>> = base.states(x).into_iter().map(numbers).collect();
                for (row, filler) in filler.iter().enumerate() {
                    let of_row = |state: &Vec<f64>| -> Vec<Vec<f64>> {
                        let tokens = state.chunks(WIDTH).skip(4 * row).take(4);
                        tokens.map(<[f64]>::to_vec).collect()
                    };
                    let states: Vec<_> = states.iter().map(of_row).collect();
                    let sees = |query: usize, key: usize| !filler[key] && (!causal || key <= query);
                    let expected = reference(&rungs, &states, 0.7, sees);
                    for token in (0..4).filter(|token| !filler[*token]) {
                        let at = (4 * row + token) * WIDTH;
                        let found = &found[at..at + WIDTH];
                        for (found, expected) in found.iter().zip(&expected[token]) {
                            let error = (found - expected).abs();
                            assert!(error < 1e-5, "{what}: {found} for {expected}");
                        }
                    }
                }
            }
        }
    }
}

/// Every parameter of the model is trained, so that a gradient that goes back through the side network would be seen.
#[test]
fn no_gradient_goes_back_into_the_model() {
    for (backend, device) in cpu_devices() {
        let device = device.autodiff();
        let base = Net::new(3, &device);
        let config = LstConfig::new().with_init(LstInit::Random);
        let model = noisy(&base.attach("a", &config).unwrap());
        let trained = |net: &Net| Net {
            blocks: (net.blocks.iter().cloned())
                .map(|block| Block {
                    // Not that of the side network.
                    linear: Linear {
                        weight: Param::from_tensor(block.linear.weight.val().detach()),
                        bias: block.linear.bias,
                    },
                    site: block.site,
                })
                .collect(),
        };
        let x = Numbers(5.0).tensor([2, 4, WIDTH], &device);
        let gradients = |net: &Net| -> Vec<Vec<f64>> {
            let output = net.forward(x.clone(), &ForwardContext::new());
            let weights = Numbers(9.0).tensor(output.dims(), &device);
            let gradients = (output * weights).sum().backward();
            let weights = net.blocks.iter().map(|block| block.linear.weight.val());
            weights
                .map(|weight| numbers(weight.grad(&gradients).unwrap()))
                .collect()
        };
        let (plain, beside) = (trained(&base), trained(&model));
        let difference = plain.forward(x.clone(), &ForwardContext::new())
            - beside.forward(x.clone(), &ForwardContext::new());
        let difference: f32 = difference.abs().max().into_scalar();
        assert!(
            difference > 1e-2,
            "{backend}: the side network does nothing"
        );
        assert_eq!(gradients(&plain), gradients(&beside), "{backend}");

        // Where the model is frozen, as it is, its states are not on the tape at all; the output is.
        let states = base.clone().no_grad().states(x.clone());
        assert!(states.iter().all(|state| !state.is_tracked()));
        let output = model.forward(x.clone(), &ForwardContext::new());
        assert!(output.is_tracked(), "{backend}");
    }
}

/// The sums of importance of rows and columns of a matrix `[in, out]`.
fn sums(matrix: &[f64], columns: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = matrix.chunks(columns);
    let of_rows = rows.clone().map(|row| row.iter().sum()).collect();
    let of_column = |column: usize| rows.clone().map(|row| row[column]).sum();
    (of_rows, (0..columns).map(of_column).collect())
}

fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let is_kept = |at: &usize| {
        let larger = values.iter().filter(|value| **value > values[*at]);
        larger.count() < count
    };
    (0..values.len()).filter(is_kept).collect()
}

/// Checks that the side blocks are what is left of the model's where `importance` weighs the matrices `[in, out]`, by
/// upstream's name.
fn check_pruned(model: &TinyTransformer, importance: impl Fn(&str) -> Vec<f64>, what: &str) {
    const D: usize = 32;
    const HEADS: usize = 4;
    let layout = model.unload().unwrap().layout();
    let value_of = |name: &str| -> Vec<f64> {
        let param = layout.params.iter().find(|param| param.name == name);
        numbers(param.unwrap().value::<2>())
    };
    let name = |layer: usize, of: &str| format!("encoder.layer.{layer}.{of}.weight");
    let inputs = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "intermediate.dense",
    ];
    let outputs = ["attention.output.dense", "output.dense"];
    let mut features = vec![0.0; D];
    let add = |to: &mut Vec<f64>, more: Vec<f64>| *to = plus(to, &more);
    for layer in 0..2 {
        for of in inputs {
            let matrix = importance(&name(layer, of));
            let columns = matrix.len() / D;
            add(&mut features, sums(&matrix, columns).0);
        }
        for of in outputs {
            add(&mut features, sums(&importance(&name(layer, of)), D).1);
        }
    }
    let features = largest(&features, D / 4);
    let rungs = model.adapter_states::<Rung>("a").unwrap();
    assert_eq!(rungs.len(), 2, "{what}");
    for (layer, (_, rung)) in rungs.into_iter().enumerate() {
        let block = rung.block.unwrap();
        // The way down picks these features.
        let down = numbers(block.down.val());
        for (row, of_row) in down.chunks(D / 4).enumerate() {
            let picked = features.iter().map(|feature| f64::from(*feature == row));
            assert_eq!(of_row, picked.collect::<Vec<f64>>(), "{what}");
        }
        let columns_of = |of: &str| sums(&importance(&name(layer, of)), D).1;
        let rows_of = |of: &str| sums(&importance(&name(layer, of)), D).0;
        let by_head = |scores: Vec<f64>| -> Vec<usize> {
            let head = D / HEADS;
            (0..HEADS)
                .flat_map(|at| {
                    let kept = largest(&scores[at * head..(at + 1) * head], head / 4);
                    kept.into_iter().map(move |feature| at * head + feature)
                })
                .collect()
        };
        let matched = by_head(plus(
            &columns_of("attention.self.query"),
            &columns_of("attention.self.key"),
        ));
        let carried = by_head(plus(
            &columns_of("attention.self.value"),
            &rows_of("attention.output.dense"),
        ));
        let up = sums(&importance(&name(layer, "intermediate.dense")), 64).1;
        let inner = largest(&plus(&up, &rows_of("output.dense")), 16);
        let check = |found: &Param<Tensor<2>>, of: &str, rows: &[usize], columns: &[usize]| {
            let base = value_of(&name(layer, of));
            let wide = if of == "intermediate.dense" { 64 } else { D };
            let expected: Vec<f64> = (rows.iter())
                .flat_map(|row| {
                    let row = &base[row * wide..(row + 1) * wide];
                    columns.iter().map(move |column| row[*column])
                })
                .collect();
            assert_eq!(numbers(found.val()), expected, "{what}: {of} of {layer}");
        };
        check(&block.query, "attention.self.query", &features, &matched);
        check(&block.key, "attention.self.key", &features, &matched);
        check(&block.value, "attention.self.value", &features, &carried);
        let back = &block.attention_output;
        check(back, "attention.output.dense", &carried, &features);
        check(
            &block.feed_forward_up,
            "intermediate.dense",
            &features,
            &inner,
        );
        check(&block.feed_forward_down, "output.dense", &inner, &features);
    }
}

fn ids(device: &Device) -> Tensor<2, Int> {
    Tensor::from_data([[3, 17, 44, 90, 5], [8, 1, 60, 2, 33]], device)
}

#[test]
fn side_blocks_are_pruned_from_the_models_own() {
    for (backend, device) in cpu_devices() {
        let base = TinyTransformer::new(&device);
        let config = LstConfig::new().with_reduction_factor(4);
        let model = base.attach("a", &config).unwrap();
        let layout = base.layout();
        let magnitude = |name: &str| {
            let param = layout.params.iter().find(|param| param.name == name);
            numbers(param.unwrap().value::<2>().abs())
        };
        check_pruned(&model, magnitude, &format!("{backend}, magnitude"));

        let fisher = config.with_init(LstInit::Fisher);
        let refused = base.attach("a", &fisher).unwrap_err();
        assert!(matches!(refused, Error::Config { field: "init", .. }));
        assert!(refused.to_string().contains("attach_with"), "{refused}");

        let device = device.autodiff();
        let base = TinyTransformer::new(&device);
        let statistics = CalibrationConfig {
            squared_gradients: true,
            ..CalibrationConfig::new(["query", "key", "value", "dense"])
        };
        let mut calibrator = base.calibrate(&statistics).unwrap();
        for row in 0..2 {
            let ids = ids(&device).slice_dim(0, row..row + 1);
            let logits = calibrator.model().forward(ids, None);
            let loss = logits.slice_dim(1, 0..1).square().sum();
            calibrator.record_gradients(&loss.backward()).unwrap();
        }
        let calibration = calibrator.finish().unwrap();
        let model = base.attach_with("a", &fisher, &calibration).unwrap();
        let squares = |name: &str| {
            let gradients = calibration.gradients(name).unwrap();
            numbers(gradients.mean_square::<2>().unwrap())
        };
        check_pruned(&model, squares, &format!("{backend}, Fisher"));
    }
}

#[derive(Module, Debug)]
struct NoSites {
    layer: Linear,
}

#[test]
fn what_cannot_be_is_refused() {
    let (_, device) = &cpu_devices()[0];
    // Blocks whose layers have names of their own.
    let net = Net::new(2, device);
    let refused = net.attach("a", &LstConfig::new()).unwrap_err().to_string();
    assert!(refused.contains("random"), "{refused}");
    let all = LstConfig::new()
        .with_init(LstInit::Random)
        .with_leave_out([0, 1]);
    let refused = net.attach("a", &all).unwrap_err().to_string();
    assert!(refused.contains("leave_out"), "{refused}");
    let bare = NoSites {
        layer: LinearConfig::new(4, 4).init(device),
    };
    let refused = bare.attach("a", &LstConfig::new()).unwrap_err();
    assert!(matches!(refused, Error::NoSite { .. }), "{refused}");
}

/// Two passes that begin with one context do not meet.
#[test]
fn a_context_serves_one_pass_after_the_other() {
    for (backend, device) in cpu_devices() {
        let base = Net::new(3, &device);
        let config = LstConfig::new().with_init(LstInit::Random);
        let model = noisy(&base.attach("a", &config).unwrap());
        let inputs = [5.0, 6.0].map(|from| Numbers(from).tensor([1, 4, WIDTH], &device));
        let context = ForwardContext::new();
        let expected = inputs
            .clone()
            .map(|x| model.forward(x, &ForwardContext::new()).into_data());
        let found = inputs.map(|x| model.forward(x, &context).into_data());
        assert_eq!(found, expected, "{backend}");
    }
}
