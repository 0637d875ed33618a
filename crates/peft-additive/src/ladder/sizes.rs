//! The model's blocks as the side network needs them: their layers, by upstream's names, and their sizes.

use peft_core::Result;
use peft_core::method::{Layout, LayoutParam, TypedSite};
use peft_core::nn::{Hidden, HiddenState, SiteKind};

/// The matrices of a block of the model, `[in, out]`.
pub(crate) struct Matrices<'a> {
    pub(crate) query: &'a LayoutParam,
    pub(crate) key: &'a LayoutParam,
    pub(crate) value: &'a LayoutParam,
    pub(crate) attention_output: &'a LayoutParam,
    pub(crate) gate: Option<&'a LayoutParam>,
    pub(crate) up: &'a LayoutParam,
    pub(crate) down: &'a LayoutParam,
}

/// A block of the model.
pub(crate) struct Block<'a> {
    pub(crate) site: TypedSite<'a, Hidden>,
    /// `None` where its layers have other names.
    pub(crate) matrices: Option<Matrices<'a>>,
    pub(crate) sizes: Sizes,
}

/// Sizes of a block of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// d.
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Features of a head.
    pub(crate) head: usize,
    /// Features inside the feed-forward part.
    pub(crate) inside: usize,
    /// Whether the feed-forward part has a gate.
    pub(crate) gated: bool,
}

impl Sizes {
    /// Those of a side block.
    pub(crate) fn reduced(self, factor: usize) -> Self {
        let reduced = |size: usize| (size / factor).max(1);
        Self {
            width: reduced(self.width),
            head: reduced(self.head),
            inside: reduced(self.inside),
            ..self
        }
    }
}

/// The names of a block's layers in BERT's and in Llama's models.
const QUERY: [&str; 2] = ["attention.self.query", "self_attn.q_proj"];
const KEY: [&str; 2] = ["attention.self.key", "self_attn.k_proj"];
const VALUE: [&str; 2] = ["attention.self.value", "self_attn.v_proj"];
const ATTENTION_OUTPUT: [&str; 2] = ["attention.output.dense", "self_attn.o_proj"];
const GATE: [&str; 1] = ["mlp.gate_proj"];
const UP: [&str; 2] = ["intermediate.dense", "mlp.up_proj"];
const DOWN: [&str; 2] = ["output.dense", "mlp.down_proj"];

/// The model's blocks, the one next to the embeddings first.
pub(crate) fn blocks<'a>(layout: &'a Layout, title: &'static str) -> Result<Vec<Block<'a>>> {
    let sites = layout.hidden_sites(HiddenState::BlockOutput);
    let blocks: Vec<Block<'a>> = sites.map(|site| block(layout, site)).collect();
    if blocks.is_empty() {
        return Err(layout.no_site(title, SiteKind::Hidden(HiddenState::BlockOutput)));
    }
    Ok(blocks)
}

fn block<'a>(layout: &'a Layout, site: TypedSite<'a, Hidden>) -> Block<'a> {
    let prefix = site.name.clone();
    let matrix = |names: &[&str]| {
        let is_it = |name: &str| {
            let below = name.strip_prefix(&prefix)?.strip_prefix('.')?;
            Some(names.contains(&below))
        };
        let mut layers = layout.layers.iter();
        let layer = layers.find(|layer| is_it(&layer.name) == Some(true))?;
        layout.param(layer, "weight")
    };
    let matrices = || {
        Some(Matrices {
            query: matrix(&QUERY)?,
            key: matrix(&KEY)?,
            value: matrix(&VALUE)?,
            attention_output: matrix(&ATTENTION_OUTPUT)?,
            gate: matrix(&GATE),
            up: matrix(&UP)?,
            down: matrix(&DOWN)?,
        })
    };
    let matrices = matrices();
    let mut sites = layout.key_value_sites();
    let inside = |name: &str| {
        let below = name.strip_prefix(&prefix);
        below.is_some_and(|below| below.starts_with('.'))
    };
    let heads = sites.find(|site| inside(&site.name)).map(|site| site.heads);
    let sizes = sizes(site.width, matrices.as_ref(), heads.unwrap_or(1));
    Block {
        site,
        matrices,
        sizes,
    }
}

/// A model of other names has one head, and a feed-forward part that is four times as wide.
fn sizes(width: usize, matrices: Option<&Matrices<'_>>, kv_heads: usize) -> Sizes {
    let Some(matrices) = matrices else {
        return Sizes {
            width,
            heads: 1,
            kv_heads: 1,
            head: width,
            inside: 4 * width,
            gated: false,
        };
    };
    let outputs = |param: &LayoutParam| param.shape()[1];
    let head = outputs(matrices.key) / kv_heads;
    Sizes {
        width,
        heads: outputs(matrices.query) / head,
        kv_heads,
        head,
        inside: outputs(matrices.up),
        gated: matrices.gate.is_some(),
    }
}
