//! Every method on layers of any shape, of any rank and scale: the activation side equals the composed
//! path, in value and in all gradients; merged equals unmerged; saved and loaded it is the same.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Gradients, Tensor};
use peft_conformance::perturb;
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_core::method::Method;
use peft_core::nn::AdaptedForward as _;
use peft_reparameterization::{
    AdaLoraConfig, BoftConfig, C3aConfig, DeLoraConfig, DeftConfig, DeftDecomposition,
    FourierFtConfig, GraLoraConfig, HiraConfig, HraConfig, LohaConfig, LokrConfig, LoraConfig,
    METHODS, MissConfig, OftConfig, PeanutConfig, RandLoraConfig, SaidConfig, VbLoraConfig,
    VeraConfig,
};
use peft_testing::{farthest, largest};
use proptest::prelude::*;

/// Two layers of unequal sides, and one that is left alone.
#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
    other: Linear,
}

impl Net {
    fn new([d_in, inside, out]: [usize; 3], bias: bool, device: &Device) -> Self {
        let linear = |d_in, out| LinearConfig::new(d_in, out).with_bias(bias).init(device);
        // Layers draw their values when they are first looked at: here, so that all tests see the same.
        let net = Self {
            first: linear(d_in, inside),
            second: linear(inside, out),
            other: linear(out, out),
        };
        let _ = net.num_params();
        net.layout();
        net
    }

    fn composed(&self, x: Tensor<2>) -> Tensor<2> {
        self.other
            .forward(self.second.forward(self.first.forward(x).tanh()))
    }

    fn adapted(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.first.adapted(x).tanh();
        self.other.adapted(self.second.adapted(x))
    }
}

