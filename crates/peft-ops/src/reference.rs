//! What the fused operations compute, written with Burn's own: the definition, what runs on every
//! other backend and dtype, and what the fused ones are tested against.

mod composing;

use burn::nn::DropoutConfig;
use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::module::{attention as burn_attention, layer_norm as burn_layer_norm};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, TensorData};

use crate::{AdamWOptions, AttentionOptions, LowRank, Rotary, Sparse};

pub use crate::gelu::gelu;
pub use composing::{
    add_hadamard, add_product, add_waves, block_diagonal, hadamard_rows, scale_by_product,
    scale_columns,
};

/// [`linear`](crate::linear), composed.
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    low_rank: Option<LowRank>,
) -> Tensor<D> {
    let [d_in, d_out] = weight.dims();
    let mut shape = input.dims();
    let rows = input.reshape([-1, d_in as isize]);
    let mut output = rows.clone().matmul(weight);
    if let Some(low_rank) = low_rank {
        output = add_low_rank(output, rows, low_rank);
    }
    shape[D - 1] = d_out;
    let output = output.reshape(shape);
    match bias {
        Some(bias) => output + bias.unsqueeze(),
        None => output,
    }
}

/// [`add_low_rank`](crate::add_low_rank), composed.
pub fn add_low_rank<const D: usize>(
    output: Tensor<D>,
    input: Tensor<D>,
    low_rank: LowRank,
) -> Tensor<D> {
    let LowRank {
        down,
        up,
        scale,
        dropout: probability,
    } = low_rank;
    let input = if probability > 0.0 && (input.is_autodiff() || down.is_autodiff()) {
        dropout(input, probability)
    } else {
        input
    };
    let shape = output.dims();
    let rows = input.reshape([-1, down.dims()[0] as isize]);
    // The scale goes where the tensor is smallest.
    output + (rows.matmul(down) * scale).matmul(up).reshape(shape)
}

/// [`add_sparse`](crate::add_sparse), composed.
pub fn add_sparse<const D: usize>(
    output: Tensor<D>,
    input: Tensor<D>,
    sparse: Sparse,
) -> Tensor<D> {
    let shape = output.dims();
    let rows = input.reshape([-1, sparse.shape[0] as isize]);
    output + rows.matmul(sparse.dense()).reshape(shape)
}

/// [`column_norms`](crate::column_norms), composed.
pub fn column_norms(matrix: Tensor<2>) -> Tensor<1> {
    let squares = matrix.detach().powi_scalar(2).sum_dim(0);
    squares.sqrt().reshape([-1])
}

/// [`layer_norm`](crate::layer_norm), composed.
pub fn layer_norm<const D: usize>(
    input: Tensor<D>,
    residual: Option<Tensor<D>>,
    gamma: Tensor<1>,
    beta: Option<Tensor<1>>,
    epsilon: f64,
) -> Tensor<D> {
    let sum = match residual {
        Some(residual) => input + residual,
        None => input,
    };
    // As Burn's own layer: a half-precision sum of squares would overflow.
    let original: FloatDType = sum.dtype().into();
    if matches!(sum.dtype(), DType::F16 | DType::BF16) {
        let wide = FloatDType::F32;
        let beta = beta.map(|beta| beta.cast(wide));
        return burn_layer_norm(sum.cast(wide), gamma.cast(wide), beta, epsilon).cast(original);
    }
    burn_layer_norm(sum, gamma, beta, epsilon)
}

/// [`rms_norm`](crate::rms_norm), composed.
pub fn rms_norm<const D: usize>(input: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    // As upstream: squares of half-precision numbers are summed in f32.
    let original: FloatDType = input.dtype().into();
    let wide = match input.dtype() {
        DType::F64 => FloatDType::F64,
        _ => FloatDType::F32,
    };
    let x = input.cast(wide);
    let mean = x.clone().powi_scalar(2).mean_dim(D - 1);
    let normed = x / (mean + epsilon).sqrt();
    normed.cast(original) * gamma.unsqueeze()
}

/// [`rotary`](crate::rotary()), composed.
pub fn rotary(input: Tensor<3>, rotary: &Rotary, heads: usize) -> Tensor<3> {
    let shape = input.dims();
    let [batch, seq, width] = shape;
    let pairs = width / heads / 2;
    let split = input.reshape([batch, seq, heads, 2 * pairs]);
    let left = split.clone().slice_dim(3, 0..pairs);
    let right = split.slice_dim(3, pairs..2 * pairs);
    let angles = |table: &Tensor<3>| table.clone().cast(left.dtype()).unsqueeze_dim::<4>(2);
    let (cos, sin) = (angles(&rotary.cos), angles(&rotary.sin));
    let turned = [
        left.clone() * cos.clone() - right.clone() * sin.clone(),
        right * cos + left * sin,
    ];
    Tensor::cat(turned.to_vec(), 3).reshape(shape)
}

