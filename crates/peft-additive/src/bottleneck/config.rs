//! The configuration of bottleneck adapters, its presets, and their registrations: it is several methods by the values of
//! its fields.

use peft_core::method::{Activation, Common, Family, MethodInfo, Value, method_config};

use super::fields::{
    BottleneckInit, ExpertSharing, HypercomplexInit, InvertibleKind, Pruning, ReductionFactor,
    ResidualBeforeLn, RuleInit, Scaling,
};
use super::json::{self, parse};

/// Configuration of bottleneck adapters. Fields are called as in AdapterHub's `BnConfig`. Their defaults are those of
/// [`houlsby`](Self::houlsby); each preset says what it changes.
#[method_config(info = registration, to_json = to_json)]
pub struct BottleneckConfig {
    /// An adapter after attention. Default: true.
    #[field(default = true)]
    pub mh_adapter: bool,
    /// An adapter after feed-forward. Default: true.
    #[field(default = true)]
    pub output_adapter: bool,
    /// The hidden size over the bottleneck's: a number above 0, or numbers by block. Default: 16.
    #[field(default = ReductionFactor::Everywhere(16.0))]
    pub reduction_factor: ReductionFactor,
    /// Non-linearity of the adapters. Default: swish.
    #[field(default = Activation::Swish)]
    pub non_linearity: Activation,
    /// Whether the adapter sees the state after the model's residual and norm. Default: false. No effect on parallel
    /// adapters.
    pub original_ln_before: bool,
    /// Whether the model adds its residual to the adapter's output, and normalises. Default: true.
    #[field(default = true)]
    pub original_ln_after: bool,
    /// Whether the adapter normalises its input by a norm of its own. Default: false.
    pub ln_before: bool,
    /// Whether the adapter normalises its output by a norm of its own. Default: false.
    pub ln_after: bool,
    /// Initial values. Default: `bert`.
    pub init_weights: BottleneckInit,
    /// Seed of the initial values, with which all adapters start from the same ones. Default: none; each draws its own.
    #[field(any)]
    pub init_weights_seed: Option<u64>,
    /// Whether the adapter is beside the sublayer, and sees what goes into that. Default: false.
    pub is_parallel: bool,
    /// Factor of the adapter's output: a number, `learned` or `channel`. Default: 1.
    #[field(default = Scaling::Fixed(1.0))]
    pub scaling: Scaling,
    /// Whether the output is multiplied with a gate, one number a text. Default: false.
    pub use_gating: bool,
    /// Where the adapter's residual is taken from, if `original_ln_before`. Default: true, before residual and norm.
    #[field(default = ResidualBeforeLn::Yes)]
    pub residual_before_ln: ResidualBeforeLn,
    /// Whether the adapter's residual is added before its own norm, if `ln_after`. Default: false. No effect on parallel
    /// adapters.
    pub adapter_residual_before_ln: bool,
    /// An invertible adapter behind the embeddings. Default: none.
    pub inv_adapter: Option<InvertibleKind>,
    /// Half the hidden size over the width inside of the invertible adapter, above 0. Default: none; needed with
    /// `inv_adapter`.
    #[field(positive)]
    pub inv_adapter_reduction_factor: Option<f64>,
    /// Indices of blocks without an adapter, as AdapterDrop leaves out the first ones. Default: none.
    pub leave_out: Vec<usize>,
    /// Dropout probability on the adapter's output, in [0, 1). Default: 0.
    #[field(probability)]
    pub dropout: f64,
    /// Whether the projections are sums of Kronecker products. Default: false. The fields below are of these.
    pub phm_layer: bool,
    /// n, how many products, and the size of the matrices A. Default: 4. At least 1; it divides both widths.
    #[field(default = 4, at_least = 1)]
    pub phm_dim: usize,
    /// Whether the matrices W are products of rank `phm_rank`. Default: true.
    #[field(default = true, rename = "factorized_phm_W")]
    pub factorized_phm_w: bool,
    /// Whether all adapters have the same W, one for Down and one for Up. Default: false.
    #[field(rename = "shared_W_phm")]
    pub shared_w_phm: bool,
    /// Whether all projections have the same A. Default: true.
    #[field(default = true)]
    pub shared_phm_rule: bool,
    /// Whether the matrices A are products of rank 1. Default: false.
    pub factorized_phm_rule: bool,
    /// Initial values of A. Default: `normal`.
    pub phm_c_init: RuleInit,
    /// Standard deviation of initial values, above 0. Default: 0.0001.
    #[field(default = 0.0001, positive)]
    pub phm_init_range: f64,
    /// Whether A is trained. Default: true.
    #[field(default = true)]
    pub learn_phm: bool,
    /// Initial values of W. Default: `glorot-uniform`.
    pub hypercomplex_nonlinearity: HypercomplexInit,
    /// Rank of the matrices W. Default: 1. At least 1.
    #[field(default = 1, at_least = 1)]
    pub phm_rank: usize,
    /// Whether the projections have a bias. Default: true.
    #[field(default = true)]
    pub phm_bias: bool,
    /// Probability of leaving out a text's adapter output while training, in [0, 1). Default: 0.
    #[field(probability)]
    pub stochastic_depth: f64,
    /// While training, each step but the first leaves out the adapters of the first blocks: how many is drawn anew, from 0 to
    /// this. Default: none. Not a field of AdapterHub's, as the fields below.
    #[field(any)]
    pub adapter_drop: Option<usize>,
    /// Share of the weights of Down and Up that are pruned at the start, above 0 and below 1. Default: none.
    #[field(above = 0.0, below = 1.0)]
    pub sparsity: Option<f64>,
    /// Which weights are pruned. Default: `snip`.
    pub pruning: Pruning,
    /// How many pairs of Down and Up there are while training, of which each forward pass takes some at random. When
    /// saved they are averaged. Default: none. At least 1.
    #[field(at_least = 1)]
    pub num_experts: Option<usize>,
    /// Which projection the experts have in common. Default: `none`.
    pub expert_sharing: ExpertSharing,
    /// Fields that every method has.
    pub common: Common,
}

