//! Storing a model's weights in a quantized form, and as dense tensors again.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use peft_ops::quantized::QuantizedWeight;

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::quantized_base::QuantizedBase;
use crate::attached::base_norms::BaseNorms;
use crate::attached::stack::{Stack, is_adapter};
use crate::attached::traversal::{self, Edits};
use crate::error::Result;
use crate::layout::model_layout::LayerKind;
use crate::layout::quantizer::{QuantizedLayer, WeightQuantizer};
use crate::model::states::unmerged;

/// Puts placeholders, or dense bases, in the place of parameters by path.
struct Replace {
    path: Vec<String>,
    /// Inside adapters, whose parameters may have the same path as the model's.
    inside: usize,
    dense: HashMap<String, Option<AnyTensor>>,
}

impl ModuleMapper for Replace {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.inside += usize::from(is_adapter(container));
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(is_adapter(container));
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.inside > 0 {
            return param;
        }
        let Some(dense) = self.dense.remove(&self.path.join(".")) else {
            return param;
        };
        let device = param.lazy_device();
        let value = match dense {
            Some(dense) => dense.get::<D>(),
            // One number, seen at every place.
            None => Tensor::<D>::zeros([1; D], &device).expand(param.lazy_shape()),
        };
        let id = param.id;
        param.transform_for_load(value, id)
    }
}

/// `module` with these bases in quantized form, by the parameter's path; what is on the parameters stays.
fn place<M: Module>(module: M, quantized: HashMap<String, QuantizedBase>) -> M {
    let dense = quantized.keys().map(|path| (path.clone(), None)).collect();
    let module = replace(module, dense);
    let attached = traversal::gather(&module);
    let trainable = quantized.keys().map(|path| (path.clone(), false)).collect();
    let stacks = quantized.into_iter().map(|(path, quantized)| {
        let stack = Stack {
            quantized: Some(quantized),
            norms: BaseNorms::default(),
            ..attached.stack(&path).cloned().unwrap_or_default()
        };
        (path, stack)
    });
    let edits = Edits {
        stacks: stacks.collect(),
        trainable,
        ..Edits::default()
    };
    traversal::place_with(&module, edits)
}

fn replace<M: Module>(module: M, dense: HashMap<String, Option<AnyTensor>>) -> M {
    module.map(&mut Replace {
        path: Vec::new(),
        inside: 0,
        dense,
    })
}

/// See [`QuantizedModule::pack_weights`](crate::quantize::QuantizedModule::pack_weights).
pub(crate) fn pack<M: Module>(model: &M, quantizer: &dyn WeightQuantizer) -> Result<M> {
    let layout = unmerged(model)?.layout;
    let mut quantized = HashMap::new();
    for param in &layout.params {
        let layer = layout.layer_of(param);
        let matrix = matches!(layer.kind, LayerKind::Linear | LayerKind::Embedding);
        let is_quantized = param.quantized_format().is_some();
        if !matrix || param.field() != "weight" || is_quantized || param.is_tied() {
            continue;
        }
        let transposed = layer.kind == LayerKind::Linear;
        let mut shape = [param.shape()[0], param.shape()[1]];
        if transposed {
            shape.reverse();
        }
        let asked = QuantizedLayer {
            name: &layer.name,
            kind: &layer.kind,
            head: layer.head,
            shape,
        };
        if !quantizer.wants(asked) {
            continue;
        }
        let value = param.value::<2>();
        let value = if transposed { value.transpose() } else { value };
        let values: Vec<f32> = value.into_data().iter::<f32>().collect();
        if let Some(rows) = quantizer.pack(asked, &values)? {
            quantized.insert(param.path.clone(), QuantizedBase { rows, transposed });
        }
    }
    Ok(place(model.clone(), quantized))
}

/// See [`QuantizedModule::unpack_weights`](crate::quantize::QuantizedModule::unpack_weights).
pub(crate) fn unpack<M: Module>(model: &M) -> Result<M> {
    let attached = unmerged(model)?;
    let mut bases = HashMap::new();
    let mut stacks = HashMap::new();
    for param in &attached.layout.params {
        let stack = attached.stack(&param.path);
        let Some(stack) = stack.filter(|stack| stack.quantized.is_some()) else {
            continue;
        };
        bases.insert(param.path.clone(), Some(stack.dense(&param.base)));
        let stack = Stack {
            quantized: None,
            norms: BaseNorms::default(),
            ..stack.clone()
        };
        stacks.insert(param.path.clone(), stack);
    }
    Ok(replace(traversal::place(model, stacks), bases))
}

/// See [`QuantizedModule::quantized_weights`](crate::quantize::QuantizedModule::quantized_weights).
pub(crate) fn quantized_weights<M: Module>(model: &M) -> Vec<(String, QuantizedWeight)> {
    let layout = traversal::gather(model).layout;
    let own = layout.params.iter().filter(|param| !param.is_tied());
    own.filter_map(|param| {
        let base = param.quantized.as_ref()?;
        Some((layout.layer_of(param).name.clone(), base.rows.clone()))
    })
    .collect()
}

/// See [`QuantizedModule::with_quantized_weights`](crate::quantize::QuantizedModule::with_quantized_weights).
pub(crate) fn with_quantized_weights<M: Module>(
    model: &M,
    weights: Vec<(String, QuantizedWeight)>,
) -> M {
    let layout = traversal::gather(model).layout;
    let quantized = weights.into_iter().map(|(path, rows)| {
        let param = layout.params.iter().find(|param| param.path == path);
        let param = param.unwrap_or_else(|| panic!("no parameter at `{path}`"));
        let transposed = layout.is_transposed(param);
        let [first, second] = rows.shape();
        let shape = if transposed {
            [second, first]
        } else {
            [first, second]
        };
        assert_eq!(param.shape(), shape, "the shape of `{path}`");
        (path, QuantizedBase { rows, transposed })
    });
    place(model.clone(), quantized.collect())
}
