//! What a model consists of, as adapters see it: layers, parameters and sites, by upstream name.

use std::marker::PhantomData;
use std::ops::Deref;

use burn::tensor::{DType, Device, Tensor};

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::quantized_base::QuantizedBase;
use crate::adapter::site_type::{
    Attention, Hidden, HiddenState, KeyValue, Prompt, SiteKind, SiteType,
};
use crate::adapter::trainable::Trainable;
use crate::error::{Error, listing};
use crate::layout::key_mapping::DecoderSettings;
use crate::layout::scan::{Scan, ScannedParam, WEIGHT};
use crate::upstream::{RUNNING_STATISTICS, USUAL_HEADS};

/// Kind of a layer, by the struct that holds its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// `nn::Linear`, weight `[in, out]`.
    Linear,
    /// `nn::Embedding`, weight `[vocabulary, d]`.
    Embedding,
    /// `nn::conv::Conv1d`, weight `[out, in / groups, k]`.
    Conv1d,
    /// `nn::conv::Conv2d`, weight `[out, in / groups, h, w]`.
    Conv2d,
    /// A normalisation layer: `gamma` and `beta` here, `weight` and `bias` upstream.
    Norm,
    /// Any other struct with parameters of its own, by name.
    Other(String),
}

impl LayerKind {
    fn of(container: &str) -> Self {
        match container {
            "Linear" => Self::Linear,
            "Embedding" => Self::Embedding,
            "Conv1d" => Self::Conv1d,
            "Conv2d" => Self::Conv2d,
            "LayerNorm" | "RmsNorm" | "BatchNorm" | "GroupNorm" | "InstanceNorm" => Self::Norm,
            other => Self::Other(other.to_string()),
        }
    }
}

impl std::fmt::Display for LayerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linear => "Linear",
            Self::Embedding => "Embedding",
            Self::Conv1d => "Conv1d",
            Self::Conv2d => "Conv2d",
            Self::Norm => "Norm",
            Self::Other(name) => name,
        })
    }
}

/// A parameter of the model.
#[derive(Clone, Debug)]
pub struct LayoutParam {
    /// Field path in the model, dots between the segments.
    pub path: String,
    /// Upstream's name, as in `encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// Index of the layer that holds it, in [`Layout::layers`].
    pub layer: usize,
    trainable: Trainable,
    /// The parameter's own tensor, without adapters.
    pub(crate) base: AnyTensor,
    /// What that stands in for, if the base is quantized.
    pub(crate) quantized: Option<QuantizedBase>,
    /// Field path of the table that it is, transposed.
    table: Option<String>,
    /// Whether it is a layer's running statistic.
    buffer: bool,
    /// Running statistics of the layer, by field: with its first parameter.
    pub(crate) beside: Vec<(String, AnyTensor)>,
}

impl LayoutParam {
    /// Whether it is no parameter itself: the weight `[d, vocabulary]` of a head that is a table
    /// ([`TiedHead`](crate::TiedHead)), which is that table, transposed. It takes adapters like any weight, and
    /// has no elements of its own.
    pub fn is_tied(&self) -> bool {
        self.table.is_some()
    }

    /// Whether it is no parameter in truth: a running statistic of a [`LayerKind::Norm`], which Burn shows to those who
    /// visit a model as if it were one. It takes no adapter, is not trained by a gradient, and is not copied for an adapter.
    pub fn is_buffer(&self) -> bool {
        self.buffer
    }

    /// Whether it is set to be trained, also where its device has no autodiff right now.
    pub fn is_trainable(&self) -> bool {
        self.trainable.get()
    }

    /// Shape, as Burn stores it.
    pub fn shape(&self) -> Vec<usize> {
        self.base.shape()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.base.elements()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.base.dtype()
    }

    /// Device, with its autodiff setting.
    pub fn device(&self) -> Device {
        self.base.device()
    }

    /// The stored value, without adapters. Panics unless `D` is the parameter's rank.
    pub fn value<const D: usize>(&self) -> Tensor<D> {
        self.stored().get()
    }

    /// The format of the stored value where it is quantized, as in `nf4`.
    pub fn quantized_format(&self) -> Option<&str> {
        Some(self.quantized.as_ref()?.rows.format())
    }

