//! AdapterHub's layouts, on models that its configurations do not fit.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Device;
use peft_core::PeftModule as _;
use peft_core::device::cpu_devices;
use peft_core::method::Method;
use peft_reparameterization::{
    AdapterHubLora, AdapterHubMtl, AdapterHubVera, LoraConfig, MtlLoraConfig, VeraConfig,
};

/// GPT-2's names: queries, keys and values are one layer.
#[derive(Module, Debug)]
struct Packed {
    h: Vec<Block>,
}

#[derive(Module, Debug)]
struct Block {
    c_attn: Linear,
    fc1: Linear,
}

/// Projections of different widths, as with fewer heads of keys and values.
#[derive(Module, Debug)]
struct Uneven {
    layers: Vec<Projections>,
}

#[derive(Module, Debug)]
struct Projections {
    q_proj: Linear,
    v_proj: Linear,
}

fn linear(d_out: usize, device: &Device) -> Linear {
    LinearConfig::new(8, d_out).init(device)
}

fn refused(result: peft_core::Result<impl Module>, words: &[&str]) {
    let error = result.map(|_| ()).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "no {word} in: {error}");
    }
}

#[test]
fn layers_of_all_three_are_refused_by_name() {
    let (_, device) = cpu_devices().remove(0);
    let block = Block {
        c_attn: linear(24, &device),
        fc1: linear(16, &device),
    };
    let model = Packed { h: vec![block] };
    let lora = LoraConfig::new(2).with_adapterhub(AdapterHubLora::default());
    let beside = LoraConfig::new(2).with_adapterhub(AdapterHubLora {
        intermediate_lora: true,
        ..AdapterHubLora::default()
    });
    for method in [&lora, &beside] {
        refused(model.attach("a", method), &["attn_matrices", "h.0.c_attn"]);
    }
    let feed_forward = LoraConfig::new(2).with_adapterhub(AdapterHubLora {
        selfattn_lora: false,
        intermediate_lora: true,
        ..AdapterHubLora::default()
    });
    assert!(model.attach("a", &feed_forward).is_ok());
}

#[test]
fn what_shares_its_matrices_needs_layers_of_one_shape() {
    let (_, device) = cpu_devices().remove(0);
    let projections = Projections {
        q_proj: linear(8, &device),
        v_proj: linear(4, &device),
    };
    let layers = vec![projections];
    let vera = VeraConfig::new(2).with_adapterhub(AdapterHubVera::default());
    refused(
        Uneven { layers }.attach("a", &vera),
        &["attn_matrices", "layers.0.v_proj", "[8, 4]"],
    );
}

#[test]
fn what_adapterhub_cannot_make_is_refused() {
    let with = |field: &str, value: serde_json::Value| {
        let mut fields = AdapterHubMtl::default();
        fields.layers.rest.insert(field.into(), value);
        MtlLoraConfig::new(2, 1).with_adapterhub(fields)
    };
    let hub = MtlLoraConfig::new(2, 1).with_adapterhub(AdapterHubMtl::default());
    for (config, field) in [
        (with("use_dora", true.into()), "use_dora"),
        (with("vera_d", 0.1.into()), "vera_d"),
        (with("composition_mode", "scale".into()), "composition_mode"),
        (hub.clone().with_n_tasks(2), "adapterhub"),
    ] {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    assert!(hub.validate().is_ok());
}
