//! A model with a layer of every kind.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig,
};
use burn::nn::gru::{Gru, GruConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, LayerNorm,
    LayerNormConfig, Linear, LinearConfig, Lstm, LstmConfig, PaddingConfig1d, PaddingConfig2d,
    RmsNorm, RmsNormConfig,
    attention::{MultiHeadAttention, MultiHeadAttentionConfig},
};
use burn::tensor::{Device, Tensor, TensorData};
use peft::core::KeyMapping;

/// Channels and features: what the defaults of every method fit.
pub(crate) const WIDTH: usize = 64;

/// A struct of a user's that holds a weight itself.
#[derive(Module, Debug)]
pub(crate) struct Own {
    pub(crate) weight: Param<Tensor<2>>,
}

/// A layer of every kind.
#[derive(Module, Debug)]
pub(crate) struct Zoo {
    pub(crate) linear: Linear,
    pub(crate) embedding: Embedding,
    pub(crate) conv1d: Conv1d,
    /// Of two groups, dilated, without a bias.
    pub(crate) conv1d_groups: Conv1d,
    /// With a stride, and padding that keeps the size.
    pub(crate) conv2d: Conv2d,
    /// Of two groups, with a kernel that is no square, dilated.
    pub(crate) conv2d_groups: Conv2d,
    pub(crate) conv_transpose2d: ConvTranspose2d,
    pub(crate) layer_norm: LayerNorm,
    pub(crate) rms_norm: RmsNorm,
    pub(crate) batch_norm: BatchNorm,
    pub(crate) group_norm: GroupNorm,
    pub(crate) attention: MultiHeadAttention,
    pub(crate) lstm: Lstm,
    pub(crate) gru: Gru,
    pub(crate) own: Own,
    pub(crate) names: KeyMapping,
}

impl Zoo {
    pub(crate) fn new(device: &Device) -> Self {
        let model = Self {
            linear: LinearConfig::new(WIDTH, WIDTH).init(device),
            embedding: EmbeddingConfig::new(40, WIDTH).init(device),
            conv1d: Conv1dConfig::new(WIDTH, WIDTH, 3)
                .with_stride(2)
                .with_padding(PaddingConfig1d::Same)
                .init(device),
            conv1d_groups: Conv1dConfig::new(WIDTH, WIDTH, 3)
                .with_groups(2)
                .with_dilation(2)
                .with_padding(PaddingConfig1d::Explicit(2, 1))
                .with_bias(false)
                .init(device),
            conv2d: Conv2dConfig::new([WIDTH, WIDTH], [3, 2])
                .with_stride([2, 1])
                .with_padding(PaddingConfig2d::Same)
                .init(device),
            conv2d_groups: Conv2dConfig::new([WIDTH, WIDTH], [3, 1])
                .with_groups(2)
                .with_dilation([2, 1])
                .with_padding(PaddingConfig2d::Explicit(2, 0, 1, 1))
                .init(device),
            conv_transpose2d: ConvTranspose2dConfig::new([WIDTH, WIDTH], [3, 3]).init(device),
            layer_norm: LayerNormConfig::new(WIDTH).init(device),
            rms_norm: RmsNormConfig::new(WIDTH).init(device),
            batch_norm: BatchNormConfig::new(WIDTH).init(device),
            group_norm: GroupNormConfig::new(4, WIDTH).init(device),
            attention: MultiHeadAttentionConfig::new(WIDTH, 4).init(device),
            lstm: LstmConfig::new(WIDTH, WIDTH, true).init(device),
            gru: GruConfig::new(WIDTH, WIDTH, true).init(device),
            own: Own {
                weight: Param::from_tensor(Tensor::ones([WIDTH, WIDTH], device)),
            },
            names: KeyMapping::default().with_groups([("conv1d_groups", 2), ("conv2d_groups", 2)]),
        };
        model.map(&mut Values { start: 0 })
    }
}

/// Gives every parameter values of its own, the same in every run.
struct Values {
    start: usize,
}

impl ModuleMapper for Values {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.start += 1000;
        let (shape, id) = (param.lazy_shape().dims(), param.id);
        // Of a kernel or matrix, so that outputs are of order 1.
        let size = if D == 1 { 0.3 } else { 0.12 };
        let middle = if D == 1 { 1.0 } else { 0.0 };
        let value = values(shape, self.start, &param.lazy_device()) * size + middle;
        param.transform_for_load(value, id)
    }
}

/// Numbers of order 1, the same in every run; others for another start.
pub(crate) fn values<const D: usize>(
    shape: [usize; D],
    start: usize,
    device: &Device,
) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let noise = |at: usize| {
        // That of Vigna's splitmix64.
        let mut bits = ((start + at) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * 1.7
    };
    let numbers: Vec<f32> = (0..count).map(noise).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}