    /// The stored value, whatever its rank.
    pub(crate) fn stored(&self) -> AnyTensor {
        match &self.quantized {
            Some(quantized) => AnyTensor::new(quantized.dense(&self.base.get::<2>())),
            None => self.base.clone(),
        }
    }

    /// The parameter's own name: `weight`, `bias`, …
    pub fn field(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// A struct that holds parameters itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Layer {
    /// Upstream's name, as in `encoder.layer.0.attention.self.query`.
    pub name: String,
    /// Kind.
    pub kind: LayerKind,
    /// Name of the struct, as in `LayerNorm`.
    pub(crate) container: String,
    /// Indices of its parameters, in [`Layout::params`].
    pub params: Vec<usize>,
    /// Whether it is (part of) an output head.
    pub head: bool,
    /// How many groups it has, if it is a convolution and the model says so
    /// ([`KeyMapping::with_groups`](crate::KeyMapping::with_groups)); else 1.
    pub groups: usize,
}

impl Layer {
    /// The block that it is in: what the list of blocks is called, as in `encoder.layer`, and its index there, from 0. It is the
    /// first number among the segments of its name. `None` outside of blocks.
    pub fn block(&self) -> Option<(&str, usize)> {
        block(&self.name)
    }
}

/// As [`Layer::block`], of a module's name.
pub(crate) fn block(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for segment in name.split('.') {
        if let Ok(index) = segment.parse() {
            return Some((name[..start].trim_end_matches('.'), index));
        }
        start += segment.len() + 1;
    }
    None
}

/// A site of the model.
#[derive(Clone, Debug)]
pub struct LayoutSite {
    /// Field path in the model, dots between the segments.
    pub path: String,
    /// Upstream's name of the module whose output the site sees.
    pub name: String,
    /// What flows by.
    pub kind: SiteKind,
    /// Number of features.
    pub width: usize,
    /// Number of features of what goes into the layer around the site. As `width`, if the model does not say otherwise:
    /// keys and values of grouped queries are narrower than what they are made of.
    pub input_width: usize,
    /// How many heads share them; 1 where there are none.
    pub heads: usize,
    /// Whether the model can leave out residual and norm behind the site:
    /// [`Site::with_optional_end`](crate::nn::Site::with_optional_end).
    pub optional_end: bool,
}

/// A site with its type: what adapters it takes.
#[derive(Clone, Copy, Debug)]
pub struct TypedSite<'a, T> {
    site: &'a LayoutSite,
    site_type: PhantomData<T>,
}

impl<T> Deref for TypedSite<'_, T> {
    type Target = LayoutSite;

    fn deref(&self) -> &LayoutSite {
        self.site
    }
}

/// What a model consists of, in the order of traversal. Printing it lists the layers.
#[derive(Clone, Debug)]
pub struct Layout {
    /// All float parameters of the model, and the weights of heads that are tables
    /// ([`LayoutParam::is_tied`]); adapters' parameters are not among them.
    pub params: Vec<LayoutParam>,
    /// All structs with parameters of their own.
    pub layers: Vec<Layer>,
    /// All sites.
    pub sites: Vec<LayoutSite>,
    /// What kind of model it is, as in `bert`; none where it does not say
    /// ([`KeyMapping::with_model_type`](crate::KeyMapping::with_model_type)).
    pub model_type: Option<String>,
    /// Which of transformers' classes computes the same; none where it does not say
    /// ([`KeyMapping::with_model_class`](crate::KeyMapping::with_model_class)).
    pub model_class: Option<&'static str>,
    /// What it computes with, if it is a decoder that says so
    /// ([`KeyMapping::with_decoder`](crate::KeyMapping::with_decoder)).
    pub decoder: Option<DecoderSettings>,
}

