//! ShadowPEFT's configuration, and what it puts on a model.

use burn::module::Param;
use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device};
use peft_core::method::{
    Common, HiddenState, LayerKind, Layout, LayoutParam, Method, MethodConfig as _, Plan, SiteKind,
    Targets, method_config,
};
use peft_core::nn::Lane;
use peft_core::{Error, Result};

use crate::ladder::{Block, Sizes, blocks};
use crate::shadow::backbone::{Affine, BACKBONE, ShadowBackbone, ShadowBlock};
use crate::shadow::step::{ShadowInjection, ShadowStep, ShadowUpdate};

/// ShadowPEFT's configuration. Fields are called as in Hugging Face PEFT.
#[method_config(
    SHADOW, peft_type = "SHADOW", title = "ShadowPEFT", family = Additive, identity_at_init, new(),
    reference = "Li et al. 2026, ShadowPEFT: Shadow Network for Parameter-Efficient Fine-Tuning, section 3; Hugging Face PEFT's ShadowConfig"
)]
pub struct ShadowConfig {
    /// Rank of what goes into the blocks.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// α, what the injected difference is multiplied by.
    #[field(default = 0.1, finite)]
    pub shadow_alpha: f64,
    /// Dropout probability on the difference.
    #[field(default = 0.2, probability)]
    pub shadow_dropout: f64,
    /// Whether the way up is zero at first, so that a fresh adapter changes nothing. Default: true.
    #[field(default = true)]
    pub init_weights: bool,
    /// How the shadow network is built. Default, and the only way here: `mirror`, a fresh one of the model's kind.
    #[field(default = "mirror".to_string())]
    pub shadow_model: String,
    /// Blocks of the shadow network. Default: 1. At least 1.
    #[field(at_least = 1)]
    pub shadow_num_hidden_layers: Option<usize>,
    /// Its width. Default: the model's.
    #[field(at_least = 1)]
    pub shadow_hidden_size: Option<usize>,
    /// Its heads of queries. Default: as many as the model has. A multiple of the model's heads of keys.
    #[field(at_least = 1)]
    pub shadow_num_attention_heads: Option<usize>,
    /// Features inside its feed-forward part. Default: the model's.
    #[field(at_least = 1)]
    pub shadow_intermediate_size: Option<usize>,
    /// Whether it reads the model's embeddings, where it is as wide as the model. Default: true.
    #[field(default = true)]
    pub share_embeddings: bool,
    /// Features inside the networks that carry the state on. Default: `r`.
    #[field(at_least = 1)]
    pub update_hidden_size: Option<usize>,
    /// How much of the shadow network's own loss is added to the model's in training.
    #[field(default = 0.05, at_least = 0.0)]
    pub auxiliary_loss_weight: f64,
    pub targets: Targets,
    pub common: Common,
}

/// Standard deviation of fresh matrices of the network, as Llama's.
const STD: f64 = 0.02;

impl ShadowConfig {
    fn refuse(field: &'static str, found: impl std::fmt::Debug, expected: &str) -> Error {
        Error::config(SHADOW.title, field, found, expected)
    }

    /// The sizes of the shadow network.
    fn sizes(&self, base: Sizes, layout: &Layout) -> Result<Sizes> {
        let width = self.shadow_hidden_size.unwrap_or(base.width);
        let heads = self.shadow_num_attention_heads.unwrap_or(base.heads);
        if !heads.is_multiple_of(base.kv_heads) {
            let expected = format!("a multiple of the model's {} heads of keys", base.kv_heads);
            return Err(Self::refuse("shadow_num_attention_heads", heads, &expected));
        }
        // Upstream's configuration of Qwen2 has no width of a head, so that it follows the others.
        let head = match layout.model_type.as_deref() {
            Some("qwen2") => width / heads,
            _ => base.head,
        };
        let turned = layout.decoder.is_some();
        if head == 0 || (turned && !head.is_multiple_of(2)) || heads.checked_mul(head).is_none() {
            let expected =
                format!("such that a head has an even number of features, and not {head}");
            return Err(Self::refuse("shadow_num_attention_heads", heads, &expected));
        }
        Ok(Sizes {
            width,
            heads,
            head,
            inside: self.shadow_intermediate_size.unwrap_or(base.inside),
            ..base
        })
    }

