//! The activation side: Burn's own layers, called so that adapters act on what flows through.

use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::{Dropout, Embedding, Linear, PaddingConfig2d, RmsNorm};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Int, Tensor};
use peft_ops::{AttentionInputs, LowRank, Weight};

use crate::adapter::quantized_base::QuantizedBase;
use crate::attached::stack::Stack;
use crate::nn::base_layer::{BaseConv2d, BaseEmbedding, BaseLinear, BaseNorms};
use crate::nn::mixed_batch;

/// Forward passes of Burn's layers that never form an adapted weight.
///
/// `layer.adapted(x)` equals `layer.forward(x)` to rounding, whatever adapters the layer's weight
/// carries. A model opts in by changing the call, never a type, so its records stay Burn's. Input
/// dropout of adapters acts on this side only. Where [`ops`](crate::ops) has a fused operation for
/// what the layer does, it is used, adapters or not.
pub trait AdaptedForward<Input> {
    /// What the layer returns.
    type Output;

    /// The layer's output for `input`; shapes are those of the layer's own `forward`.
    fn adapted(&self, input: Input) -> Self::Output;
}

impl<const D: usize> AdaptedForward<Tensor<D>> for Linear {
    type Output = Tensor<D>;

    fn adapted(&self, input: Tensor<D>) -> Tensor<D> {
        linear(self, input)
    }
}

/// A linear layer of GELU, adapters and all: `layer.adapted(gelu(input))` without the activation ever
/// being whole in memory. Where nothing is trained but what adapters add, that is most of the memory
/// of a feed-forward block.
pub fn adapted_gelu<const D: usize>(layer: &Linear, input: Tensor<D>) -> Tensor<D> {
    linear(layer, Gelu(input))
}

/// A linear layer of SwiGLU, adapters and all: `layer.adapted(swiglu(gate, up))`, of which the backward pass
/// keeps `gate` and `up` only.
pub fn adapted_swiglu<const D: usize>(layer: &Linear, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    linear(layer, SwiGlu(gate, up))
}

/// A linear layer of a normalised stream, adapters and all: `layer.adapted(norm.adapted(input))`, of which the
/// backward pass keeps `input` only.
pub fn adapted_norm<const D: usize>(layer: &Linear, norm: &RmsNorm, input: Tensor<D>) -> Tensor<D> {
    linear(layer, Normalised(input, norm))
}

/// A linear layer of attention, adapters and all: `layer.adapted(attention(…))`, of which the backward pass keeps
/// queries, keys and values only.
pub fn adapted_attention(layer: &Linear, inputs: AttentionInputs) -> Tensor<3> {
    linear(layer, inputs)
}

/// What a layer sees: the result of an operation that may be one with the layer's own.
pub(crate) trait Seen<const D: usize> {
    /// The layer, in one operation.
    fn fused(self, weight: Weight, bias: Option<Tensor<1>>, low_rank: Option<LowRank>)
    -> Tensor<D>;

    /// What the layer sees, whole.
    fn whole(self) -> Tensor<D>;

    /// The number format of what the layer sees.
    fn dtype(&self) -> DType;
}

impl<const D: usize> Seen<D> for Tensor<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear(self, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        self
    }

    fn dtype(&self) -> DType {
        Tensor::dtype(self)
    }
}

struct Gelu<const D: usize>(Tensor<D>);

impl<const D: usize> Seen<D> for Gelu<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear_of_gelu(self.0, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        peft_ops::gelu(self.0)
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

struct SwiGlu<const D: usize>(Tensor<D>, Tensor<D>);

impl<const D: usize> Seen<D> for SwiGlu<D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        peft_ops::linear_of_swiglu(self.0, self.1, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        peft_ops::swiglu(self.0, self.1)
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

struct Normalised<'a, const D: usize>(Tensor<D>, &'a RmsNorm);

impl<const D: usize> Seen<D> for Normalised<'_, D> {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<D> {
        let (gamma, epsilon) = (self.1.gamma.val(), self.1.epsilon);
        peft_ops::linear_of_rms_norm(self.0, gamma, epsilon, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<D> {
        self.1.adapted(self.0)
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }
}

impl Seen<3> for AttentionInputs {
    fn fused(
        self,
        weight: Weight,
        bias: Option<Tensor<1>>,
        low_rank: Option<LowRank>,
    ) -> Tensor<3> {
        peft_ops::linear_of_attention(self, weight, bias, low_rank)
    }

    fn whole(self) -> Tensor<3> {
        self.attention()
    }

    fn dtype(&self) -> DType {
        self.query.dtype()
    }
}

/// A linear layer as its adapters find it.
#[derive(Clone)]
pub(crate) struct Place<'a> {
    /// The parameter's own tensor, `[in, out]`.
    pub(crate) base: Tensor<2>,
    /// What it stands in for, if the base is quantized.
    pub(crate) quantized: Option<QuantizedBase>,
    pub(crate) bias: Option<Tensor<1>>,
    /// Changes of the base that lie below all adapters.
    pub(crate) below: Vec<LowRank>,
    /// Of the base.
    pub(crate) norms: BaseNorms,
    pub(crate) stack: &'a Stack,
}

