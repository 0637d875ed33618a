//! `LayerNorm` tuning: the parameters of normalisation layers are trained.

use peft_core::method::{
    Common, Layer, LayerKind, Layout, LayoutParam, Method, Plan, Value, method_config,
};
use peft_core::{Error, Result, Selection, Targets};

use crate::upstream::json_without;

/// Norms of queries and keys, as Hugging Face's models call them. Upstream's defaults leave them out.
const INSIDE_ATTENTION: [&str; 2] = ["q_norm", "k_norm"];

/// `LayerNorm` tuning's configuration. Fields are called and behave as in Hugging Face PEFT's `LNTuningConfig`.
#[method_config(
    LN_TUNING, peft_type = "LN_TUNING", title = "LayerNorm tuning", family = Selective, identity_at_init, mergeable, new(),
    reference = "Zhao et al. 2023, Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, section 3",
    to_json = LnTuningConfig::json
)]
pub struct LnTuningConfig {
    /// Normalisation layers whose weights and biases train. Default: all but those of queries and keys and those of
    /// heads.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl LnTuningConfig {
    fn json(&self) -> Value {
        json_without(self, &["layers_to_transform", "layers_pattern"])
    }

    /// The whole names of the layers that train where none are named.
    fn by_default(layout: &Layout) -> Selection {
        let is_usual = |layer: &&Layer| {
            let last = layer.name.rsplit('.').next().unwrap_or_default();
            layer.kind == LayerKind::Norm && !layer.head && !INSIDE_ATTENTION.contains(&last)
        };
        let layers = layout.layers.iter().filter(is_usual);
        let names: Vec<&str> = layers.map(|layer| layer.name.as_str()).collect();
        Selection::from(names)
    }
}

impl Method for LnTuningConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let by_default = Self::by_default(layout);
        let title = LN_TUNING.title;
        for layer in self
            .targets
            .select(layout, title, &by_default, plan.is_new())?
        {
            let params: Vec<&LayoutParam> = layer
                .params
                .iter()
                .map(|index| &layout.params[*index])
                .collect();
            let vectors = params.iter().all(|param| param.shape().len() == 1);
            if layer.kind != LayerKind::Norm || !vectors {
                return Err(Error::UnsupportedLayer {
                    method: title,
                    layer: layer.name.clone(),
                    kind: layer.kind.to_string(),
                    supported: "Norm".into(),
                });
            }
            for param in params {
                let key = format!("{}.ln_tuning_layers.{}", layer.name, param.field());
                plan.train_bias(param, Some(key), None);
            }
        }
        Ok(())
    }

    fn replaces(&self) -> bool {
        true
    }
}
