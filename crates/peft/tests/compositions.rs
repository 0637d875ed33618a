//! Adapters that act together: each row of a batch with its own, weighted sums, weights of a router.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::additive::BottleneckConfig;
use peft::core::method::Method;
use peft::core::nn::{ForwardContext, Routing};
use peft::core::{Composition, Error, PeftModule, device::cpu_devices};
use peft::reparameterization::{BoftConfig, HraConfig, LohaConfig, LoraConfig};
use peft::selective::BitFitConfig;
use peft::soft_prompt::{
    AdapterHubPrefixConfig, AdaptionPromptConfig, CartridgeConfig, LatePromptConfig,
    PrefixTuningConfig, PromptTuningConfig,
};
use peft_models::{BertClassifier, BertConfig, Pooling};

#[path = "compositions/weighted.rs"]
mod weighted;

use weighted::Block;

/// Moves what is trained, so that no adapter is an identity.
struct Move(f64);

impl ModuleMapper for Move {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let step = self.0;
        param.map(|value| {
            if !value.is_require_grad() {
                return value;
            }
            let count = value.shape().num_elements() as i64;
            let wave = Tensor::<1, Int>::arange(0..count, &value.device()).float() + step;
            let wave = wave.sin().reshape(value.shape()) * 0.1;
            (value.detach() + wave).detach().require_grad()
        })
    }
}

fn attach<M: PeftModule>(model: &M, name: &str, method: &dyn Method, step: f64) -> M {
    model.attach(name, method).unwrap().map(&mut Move(step))
}

fn bert(device: &Device) -> BertClassifier {
    let bert = BertConfig::tiny().init(device);
    BertClassifier::new_head(bert, 3, Pooling::Mean, 0.0, device).unwrap()
}

fn ids(device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = (0..4 * 6).map(|at| at * 7 % 50).collect();
    Tensor::from_data(TensorData::new(ids, [4, 6]), device)
}

/// The largest distance between two tensors' numbers.
fn farthest(a: &TensorData, b: &TensorData) -> f64 {
    peft_testing::farthest(a.iter::<f64>(), b.iter::<f64>())
}

fn data<const D: usize>(tensor: Tensor<D>) -> TensorData {
    tensor.into_data()
}

/// Heads, biases, norms, embeddings and sites differ from row to row like weights.
#[test]
fn each_row_has_the_output_of_its_adapter_alone() {
    let head = ["classifier"];
    let methods: Vec<Box<dyn Method>> = vec![
        Box::new(LoraConfig::new(2).with_modules_to_save(head)),
        Box::new(
            LoraConfig::new(2)
                .with_targets(["query", "word_embeddings", "position_embeddings"])
                .with_bias(peft::reparameterization::Bias::All),
        ),
        Box::new(LohaConfig::new(2).with_modules_to_save(head)),
        Box::new(HraConfig::new(2)),
        Box::new(BoftConfig::new(4)),
        Box::new(BitFitConfig::new().with_modules_to_save(head)),
        Box::new(BottleneckConfig::houlsby().with_modules_to_save(head)),
        Box::new(PromptTuningConfig::new(2).with_modules_to_save(head)),
        Box::new(PrefixTuningConfig::new(2).with_modules_to_save(head)),
        Box::new(CartridgeConfig::new(2)),
        Box::new(AdapterHubPrefixConfig::new().with_use_gating(true)),
        Box::new(AdaptionPromptConfig::new(2, 2)),
        Box::new(LatePromptConfig::new()),
    ];
    for (backend, device) in cpu_devices() {
        let device = device.autodiff();
        let (base, ids) = (bert(&device), ids(&device));
        for method in &methods {
            let method = method.as_ref();
            let model = attach(&base, "a", method, 0.0);
            let model = attach(&model, "b", method, 5.0);
            let prompts = method.is_prompt_learning();
            let rows = if prompts {
                [Some("b"), Some("a"), Some("b"), Some("a")]
            } else {
                [Some("b"), Some("a"), None, Some("b")]
            };
            let mixed = model.set_adapter_per_row(&rows).unwrap();
            let found = mixed.forward(ids.clone(), None);
            let a = data(model.activate(&["a"]).unwrap().forward(ids.clone(), None));
            let b = data(model.activate(&["b"]).unwrap().forward(ids.clone(), None));
            assert!(
                farthest(&a, &b) > 1e-4,
                "{method:?}: the adapters are alike"
            );
            for (row, name) in rows.iter().enumerate() {
                let alone = model.activate(name.as_slice()).unwrap();
                let alone = alone.forward(ids.clone(), None).narrow(0, row, 1);
                let found = data(found.clone().narrow(0, row, 1));
                let error = farthest(&found, &data(alone));
                assert!(error <= 2e-6, "{backend}, {method:?}, row {row}: {error}");
            }
        }
    }
}

