//! Linear layers.

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

#[cfg(feature = "flex")]
use crate::composing::add_product;
#[cfg(feature = "flex")]
use crate::cpu::dropout::Coins;
#[cfg(feature = "flex")]
use crate::extension::{Fused, Layer, Maybe};
#[cfg(feature = "flex")]
use crate::fused::{coins, fuses};
#[cfg(feature = "cube")]
use crate::gpu::Placed;
use crate::low_rank::LowRank;
#[cfg(feature = "flex")]
use crate::options::MixedPrecision;
#[cfg(feature = "flex")]
use crate::precision::mixed_precision;
use crate::quantized::QuantizedWeight;
use crate::reference;

/// The weight of a linear layer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // Handles, moved once.
pub enum Weight {
    /// Burn's, `[in, out]`.
    Dense(Tensor<2>),
    /// Frozen, in a storage format of its own: rows `[out, in]`.
    Quantized(QuantizedWeight),
}

impl Weight {
    /// Widths of what goes in and what comes out.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Quantized(quantized) => {
                let [d_out, d_in] = quantized.shape();
                [d_in, d_out]
            }
        }
    }

    /// Whether there are numbers that the operations take.
    #[cfg(feature = "flex")]
    pub(crate) fn fuses(&self) -> bool {
        match self {
            Self::Dense(weight) => weight.dtype() == DType::F32,
            Self::Quantized(_) => true,
        }
    }

    /// Codes and scales, if it has some and the device decodes them.
    #[cfg(feature = "cube")]
    pub(crate) fn placed(&self, device: &burn::tensor::Device) -> Option<Placed> {
        match self {
            Self::Dense(_) => None,
            Self::Quantized(quantized) => quantized.placed(device),
        }
    }

    /// Burn's, for an input like this.
    pub(crate) fn dense<const D: usize>(self, input: &Tensor<D>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight,
            Self::Quantized(quantized) => quantized
                .to_tensor(&input.device())
                .cast(input.dtype())
                .transpose(),
        }
    }
}

impl From<Tensor<2>> for Weight {
    fn from(tensor: Tensor<2>) -> Self {
        Self::Dense(tensor)
    }
}

impl From<QuantizedWeight> for Weight {
    fn from(quantized: QuantizedWeight) -> Self {
        Self::Quantized(quantized)
    }
}

/// A linear layer, with a low-rank addition where there is one: `x W + b + s·(drop(x) A) B`.
///
/// `input` is `[…, in]`, `weight` `[in, out]`, `bias` `[out]`; returns `[…, out]`. Bias and low rank
/// are accumulated in the output, and in the backward pass in the input's gradient. What is dropped is so again in
/// the backward pass, and nothing is kept of it.
///
/// Of a quantized weight, one panel of rows at a time is decoded, in the forward and again in the backward
/// pass: nothing dense is kept. On a GPU, one that says how it is
/// [`packed`](crate::quantized::QuantizedMatrix::packed) is decoded whole in either pass and then dropped. Elsewhere a
/// weight is decoded whole by the CPU, and kept until the backward pass.
///
/// # Panics
///
/// If shapes do not fit.
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    layer(Seen::Input(input), weight.into(), bias, low_rank)
}

/// A linear layer of GELU: `gelu(x) W + b + s·(gelu(x) A) B`, as [`linear`].
///
/// The activation is never whole in memory with a dense weight, and the backward pass keeps `x` only: where
/// the layer is trained or adapted, its input is computed again.
///
/// # Panics
///
/// If shapes do not fit.
pub fn linear_of_gelu<const D: usize>(
    input: Tensor<D>,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    layer(Seen::Gelu(input), weight.into(), bias, low_rank)
}

/// A linear layer of [`swiglu`](crate::swiglu): `(silu(gate)·up) W + …`, as [`linear`].
///
/// The backward pass keeps `gate` and `up` only: where the layer is trained or adapted, its input is
/// computed again.
///
/// # Panics
///
/// If shapes do not fit.
pub fn linear_of_swiglu<const D: usize>(
    gate: Tensor<D>,
    up: Tensor<D>,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "the shapes of gate and up");
    layer(Seen::SwiGlu(gate, up), weight.into(), bias, low_rank)
}

