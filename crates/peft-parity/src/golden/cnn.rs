//! A convolutional network as a file describes it.

use std::fs;
use std::path::Path;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param,
};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::KeyMapping;
use peft_core::nn::{AdaptedForward, ForwardContext};
use serde::Deserialize;

use super::case::read;
use super::{Problem, Tensors};

/// The file beside the weights that says what the layers are.
pub const ARCHITECTURE_FILE: &str = "architecture.json";

#[derive(Deserialize)]
struct Architecture {
    layers: Vec<Described>,
}

/// A layer as the file describes it.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Described {
    Conv2d {
        name: String,
        in_channels: usize,
        out_channels: usize,
        kernel_size: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        dilation: [usize; 2],
        groups: usize,
        bias: bool,
    },
    BatchNorm2d {
        name: String,
        num_features: usize,
        eps: f64,
    },
    Linear {
        name: String,
        in_features: usize,
        out_features: usize,
        bias: bool,
    },
    Relu,
    /// Over height and width.
    MeanPool,
}

/// A layer with what it holds.
#[derive(Clone, Debug)]
enum Layer {
    Conv2d(Box<Conv2d>),
    BatchNorm(Box<BatchNorm>),
    Linear(Linear),
    Relu,
    MeanPool,
}

/// A network of layers one after the other, each a module of the name that the file gives it.
///
/// Batches are normalised by running statistics on devices with autodiff, too.
#[derive(Clone, Debug)]
pub struct Cnn {
    layers: Vec<(String, Layer)>,
    names: KeyMapping,
}

/// What flows from layer to layer.
enum Flow {
    Picture(Tensor<4>),
    Features(Tensor<2>),
}

impl Cnn {
    /// The network of a folder with an `architecture.json` and a `model.safetensors`.
    ///
    /// # Errors
    ///
    /// [`Problem::Failed`] for files that do not describe one.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, Problem> {
        let path = dir.join(ARCHITECTURE_FILE);
        let problem = Problem::new(&path);
        let text = fs::read_to_string(&path).map_err(|error| problem(&error))?;
        let described: Architecture =
            serde_json::from_str(&text).map_err(|error| problem(&error))?;
        let groups = described.layers.iter().filter_map(|layer| match layer {
            Described::Conv2d { name, groups, .. } => Some((name.clone(), *groups)),
            _ => None,
        });
        let names = KeyMapping::default().with_groups(groups.collect::<Vec<_>>());
        let path = dir.join("model.safetensors");
        let weights = Weights {
            tensors: read(&path)?.0,
            path: &path,
            device,
        };
        let layers = described
            .layers
            .into_iter()
            .map(|layer| weights.fill(layer));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            names,
        })
    }

    /// Logits `[batch, classes]` of `input` `[batch, channels, height, width]`.
    pub fn forward_in(&self, input: Tensor<4>, context: &ForwardContext) -> Tensor<2> {
        let mut flow = Flow::Picture(input);
        for (_, layer) in &self.layers {
            flow = match (layer, flow) {
                (Layer::Conv2d(conv), Flow::Picture(input)) => {
                    Flow::Picture(conv.adapted_in(input, context))
                }
                (Layer::BatchNorm(norm), Flow::Picture(input)) => {
                    Flow::Picture(norm.forward(input))
                }
                (Layer::Linear(linear), Flow::Features(input)) => {
                    Flow::Features(linear.adapted_in(input, context))
                }
                (Layer::Relu, Flow::Picture(input)) => {
                    Flow::Picture(burn::tensor::activation::relu(input))
                }
                (Layer::Relu, Flow::Features(input)) => {
                    Flow::Features(burn::tensor::activation::relu(input))
                }
                (Layer::MeanPool, Flow::Picture(input)) => {
                    Flow::Features(input.mean_dims(&[2, 3]).squeeze_dims(&[2, 3]))
                }
                // No layer here makes a picture of features: such a file is of no network.
                (_, flow) => flow,
            };
        }
        match flow {
            Flow::Features(logits) => logits,
            Flow::Picture(input) => input.mean_dims(&[2, 3]).squeeze_dims(&[2, 3]),
        }
    }
}

/// The tensors of a file, and where they go.
struct Weights<'a> {
    tensors: Tensors,
    path: &'a Path,
    device: &'a Device,
}

