//! What a traversal of a model finds, before it has upstream's names.

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::quantized_base::QuantizedBase;
use crate::adapter::trainable::Trainable;
use crate::layout::key_mapping::KeyMapping;
use crate::layout::site_kind::SiteHead;

/// Field of a linear layer's matrix, and of a table.
pub(crate) const WEIGHT: &str = "weight";

/// A parameter, or the weight of a head that is a table.
#[derive(Clone, Debug)]
pub(crate) struct ScannedParam {
    /// Field path in the model.
    pub(crate) path: Vec<String>,
    /// `Linear`, `LayerNorm`, …: the struct that holds the parameter.
    pub(crate) container: String,
    /// The parameter's own tensor, without adapters.
    pub(crate) base: AnyTensor,
    /// What that stands in for, if the base is quantized.
    pub(crate) quantized: Option<QuantizedBase>,
    pub(crate) trainable: Trainable,
    /// Field path of the table that a head is.
    pub(crate) table: Option<String>,
}

/// A head that is a table.
#[derive(Clone, Debug)]
struct ScannedHead {
    /// Of the weight that it would have.
    path: Vec<String>,
    /// Field path of the table.
    table: String,
    /// How many parameters come before it.
    before: usize,
}

/// Everything in a model that adapters care about, in the order of traversal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) params: Vec<ScannedParam>,
    heads: Vec<ScannedHead>,
    /// Sites, by field path.
    pub(crate) sites: Vec<(Vec<String>, SiteHead)>,
    /// Name maps, with the path of the struct that holds them.
    pub(crate) names: Vec<(Vec<String>, KeyMapping)>,
}

impl Scan {
    /// A head at `path` is the table called `table`, as a field of the struct that holds the head.
    ///
    /// Returns the path of the weight that the head would have.
    pub(crate) fn push_head(&mut self, mut path: Vec<String>, table: &str) -> String {
        let mut of_table = path[..path.len() - 1].to_vec();
        of_table.push(format!("{table}.{WEIGHT}"));
        path.push(WEIGHT.into());
        let weight = path.join(".");
        self.heads.push(ScannedHead {
            path,
            table: of_table.join("."),
            before: self.params.len(),
        });
        weight
    }

    /// With the weights of heads that are tables where a head's own would be.
    pub(crate) fn with_heads(mut self) -> Self {
        for head in std::mem::take(&mut self.heads).into_iter().rev() {
            let is_table = |param: &&ScannedParam| param.path.join(".") == head.table;
            let Some(table) = self.params.iter().find(is_table) else {
                continue;
            };
            let weight = ScannedParam {
                path: head.path,
                container: "Linear".into(),
                base: AnyTensor::new(table.base.get::<2>().transpose()),
                quantized: table.quantized.clone().map(QuantizedBase::of_linear),
                trainable: Trainable::never(),
                table: Some(head.table),
            };
            self.params.insert(head.before, weight);
        }
        self
    }

    /// `path` with every segment renamed by the innermost name map above it that knows it.
    pub(crate) fn upstream(&self, path: &[String]) -> Vec<String> {
        path.iter()
            .enumerate()
            .map(|(index, segment)| {
                self.names
                    .iter()
                    .filter(|(holder, _)| index >= holder.len() && path.starts_with(holder))
                    .map(|(holder, names)| (holder.len(), names.rename(segment)))
                    .filter(|(_, renamed)| renamed != segment)
                    .max_by_key(|(depth, _)| *depth)
                    .map_or(segment.as_str(), |(_, renamed)| renamed)
                    .to_string()
            })
            .collect()
    }

    /// How many groups a name map says that the convolution at `path` has; 1 if none does.
    pub(crate) fn groups(&self, path: &[String]) -> usize {
        let of_map = |(holder, names): &(Vec<String>, KeyMapping)| {
            names.groups(&path.strip_prefix(holder.as_slice())?.join("."))
        };
        self.names.iter().find_map(of_map).unwrap_or(1)
    }

    /// Whether a name map says that `path` is in an output head.
    pub(crate) fn is_declared_head(&self, path: &[String]) -> bool {
        self.names.iter().any(|(holder, names)| {
            path.strip_prefix(holder.as_slice())
                .and_then(<[String]>::first)
                .is_some_and(|segment| names.is_head(segment))
        })
    }
}