impl Layout {
    pub(crate) fn new(scan: Scan) -> Self {
        let scan = scan.with_heads();
        let mut layout = Self {
            params: Vec::new(),
            layers: Vec::new(),
            sites: Vec::new(),
            model_type: scan
                .names
                .iter()
                .find_map(|(_, names)| names.model_type().map(str::to_string)),
            model_class: scan.names.iter().find_map(|(_, names)| names.model_class()),
            decoder: scan
                .names
                .iter()
                .find_map(|(_, names)| names.decoder().cloned()),
        };
        let mut last_layer_path: Option<&[String]> = None;
        for param in &scan.params {
            let (field, layer_path) = param.path.split_last().expect("a parameter has a field");
            if last_layer_path != Some(layer_path) {
                layout.layers.push(Layer {
                    name: scan.upstream(layer_path).join("."),
                    kind: LayerKind::of(&param.container),
                    container: param.container.clone(),
                    params: Vec::new(),
                    head: param.table.is_some() || is_head(&scan, layer_path),
                    groups: scan.groups(layer_path),
                });
                last_layer_path = Some(layer_path);
            }
            let index = layout.layers.len() - 1;
            let layer = &mut layout.layers[index];
            layer.params.push(layout.params.len());
            layout.params.push(layout_param(param, index, field, layer));
        }
        layout.set_buffers_beside();
        for (path, head) in &scan.sites {
            let mut name = scan.upstream(path);
            name.pop();
            if !head.name.is_empty() {
                name.push(head.name.to_string());
            }
            layout.sites.push(LayoutSite {
                path: path.join("."),
                name: name.join("."),
                kind: head.kind,
                width: head.width,
                input_width: head.input_width,
                heads: head.heads,
                optional_end: head.optional_end,
            });
        }
        layout
    }

    /// Puts every layer's running statistics beside its first parameter.
    fn set_buffers_beside(&mut self) {
        for layer in &self.layers {
            let (buffers, others): (Vec<usize>, Vec<usize>) = layer
                .params
                .iter()
                .partition(|&&index| self.params[index].buffer);
            let beside = buffers.into_iter().map(|index| {
                let buffer = &self.params[index];
                (buffer.field().to_string(), buffer.base.clone())
            });
            let beside: Vec<_> = beside.collect();
            if let Some(&first) = others.first() {
                self.params[first].beside = beside;
            }
        }
    }

    /// The layer that holds `param`.
    pub fn layer_of(&self, param: &LayoutParam) -> &Layer {
        &self.layers[param.layer]
    }

    /// The parameter called `field` of `layer`, if it has one.
    pub fn param(&self, layer: &Layer, field: &str) -> Option<&LayoutParam> {
        layer
            .params
            .iter()
            .map(|&index| &self.params[index])
            .find(|param| param.field() == field)
    }

    /// The heads that are tables: each with its table.
    pub fn tied_heads(&self) -> impl Iterator<Item = (&Layer, &Layer)> {
        let pairs = self.tied_weights();
        pairs.map(|(head, table)| (self.layer_of(head), self.layer_of(table)))
    }

    /// The weights of heads that are tables, each with its table's.
    pub(crate) fn tied_weights(&self) -> impl Iterator<Item = (&LayoutParam, &LayoutParam)> {
        self.params.iter().filter_map(|head| {
            let path = head.table.as_ref()?;
            let table = self.params.iter().find(|param| param.path == *path)?;
            Some((head, table))
        })
    }

    /// The weight of a tied head and that of its table, if `param` is one of them.
    pub(crate) fn tied_pair(&self, param: &LayoutParam) -> Option<(&LayoutParam, &LayoutParam)> {
        let mut pairs = self.tied_weights();
        pairs.find(|(head, table)| head.path == param.path || table.path == param.path)
    }