/// [`swiglu`](crate::swiglu), composed.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

/// [`linear_cross_entropy`](crate::linear_cross_entropy), composed; `head` is `[classes, d]`.
pub fn linear_cross_entropy(hidden: Tensor<2>, head: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    cross_entropy(hidden.matmul(head.transpose()), targets)
}

/// The sum of the negative log likelihoods of `targets` under logits `[rows, classes]`; rows with a negative
/// target are left out.
pub fn cross_entropy(logits: Tensor<2>, targets: &[i64]) -> Tensor<1> {
    let device = logits.device();
    let rows = targets.len();
    let classes: Vec<i64> = targets.iter().map(|target| *target.max(&0)).collect();
    let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [rows, 1]), &device);
    let counts: Vec<f32> = targets
        .iter()
        .map(|target| if *target < 0 { 0.0 } else { -1.0 })
        .collect();
    let counts = Tensor::<2>::from_data(TensorData::new(counts, [rows, 1]), &device);
    let likelihoods = log_softmax(logits, 1).gather(1, classes);
    (likelihoods.clone() * counts.cast(likelihoods.dtype())).sum()
}

/// [`dropout`](crate::dropout) by Burn's module: the coins are others than the fused operation's.
pub fn dropout<const D: usize>(input: Tensor<D>, probability: f64) -> Tensor<D> {
    DropoutConfig::new(probability).init().forward(input)
}

/// [`attention`](crate::attention), composed; on devices without autodiff by Burn's own operation.
pub fn attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask: Option<Tensor<3>>,
    options: AttentionOptions,
) -> Tensor<3> {
    let shape = query.dims();
    let [batch, queries, width] = shape;
    let width = width / options.heads;
    let keys = key.dims()[1];
    let split = |x: Tensor<3>, heads: usize| {
        let length = x.dims()[1];
        x.reshape([batch, length, heads, width]).swap_dims(1, 2)
    };
    let group = options.heads / options.kv_heads;
    // Each head of keys and values serves a group of neighbouring heads of queries.
    let spread = |x: Tensor<4>| {
        if group == 1 {
            return x;
        }
        x.unsqueeze_dim::<5>(2)
            .repeat_dim(2, group)
            .reshape([batch, options.heads, keys, width])
    };
    let query = split(query, options.heads);
    let key = spread(split(key, options.kv_heads));
    let value = spread(split(value, options.kv_heads));
    let mut added = mask.map(|mask| {
        // A row of nothing but padding must not become one of nothing but infinities.
        let mask = match query.dtype() {
            DType::F16 => mask.clamp_min(-65_504.0),
            _ => mask,
        };
        mask.cast(query.dtype()).unsqueeze_dim::<4>(1)
    });
    if options.causal {
        // True above the diagonal that ends in the last corner.
        let hidden = Tensor::<2, Bool>::tril_mask(
            [queries, keys],
            keys.cast_signed() as i64 - queries.cast_signed() as i64,
            &query.device(),
        );
        let causal = Tensor::<2>::zeros([queries, keys], &query.device())
            .cast(query.dtype())
            .mask_fill(hidden, f32::NEG_INFINITY)
            .unsqueeze::<4>();
        added = Some(match added {
            Some(added) => added + causal,
            None => causal,
        });
    }
    let context = if query.is_autodiff() {
        // The queries are scaled rather than the scores, of which there are more.
        let scores = (query * options.scale(width)).matmul(key.transpose());
        let scores = match added {
            Some(added) => scores + added,
            None => scores,
        };
        dropout(softmax(scores, 3), options.dropout).matmul(value)
    } else {
        // Burn's fused kernel wants one row of the mask for each query.
        let added = added.map(|added| {
            if added.dims()[2] == queries {
                added
            } else {
                added.repeat_dim(2, queries)
            }
        });
        let settings = AttentionModuleOptions {
            scale: Some(options.scale(width)),
            ..AttentionModuleOptions::default()
        };
        burn_attention(query, key, value, None, added, settings)
    };
    context.swap_dims(1, 2).reshape(shape)
}

/// [`adamw`](crate::adamw), composed.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    [first, second]: [Tensor<D>; 2],
    options: AdamWOptions,
) -> [Tensor<D>; 3] {
    let AdamWOptions { beta_1, beta_2, .. } = options;
    let first = first * beta_1 + gradient.clone() * (1.0 - beta_1);
    let second = second * beta_2 + gradient.square() * (1.0 - beta_2);
    let [correction_1, correction_2] = options.corrections();
    let root = (second.clone() / correction_2).sqrt() + options.epsilon;
    let delta = (first.clone() / correction_1) / root;
    let parameter = parameter * options.kept() - delta * options.rate;
    [parameter, first, second]
}