/// Trained parameters, and those that have a gradient.
struct Count<'a>(&'a burn::tensor::Gradients, usize, usize);
impl ModuleVisitor for Count<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            self.1 += 1;
            self.2 += usize::from(param.val().grad(self.0).is_some());
        }
    }
}

/// A gradient reaches each row's adapter as if it were alone.
#[test]
fn rows_train_their_adapters() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let (base, ids) = (bert(&device), ids(&device));
    let method = BottleneckConfig::houlsby().with_modules_to_save(["classifier"]);
    let model = attach(&attach(&base, "a", &method, 0.0), "b", &method, 5.0);
    let mixed = model
        .set_adapter_per_row(&[Some("a"), Some("b"), None, Some("b")])
        .unwrap();
    let gradients = mixed.forward(ids, None).sum().backward();
    let mut count = Count(&gradients, 0, 0);
    mixed.visit(&mut count);
    assert!(
        count.1 > 0 && count.1 == count.2,
        "{} of {}",
        count.2,
        count.1
    );
}

#[test]
fn virtual_tokens_of_other_number_cannot_share_a_batch() {
    let (_, device) = cpu_devices().remove(0);
    let base = bert(&device);
    for (two, three) in [
        (
            Box::new(PromptTuningConfig::new(2)) as Box<dyn Method>,
            Box::new(PromptTuningConfig::new(3)) as Box<dyn Method>,
        ),
        (
            Box::new(PrefixTuningConfig::new(2)),
            Box::new(PrefixTuningConfig::new(3)),
        ),
    ] {
        let model = base.attach("two", two.as_ref()).unwrap();
        let model = model.attach("three", three.as_ref()).unwrap();
        for rows in [[Some("two"), Some("three")], [Some("two"), None]] {
            let error = model.set_adapter_per_row(&rows).unwrap_err();
            assert!(matches!(error, Error::Composition { .. }), "{error}");
            assert!(error.to_string().contains("[2, "), "{error}");
        }
        // Neither can one be swapped in.
        let mixed = model.attach("also-two", two.as_ref()).unwrap();
        let mixed = mixed
            .set_adapter_per_row(&[Some("two"), Some("also-two")])
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        base.attach("new", three.as_ref())
            .unwrap()
            .save_adapter("new", dir.path())
            .unwrap();
        let error = mixed
            .swap_adapter("two", dir.path(), &peft::methods())
            .unwrap_err();
        assert!(matches!(error, Error::Composition { .. }), "{error}");
        // A row whose prompt goes would be shorter than the others.
        let other = model.attach("more", two.as_ref()).unwrap();
        let rows = other
            .set_adapter_per_row(&[Some("two"), Some("more")])
            .unwrap();
        assert!(rows.detach("more").is_err());
        assert_eq!(rows.adapters().len(), 3);
        let routed = Composition::Routed(vec!["two".into()]);
        let error = other.set_composition(&routed).unwrap_err().to_string();
        assert!(error.contains("virtual tokens"), "{error}");
    }
}

