//! The battery, on bottleneck adapters.

use peft_additive::{Activation, BottleneckConfig};
use peft_core::ConfigExt as _;

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
            .with_activation(Activation::Gelu)
            .with_leave_out([0])
            .with_dropout(0.1)
            .with_modules_to_save(["classifier"])
    ),
]);
