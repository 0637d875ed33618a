//! The configuration of bottleneck adapters, and its presets.

use peft_core::method::{Common, MethodConfig as _, MethodInfo, Value, method_config};
use peft_core::{Error, Result};

use super::activation::Activation;
use super::fields::{
    BottleneckInit, ExpertSharing, HypercomplexInit, InvertibleKind, Pruning, ReductionFactor,
    ResidualBeforeLn, RuleInit, Scaling,
};
use super::json::to_json;
use super::registration::registration;

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

    /// What no field's own range says.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_fields()?;
        let info = self.info();
        self.reduction_factor.check(info)?;
        let problem = if !(self.mh_adapter || self.output_adapter || self.inv_adapter.is_some()) {
            Some((
                "output_adapter",
                Value::from(false),
                "this or mh_adapter must be true",
            ))
        } else if let Scaling::Fixed(factor) = self.scaling
            && !factor.is_finite()
        {
            let found = factor.to_string().into();
            Some(("scaling", found, "a finite number, `learned` or `channel`"))
        } else if self.residual_before_ln == ResidualBeforeLn::PostAdd
            && !self.original_ln_before
            && !self.is_parallel
        {
            let expected = "true or false without original_ln_before: nothing was added yet";
            Some(("residual_before_ln", "post_add".into(), expected))
        } else if self.inv_adapter.is_some() && self.inv_adapter_reduction_factor.is_none() {
            let expected = "a number above 0 with inv_adapter";
            Some(("inv_adapter_reduction_factor", Value::Null, expected))
        } else {
            self.phm_problem().or_else(|| self.training_problem())
        };
        if let Some((field, found, expected)) = problem {
            return Err(Error::config(info.title, field, found, expected));
        }
        self.refuse_unknown(info)
    }

    fn phm_problem(&self) -> Option<(&'static str, Value, &'static str)> {
        if !self.phm_layer {
            return None;
        }
        if self.init_weights != BottleneckInit::Bert {
            let found = serde_json::to_value(self.init_weights).unwrap_or_default();
            let expected = "`bert` with phm_layer, whose initial values hypercomplex_nonlinearity and phm_c_init say";
            return Some(("init_weights", found, expected));
        }
        if self.shared_w_phm && matches!(self.reduction_factor, ReductionFactor::ByBlock(_)) {
            let expected = "false where reduction_factor differs between blocks";
            return Some(("shared_W_phm", true.into(), expected));
        }
        None
    }

    fn training_problem(&self) -> Option<(&'static str, Value, &'static str)> {
        if self.num_experts.is_some() && self.phm_layer {
            return Some((
                "num_experts",
                self.num_experts.into(),
                "none with phm_layer",
            ));
        }
        self.sparsity?;
        let problem = if self.phm_layer {
            "none with phm_layer, which has few weights already"
        } else if self.num_experts.is_some() {
            "none with num_experts, whose average is not sparse"
        } else if self.init_weights == BottleneckInit::MamAdapter {
            "none with init_weights `mam_adapter`: a weight that is 0 counts as pruned"
        } else {
            return None;
        };
        Some(("sparsity", self.sparsity.into(), problem))
    }

    /// Refuses a field of upstream's that would change the meaning of the tensors.
    fn refuse_unknown(&self, info: &MethodInfo) -> Result<()> {
        let unknown = &self.common.unknown;
        let inner = unknown
            .get("config")
            .and_then(|config| config.get("cross_adapter"));
        for value in [unknown.get("cross_adapter"), inner].into_iter().flatten() {
            if !(value.is_null() || *value == false) {
                let expected = "false: no model here has attention from a decoder to an encoder";
                return Err(Error::config(info.title, "cross_adapter", value, expected));
            }
        }
        Ok(())
    }
}
