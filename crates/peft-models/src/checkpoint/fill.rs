//! Putting a checkpoint's tensors into a module.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::KeyMapping;
use peft_core::checkpoint::transposed;
use peft_core::method::LayerKind;
use peft_core::ops::give_back_freed_memory;
use peft_core::ops::quantized::QuantizedWeight;
use peft_core::quantize::QuantizedModule as _;
use peft_core::quantize::{QuantizedLayer, WeightQuantizer};

use super::Source;
use crate::LoadError;

/// Where a traversal is.
struct Path<'a> {
    names: &'a KeyMapping,
    /// Upstream's segments, and the structs that hold them.
    segments: Vec<(String, String)>,
    /// The fields' own names.
    fields: Vec<String>,
}

impl<'a> Path<'a> {
    fn new(names: &'a KeyMapping) -> Self {
        Self {
            names,
            segments: Vec::new(),
            fields: Vec::new(),
        }
    }

    fn enter(&mut self, name: &str, container: &str) {
        self.fields.push(name.to_string());
        let container = container.rsplit(':').next().unwrap_or(container);
        let name = match (container, name) {
            ("LayerNorm" | "RmsNorm", "gamma") => "weight",
            ("LayerNorm", "beta") => "bias",
            _ => self.names.rename(name),
        };
        self.segments
            .push((name.to_string(), container.to_string()));
    }

    fn exit(&mut self) {
        self.fields.pop();
        self.segments.pop();
    }

    fn name(&self) -> String {
        let names: Vec<&str> = self
            .segments
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        names.join(".")
    }

    /// Whether the parameter is a linear layer's matrix: `[in, out]` here, `[out, in]` upstream.
    fn is_linear_weight(&self) -> bool {
        matches!(self.segments.last(), Some((name, holder)) if name == "weight" && holder == "Linear")
    }

    /// The layer whose matrix the parameter is, if it is one that can be quantized.
    fn matrix(&self) -> Option<(String, LayerKind)> {
        let (last, above) = self.segments.split_last()?;
        let kind = match (last.0.as_str(), last.1.as_str()) {
            ("weight", "Linear") => LayerKind::Linear,
            ("weight", "Embedding") => LayerKind::Embedding,
            _ => return None,
        };
        let names: Vec<&str> = above.iter().map(|(name, _)| name.as_str()).collect();
        Some((names.join("."), kind))
    }

    /// Whether it is (part of) an output head.
    fn is_head(&self) -> bool {
        let first = self.fields.first().map(String::as_str);
        first.is_some_and(|first| self.names.is_head(first))
    }
}

struct Wanted<'a> {
    path: Path<'a>,
    found: Vec<(String, Vec<usize>)>,
}

impl ModuleVisitor for Wanted<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if self.path.is_linear_weight() {
            shape.reverse();
        }
        self.found.push((self.path.name(), shape));
    }
}

/// The tensors that `module` is made of: upstream's names and layouts.
///
/// Initialises nothing: parameters that are lazy stay so.
pub(crate) fn wanted<M: Module>(module: &M, names: &KeyMapping) -> Vec<(String, Vec<usize>)> {
    let path = Path::new(names);
    let mut visitor = Wanted {
        path,
        found: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

struct Fill<'a> {
    path: Path<'a>,
    source: &'a mut dyn Source,
    rename: &'a dyn Fn(&str) -> String,
    quantizer: Option<&'a dyn WeightQuantizer>,
    /// What was quantized, by field path.
    quantized: Vec<(String, QuantizedWeight)>,
    /// A mapper cannot fail: the first error is kept, and nothing is read after it.
    error: Option<LoadError>,
}

impl Fill<'_> {
    /// The values of a parameter, as upstream lays them out; `None` if it is a matrix that was quantized.
    fn read(&mut self, shape: &[usize]) -> Result<Option<Vec<f32>>, LoadError> {
        let name = (self.rename)(&self.path.name());
        let matrix = self.quantizer.zip(self.path.matrix());
        let Some((quantizer, (layer, kind))) = matrix else {
            return self.source.read(&name).map(Some);
        };
        let mut shape = [shape[0], shape[1]];
        if kind == LayerKind::Linear {
            shape.reverse();
        }
        let layer = QuantizedLayer {
            name: &layer,
            kind: &kind,
            head: self.path.is_head(),
            shape,
        };
        let mut read = |parts: &_| quantizer.read_parts(layer, parts);
        if let Some(quantized) = self.source.read_parts(&name, &mut read)? {
            self.quantized.push((self.path.fields.join("."), quantized));
            return Ok(None);
        }
        let values = self.source.read(&name)?;
        if quantizer.wants(layer)
            && let Some(quantized) = quantizer.pack(layer, &values)?
        {
            self.quantized.push((self.path.fields.join("."), quantized));
            if kind == LayerKind::Embedding {
                // The largest matrix: what it took dense would stay beside all that follows.
                drop(values);
                give_back_freed_memory();
            }
            return Ok(None);
        }
        Ok(Some(values))
    }
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let shape = param.lazy_shape();
        let device = param.lazy_device();
        let mut values = match self.read(&shape) {
            Ok(Some(values)) => values,
            Ok(None) => {
                // One number stands in for all until the quantized form is put there.
                let id = param.id;
                let placeholder = Tensor::<D>::zeros([1; D], &device).expand(shape);
                return param.transform_for_load(placeholder, id);
            }
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        if self.path.is_linear_weight() {
            values = transposed(&values, [shape[1], shape[0]]);
        }
        let data = TensorData::new(values, shape);
        let tensor =
            device.memory_persistent_allocations(data, |data| Tensor::from_data(data, &device));
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

/// `module` with the source's values, matrices quantized as `quantizer` says. `rename` turns upstream's names into
/// the source's.
///
/// # Errors
///
/// What [`Source::read`] or the quantizer finds wrong with a tensor.
pub(crate) fn fill<M: Module>(
    module: M,
    names: &KeyMapping,
    source: &mut dyn Source,
    rename: &dyn Fn(&str) -> String,
    quantizer: Option<&dyn WeightQuantizer>,
) -> Result<M, LoadError> {
    let mut mapper = Fill {
        path: Path::new(names),
        source,
        rename,
        quantizer,
        quantized: Vec::new(),
        error: None,
    };
    let module = module.map(&mut mapper);
    match mapper.error {
        None if mapper.quantized.is_empty() => Ok(module),
        None => Ok(module.with_quantized_weights(mapper.quantized)),
        Some(error) => Err(error),
    }
}
