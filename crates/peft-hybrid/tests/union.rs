//! What a union is, beyond what the conformance suite asks of every method.

use peft_additive::{Bottleneck, BottleneckConfig, ReftConfig};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::method::{Method, MethodConfig as _, SparseDelta};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_hybrid::{METHODS, UNION, UnionConfig};
use peft_reparameterization::{AdaLoraConfig, AdapterHubLora, LoraConfig, LoraLinear};
use peft_selective::{FishMaskConfig, HeadOnlyConfig, SptConfig};
use peft_soft_prompt::AdapterHubPrefixConfig;

fn lora() -> LoraConfig {
    LoraConfig::new(2).with_adapterhub(AdapterHubLora::default())
}

fn fixture() -> Fixture {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    Fixture::new(&device)
}

/// A model with a union on it, every state of which is another than at first.
fn trained(fixture: &Fixture, union: &UnionConfig) -> TinyTransformer {
    fixture.trained("u", union).unwrap()
}

#[test]
fn a_union_is_its_methods_one_on_the_other() {
    let fixture = fixture();
    let (bottleneck, lora) = (BottleneckConfig::pfeiffer(), lora());
    let union = UnionConfig::new()
        .with(bottleneck.clone())
        .with(lora.clone());
    let model = trained(&fixture, &union);
    let apart = fixture.base.attach("b", &bottleneck).unwrap();
    let apart = apart.attach("l", &lora).unwrap();
    let apart = apart.activate(&["b", "l"]).unwrap();
    let of_bottleneck = model.adapter_states::<Bottleneck>("u").unwrap();
    let of_lora = model.adapter_states::<LoraLinear>("u").unwrap();
    assert!(!of_bottleneck.is_empty() && !of_lora.is_empty());
    let mut states = of_bottleneck.into_iter();
    let apart = apart.edit_adapter::<Bottleneck>("b", |_, state| {
        *state = states.next().unwrap().1;
    });
    let mut states = of_lora.into_iter();
    let apart = apart.unwrap().edit_adapter::<LoraLinear>("l", |_, state| {
        *state = states.next().unwrap().1;
    });
    let apart = apart.unwrap();
    assert_eq!(
        fixture.outputs(&apart).unwrap(),
        fixture.outputs(&model).unwrap()
    );
    assert_eq!(apart.counts().trainable, model.counts().trainable);
}

#[test]
fn the_file_has_adapterhubs_layout() {
    let fixture = fixture();
    let union = UnionConfig::new()
        .with(BottleneckConfig::pfeiffer())
        .with(lora());
    let model = trained(&fixture, &union);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("u", dir.path()).unwrap();
    let json = peft_core::checkpoint::read_config(dir.path()).unwrap();
    assert_eq!(json["config"]["architecture"], "union");
    assert_eq!(json["config"]["configs"][1]["architecture"], "lora");
    assert_eq!(json["config"]["configs"][1]["r"], 2);
    assert_eq!(json["name"], "u");
    let bytes = std::fs::read(dir.path().join("adapter.safetensors")).unwrap();
    let file = String::from_utf8_lossy(&bytes);
    for key in [
        "encoder.layer.0.attention.self.query.loras.u.lora_A",
        "encoder.layer.0.output.adapters.u.adapter_up.weight",
    ] {
        assert!(file.contains(key), "{key}");
    }
    let again = fixture.base.load_adapter("v", dir.path(), METHODS).unwrap();
    let outputs = |model| fixture.outputs(model).unwrap();
    assert_eq!(outputs(&again), outputs(&model));
}

#[test]
fn what_training_decides_is_written_where_it_belongs() {
    let fixture = fixture();
    let adalora = AdaLoraConfig::new(4, 2)
        .with_targets(["query"])
        .with_tinit(1)
        .with_tfinal(2)
        .with_delta_t(1);
    let union = UnionConfig::new().with(lora_on_values()).with(adalora);
    let model = fixture.base.attach("u", &union).unwrap();
    let mut hooks = model.training_hooks(7).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let has_penalty = hooks.penalty(&model).unwrap().is_some();
    assert!(has_penalty, "AdaLoRA's");
    let model = fixture.train_with_hooks(model, &mut hooks, 7, |_, _| ());
    hooks.save(file.path()).unwrap();
    let resumed = peft_core::TrainingHooks::resume(&model, 7, file.path()).unwrap();
    assert_eq!(resumed.step(), 7);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("u", dir.path()).unwrap();
    let json = peft_core::checkpoint::read_config(dir.path()).unwrap();
    let configs = &json["config"]["configs"];
    assert_eq!(configs[1]["peft_type"], "ADALORA");
    assert!(configs[1]["rank_pattern"].is_object(), "{configs}");
    fixture.base.load_adapter("v", dir.path(), METHODS).unwrap();
}