impl<'a> Place<'a> {
    fn of(layer: &Linear, stack: &'a Stack) -> Self {
        Self {
            base: layer.weight.base(),
            quantized: stack.quantized.clone(),
            bias: layer.bias.as_ref().map(Param::val),
            below: Vec::new(),
            norms: stack.norms.clone(),
            stack,
        }
    }

    /// The base as an operation takes it.
    pub(crate) fn weight(&self) -> Weight {
        match &self.quantized {
            Some(quantized) => quantized.weight(&self.base),
            None => Weight::Dense(self.base.clone()),
        }
    }

    /// The input as a matrix, `[rows, in]`.
    fn rows_of<const D: usize>(&self, input: Tensor<D>) -> Tensor<2> {
        let [d_in, _] = self.base.dims();
        input.reshape([-1, d_in as isize])
    }

    /// All that is added to the base, if it is low-rank additions and nothing else.
    fn low_rank(&self) -> Option<Vec<LowRank>> {
        let adapters = self.stack.active_weights();
        let alone = self.below.len() + adapters.len() == 1;
        let factors = adapters.iter().map(|adapter| adapter.low_rank());
        let mut all: Vec<LowRank> = self.below.clone();
        all.extend(factors.collect::<Option<Vec<_>>>()?);
        // Several have one input, and each drops other elements of it.
        let together = alone || all.iter().all(|factors| factors.dropout == 0.0);
        together.then_some(all)
    }

    /// The base with what lies below all adapters folded in, where there is something.
    fn composed(mut self) -> Self {
        for factors in std::mem::take(&mut self.below) {
            let base = match self.quantized.take() {
                Some(quantized) => quantized.dense(&self.base),
                None => self.base,
            };
            let change = factors.cast(base.dtype()).product();
            self.base = base + change;
            self.norms = BaseNorms::default();
        }
        self
    }
}

fn linear<const D: usize>(layer: &Linear, seen: impl Seen<D>) -> Tensor<D> {
    match layer.weight.reparameterization::<Stack>() {
        Some(stack) if stack.merged.is_none() => through(&Place::of(layer, stack), seen),
        _ => seen.fused(
            layer.weight.val().into(),
            layer.bias.as_ref().map(Param::val),
            None,
        ),
    }
}

/// The output of a linear layer, adapters and all. A calibrator that asked for the layer's inputs gets them.
pub(crate) fn through<const D: usize>(place: &Place<'_>, seen: impl Seen<D>) -> Tensor<D> {
    let Some(recorder) = place.stack.recorder.upgrade() else {
        return through_seen(place, seen);
    };
    let input = seen.whole();
    recorder.record(place.rows_of(input.clone()));
    through_seen(place, input)
}

fn through_seen<const D: usize>(place: &Place<'_>, seen: impl Seen<D>) -> Tensor<D> {
    let stack = place.stack;
    if let Some(merged) = &stack.merged {
        return seen.fused(merged.get::<2>().into(), place.bias.clone(), None);
    }
    if let Some(rows) = &stack.rows {
        return mixed_batch::linear(place, rows, seen.whole());
    }
    if let Some(factors) = place.low_rank() {
        let factors = side_by_side(factors, seen.dtype());
        return seen.fused(place.weight(), place.bias.clone(), factors);
    }
    let input = seen.whole();
    let mut shape = input.dims();
    let [_, d_out] = place.base.dims();
    let rows = place.rows_of(input);
    let place = place.clone().composed();
    let inner = BaseLinear {
        base: place.base,
        quantized: place.quantized.as_ref(),
        bias: place.bias,
        norms: &place.norms,
        below: &stack.active_weights(),
    };
    shape[D - 1] = d_out;
    inner.forward(rows).reshape(shape)
}

/// Low-rank additions as one, scales folded in, in the input's number format: each adapter has its own.
fn side_by_side(mut factors: Vec<LowRank>, dtype: DType) -> Option<LowRank> {
    if factors.len() < 2 {
        return factors.pop();
    }
    let (down, up) = factors
        .into_iter()
        .map(|factors| factors.cast(dtype))
        .map(
            |LowRank {
                 down, up, scale, ..
             }| (down, up * scale),
        )
        .unzip();
    Some(LowRank {
        down: Tensor::cat(down, 1),
        up: Tensor::cat(up, 0),
        scale: 1.0,
        dropout: 0.0,
    })
}

impl AdaptedForward<Tensor<2, Int>> for Embedding {
    type Output = Tensor<3>;

    fn adapted(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match unmerged(self.weight.reparameterization::<Stack>()) {
            None => self.forward(ids),
            Some(stack) => BaseEmbedding {
                base: self.weight.base(),
                quantized: stack.quantized.as_ref(),
                below: &stack.active_weights(),
            }
            .forward(ids),
        }
    }
}

impl AdaptedForward<Tensor<4>> for Conv2d {
    type Output = Tensor<4>;