    /// The sites of a hidden state.
    pub fn hidden_sites(&self, state: HiddenState) -> impl Iterator<Item = TypedSite<'_, Hidden>> {
        self.typed(SiteKind::Hidden(state))
    }

    /// The sites of embeddings.
    pub fn prompt_sites(&self) -> impl Iterator<Item = TypedSite<'_, Prompt>> {
        self.typed(SiteKind::Embeddings)
    }

    /// The sites of the stream in front of blocks, for prompts.
    pub fn stream_sites(&self) -> impl Iterator<Item = TypedSite<'_, Prompt>> {
        self.typed(SiteKind::Stream)
    }

    /// The sites of keys and values.
    pub fn key_value_sites(&self) -> impl Iterator<Item = TypedSite<'_, KeyValue>> {
        self.typed(SiteKind::KeyValue)
    }

    /// The sites of attention's heads.
    pub fn attention_sites(&self) -> impl Iterator<Item = TypedSite<'_, Attention>> {
        self.typed(SiteKind::Attention)
    }

    fn typed<T: SiteType>(&self, kind: SiteKind) -> impl Iterator<Item = TypedSite<'_, T>> {
        let sites = self.sites.iter().filter(move |site| site.kind == kind);
        sites.map(|site| TypedSite {
            site,
            site_type: PhantomData,
        })
    }

    /// Whether upstream stores the parameter transposed.
    pub(crate) fn is_transposed(&self, param: &LayoutParam) -> bool {
        self.layer_of(param).kind == LayerKind::Linear && param.field() == WEIGHT
    }

    /// Upstream's name of the layer or site at a field path.
    pub(crate) fn place_name(&self, path: &str) -> String {
        if let Some(param) = self.params.iter().find(|param| param.path == path) {
            return self.layer_of(param).name.clone();
        }
        let site = self.sites.iter().find(|site| site.path == path);
        site.map(|site| site.name.clone()).unwrap_or_default()
    }

    /// Device and float type for adapters that belong to no parameter: those of the first one.
    pub fn like(&self) -> (Device, DType) {
        self.params.first().map_or_else(
            || (crate::device::host(), DType::F32),
            |param| (param.device(), param.dtype()),
        )
    }

    /// The refusal of a method that needs sites of `kind` where there are none.
    pub fn no_site(&self, method: &'static str, kind: SiteKind) -> Error {
        let mut kinds: Vec<String> = Vec::new();
        for site in &self.sites {
            let kind = site.kind.to_string();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let available = if kinds.is_empty() {
            String::new()
        } else {
            format!(" (it has {})", kinds.join(", "))
        };
        Error::NoSite {
            method,
            kind: kind.to_string(),
            available,
        }
    }

    /// The layers as a list for error messages: name, kind, weight shape; long lists are cut.
    pub(crate) fn listing(&self) -> String {
        let line = |layer: &Layer| format!("{} ({})", layer.name, layer.kind);
        listing(self.layers.iter().map(line))
    }
}

fn layout_param(param: &ScannedParam, layer: usize, field: &str, holder: &Layer) -> LayoutParam {
    let field = match (&holder.kind, field) {
        (LayerKind::Norm, "gamma") => "weight",
        (LayerKind::Norm, "beta") => "bias",
        (_, field) => field,
    };
    let name = if holder.name.is_empty() {
        field.to_string()
    } else {
        format!("{}.{field}", holder.name)
    };
    LayoutParam {
        path: param.path.join("."),
        name,
        layer,
        trainable: param.trainable.clone(),
        base: param.base.clone(),
        quantized: param.quantized.clone(),
        table: param.table.clone(),
        buffer: holder.kind == LayerKind::Norm && RUNNING_STATISTICS.contains(&field),
        beside: Vec::new(),
    }
}

/// Whether the struct at `path` is (part of) an output head.
fn is_head(scan: &Scan, path: &[String]) -> bool {
    let is_usual = |segment: &String| USUAL_HEADS.contains(&segment.as_str());
    scan.is_declared_head(path) || path.first().is_some_and(is_usual)
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self
            .layers
            .iter()
            .map(|layer| layer.name.len())
            .max()
            .unwrap_or(0);
        for layer in &self.layers {
            write!(f, "{:width$}  {:10}", layer.name, layer.kind.to_string())?;
            for &index in &layer.params {
                let param = &self.params[index];
                write!(f, "  {} {:?}", param.field(), param.shape())?;
            }
            let tied = layer
                .params
                .iter()
                .any(|&index| self.params[index].is_tied());
            let head = match (layer.head, tied) {
                (_, true) => "  (head, tied)",
                (true, false) => "  (head)",
                (false, false) => "",
            };
            writeln!(f, "{head}")?;
        }
        for site in &self.sites {
            writeln!(
                f,
                "{:width$}  site: {}, {} features",
                site.name, site.kind, site.width
            )?;
        }
        Ok(())
    }
}