/// All methods, with what fits layers whose sides are multiples of 4.
fn methods(rank: usize, scale: f64, seed: u64) -> Vec<Box<dyn Method>> {
    let targets = ["first", "second"];
    let even = 2 * rank;
    vec![
        Box::new(
            LoraConfig::new(rank)
                .with_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(
            LoraConfig::new(rank)
                .with_alpha(scale)
                .with_use_dora(true)
                .with_targets(targets),
        ),
        Box::new(
            LoraConfig::new(rank)
                .with_alpha(scale)
                .with_init_lora_weights("pissa")
                .with_targets(targets),
        ),
        Box::new(
            AdaLoraConfig::new(rank + 1, rank)
                .with_lora_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(
            LohaConfig::new(rank)
                .with_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(
            LokrConfig::new(rank)
                .with_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(
            LokrConfig::new(rank)
                .with_alpha(scale)
                .with_decompose_both(true)
                .with_targets(targets),
        ),
        Box::new(LokrConfig::krona(scale).with_targets(targets)),
        Box::new(
            VeraConfig::new(8 * rank)
                .with_projection_prng_key(seed as i64)
                .with_targets(targets),
        ),
        Box::new(
            RandLoraConfig::new(rank)
                .with_randlora_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(VbLoraConfig::new(rank, 12, 4).with_targets(targets)),
        Box::new(HiraConfig::new(rank).with_targets(targets)),
        Box::new(MissConfig::new(rank).with_targets(targets)),
        Box::new(MissConfig::mini(even, 2).with_targets(targets)),
        Box::new(MissConfig::bat(4).with_targets(targets)),
        Box::new(OftConfig::new(4).with_targets(targets)),
        Box::new(
            OftConfig::new(4)
                .with_use_cayley_neumann(false)
                .with_targets(targets),
        ),
        Box::new(
            BoftConfig::new(4)
                .with_boft_n_butterfly_factor(1)
                .with_targets(targets),
        ),
        Box::new(HraConfig::new(even).with_targets(targets)),
        Box::new(C3aConfig::new(4).with_targets(targets)),
        Box::new(
            FourierFtConfig::new(rank)
                .with_scaling(10.0)
                .with_random_loc_seed(seed as i64)
                .with_targets(targets),
        ),
        Box::new(
            // The smallest layer has 16 elements.
            SaidConfig::new(4 * rank + 4)
                .with_seed(seed)
                .with_targets(targets),
        ),
    ]
}

/// More of them: those of blocks, of normalised factors, and of the weight itself.
fn newer_methods(rank: usize, scale: f64) -> Vec<Box<dyn Method>> {
    let targets = ["first", "second"];
    vec![
        Box::new(
            GraLoraConfig::new(2 * rank)
                .with_hybrid_r(1)
                .with_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(
            DeLoraConfig::new(rank)
                .with_delora_lambda(scale)
                .with_targets(targets),
        ),
        Box::new(
            DeftConfig::new(rank)
                .with_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(
            DeftConfig::new(rank)
                .with_decomposition_method(DeftDecomposition::Qr)
                .with_alpha(scale)
                .with_targets(targets),
        ),
        Box::new(DeftConfig::para(rank).with_targets(targets)),
        Box::new(
            PeanutConfig::new(rank)
                .with_depth(2)
                .with_scaling(scale)
                .with_targets(targets),
        ),
    ]
}

/// The gradients of all adapter parameters, in order.
struct Collect<'a> {
    gradients: &'a Gradients,
    inside: bool,
    found: Vec<Vec<f32>>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.inside |= container == "Adapter";
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside &= container != "Adapter";
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.inside
            && let Some(gradient) = param.base().grad(self.gradients)
        {
            self.found.push(gradient.into_data().iter().collect());
        }
    }
}

fn collected(net: &Net, gradients: &Gradients) -> Vec<Vec<f32>> {
    let mut collect = Collect {
        gradients,
        inside: false,
        found: Vec::new(),
    };
    net.visit(&mut collect);
    collect.found
}

/// That two lists are equal, but for `2e-4` of the largest number that they are measured by.
fn near(
    name: &str,
    what: &str,
    ours: &[f32],
    theirs: &[f32],
    largest: f64,
) -> Result<(), TestCaseError> {
    let distance = farthest(ours.iter().copied(), theirs.iter().copied());
    prop_assert!(
        distance <= 2e-4 * largest,
        "{name}, {what}: {distance} apart, the largest is {largest}"
    );
    Ok(())
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_agree(
        sides in [1_usize..7, 1_usize..7, 1_usize..7],
        tokens in 1_usize..40,
        rank in 1_usize..4,
        scale in 0.3_f64..6.0,
        seed in 0_u64..1000,
        bias in any::<bool>(),
    ) {
        let sides = sides.map(|side| 4 * side);
        for (device_name, device) in cpu_devices() {
            let autodiff = device.clone().autodiff();
            autodiff.seed(seed);
            let net = Net::new(sides, bias, &autodiff);
            let x = Tensor::<2>::random([tokens, sides[0]], Distribution::Default, &autodiff);
            for method in methods(rank, scale, seed).into_iter().chain(newer_methods(rank, scale)) {
                let name = format!("{} on {device_name}", method.info().name);
                let model = match net.attach("x", method.as_ref()) {
                    Ok(model) => perturb(model, "x"),
                    // What does not fit such a layer says so.
                    Err(refused) => {
                        let text = refused.to_string();
                        prop_assert!(text.contains("first") || text.contains("second"), "{name}: {text}");
                        continue;
                    }
                };
                let (adapted, composed) = (model.adapted(x.clone()), model.composed(x.clone()));
                let expected = values(composed.clone());
                let of_outputs = largest(expected.iter().copied());
                near(&name, "outputs", &values(adapted.clone()), &expected, of_outputs)?;
                let one = collected(&model, &(adapted.clone() * adapted).mean().backward());
                let other = collected(&model, &(composed.clone() * composed).mean().backward());
                prop_assert_eq!(one.len(), other.len(), "{}", name);
                prop_assert!(!one.is_empty(), "{name} has no gradients");
                let of_gradients = largest(other.iter().flatten().copied());
                for (one, other) in one.iter().zip(&other) {
                    near(&name, "gradients", one, other, of_gradients)?;
                }
                let plain = x.clone().without_autodiff();
                let merged = model.valid().merge_and_unload().unwrap();
                near(&name, "merged", &values(merged.composed(plain.clone())), &expected, of_outputs)?;
                let dir = tempfile::tempdir().unwrap();
                model.save_adapter("x", dir.path()).unwrap();
                let loaded = net.load_adapter("y", dir.path(), METHODS).unwrap();
                near(&name, "loaded", &values(loaded.valid().adapted(plain)), &expected, of_outputs)?;
                let trainable = model.counts().trainable;
                prop_assert_eq!(loaded.counts().trainable, trainable, "{}", name);
            }
        }
    }
}