    fn backbone(
        &self,
        base: &Block<'_>,
        layout: &Layout,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> Result<ShadowBackbone> {
        let sizes = self.sizes(base.sizes, layout)?;
        let shares = self.share_embeddings && sizes.width == base.sizes.width;
        let table = if shares {
            None
        } else {
            Some(vocabulary(layout)?)
        };
        let mut layers = Vec::new();
        for index in 0..self.shadow_num_hidden_layers.unwrap_or(1) {
            let prefix = format!("{BACKBONE}.layers.{index}.");
            if !plan.is_new() && !plan.is_stored(&prefix) {
                let expected = format!("{index}, as the file has no tensor `{prefix}…`");
                let found = self.shadow_num_hidden_layers;
                return Err(Self::refuse("shadow_num_hidden_layers", found, &expected));
            }
            layers.push(block(base, sizes, layout, plan, like));
        }
        let (width, to) = (sizes.width, base.sizes.width);
        let frequencies = layout.decoder.as_ref();
        let frequencies = frequencies.map(|settings| (settings.frequencies)(sizes.head));
        let epsilon = layout
            .decoder
            .as_ref()
            .map(|settings| settings.norm_epsilon);
        let init = plan.init();
        Ok(ShadowBackbone {
            embed_tokens: table.map(|rows| init.normal([rows, width], STD, like)),
            layers,
            norm: init.ones([width], like),
            projection: (width != to).then(|| init.kaiming_uniform([width, to], width, like)),
            norm_epsilon: epsilon.unwrap_or(1e-6),
            frequencies,
            auxiliary_loss_weight: self.auxiliary_loss_weight,
        })
    }

    fn injection(
        &self,
        block: &Block<'_>,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> ShadowInjection {
        let d = block.sizes.width;
        let init = plan.init();
        ShadowInjection {
            down: init.kaiming_uniform([d, self.r], d, like),
            up: init.zeros_or_kaiming_uniform(self.init_weights, [self.r, d], self.r, like),
            dropout: DropoutConfig::new(self.shadow_dropout).init(),
            alpha: self.shadow_alpha,
            block: block.site.name.clone(),
        }
    }

    fn update(
        &self,
        d: usize,
        last: bool,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> ShadowUpdate {
        let u = self.update_hidden_size.unwrap_or(self.r);
        let mut affine = |from: usize, to: usize| {
            let init = plan.init();
            let weight = init.kaiming_uniform([from, to], from, like);
            let bias = init.kaiming_uniform([to], from, like);
            // No output depends on the state behind the last block.
            Affine {
                weight: weight.set_require_grad(!last),
                bias: Some(bias.set_require_grad(!last)),
            }
        };
        ShadowUpdate {
            transform_in: affine(d, u),
            transform_out: affine(u, d),
            gate_in: affine(d, u),
            gate_out: affine(u, d),
            last,
        }
    }
}

/// Rows of the model's table of tokens.
fn vocabulary(layout: &Layout) -> Result<usize> {
    let mut layers = layout.layers.iter();
    let table = layers.find(|layer| layer.kind == LayerKind::Embedding);
    let table = table.and_then(|layer| layout.param(layer, "weight"));
    table.map(|param| param.shape()[0]).ok_or_else(|| {
        let expected = "the model's width: the model has no table of tokens, so the shadow network can have none";
        ShadowConfig::refuse("shadow_hidden_size", "another width", expected)
    })
}

/// A block of the shadow network, with biases where the model's block has them.
fn block(
    base: &Block<'_>,
    sizes: Sizes,
    layout: &Layout,
    plan: &mut Plan,
    like: (&Device, DType),
) -> ShadowBlock {
    let (wide, narrow) = (sizes.heads * sizes.head, sizes.kv_heads * sizes.head);
    let matrices = base.matrices.as_ref();
    let has_bias = |param: Option<&LayoutParam>| {
        param.is_some_and(|param| layout.param(layout.layer_of(param), "bias").is_some())
    };
    let biases = [
        has_bias(matrices.map(|of| of.query)),
        has_bias(matrices.map(|of| of.key)),
        has_bias(matrices.map(|of| of.value)),
        has_bias(matrices.map(|of| of.attention_output)),
        has_bias(matrices.and_then(|of| of.gate)),
        has_bias(matrices.map(|of| of.up)),
        has_bias(matrices.map(|of| of.down)),
    ];
    let init = plan.init();
    let mut affine = |from: usize, to: usize, bias: bool| Affine {
        weight: init.normal([from, to], STD, like),
        bias: bias.then(|| init.zeros([to], like)),
    };
    let q_proj = affine(sizes.width, wide, biases[0]);
    let k_proj = affine(sizes.width, narrow, biases[1]);
    let v_proj = affine(sizes.width, narrow, biases[2]);
    let o_proj = affine(wide, sizes.width, biases[3]);
    let gate_proj = sizes
        .gated
        .then(|| affine(sizes.width, sizes.inside, biases[4]));
    let up_proj = affine(sizes.width, sizes.inside, biases[5]);
    let down_proj = affine(sizes.inside, sizes.width, biases[6]);
    let mut norm = || -> Param<_> { init.ones([sizes.width], like) };
    ShadowBlock {
        input_layernorm: norm(),
        q_proj,
        k_proj,
        v_proj,
        o_proj,
        post_attention_layernorm: norm(),
        gate_proj,
        up_proj,
        down_proj,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
    }
}

impl Method for ShadowConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if self.shadow_model == "mirror" {
            return Ok(());
        }
        let expected = "`mirror`: a shadow network that was trained before is not read here";
        Err(Self::refuse("shadow_model", &self.shadow_model, expected))
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let blocks = blocks(layout, SHADOW.title)?;
        let start = layout.hidden_sites(HiddenState::EmbeddingOutput).next();
        let start = start.ok_or_else(|| {
            layout.no_site(SHADOW.title, SiteKind::Hidden(HiddenState::EmbeddingOutput))
        })?;
        let wrapped = self
            .targets
            .select_blocks(layout, SHADOW.title, plan.is_new())?;
        let names: Vec<String> = wrapped.iter().map(|site| site.name.clone()).collect();
        let is_wrapped = |block: &Block<'_>| names.contains(&block.site.name);
        let first = blocks.iter().position(is_wrapped).unwrap_or_default();
        let end = first + names.len();
        if !blocks[first..].iter().take(names.len()).all(is_wrapped) {
            let expected =
                "blocks that follow each other: the shadow state goes from one to the next";
            return Err(Self::refuse("target_modules", &names, expected));
        }
        if self.targets.target_modules.is_none() {
            plan.set_config_field("target_modules", names);
        }
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let lane = Lane::default();
        let backbone = self.backbone(&blocks[0], layout, plan, like)?;
        let injection = (first == 0).then(|| self.injection(&blocks[0], plan, like));
        plan.adapt_hidden(
            start,
            ShadowStep {
                backbone: Some(backbone),
                update: None,
                injection,
                lane: lane.clone(),
            },
        );
        for index in first.saturating_sub(1)..end {
            let update = (first..end).contains(&index);
            let next = (first..end).contains(&(index + 1));
            if !update && !next {
                continue;
            }
            let d = blocks[index].sizes.width;
            let update = update.then(|| self.update(d, !next, plan, like));
            let injection = next.then(|| self.injection(&blocks[index + 1], plan, like));
            let step = ShadowStep {
                backbone: None,
                update,
                injection,
                lane: lane.clone(),
            };
            plan.adapt_hidden(blocks[index].site, step);
        }
        Ok(())
    }
}