    fn adapted(&self, input: Tensor<4>) -> Tensor<4> {
        let Some(stack) = unmerged(self.weight.reparameterization::<Stack>()) else {
            return self.forward(input);
        };
        let [_, _, height, width] = input.dims();
        let options = ConvOptions::new_with_padding(
            self.stride,
            padding(self, [height, width]),
            self.dilation,
            self.groups,
        );
        let adapters = stack.active_weights();
        let output = BaseConv2d {
            base: self.weight.base(),
            below: &adapters,
            options,
        }
        .forward(input);
        match &self.bias {
            Some(bias) => {
                let channels = bias.dims()[0];
                output + bias.val().reshape([1, channels, 1, 1])
            }
            None => output,
        }
    }
}

impl<const D: usize> AdaptedForward<Tensor<D>> for Dropout {
    type Output = Tensor<D>;

    fn adapted(&self, input: Tensor<D>) -> Tensor<D> {
        peft_ops::dropout(input, dropout_rate(self))
    }
}

impl<const D: usize> AdaptedForward<Tensor<D>> for RmsNorm {
    type Output = Tensor<D>;

    fn adapted(&self, input: Tensor<D>) -> Tensor<D> {
        peft_ops::rms_norm(input, self.gamma.val(), self.epsilon)
    }
}

/// The sum of the negative log likelihoods of `targets` under an output head `[d, classes]`, adapters and all:
/// as [`ops::linear_cross_entropy`](crate::ops::linear_cross_entropy) of `head.adapted(hidden)`.
///
/// Low-rank adapters cost no matrix of the head's size. Others that are changes of the weight are folded into one
/// dense matrix for it, without their input dropout. All logits are formed only where the head has a bias, or an
/// adapter adds more than a weight can.
pub fn adapted_cross_entropy(head: &Linear, hidden: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    if head.bias.is_some() {
        return peft_ops::reference::cross_entropy(head.adapted(hidden), targets);
    }
    if let Some(stack) = head.weight.reparameterization::<Stack>() {
        return cross_entropy(&Place::of(head, stack), hidden, targets);
    }
    let rows = head.weight.val().transpose();
    peft_ops::linear_cross_entropy(hidden, rows, targets)
}

/// As [`adapted_cross_entropy`], of a head without a bias.
pub(crate) fn cross_entropy(place: &Place<'_>, hidden: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    let stack = place.stack;
    if let Some(recorder) = stack.recorder.upgrade() {
        recorder.record(hidden.clone());
    }
    if let Some(merged) = &stack.merged {
        let rows = merged.get::<2>().transpose();
        return peft_ops::linear_cross_entropy(hidden, rows, targets);
    }
    let adapters = stack.active_weights();
    let beyond = adapters.iter().any(|adapter| !adapter.is_mergeable());
    if let Some(rows) = &stack.rows {
        // Each row of the batch has as many positions.
        let ([count, d], classes) = (hidden.dims(), place.base.dims()[1]);
        let hidden = hidden.reshape([rows.names.len() as isize, -1, d as isize]);
        let logits = through_seen::<3>(place, hidden).reshape([count, classes]);
        return peft_ops::reference::cross_entropy(logits, targets);
    }
    if beyond {
        return peft_ops::reference::cross_entropy(through_seen(place, hidden), targets);
    }
    let rows_of = |weight| match weight {
        Weight::Dense(weight) => Weight::Dense(weight.transpose()),
        quantized @ Weight::Quantized(_) => quantized,
    };
    if let Some(factors) = place.low_rank() {
        let low_rank = side_by_side(factors, hidden.dtype());
        let rows = rows_of(place.weight());
        return peft_ops::linear_cross_entropy_with(hidden, rows, low_rank, targets);
    }
    let place = place.clone().composed();
    let inner = BaseLinear {
        base: place.base,
        quantized: place.quantized.as_ref(),
        bias: None,
        norms: &place.norms,
        below: &adapters,
    };
    peft_ops::linear_cross_entropy(hidden, inner.weight().transpose(), targets)
}

/// The probability with which a dropout layer drops on autodiff devices: 0 where the layer is
/// switched off, as Burn does for frozen modules.
pub fn dropout_rate(dropout: &Dropout) -> f64 {
    if dropout.training.is_enabled() {
        dropout.prob
    } else {
        0.0
    }
}

/// The stack, if there is something to do at run time.
fn unmerged(stack: Option<&Stack>) -> Option<&Stack> {
    stack.filter(|stack| {
        let used =
            stack.rows.is_some() || stack.quantized.is_some() || stack.active().next().is_some();
        stack.merged.is_none() && used
    })
}

/// Padding before and after, per axis, as Burn's own forward computes it.
fn padding(layer: &Conv2d, size: [usize; 2]) -> [(usize, usize); 2] {
    match &layer.padding {
        PaddingConfig2d::Valid => [(0, 0); 2],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [(*top, *bottom), (*left, *right)],
        PaddingConfig2d::Same => [0, 1].map(|axis| {
            // Without the dilation, as Burn has it.
            let steps = (size[axis].div_ceil(layer.stride[axis]).max(1) - 1) * layer.stride[axis];
            let total = (steps + layer.kernel_size[axis]).saturating_sub(size[axis]);
            (total / 2, total - total / 2)
        }),
    }
}