/// A linear layer of what [`rms_norm`](crate::rms_norm) gives: `(x / rms(x)·γ) W + …`, as [`linear`].
///
/// The backward pass keeps `x` only, which is the residual stream as a rule and there already: what the layer
/// saw is computed again. Several layers on one normalisation do it several times, which is nothing beside
/// their products.
///
/// # Panics
///
/// If shapes do not fit.
pub fn linear_of_rms_norm<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    epsilon: f64,
    weight: impl Into<Weight>,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    assert_eq!(
        gamma.dims(),
        [input.dims()[D - 1]],
        "the scale is not of the input's width"
    );
    layer(
        Seen::RmsNorm(input, gamma, epsilon),
        weight.into(),
        bias,
        low_rank,
    )
}

/// What a layer sees.
#[allow(clippy::large_enum_variant)] // Handles, moved once.
enum Seen<const D: usize> {
    Input(Tensor<D>),
    Gelu(Tensor<D>),
    SwiGlu(Tensor<D>, Tensor<D>),
    RmsNorm(Tensor<D>, Tensor<1>, f64),
}

impl<const D: usize> Seen<D> {
    fn dtype(&self) -> DType {
        match self {
            Self::Input(input)
            | Self::Gelu(input)
            | Self::SwiGlu(input, _)
            | Self::RmsNorm(input, _, _) => input.dtype(),
        }
    }

    #[cfg(feature = "flex")]
    fn fuses(&self) -> bool {
        match self {
            Self::Input(input) | Self::Gelu(input) => fuses(input),
            Self::SwiGlu(gate, up) => fuses(gate) && up.dtype() == DType::F32,
            Self::RmsNorm(input, gamma, _) => fuses(input) && gamma.dtype() == DType::F32,
        }
    }
}

fn layer<const D: usize>(
    seen: Seen<D>,
    weight: Weight,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    let low_rank = low_rank.map(|low_rank| low_rank.cast(seen.dtype()));
    #[cfg(feature = "flex")]
    if weight.fuses() && seen.fuses() {
        return fused(seen, weight, bias, low_rank);
    }
    let input = match seen {
        Seen::Input(input) => input,
        Seen::Gelu(input) => crate::gelu(input),
        Seen::SwiGlu(gate, up) => crate::swiglu(gate, up),
        Seen::RmsNorm(input, gamma, epsilon) => crate::rms_norm(input, gamma, epsilon),
    };
    #[cfg(feature = "cube")]
    if let Some(placed) = weight.placed(&input.device()) {
        return of_packed(input, &placed, bias, low_rank);
    }
    let weight = weight.dense(&input);
    reference::linear(input, weight, bias, low_rank)
}

/// A layer whose weight a GPU decodes.
#[cfg(feature = "cube")]
fn of_packed<const D: usize>(
    input: Tensor<D>,
    weight: &Placed,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    let mut output = weight.linear(input.clone());
    if let Some(bias) = bias {
        output = output + bias.unsqueeze();
    }
    match low_rank {
        Some(low_rank) => reference::add_low_rank(output, input, low_rank),
        None => output,
    }
}

/// The coins of a low-rank addition that drops.
#[cfg(feature = "flex")]
pub(crate) fn thrown<const D: usize>(low_rank: &LowRank, input: &Tensor<D>) -> Option<Coins> {
    // The input of a model's first layer is on no graph, but its adapter is.
    let trains = input.is_autodiff() || low_rank.down.is_autodiff();
    let drops = low_rank.dropout > 0.0 && trains;
    drops.then(|| coins(&input.device(), low_rank.dropout))
}

/// What a layer has besides its input, as the operations take it.
#[cfg(feature = "flex")]
pub(crate) struct Parts {
    pub(crate) weight: Maybe<Dispatch>,
    pub(crate) bias: Maybe<Dispatch>,
    pub(crate) down: Maybe<Dispatch>,
    pub(crate) up: Maybe<Dispatch>,
    pub(crate) layer: Layer,
}