/// AdapterHub has no field for what DiReFT is, and ours is beside its fields.
#[test]
fn direft_is_direft_after_a_union_was_read() {
    let fixture = fixture();
    let direft = ReftConfig::direft().with_r(2);
    let union = UnionConfig::new().with(direft).with(lora_on_values());
    let model = trained(&fixture, &union);
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("u", dir.path()).unwrap();
    let read = fixture.base.load_adapter("v", dir.path(), METHODS).unwrap();
    let outputs = |model| fixture.outputs(model).unwrap();
    assert_eq!(outputs(&read), outputs(&model));
}

/// Before AdapterHub 1.1 LoRA's scale was 1, whatever alpha.
#[test]
fn a_unions_version_is_that_of_its_methods() {
    let layout = |version: &str| {
        let config = UnionConfig::new().with(lora());
        let mut json = config.to_json();
        json["version"] = version.into();
        (UNION.parse)(&json).unwrap().to_json()
    };
    let (old, new) = (layout("adapters.1.0.1"), layout("adapters.1.3.0"));
    assert_ne!(old["config"]["configs"][0], new["config"]["configs"][0]);
}

fn lora_on_values() -> LoraConfig {
    LoraConfig::new(2).with_targets(["value"])
}

#[test]
fn what_is_no_union_is_refused() {
    let fixture = fixture();
    let wrong: [(UnionConfig, &str); 5] = [
        (UnionConfig::new(), "at least one"),
        (UnionConfig::new().with(UnionConfig::default()), "Union"),
        (UnionConfig::new().with(HeadOnlyConfig::new()), "Head only"),
        (
            UnionConfig::new().with(lora().with_modules_to_save(["classifier"])),
            "modules_to_save",
        ),
        (UnionConfig::new().with(LoraConfig::new(0)), "LoRA"),
    ];
    for (union, word) in wrong {
        let error = union.validate().unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    let twice = UnionConfig::new()
        .with(lora())
        .with(LoraConfig::new(4).with_targets(["query"]));
    let error = fixture.base.attach("u", &twice).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error}");
}

/// Blocks that one method leaves out are another's, and both have one tensor for the whole model.
#[test]
fn methods_that_write_one_tensor_are_refused_when_they_are_attached() {
    let fixture = fixture();
    let compacter = |left_out: usize| {
        let compacter = BottleneckConfig::compacter().with_reduction_factor(8.0);
        compacter.with_leave_out([left_out])
    };
    let prefix = |left_out: usize| {
        let prefix = AdapterHubPrefixConfig::new().with_flat(true);
        prefix.with_leave_out([left_out])
    };
    for union in [
        UnionConfig::new().with(compacter(0)).with(compacter(1)),
        UnionConfig::new().with(prefix(0)).with(prefix(1)),
    ] {
        let error = fixture.base.attach("u", &union).unwrap_err().to_string();
        assert!(error.contains("would write the tensor"), "{error}");
    }
}

#[test]
fn what_is_read_is_written_back() {
    let union = UnionConfig::default();
    let json = union.to_json();
    let again = (METHODS[0].parse)(&json).unwrap();
    assert_eq!(again.to_json(), json);
}

/// Each of the methods gets its own layers' statistics.
#[test]
fn methods_that_look_at_data_are_attached_on_them() {
    let fixture = fixture();
    let query = FishMaskConfig::new()
        .with_keep_ratio(0.01)
        .with_targets(["query"]);
    let value = SptConfig::new()
        .with_keep_ratio(0.01)
        .with_targets(["value"]);
    let union = UnionConfig::new().with(query.clone()).with(value);
    let model = fixture.attach(&fixture.base, "u", &union).unwrap();
    let alone = fixture.attach(&fixture.base, "f", &query).unwrap();
    let places = |model: &TinyTransformer, name: &str, layer: &str| {
        let states = model.adapter_states::<SparseDelta>(name).unwrap();
        let of_layer = states
            .into_iter()
            .filter(|(place, _)| place.ends_with(layer));
        of_layer
            .map(|(_, state)| state.indices.val().into_data())
            .collect::<Vec<_>>()
    };
    assert!(!places(&model, "u", "value").is_empty());
    let expected = places(&alone, "f", "query");
    assert!(!expected.is_empty());
    assert_eq!(places(&model, "u", "query"), expected);
    // Of a pattern and a list there is no one selection.
    let all = UnionConfig::new()
        .with(FishMaskConfig::new())
        .with(SptConfig::new().with_targets(["value"]));
    let refused = fixture.attach(&fixture.base, "u", &all).unwrap_err();
    assert!(refused.to_string().contains("lists of names"), "{refused}");
}
