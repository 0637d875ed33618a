//! The battery, on bottleneck adapters.

use peft_additive::{Activation, BottleneckConfig};
use peft_core::method::ConfigExt as _;

peft_conformance::battery!(vec![
    Case::new(
        "houlsby",
        BottleneckConfig::houlsby().with_reduction_factor(4.0)
    ),
    Case::new(
        "pfeiffer",
        BottleneckConfig::pfeiffer().with_reduction_factor(8.0)
    ),
    Case::new(
        "pfeiffer from a late block on, with a head",
        BottleneckConfig::pfeiffer()
            .with_non_linearity(Activation::Gelu)
            .with_leave_out([0])
            .with_dropout(0.1)
            .with_modules_to_save(["classifier"])
    ),
]);

/// A model without sites.
#[derive(burn::module::Module, Debug)]
struct NoSites {
    layer: burn::nn::Linear,
}

#[test]
fn a_model_without_sites_is_refused_and_left_as_it_was() {
    use peft_core::{Error, PeftModule};
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let model = NoSites {
        layer: burn::nn::LinearConfig::new(4, 4).init(device),
    };
    let refused = model.attach("a", &BottleneckConfig::houlsby()).unwrap_err();
    assert!(matches!(refused, Error::NoSite { .. }), "{refused}");
    assert!(
        refused.to_string().contains("attention output"),
        "{refused}"
    );
    assert!(model.adapters().is_empty());
    assert!(
        model
            .layout()
            .params
            .iter()
            .all(peft_core::method::LayoutParam::is_trainable)
    );
}