impl Weights<'_> {
    fn data(&self, name: &str, field: &str) -> Result<TensorData, Problem> {
        let key = format!("{name}.{field}");
        let missing = || Problem::new(self.path)(&format!("`{key}` is missing"));
        self.tensors.get(&key).cloned().ok_or_else(missing)
    }

    /// A tensor of this shape.
    fn tensor<const D: usize>(
        &self,
        name: &str,
        field: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, Problem> {
        let data = self.data(name, field)?;
        if data.shape().to_vec() != shape {
            let reason = format!(
                "`{name}.{field}` has shape {:?}, not {shape:?}",
                data.shape()
            );
            return Err(Problem::new(self.path)(&reason));
        }
        Ok(Tensor::from_data(data, self.device))
    }

    /// The layer with its values, and its name.
    fn fill(&self, described: Described) -> Result<(String, Layer), Problem> {
        Ok(match described {
            Described::Relu => (String::new(), Layer::Relu),
            Described::MeanPool => (String::new(), Layer::MeanPool),
            Described::Linear {
                name,
                in_features,
                out_features,
                bias,
            } => {
                let config = LinearConfig::new(in_features, out_features).with_bias(bias);
                let mut linear = config.init(self.device);
                let weight = self.tensor(&name, "weight", [out_features, in_features])?;
                linear.weight = Param::from_tensor(weight.transpose());
                if bias {
                    let bias = self.tensor(&name, "bias", [out_features])?;
                    linear.bias = Some(Param::from_tensor(bias));
                }
                (name, Layer::Linear(linear))
            }
            Described::BatchNorm2d {
                name,
                num_features,
                eps,
            } => {
                let config = BatchNormConfig::new(num_features).with_epsilon(eps);
                let mut norm = config.init(self.device);
                let vector = |field: &str| self.tensor(&name, field, [num_features]);
                norm.gamma = Param::from_tensor(vector("weight")?);
                norm.beta = Param::from_tensor(vector("bias")?);
                norm.running_mean.update(vector("running_mean")?);
                norm.running_var.update(vector("running_var")?);
                norm.running_mean.value_sync();
                norm.running_var.value_sync();
                norm.training = Param::from_bool(false);
                (name, Layer::BatchNorm(Box::new(norm)))
            }
            Described::Conv2d {
                name,
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding: [height, width],
                dilation,
                groups,
                bias,
            } => {
                let mut conv = Conv2dConfig::new([in_channels, out_channels], kernel_size)
                    .with_stride(stride)
                    .with_padding(PaddingConfig2d::Explicit(height, width, height, width))
                    .with_dilation(dilation)
                    .with_groups(groups)
                    .with_bias(bias)
                    .init(self.device);
                let shape = [
                    out_channels,
                    in_channels / groups,
                    kernel_size[0],
                    kernel_size[1],
                ];
                conv.weight = Param::from_tensor(self.tensor(&name, "weight", shape)?);
                if bias {
                    let bias = self.tensor(&name, "bias", [out_channels])?;
                    conv.bias = Some(Param::from_tensor(bias));
                }
                (name, Layer::Conv2d(Box::new(conv)))
            }
        })
    }
}

/// The same with every layer changed.
macro_rules! changed {
    ($layer:expr, $module:ident => $change:expr) => {
        match $layer {
            Layer::Conv2d($module) => {
                let $module = *$module;
                Layer::Conv2d(Box::new($change))
            }
            Layer::BatchNorm($module) => {
                let $module = *$module;
                Layer::BatchNorm(Box::new($change))
            }
            Layer::Linear($module) => Layer::Linear($change),
            other => other,
        }
    };
}

impl Cnn {
    fn each(self, mut change: impl FnMut(&str, Layer) -> Layer) -> Self {
        let layers = self.layers.into_iter().map(|(name, layer)| {
            let layer = change(&name, layer);
            (name, layer)
        });
        Self {
            layers: layers.collect(),
            names: self.names,
        }
    }
}

/// What the struct that holds the layers is called in a traversal.
const CONTAINER: &str = "Cnn";

impl Module for Cnn {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for (name, layer) in &self.layers {
            visitor.enter_module(name, CONTAINER);
            match layer {
                Layer::Conv2d(module) => module.visit(visitor),
                Layer::BatchNorm(module) => module.visit(visitor),
                Layer::Linear(module) => module.visit(visitor),
                Layer::Relu | Layer::MeanPool => {}
            }
            visitor.exit_module(name, CONTAINER);
        }
        visitor.enter_module("names", CONTAINER);
        self.names.visit(visitor);
        visitor.exit_module("names", CONTAINER);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        self.each(|name, layer| {
            mapper.enter_module(name, CONTAINER);
            let layer = changed!(layer, module => module.map(mapper));
            mapper.exit_module(name, CONTAINER);
            layer
        })
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        let layers = self.layers.iter();
        layers.fold(devices, |devices, (_, layer)| match layer {
            Layer::Conv2d(module) => module.collect_devices(devices),
            Layer::BatchNorm(module) => module.collect_devices(devices),
            Layer::Linear(module) => module.collect_devices(devices),
            Layer::Relu | Layer::MeanPool => devices,
        })
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|_, layer| changed!(layer, module => module.to_device(device)))
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|_, layer| changed!(layer, module => module.fork(device)))
    }

    fn train(self) -> Self {
        self.each(|_, layer| changed!(layer, module => module.train()))
    }

    fn valid(&self) -> Self {
        self.clone()
            .each(|_, layer| changed!(layer, module => module.valid()))
    }

    fn materialize(self) -> Self {
        self.each(|_, layer| changed!(layer, module => module.materialize()))
    }
}

impl ModuleDisplayDefault for Cnn {
    fn content(&self, content: Content) -> Option<Content> {
        let names: Vec<&str> = self.layers.iter().map(|(name, _)| name.as_str()).collect();
        content.add_formatted(&names.join(" ")).optional()
    }
}

impl ModuleDisplay for Cnn {}
