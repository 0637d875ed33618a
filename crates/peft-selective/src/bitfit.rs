//! BitFit: only biases are trained.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, Plan, WeightAdapter, method_config,
};
use peft_core::{Error, Result, Selection, Targets};

/// The change of one bias: b + delta, delta starting at 0.
#[derive(Module, Debug)]
pub struct BiasDelta {
    /// The difference, of the bias's shape.
    pub delta: Param<Tensor<1>>,
    #[module(skip)]
    key: String,
}

impl Adapter for BiasDelta {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::named("delta", &self.key)]
    }
}

impl WeightAdapter for BiasDelta {
    fn compose<const D: usize>(&self, bias: Tensor<D>) -> Tensor<D> {
        let shape = bias.shape();
        bias + self.delta.val().reshape(shape)
    }
}

/// BitFit's configuration.
///
/// Targets select layers by name; by default every layer with a bias takes part, normalisation
/// layers included, but not the output head: that is trained whole as a saved module.
#[method_config(
    BITFIT, peft_type = "BITFIT", title = "BitFit", family = Selective, identity_at_init, mergeable, new(),
    reference = "Ben Zaken et al. 2021, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models, section 3"
)]
pub struct BitFitConfig {
    /// Layers whose biases train, as in the paper's ablations (`["query", "intermediate.dense"]` is its section 4.3).
    /// Default: all but the head.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

/// Queries, and the layers that widen in feed-forward, as Hugging Face's models call them.
const QUERY_AND_MLP: &str =
    r"(.*\.)?(query|q_proj|q_lin|intermediate\.dense|fc1|lin1|c_fc|gate_proj|up_proj)";

impl BitFitConfig {
    /// The biases of queries and of the first layer of each feed-forward block alone: the paper's section 4.3, where they
    /// do nearly as well as all. By the names that BERT, RoBERTa, DistilBERT, ViT, OPT, Llama and the like have.
    #[must_use]
    pub fn query_and_mlp() -> Self {
        Self::new().with_targets(QUERY_AND_MLP)
    }
}

impl Method for BitFitConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let everything = Selection::from(".*");
        let by_default = self.targets.target_modules.is_none();
        for layer in self
            .targets
            .select(layout, BITFIT.title, &everything, plan.is_new())?
        {
            let Some(bias) = layout.param(layer, "bias") else {
                continue;
            };
            if (by_default && layer.head) || bias.shape().len() != 1 {
                continue;
            }
            let delta = plan
                .init()
                .zeros([bias.elements()], (&bias.device(), bias.dtype()));
            plan.adapt_weight(
                bias,
                BiasDelta {
                    delta,
                    key: format!("{}.delta", bias.name),
                },
            );
        }
        if plan.is_empty() {
            return Err(Error::config(
                BITFIT.title,
                "target_modules",
                &self.targets.target_modules,
                "none of these layers has a bias; models without biases need another method",
            ));
        }
        Ok(())
    }
}