/// Positions and segments are one row for all; their tables differ from row to row and token to token all the same.
#[test]
fn tables_of_positions_are_routed() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let (base, ids) = (bert(&device), ids(&device));
    let tables = ["position_embeddings", "token_type_embeddings"];
    let lora = LoraConfig::new(2).with_targets(tables);
    let model = attach(&base, "a", &lora, 0.0);
    let routed = model
        .set_composition(&Composition::Routed(vec!["a".into()]))
        .unwrap();
    let output = |weights: Routing| {
        let context = ForwardContext::new().with_routing(weights);
        data(routed.forward_in(ids.clone(), context))
    };
    let ones = Tensor::<2>::ones([4, 1], &device);
    let a = data(model.forward(ids.clone(), None));
    assert!(farthest(&output(Routing::per_row(["a"], ones)), &a) <= 2e-6);
    let tokens = Tensor::<3>::ones([4, 6, 1], &device);
    assert!(farthest(&output(Routing::per_token(["a"], tokens)), &a) <= 2e-6);
    let none = Tensor::<2>::zeros([4, 1], &device);
    let plain = data(base.forward(ids.clone(), None));
    assert!(farthest(&output(Routing::per_row(["a"], none)), &plain) <= 2e-6);
}

/// A table gives as many rows as it is asked for, and a batch of another size is no batch of these rows.
#[test]
#[should_panic(expected = "the adapters of 4 rows, and the batch has 1")]
fn one_row_of_ids_is_not_four() {
    let (_, device) = cpu_devices().remove(0);
    let lora = LoraConfig::new(2).with_targets(["word_embeddings"]);
    let model = bert(&device).attach("a", &lora).unwrap();
    let mixed = model
        .set_adapter_per_row(&[Some("a"), None, None, Some("a")])
        .unwrap();
    mixed.forward(Tensor::from_data([[1_i64, 2, 3]], &device), None);
}

#[derive(Module, Debug)]
struct Grouped {
    linear: Linear,
    norm: burn::nn::GroupNorm,
}

#[test]
fn layers_that_cannot_differ_between_rows_are_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = Grouped {
        linear: LinearConfig::new(4, 4).init(&device),
        norm: burn::nn::GroupNormConfig::new(2, 4).init(&device),
    };
    let model = base.attach("a", &BitFitConfig::new()).unwrap();
    let error = model
        .set_adapter_per_row(&[Some("a"), None])
        .unwrap_err()
        .to_string();
    assert!(error.contains("GroupNorm"), "{error}");
    assert!(
        model
            .set_composition(&Composition::Weighted(vec![("a".into(), 0.5)]))
            .is_ok()
    );
}

#[test]
fn short_forms_are_those_of_adapterhub() {
    let rows = |names: &[&str]| {
        Composition::PerRow(names.iter().map(|name| Some(name.to_string())).collect())
    };
    let split = Composition::batch_split([("a", 2), ("b", 0), ("c", 1)]);
    assert_eq!(split, rows(&["a", "a", "c"]));
    assert_eq!(
        Composition::parallel(["a", "b"], 2),
        rows(&["a", "a", "b", "b"])
    );
    let average = Composition::average([("a", 1.0), ("b", 3.0)]);
    let weights = vec![("a".to_string(), 0.25), ("b".to_string(), 0.75)];
    assert_eq!(average, Composition::Weighted(weights));
    let (_, device) = cpu_devices().remove(0);
    let lora = LoraConfig::new(2).with_targets(["linear"]);
    let model = attach(
        &attach(&Block::new(&device.clone().autodiff()), "a", &lora, 0.0),
        "b",
        &lora,
        5.0,
    );
    let none = Composition::average([("a", 1.0), ("b", -1.0)]);
    assert!(matches!(
        model.set_composition(&none),
        Err(Error::Composition { .. })
    ));
}