impl BottleneckConfig {
    /// Adapters after attention and after feed-forward: AdapterHub's `double_seq_bn`.
    pub fn houlsby() -> Self {
        Self::default()
    }

    /// An adapter after feed-forward, which sees the state after residual and norm, with relu: AdapterHub's `seq_bn`.
    pub fn pfeiffer() -> Self {
        Self {
            non_linearity: Activation::Relu,
            mh_adapter: false,
            original_ln_before: true,
            ..Self::houlsby()
        }
    }

    /// An adapter beside feed-forward, with relu, a reduction by 2, a factor of 4, and Up at zero: AdapterHub's
    /// `par_bn`.
    pub fn parallel() -> Self {
        Self {
            reduction_factor: 2.0.into(),
            original_ln_before: false,
            init_weights: BottleneckInit::MamAdapter,
            is_parallel: true,
            scaling: 4.0.into(),
            ..Self::pfeiffer()
        }
    }

    /// The same with a learned factor: AdapterHub's `scaled_par_bn`.
    pub fn scaled_parallel() -> Self {
        Self::parallel().with_scaling(Scaling::Learned)
    }

    /// AdapterHub's `AdapterPlusConfig`: an adapter in the place of feed-forward's residual and norm, which it sees the
    /// result of, with gelu, a reduction by 96, a factor for each feature, and a stochastic depth of 0.1.
    pub fn adapter_plus() -> Self {
        Self {
            reduction_factor: 96.0.into(),
            non_linearity: Activation::Gelu,
            original_ln_after: false,
            init_weights: BottleneckInit::Houlsby,
            scaling: Scaling::Channel,
            residual_before_ln: ResidualBeforeLn::No,
            stochastic_depth: 0.1,
            ..Self::pfeiffer()
        }
    }

    /// [`houlsby`](Self::houlsby) with sums of Kronecker products, gelu and a reduction by 32: AdapterHub's
    /// `compacter`.
    pub fn compacter() -> Self {
        Self {
            phm_layer: true,
            reduction_factor: 32.0.into(),
            non_linearity: Activation::Gelu,
            ..Self::houlsby()
        }
    }

    /// [`pfeiffer`](Self::pfeiffer) with sums of Kronecker products, gelu and a reduction by 32: AdapterHub's
    /// `compacter++`.
    pub fn compacter_plus_plus() -> Self {
        Self {
            phm_layer: true,
            reduction_factor: 32.0.into(),
            non_linearity: Activation::Gelu,
            ..Self::pfeiffer()
        }
    }

    /// [`houlsby`](Self::houlsby) with a part of its weights pruned at the start: SparseAdapter. `sparsity` is above 0 and
    /// below 1.
    pub fn sparse(sparsity: f64) -> Self {
        Self::houlsby().with_sparsity(sparsity)
    }

    /// [`houlsby`](Self::houlsby) with so many pairs of Down and Up while training: AdaMix.
    pub fn adamix(experts: usize) -> Self {
        Self::houlsby().with_num_experts(experts)
    }

    /// Adds an invertible adapter behind the embeddings, reduced by 2: AdapterHub's presets `…_inv` with `nice`.
    #[must_use]
    pub fn with_invertible(mut self, kind: InvertibleKind) -> Self {
        self.inv_adapter = Some(kind);
        self.inv_adapter_reduction_factor = Some(2.0);
        self
    }
}

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
fn registration(config: &BottleneckConfig) -> &'static MethodInfo {
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

/// In AdapterHub's layout.
fn to_json(config: &BottleneckConfig) -> Value {
    let mut plain = config.clone();
    plain.common = Common::default();
    json::to_json(&config.common, plain)
}