#[cfg(feature = "flex")]
impl Parts {
    /// Those of a layer of `tokens` inputs that are `width` wide. Factors of a high rank are added to the weight where
    /// that is cheaper.
    pub(crate) fn new(
        [tokens, width]: [usize; 2],
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
        coins: Option<Coins>,
    ) -> Self {
        let [d_in, d_out] = weight.dims();
        assert_eq!(width, d_in, "the input's width is not the weight's");
        if let Some(bias) = &bias {
            assert_eq!(
                bias.dims(),
                [d_out],
                "the bias is not as wide as the output"
            );
        }
        let precision = mixed_precision();
        // In mixed precision, the sum would be rounded; the factors are not.
        let may_add = coins.is_none() && precision == MixedPrecision::Off;
        let (weight, low_rank) = match (weight, low_rank) {
            (Weight::Dense(weight), Some(low_rank))
                if may_add && is_better_dense(tokens, &weight, &low_rank) =>
            {
                (Weight::Dense(add_product(weight, low_rank)), None)
            }
            unchanged => unchanged,
        };
        let (down, up, scale) = match low_rank {
            Some(LowRank {
                down, up, scale, ..
            }) => (Some(down), Some(up), scale),
            None => (None, None, 1.0),
        };
        let (dense, quantized) = match weight {
            Weight::Dense(weight) => (Some(weight), None),
            Weight::Quantized(quantized) => (None, Some(quantized)),
        };
        let maybe = |matrix: Option<Tensor<2>>| Maybe::from(matrix.map(Tensor::into_dispatch));
        Self {
            weight: maybe(dense),
            bias: bias.map(Tensor::into_dispatch).into(),
            down: maybe(down),
            up: maybe(up),
            layer: Layer {
                scale: scale as f32,
                gelu: false,
                epsilon: 0.0,
                coins,
                quantized,
                precision,
            },
        }
    }
}

/// What a pass over the elements of a weight costs, in multiplications of a product.
#[cfg(feature = "flex")]
const PASSES: usize = 64;

/// Whether a training step of factors that are added to the weight costs less than one of factors that every token goes
/// through: then the gradient of one dense matrix is computed, and those of the factors from it.
#[cfg(feature = "flex")]
fn is_better_dense(tokens: usize, weight: &Tensor<2>, low_rank: &LowRank) -> bool {
    if !low_rank.down.is_autodiff() && !low_rank.up.is_autodiff() {
        return false;
    }
    let [d_in, d_out] = weight.dims();
    let rank = low_rank.down.dims()[1];
    // Forward, the input's gradient, and that of one factor.
    let factored = tokens * rank * (2 * (d_in + d_out) + d_in.max(d_out));
    let dense = d_in * d_out * (tokens + 2 * rank + PASSES);
    // What is kept with the layer takes memory, and small products are slower.
    dense + dense / 4 < factored
}

#[cfg(feature = "flex")]
fn fused<const D: usize>(
    seen: Seen<D>,
    weight: Weight,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    let gelu = matches!(seen, Seen::Gelu(_));
    let (input, gated, norm) = match seen {
        Seen::Input(input) | Seen::Gelu(input) => (input, None, None),
        Seen::SwiGlu(gate, up) => (gate, Some(up), None),
        Seen::RmsNorm(input, gamma, epsilon) => (input, None, Some((gamma, epsilon))),
    };
    let (gamma, epsilon) = norm.unzip();
    let coins = low_rank
        .as_ref()
        .and_then(|low_rank| thrown(low_rank, &input));
    let width = input.dims()[D - 1];
    let tokens = input.shape().num_elements() / width.max(1);
    let parts = Parts::new([tokens, width], weight, bias, low_rank, coins);
    Tensor::from_dispatch(<Dispatch as Fused>::linear(
        input.into_dispatch(),
        gated.map(Tensor::into_dispatch).into(),
        gamma.map(Tensor::into_dispatch).into(),
        parts.weight,
        parts.bias,
        parts.down,
        parts.up,
        Layer {
            gelu,
            epsilon: epsilon.unwrap_or(0.0) as f32,
            ..parts.layer
        },
    ))
}

/// Adds a low-rank product to a layer's output: `y + s·(drop(x) A) B`, in the memory of `y` where nothing
/// else holds it.
///
/// `output` is `[…, out]`, `input` `[…, in]`.
///
/// # Panics
///
/// If shapes do not fit.
pub fn add_low_rank<const D: usize>(
    output: Tensor<D>,
    input: Tensor<D>,
    low_rank: LowRank,
) -> Tensor<D> {
    let low_rank = low_rank.cast(input.dtype());
    #[cfg(feature = "flex")]
    if fuses(&output) && input.dtype() == DType::F32 {
        let coins = thrown(&low_rank, &input);
        let LowRank {
            down, up, scale, ..
        } = low_rank;
        return Tensor::from_dispatch(<Dispatch as Fused>::add_low_rank(
            output.into_dispatch(),
            input.into_dispatch(),
            down.into_dispatch(),
            up.into_dispatch(),
            scale as f32,
            coins,
        ));
    }
    reference::add_low_rank(output, input, low_rank)
}
