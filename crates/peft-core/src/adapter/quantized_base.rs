//! Bases that are stored quantized: a parameter's own tensor then only stands in for its shape.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor};
use peft_ops::Weight;
use peft_ops::quantized::QuantizedWeight;
use safetensors::Dtype;
use serde_json::Value;

use crate::adapter::erased::AnyTensor;
use crate::attached::stack::{self, Stack};
use crate::attached::traversal::{self, Edits};
use crate::layout::model_layout::{LayerKind, Layout};
use crate::method::contract::Plan;
use crate::nn::base_layer::BaseNorms;
use crate::{Error, Result};

/// A matrix that a [`WeightQuantizer`] is asked about.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedLayer<'a> {
    /// Upstream's name of the layer, as in `model.layers.0.self_attn.q_proj`.
    pub name: &'a str,
    /// [`LayerKind::Linear`] or [`LayerKind::Embedding`].
    pub kind: &'a LayerKind,
    /// Whether it is (part of) an output head.
    pub head: bool,
    /// As upstream lays it out: `[out, in]` of a linear layer, `[vocabulary, d]` of a table.
    pub shape: [usize; 2],
}

/// A tensor as a safetensors file holds it: one of those that a quantized matrix consists of in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Number format.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// The elements, row-major, in little-endian order.
    pub bytes: Vec<u8>,
}

/// Chooses how weights are stored, while a model is loaded or by [`pack_weights`](crate::PeftModule::pack_weights).
pub trait WeightQuantizer {
    /// The quantized form of a matrix, or `None` to leave it as it is. `values` are row-major, as upstream lays
    /// them out.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`] for values that the format cannot hold.
    fn pack(&self, layer: QuantizedLayer<'_>, values: &[f32]) -> Result<Option<QuantizedWeight>>;

    /// Whether [`pack`](Self::pack) could want this matrix: its values need not be read otherwise. Default: yes.
    fn wants(&self, _layer: QuantizedLayer<'_>) -> bool {
        true
    }

    /// A matrix that a checkpoint holds quantized, from all of its parts, by their names below the layer's:
    /// `weight`, `weight.absmax`, … `None` if this quantizer does not read such parts, as by default.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`] for parts that do not fit together.
    fn read_parts(
        &self,
        _layer: QuantizedLayer<'_>,
        _parts: &BTreeMap<String, RawTensor>,
    ) -> Result<Option<QuantizedWeight>> {
        Ok(None)
    }

    /// The parts of a layer's quantized matrix, as [`read_parts`](Self::read_parts) takes them, for a
    /// checkpoint. `None` if it is to be written dense, as by default.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`] for a matrix in another format than
    /// [`quantization_config`](Self::quantization_config) says.
    fn write_parts(
        &self,
        _layer: &str,
        _rows: &QuantizedWeight,
    ) -> Result<Option<BTreeMap<String, RawTensor>>> {
        Ok(None)
    }

    /// What `config.json` says of a checkpoint with such parts, in upstream's field of this name; `dense` are
    /// the linear layers that are not in parts. Default: nothing.
    fn quantization_config(&self, _dense: &[String]) -> Option<Value> {
        None
    }
}

/// The base of a parameter in quantized form.
#[derive(Clone, Debug)]
pub(crate) struct QuantizedBase {
    pub(crate) rows: QuantizedWeight,
    /// Whether the parameter is the transpose of the rows, as a linear layer's is.
    pub(crate) transposed: bool,
}

impl QuantizedBase {
    /// The same rows, which are a table's, as the outputs of a linear layer.
    pub(crate) fn of_linear(self) -> Self {
        Self {
            transposed: true,
            ..self
        }
    }

    /// The base as a layer's operation takes it.
    pub(crate) fn weight(&self, placeholder: &Tensor<2>) -> Weight {
        if self.transposed {
            Weight::Quantized(self.rows.clone())
        } else {
            Weight::Dense(self.dense(placeholder))
        }
    }

    /// The base, of the shape, device and number format of what stands in for it.
    pub(crate) fn dense(&self, placeholder: &Tensor<2>) -> Tensor<2> {
        let rows = self
            .rows
            .to_tensor(&placeholder.device())
            .cast(placeholder.dtype());
        if self.transposed {
            rows.transpose()
        } else {
            rows
        }
    }