/// The batch holds its rows once for each adapter, and so does the output.
/// `Stack(a, Parallel(b, c))`, `Parallel(Stack(a, b), c)` and rows without an adapter, of weights, biases, norms and sites.
#[test]
fn rows_have_stacks_of_their_own() {
    let lora = LoraConfig::new(2)
        .with_alpha(6.0)
        .with_targets(["query", "dense"]);
    let bottleneck = BottleneckConfig::houlsby().with_reduction_factor(4.0);
    let methods: [&dyn Method; 3] = [&lora, &bottleneck, &BitFitConfig::new()];
    for (backend, device) in cpu_devices() {
        let mut model = bert(&device);
        for (name, (method, step)) in ["a", "b", "c"]
            .into_iter()
            .zip(methods.iter().zip([0.3, 1.1, 2.7]))
        {
            model = attach(&model, name, *method, step);
        }
        // The same layers twice: one adapter lies on the other.
        model = attach(&model, "d", &lora, 4.1);
        let stacks: [&[&str]; 4] = [&["a", "b"], &["a", "c", "d"], &[], &["d"]];
        let rows = stacks.map(|stack| stack.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mixed = model
            .set_composition(&Composition::PerRowStack(rows.to_vec()))
            .unwrap();
        let found = mixed.forward(ids(&device), None);
        for (row, stack) in stacks.into_iter().enumerate() {
            let alone = match stack {
                [] => model.disable_adapters().unwrap(),
                names => model.activate(names).unwrap(),
            };
            let alone = alone.forward(ids(&device).narrow(0, row, 1), None);
            let distance = farthest(&data(found.clone().narrow(0, row, 1)), &data(alone));
            assert!(distance < 1e-5, "row {row} on {backend}: {distance}");
        }
        let left = mixed.detach("a").unwrap();
        let rows = [
            vec!["b".into()],
            vec!["c".into(), "d".into()],
            vec![],
            vec!["d".into()],
        ];
        assert_eq!(left.composition(), Composition::PerRowStack(rows.to_vec()));
    }
}

#[test]
fn one_of_a_rows_adapters_may_have_virtual_tokens() {
    let (_, device) = cpu_devices().remove(0);
    let model = attach(&bert(&device), "a", &PromptTuningConfig::new(2), 0.1);
    let model = attach(&model, "b", &PromptTuningConfig::new(2), 0.7);
    let model = attach(
        &model,
        "c",
        &LoraConfig::new(2).with_targets(["query"]),
        1.3,
    );
    let stacks = |rows: [&[&str]; 2]| {
        let rows = rows.map(|row| row.iter().map(ToString::to_string).collect());
        model.set_composition(&Composition::PerRowStack(rows.to_vec()))
    };
    let error = stacks([&["a", "b"], &["a"]]).unwrap_err();
    assert!(error.to_string().contains("virtual tokens"), "{error}");
    let ids = ids(&device).narrow(0, 0, 2);
    let found = stacks([&["a", "c"], &["b"]])
        .unwrap()
        .forward(ids.clone(), None);
    for (row, names) in [["a", "c"].as_slice(), &["b"]].into_iter().enumerate() {
        let alone = model.activate(names).unwrap();
        let alone = alone.forward(ids.clone().narrow(0, row, 1), None);
        assert!(farthest(&data(found.clone().narrow(0, row, 1)), &data(alone)) < 1e-5);
    }
}

#[test]
fn parallel_adapters_have_an_output_each() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let (base, ids) = (bert(&device), ids(&device));
    let method = BottleneckConfig::houlsby();
    let model = attach(&attach(&base, "a", &method, 0.0), "b", &method, 5.0);
    let rows = ids.dims()[0];
    let parallel = model
        .set_composition(&Composition::parallel(["a", "b"], rows))
        .unwrap();
    let outputs = parallel
        .forward(ids.clone().repeat_dim(0, 2), None)
        .chunk(2, 0);
    for (name, output) in ["a", "b"].into_iter().zip(outputs) {
        let alone = model.activate(&[name]).unwrap().forward(ids.clone(), None);
        assert!(farthest(&data(output), &data(alone)) <= 2e-6, "{name}");
    }
}
