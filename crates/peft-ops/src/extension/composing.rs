//! Operations of methods that change a weight or an input by few numbers, for Burn's CPU backend.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn_flex::FlexTensor;

use super::Maybe;
use super::autodiff::{Tracked, present, record};
use super::kept::Kept;
use super::tensors::{dense, numbers, rows, tensor, vector};
use crate::cpu::composing::{self, Diagonal, Factored};
use crate::cpu::linear::column_sums;
use crate::cpu::transform::{Blocks, Waves};

/// Tensors are `f32` and on Burn's CPU backend; the caller has checked that, and the shapes.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait Composing: Backend {
    /// `W + s·A B`.
    fn add_product(
        matrix: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// `W ⊙ (1 + A B)`.
    fn scale_by_product(
        matrix: FloatTensor<Self>,
        down: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `W + H (G ⊙ v)` in blocks as long as v.
    fn add_hadamard(
        weight: FloatTensor<Self>,
        diagonals: FloatTensor<Self>,
        vector: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `W + s·C B` for waves B.
    fn add_waves(
        weight: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        waves: Arc<Waves>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// `x·diag(R₁, R₂, …)` for blocks `[count, size, size]`.
    fn block_diagonal(input: FloatTensor<Self>, blocks: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x ⊙ s + b` over the last dimension.
    fn scale_columns(
        input: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        #[extension_type] bias: Maybe<Self>,
    ) -> FloatTensor<Self>;
}

fn factored<'a>(matrix: &'a FlexTensor, down: &'a FlexTensor, up: &'a FlexTensor) -> Factored<'a> {
    let (rows, cols) = rows(matrix);
    Factored {
        matrix: numbers(matrix),
        down: numbers(down),
        up: numbers(up),
        rows,
        cols,
        rank: self::rows(down).1,
    }
}

fn diagonal(blocks: &FlexTensor) -> Diagonal<'_> {
    Diagonal {
        blocks: numbers(blocks),
        size: rows(blocks).1,
    }
}

fn hadamard(diagonals: &FlexTensor) -> Blocks<'_> {
    Blocks {
        diagonals: numbers(diagonals),
        size: rows(diagonals).1,
    }
}

impl Composing for Flex {
    fn add_product(matrix: FlexTensor, down: FlexTensor, up: FlexTensor, scale: f32) -> FlexTensor {
        let [matrix, down, up] = [matrix, down, up].map(dense);
        tensor(factored(&matrix, &down, &up).sum(scale), matrix.shape())
    }

    fn scale_by_product(matrix: FlexTensor, down: FlexTensor, up: FlexTensor) -> FlexTensor {
        let [matrix, down, up] = [matrix, down, up].map(dense);
        tensor(factored(&matrix, &down, &up).scaled(), matrix.shape())
    }

    fn add_hadamard(weight: FlexTensor, diagonals: FlexTensor, vector: FlexTensor) -> FlexTensor {
        let [weight, diagonals, vector] = [weight, diagonals, vector].map(dense);
        let sum = hadamard(&diagonals).add(numbers(&weight), numbers(&vector));
        tensor(sum, weight.shape())
    }

    fn add_waves(
        weight: FlexTensor,
        coefficients: FlexTensor,
        waves: Arc<Waves>,
        scale: f32,
    ) -> FlexTensor {
        let [weight, coefficients] = [weight, coefficients].map(dense);
        let sum = waves.add(numbers(&weight), numbers(&coefficients), scale);
        tensor(sum, weight.shape())
    }

    fn block_diagonal(input: FlexTensor, blocks: FlexTensor) -> FlexTensor {
        let [input, blocks] = [input, blocks].map(dense);
        let output = diagonal(&blocks).apply(numbers(&input), false);
        tensor(output, input.shape())
    }

    fn scale_columns(input: FlexTensor, scale: FlexTensor, bias: Maybe<Self>) -> FlexTensor {
        let ([input, scale], bias) = ([input, scale].map(dense), bias.get().map(dense));
        let bias = bias.as_ref().map(numbers);
        let output = composing::affine(numbers(&input), numbers(&scale), bias);
        tensor(output, input.shape())
    }
}

impl<C: CheckpointStrategy> Composing for Autodiff<Flex, C> {
    fn add_product(matrix: Tracked, down: Tracked, up: Tracked, scale: f32) -> Tracked {
        let [_, of_down, of_up] = [&matrix, &down, &up].map(Tracked::is_tracked);
        let [(matrix, n0), (down, n1), (up, n2)] = [matrix, down, up].map(Tracked::into_parts);
        let [down, up] = [down, up].map(dense);
        let output = Flex::add_product(matrix, down.clone(), up.clone(), scale);
        record::<C, _, 3>([n0, n1, n2], output, || ProductAdded {
            down: of_up.then_some(down),
            up: of_down.then_some(up),
            scale,
        })
    }

    fn scale_by_product(matrix: Tracked, down: Tracked, up: Tracked) -> Tracked {
        let [(matrix, n0), (down, n1), (up, n2)] = [matrix, down, up].map(Tracked::into_parts);
        let [matrix, down, up] = [matrix, down, up].map(dense);
        let output = Flex::scale_by_product(matrix.clone(), down.clone(), up.clone());
        record::<C, _, 3>([n0, n1, n2], output, || Scaled { matrix, down, up })
    }

    fn add_hadamard(weight: Tracked, diagonals: Tracked, vector: Tracked) -> Tracked {
        let [(weight, n0), (vector, n1)] = [weight, vector].map(Tracked::into_parts);
        let diagonals = dense(diagonals.into_primitive());
        let output = Flex::add_hadamard(weight, diagonals.clone(), vector);
        record::<C, _, 2>([n0, n1], output, || Transformed { diagonals })
    }

    fn add_waves(weight: Tracked, coefficients: Tracked, waves: Arc<Waves>, scale: f32) -> Tracked {
        let [(weight, n0), (coefficients, n1)] = [weight, coefficients].map(Tracked::into_parts);
        let output = Flex::add_waves(weight, coefficients, waves.clone(), scale);
        record::<C, _, 2>([n0, n1], output, || WavesAdded { waves, scale })
    }

    fn block_diagonal(input: Tracked, blocks: Tracked) -> Tracked {
        let [of_input, of_blocks] = [&input, &blocks].map(Tracked::is_tracked);
        let [(input, n0), (blocks, n1)] = [input, blocks].map(Tracked::into_parts);
        let [input, blocks] = [input, blocks].map(dense);
        let output = Flex::block_diagonal(input.clone(), blocks.clone());
        record::<C, _, 2>([n0, n1], output, || Turned {
            input: of_blocks.then_some(input),
            blocks: (of_input || of_blocks).then_some(blocks),
        })
    }

    fn scale_columns(input: Tracked, scale: Tracked, bias: Maybe<Self>) -> Tracked {
        let bias = bias.get();
        let has_bias = bias.is_some();
        let [of_input, of_scale] = [&input, &scale].map(Tracked::is_tracked);
        let [(input, n0), (scale, n1), (bias, n2)] =
            [input, scale, present(bias)].map(Tracked::into_parts);
        let [input, scale] = [input, scale].map(dense);
        let bias = Maybe::from_option(has_bias.then_some(bias));
        let output = Flex::scale_columns(input.clone(), scale.clone(), bias);
        record::<C, _, 3>([n0, n1, n2], output, || ColumnsScaled {
            width: rows(&scale).1,
            input: of_scale.then_some(input),
            scale: of_input.then_some(scale),
        })
    }
}

/// What `W + s·A B` keeps.
#[derive(Clone, Debug)]
struct ProductAdded {
    /// For the gradient of B.
    down: Option<FlexTensor>,
    /// For the gradient of A.
    up: Option<FlexTensor>,
    scale: f32,
}

impl Kept<3> for ProductAdded {
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let (rows, cols) = rows(&gradient);
        let rank_of = |tensor: &FlexTensor| tensor.shape()[1];
        let rank = match (&self.down, &self.up) {
            (Some(down), _) => rank_of(down),
            (None, Some(up)) => up.shape()[0],
            (None, None) => 0,
        };
        let part = |tensor: &Option<FlexTensor>| tensor.clone();
        let (down, up) = (part(&self.down), part(&self.up));
        let factored = Factored {
            matrix: &[],
            down: down.as_ref().map_or(&[], |down| numbers(down)),
            up: up.as_ref().map_or(&[], |up| numbers(up)),
            rows,
            cols,
            rank,
        };
        let wanted_factors = [wanted[1] && up.is_some(), wanted[2] && down.is_some()];
        let [d_down, d_up] =
            factored.factor_gradients(numbers(&gradient), self.scale, wanted_factors);
        [
            wanted[0].then_some(gradient),
            d_down.map(|data| tensor(data, [rows, rank].into())),
            d_up.map(|data| tensor(data, [rank, cols].into())),
        ]
    }
}

/// What `W ⊙ (1 + A B)` keeps.
#[derive(Clone, Debug)]
struct Scaled {
    matrix: FlexTensor,
    down: FlexTensor,
    up: FlexTensor,
}

impl Kept<3> for Scaled {
    fn gradients(self, mut gradient: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [of_matrix, of_down, of_up] = wanted;
        let Self { matrix, down, up } = &self;
        let d_matrix = of_matrix.then(|| {
            // g ⊙ (1 + A B).
            Flex::scale_by_product(gradient.clone(), down.clone(), up.clone())
        });
        composing::multiply_by(gradient.storage_mut(), numbers(matrix));
        let factored = factored(matrix, down, up);
        let [d_down, d_up] = factored.factor_gradients(numbers(&gradient), 1.0, [of_down, of_up]);
        [
            d_matrix,
            d_down.map(|data| tensor(data, down.shape())),
            d_up.map(|data| tensor(data, up.shape())),
        ]
    }
}

/// What `W + H (G ⊙ v)` keeps.
#[derive(Clone, Debug)]
struct Transformed {
    diagonals: FlexTensor,
}

impl Kept<2> for Transformed {
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let d_vector = wanted[1].then(|| {
            let gradient = hadamard(&self.diagonals).gradient(numbers(&gradient));
            vector(gradient)
        });
        [wanted[0].then_some(gradient), d_vector]
    }
}

/// What `W + s·C B` keeps for waves B: nothing but how to transform.
#[derive(Clone, Debug)]
struct WavesAdded {
    waves: Arc<Waves>,
    scale: f32,
}

impl Kept<2> for WavesAdded {
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let d_coefficients = wanted[1].then(|| {
            let data = self.waves.gradient(numbers(&gradient), self.scale);
            let rows = rows(&gradient).0;
            tensor(data, [rows, 2 * self.waves.count()].into())
        });
        [wanted[0].then_some(gradient), d_coefficients]
    }
}

/// What a product with blocks along a diagonal keeps.
#[derive(Clone, Debug)]
struct Turned {
    /// For the gradient of the blocks.
    input: Option<FlexTensor>,
    /// For the input's gradient.
    blocks: Option<FlexTensor>,
}

impl Kept<2> for Turned {
    fn gradients(self, gradient: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Some(blocks) = &self.blocks else {
            return [None, None];
        };
        let (g, turned) = (numbers(&gradient), diagonal(blocks));
        let d_input = wanted[0].then(|| tensor(turned.apply(g, true), gradient.shape()));
        let d_blocks = self.input.as_ref().filter(|_| wanted[1]);
        let d_blocks =
            d_blocks.map(|input| tensor(turned.gradient(numbers(input), g), blocks.shape()));
        [d_input, d_blocks]
    }
}

/// What `x ⊙ s + b` keeps.
#[derive(Clone, Debug)]
struct ColumnsScaled {
    width: usize,
    /// For the gradient of s.
    input: Option<FlexTensor>,
    /// For the gradient of x.
    scale: Option<FlexTensor>,
}

impl Kept<3> for ColumnsScaled {
    fn gradients(self, mut gradient: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let width = self.width;
        let d_scale = self.input.as_ref().filter(|_| wanted[1]).map(|input| {
            let sums = composing::column_products(numbers(input), numbers(&gradient), width);
            vector(sums)
        });
        let d_bias = wanted[2].then(|| vector(column_sums(numbers(&gradient), width)));
        let d_input = self.scale.as_ref().filter(|_| wanted[0]).map(|scale| {
            composing::scale_columns(gradient.storage_mut(), numbers(scale));
            gradient
        });
        [d_input, d_scale, d_bias]
    }
}
