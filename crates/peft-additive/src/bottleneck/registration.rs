//! The registrations of bottleneck adapters: one configuration, which is several methods by the values of its fields.

use peft_core::method::{Family, MethodInfo};
use serde_json::Value;

use super::config::BottleneckConfig;
use super::fields::Scaling;
use super::json::parse;

/// Registration of adapters after both sublayers.
pub static HOULSBY: MethodInfo = MethodInfo {
    name: "houlsby",
    peft_type: "HOULSBY",
    title: "Houlsby",
    family: Family::Additive,
    reference: "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, section 2.1; AdapterHub's double_seq_bn",
    identity_at_init: false,
    mergeable: false,
    parse: |json| parse(json, BottleneckConfig::houlsby()),
    recognises: Some(|json| is(json, &HOULSBY)),
};

/// Registration of adapters after feed-forward only.
pub static PFEIFFER: MethodInfo = MethodInfo {
    name: "pfeiffer",
    peft_type: "PFEIFFER",
    title: "Pfeiffer",
    reference: "Pfeiffer et al. 2020, AdapterFusion, section 2.3 and appendix; AdapterHub's seq_bn",
    parse: |json| parse(json, BottleneckConfig::pfeiffer()),
    recognises: Some(|json| is(json, &PFEIFFER)),
    ..HOULSBY
};

/// Registration of adapters beside a sublayer.
pub static PARALLEL: MethodInfo = MethodInfo {
    name: "parallel",
    peft_type: "PARALLEL",
    title: "Parallel",
    reference: "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, section 4; AdapterHub's par_bn",
    identity_at_init: true,
    parse: |json| parse(json, BottleneckConfig::parallel()),
    recognises: Some(|json| is(json, &PARALLEL)),
    ..HOULSBY
};

/// Registration of adapters with a scale for each feature.
pub static ADAPTER_PLUS: MethodInfo = MethodInfo {
    name: "adapter-plus",
    peft_type: "ADAPTER_PLUS",
    title: "AdapterPlus",
    reference: "Steitz and Roth 2024, Adapters Strike Back, section 3; AdapterHub's AdapterPlusConfig",
    parse: |json| parse(json, BottleneckConfig::adapter_plus()),
    recognises: Some(|json| is(json, &ADAPTER_PLUS)),
    ..HOULSBY
};

/// Registration of adapters after both sublayers whose projections are sums of Kronecker products.
pub static COMPACTER: MethodInfo = MethodInfo {
    name: "compacter",
    peft_type: "COMPACTER",
    title: "Compacter",
    reference: "Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, section 3; AdapterHub's compacter",
    parse: |json| parse(json, BottleneckConfig::compacter()),
    recognises: Some(|json| is(json, &COMPACTER)),
    ..HOULSBY
};

/// Registration of the same after feed-forward only.
pub static COMPACTER_PLUS_PLUS: MethodInfo = MethodInfo {
    name: "compacter-plus-plus",
    peft_type: "COMPACTER_PLUS_PLUS",
    title: "Compacter++",
    reference: "Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, section 4.1; AdapterHub's compacter++",
    parse: |json| parse(json, BottleneckConfig::compacter_plus_plus()),
    recognises: Some(|json| is(json, &COMPACTER_PLUS_PLUS)),
    ..HOULSBY
};

/// Registration of adapters with few weights that are not zero.
pub static SPARSE_ADAPTER: MethodInfo = MethodInfo {
    name: "sparse-adapter",
    peft_type: "SPARSE_ADAPTER",
    title: "SparseAdapter",
    reference: "He et al. 2022, SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters, section 2",
    parse: |json| parse(json, BottleneckConfig::sparse(0.8)),
    recognises: Some(|json| is(json, &SPARSE_ADAPTER)),
    ..HOULSBY
};

/// Registration of several adapters at each place, of which training takes one at random.
pub static ADAMIX: MethodInfo = MethodInfo {
    name: "adamix",
    peft_type: "ADAMIX",
    title: "AdaMix",
    reference: "Wang et al. 2022, AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning, section 3",
    parse: |json| parse(json, BottleneckConfig::adamix(4)),
    recognises: Some(|json| is(json, &ADAMIX)),
    ..HOULSBY
};

/// The method of a configuration, by whether it has these: Kronecker products, a place beside the sublayer, a factor for
/// each feature, an adapter after attention.
fn method([phm_layer, is_parallel, channel, mh_adapter]: [bool; 4]) -> &'static MethodInfo {
    match (phm_layer, is_parallel, channel) {
        (true, _, _) if mh_adapter => &COMPACTER,
        (true, _, _) => &COMPACTER_PLUS_PLUS,
        (false, true, _) => &PARALLEL,
        (false, false, true) => &ADAPTER_PLUS,
        (false, false, false) if mh_adapter => &HOULSBY,
        (false, false, false) => &PFEIFFER,
    }
}

/// The method that a configuration is.
pub(crate) fn registration(config: &BottleneckConfig) -> &'static MethodInfo {
    if config.sparsity.is_some() {
        return &SPARSE_ADAPTER;
    }
    if config.num_experts.is_some() {
        return &ADAMIX;
    }
    let channel = config.scaling == Scaling::Channel;
    method([
        config.phm_layer,
        config.is_parallel,
        channel,
        config.mh_adapter,
    ])
}

/// Whether a configuration in AdapterHub's layout is of a bottleneck that is this method.
fn is(json: &Value, info: &MethodInfo) -> bool {
    let config = &json["config"];
    let factor = &config["reduction_factor"];
    if !(factor.is_number() || factor.is_object()) || !config["architecture"].is_null() {
        return false;
    }
    let is_on = |field: &str| config[field] == true;
    let found = if config["sparsity"].is_number() {
        &SPARSE_ADAPTER
    } else if config["num_experts"].is_number() {
        &ADAMIX
    } else {
        method([
            is_on("phm_layer"),
            is_on("is_parallel"),
            config["scaling"] == "channel",
            is_on("mh_adapter"),
        ])
    };
    found.name == info.name
}
