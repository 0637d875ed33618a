//! `ReFT` on whole models: which tokens it edits under padding, packing and a cache, and beside other adapters.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::additive::{Activation, METHODS, ReftConfig};
use peft::core::{Composition, Error, PeftModule, device::cpu_devices};
use peft::reparameterization::LoraConfig;
use peft_models::{GenerateConfig, Llama, LmBatch};

/// Makes what is trained larger: fresh weights are small beside the stream.
struct Louder;

impl ModuleMapper for Louder {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            if value.is_require_grad() && D == 1 {
                return (value.detach() + 0.5).detach().require_grad();
            }
            value
        })
    }
}

fn attach(model: &Llama, name: &str, config: &ReftConfig) -> Llama {
    model.attach(name, config).unwrap().map(&mut Louder)
}

fn reft(prefix: usize, suffix: usize) -> ReftConfig {
    ReftConfig::loreft()
        .with_r(2)
        .with_prefix_positions(prefix)
        .with_suffix_positions(suffix)
        .with_dropout(0.0)
}

fn ids(rows: &[&[i64]], device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(rows.concat(), [rows.len(), rows[0].len()]);
    Tensor::from_data(data, device)
}

fn padding(rows: &[&[i64]], device: &Device) -> Tensor<2, Bool> {
    ids(rows, device).equal_elem(0)
}

fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    let (a, b) = (a.into_data(), b.into_data());
    assert_eq!(a.shape(), b.shape());
    peft_testing::farthest(a.iter::<f64>(), b.iter::<f64>())
}

const TEXT: [i64; 5] = [7, 30, 21, 5, 19];

/// Positions are relative in a Llama, so that padding on the left changes nothing but rounding.
#[test]
fn a_text_has_the_same_logits_however_its_row_is_filled_up() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        for config in [
            reft(2, 1),
            reft(0, 2).with_tied_weights(true),
            reft(4, 3).with_non_linearity(Activation::Tanh),
        ] {
            let model = attach(&base, "a", &config);
            let alone = model.forward(ids(&[&TEXT], &device), None);
            let plain = base.forward(ids(&[&TEXT], &device), None);
            assert!(distance(alone.clone(), plain) > 1e-2, "{name}");
            let rows: [&[i64]; 3] = [
                &[7, 30, 21, 5, 19, 0, 0, 0],
                &[0, 0, 0, 7, 30, 21, 5, 19],
                &[0, 7, 30, 21, 5, 19, 0, 0],
            ];
            let filled = model.forward(ids(&rows, &device), Some(padding(&rows, &device)));
            for (row, from) in [0, 3, 1].into_iter().enumerate() {
                let own = filled.clone().slice([row..row + 1, from..from + 5]);
                let distance = distance(own, alone.clone());
                assert!(distance < 1e-4, "{name}, row {row}: {distance}");
            }
        }
    }
}

#[test]
fn packed_texts_are_edited_like_texts_alone() {
    for (name, device) in cpu_devices() {
        let model = attach(&Llama::tiny(&device), "a", &reft(2, 1));
        let texts: [&[u32]; 2] = [&[7, 30, 21, 5, 19], &[3, 44, 8]];
        let parts = texts.map(LmBatch::of_text);
        let mut packed = parts[0].clone();
        packed.ids.extend(&parts[1].ids);
        packed.targets.extend(&parts[1].targets);
        packed.segments = Some(vec![0, 0, 0, 0, 0, 1, 1, 1]);
        packed.length = 8;
        let alone = parts.iter().map(|part| model.loss(part));
        let alone = alone.reduce(|a, b| a + b).unwrap();
        let distance = distance(model.loss(&packed), alone);
        assert!(distance < 1e-4, "{name}: {distance}");
    }
}