    /// Rows for `ids` `[batch, seq]`: `[batch, seq, d]`.
    pub(crate) fn embedding(&self, ids: Tensor<2, Int>, placeholder: &Tensor<2>) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let rows: Vec<usize> = ids
            .into_data()
            .iter::<i64>()
            .map(|id| id as usize)
            .collect();
        self.rows
            .rows_to_tensor(&rows, &placeholder.device())
            .cast(placeholder.dtype())
            .reshape([batch, length, placeholder.dims()[1]])
    }
}

/// The base as a tensor, dense.
pub(crate) fn dense(stack: Option<&Stack>, base: &AnyTensor) -> AnyTensor {
    match stack.and_then(|stack| stack.quantized.as_ref()) {
        Some(quantized) => AnyTensor::new(quantized.dense(&base.get::<2>())),
        None => base.clone(),
    }
}

/// Puts placeholders, or dense bases, in the place of parameters by path.
struct Replace {
    path: Vec<String>,
    /// Inside adapters, whose parameters may have the same path as the model's.
    inside: usize,
    dense: HashMap<String, Option<AnyTensor>>,
}

impl ModuleMapper for Replace {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.inside += usize::from(stack::is_adapter(container));
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(stack::is_adapter(container));
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
pub(crate) fn place<M: Module>(module: M, quantized: HashMap<String, QuantizedBase>) -> M {
    let dense = quantized.keys().map(|path| (path.clone(), None)).collect();
    let module = replace(module, dense);
    let layout = Layout::new(traversal::gather(&module));
    let stacks = layout.params.iter().filter_map(|param| {
        let quantized = quantized.get(&param.path)?.clone();
        let stack = Stack {
            quantized: Some(quantized),
            norms: BaseNorms::default(),
            ..param.stack.clone().unwrap_or_default()
        };
        Some((param.path.clone(), stack))
    });
    let edits = Edits {
        stacks: stacks.collect(),
        trainable: quantized.keys().map(|path| (path.clone(), false)).collect(),
        ..Edits::default()
    };
    traversal::place(&module, edits)
}

fn replace<M: Module>(module: M, dense: HashMap<String, Option<AnyTensor>>) -> M {
    module.map(&mut Replace {
        path: Vec::new(),
        inside: 0,
        dense,
    })
}

/// See [`PeftModule::pack_weights`](crate::PeftModule::pack_weights).
pub(crate) fn pack<M: Module>(
    module: &M,
    layout: &Layout,
    quantizer: &dyn WeightQuantizer,
) -> Result<M> {
    let mut quantized = HashMap::new();
    for param in &layout.params {
        let layer = layout.layer_of(param);
        let matrix = matches!(layer.kind, LayerKind::Linear | LayerKind::Embedding);
        let is_packed = param
            .stack
            .as_ref()
            .is_some_and(|stack| stack.quantized.is_some());
        if !matrix || param.field() != "weight" || is_packed || param.is_tied() {
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
    Ok(place(module.clone(), quantized))
}

/// Refuses a plan that trains a quantized weight itself.
pub(crate) fn refuse_trained(layout: &Layout, plan: &Plan) -> Result<()> {
    let param = layout.params.iter().find(|param| {
        param.quantized_format().is_some() && plan.trained_in_place.contains(&param.path)
    });
    match param {
        None => Ok(()),
        Some(param) => Err(Error::Packing {
            layer: layout.layer_of(param).name.clone(),
            reason: "the method trains it itself, and a quantized weight cannot be trained: dequantize the weights first"
                .to_string(),
        }),
    }
}

/// See [`PeftModule::unpack_weights`](crate::PeftModule::unpack_weights).
pub(crate) fn dequantize<M: Module>(module: &M, layout: &Layout) -> M {
    let mut bases = HashMap::new();
    let mut stacks = HashMap::new();
    for param in &layout.params {
        let Some(stack) = param
            .stack
            .as_ref()
            .filter(|stack| stack.quantized.is_some())
        else {
            continue;
        };
        bases.insert(param.path.clone(), Some(dense(Some(stack), &param.base)));
        let stack = Stack {
            quantized: None,
            norms: BaseNorms::default(),
            ..stack.clone()
        };
        stacks.insert(param.path.clone(), stack);
    }
    let module = traversal::place(
        module,
        Edits {
            stacks,
            ..Edits::default()
        },
    );
    replace(module, bases)
}