/// Of a text in a cache the prompt is edited: as many tokens as the first call has.
#[test]
fn what_is_generated_is_not_edited() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        let written = [44, 3, 11];
        let whole = [TEXT.as_slice(), &written].concat();
        // All tokens of the prompt, counted from its end; and from the beginning of all of it.
        let from_end = attach(&base, "a", &reft(0, TEXT.len()).with_tied_weights(true));
        let dir = tempfile::tempdir().unwrap();
        from_end.save_adapter("a", dir.path()).unwrap();
        let path = dir.path().join("adapter_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["config"]["suffix_positions"] = 0.into();
        config["config"]["prefix_positions"] = TEXT.len().into();
        std::fs::write(&path, config.to_string()).unwrap();
        let from_start = base.load_adapter("a", dir.path(), METHODS).unwrap();
        let expected = from_start.forward(ids(&[&whole], &device), None);
        for model in [&from_end, &from_start] {
            let mut cache = model.cache();
            let mut seen = 0;
            for upto in TEXT.len()..=whole.len() {
                let new = ids(&[&whole[seen..upto]], &device);
                let logits = model.next_logits(new, &mut cache);
                let expected = expected.clone().slice_dim(1, upto - 1..upto);
                let distance = distance(logits, expected.squeeze_dim::<2>(1));
                assert!(distance < 1e-4, "{name}, after {upto} tokens: {distance}");
                seen = upto;
            }
        }
        let config = GenerateConfig::default().with_max_new_tokens(4);
        let prompt: Vec<u32> = TEXT.iter().map(|id| *id as u32).collect();
        assert_eq!(
            from_end.generate_ids(&prompt, &config).unwrap(),
            from_start.generate_ids(&prompt, &config).unwrap()
        );
    }
}

#[test]
fn each_row_has_its_own_edit() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        let model = attach(&base, "a", &reft(2, 1));
        let direft = ReftConfig::direft()
            .with_prefix_positions(1)
            .with_suffix_positions(2)
            .with_dropout(0.0);
        let model = attach(&model, "b", &direft);
        let rows: [&[i64]; 4] = [
            &[0, 0, 7, 30, 21, 5],
            &[7, 30, 21, 5, 0, 0],
            &[7, 30, 21, 5, 19, 4],
            &[0, 44, 8, 9, 10, 0],
        ];
        let run = |model: &Llama| model.forward(ids(&rows, &device), Some(padding(&rows, &device)));
        let names = [Some("a"), None, Some("b"), Some("a")];
        let mixed = run(&model.set_adapter_per_row(&names).unwrap());
        let alone = [
            run(&model.activate(&["a"]).unwrap()),
            run(&base),
            run(&model.activate(&["b"]).unwrap()),
        ];
        for (row, at) in [0, 1, 2, 0].into_iter().enumerate() {
            let alone = &alone[at];
            let part = |of: &Tensor<3>| of.clone().slice_dim(0, row..row + 1);
            let distance = distance(part(&mixed), part(alone));
            assert!(distance < 1e-4, "{name}, row {row}: {distance}");
        }
        let halves = vec![("a".to_string(), 1.0), ("b".to_string(), 0.0)];
        let weighted = run(&model
            .set_composition(&Composition::Weighted(halves))
            .unwrap());
        let distance = distance(weighted, alone[0].clone());
        assert!(distance < 1e-4, "{name}: {distance}");
    }
}

#[test]
fn it_acts_on_a_model_with_a_merged_adapter_as_on_one_beside_it() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        let lora = LoraConfig::new(2)
            .with_targets(["q_proj", "down_proj"])
            .with_init_lora_weights(false);
        let with_lora = base.attach("lora", &lora).unwrap();
        let both = attach(&with_lora, "reft", &reft(2, 1));
        let both = both.activate(&["lora", "reft"]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        both.save_adapter("reft", dir.path()).unwrap();
        let refused = both.merge_adapters().unwrap_err();
        assert!(matches!(refused, Error::Unmergeable { .. }), "{refused}");
        let merged = both.activate(&["lora"]).unwrap().merge_and_unload();
        let merged = merged.unwrap().load_adapter("reft", dir.path(), METHODS);
        let run = |model: &Llama| model.forward(ids(&[&TEXT], &device), None);
        let distance = distance(run(&merged.unwrap()), run(&both));
        assert!(distance < 1e-4, "{name}: {distance}");
    }
}

#[test]
fn positions_and_blocks_that_cannot_be_are_refused() {
    let (_, device) = &cpu_devices()[0];
    let base = Llama::tiny(device);
    for (config, expected) in [
        (reft(0, 0), "this or suffix_positions above 0"),
        (reft(1, 0).with_layers([9]), "the model has so many blocks"),
        (reft(1, 0).with_layers([]), "one index at least"),
        (reft(1, 0).with_r(4096), "below the stream's"),
    ] {
        let refused = base.attach("a", &config).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}
