//! The operations as operations of the backend.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, ExtensionType, backend_extension};
use burn::tensor::Shape;

use super::attention::{Attended, Heads};
use super::layout::Layout;

/// A packed matrix's tensors.
#[derive(ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct PackedTensors<B: Backend> {
    /// Codes, in `u32`.
    pub(crate) words: IntTensor<B>,
    /// What they stand for.
    pub(crate) values: FloatTensor<B>,
    /// One for each block, or for each block of scales that are codes.
    pub(crate) scales: FloatTensor<B>,
    /// Codes of scales, or anything.
    pub(crate) scale_words: IntTensor<B>,
    /// What they stand for and then the offset of all, or anything.
    pub(crate) scale_values: FloatTensor<B>,
    /// How it is stored.
    pub(crate) layout: Layout,
}

/// What is added to scores, if anything is.
#[derive(ExtensionType)]
pub(crate) enum Mask<B: Backend> {
    Given(FloatTensor<B>),
    Absent,
}

impl<B: Backend> Mask<B> {
    fn get(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Given(mask) => Some(mask),
            Self::Absent => None,
        }
    }
}

/// Operations with kernels or backward passes of their own.
#[backend_extension(Autodiff, Cube, Fusion)]
pub(crate) trait OnCube: Backend {
    /// All rows of a matrix, `[rows, columns]`, of the number format of `like`.
    #[fusion(dtype = like, shape = Shape::from(matrix.layout.shape))]
    fn decoded(
        like: FloatTensor<Self>,
        #[extension_type] matrix: PackedTensors<Self>,
    ) -> FloatTensor<Self>;

    /// Rows of a matrix by `ids`, in `i32`: `[ids, columns]`, of the number format of `like`.
    #[fusion(dtype = like, shape = Shape::from([ids[0], matrix.layout.shape[1]]))]
    fn selected(
        like: FloatTensor<Self>,
        ids: IntTensor<Self>,
        #[extension_type] matrix: PackedTensors<Self>,
    ) -> FloatTensor<Self>;

    /// `x Wᵀ` of `input` `[tokens, columns]`, or `x W` of `[tokens, rows]`, with a scratch for one matrix.
    #[fusion(dtype = input, shape = Shape::from([input[0], matrix.layout.width(*flipped)]))]
    fn product(
        input: FloatTensor<Self>,
        #[extension_type] matrix: PackedTensors<Self>,
        flipped: bool,
    ) -> FloatTensor<Self>;

    /// Attention of heads that are blocks of columns, with gradients of all but the mask.
    #[fusion(default)]
    fn attended(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] mask: Mask<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        let attended = Attended::<Self> {
            query,
            key,
            value,
            mask: mask.get(),
            heads,
        };
        attended.forward()
    }
}

/// A packed matrix of the backend below, without its gradients, which there are none of.
fn below<B: Backend, C: CheckpointStrategy>(
    matrix: PackedTensors<Autodiff<B, C>>,
) -> PackedTensors<B> {
    PackedTensors {
        words: matrix.words,
        values: matrix.values.into_primitive(),
        scales: matrix.scales.into_primitive(),
        scale_words: matrix.scale_words,
        scale_values: matrix.scale_values.into_primitive(),
        layout: matrix.layout,
    }
}

impl<B: Backend> Clone for PackedTensors<B> {
    fn clone(&self) -> Self {
        Self {
            words: self.words.clone(),
            values: self.values.clone(),
            scales: self.scales.clone(),
            scale_words: self.scale_words.clone(),
            scale_values: self.scale_values.clone(),
            layout: self.layout,
        }
    }
}

impl<B: Backend> Debug for PackedTensors<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedTensors")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// The backward pass of a product: the product the other way round, with codes that are decoded again.
#[derive(Debug)]
struct Product<B>(PhantomData<B>);

impl<B: OnCube> Backward<B, 1> for Product<B> {
    type State = (PackedTensors<B>, bool);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let (matrix, flipped) = ops.state;
        let gradient = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::product(gradient, matrix, !flipped));
        }
    }
}

/// The backward pass of attention.
#[derive(Debug)]
struct OfAttention<B>(PhantomData<B>);

impl<B: Backend> Backward<B, 3> for OfAttention<B> {
    type State = Attended<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<B>(&ops.node);
        let gradients = ops.state.backward(&gradient);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: OnCube, C: CheckpointStrategy> OnCube for Autodiff<B, C> {
    fn attended(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: Mask<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        let [(query, n0), (key, n1), (value, n2)] =
            [query, key, value].map(FloatTensor::<Self>::into_parts);
        let attended = Attended::<B> {
            query,
            key,
            value,
            mask: mask.get().map(FloatTensor::<Self>::into_primitive),
            heads,
        };
        let output = attended.forward();
        match OfAttention(PhantomData)
            .prepare::<C>([n0, n1, n2])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(step) => step.finish(attended, output),
            OpsKind::UnTracked(step) => step.finish(output),
        }
    }

    fn decoded(like: FloatTensor<Self>, matrix: PackedTensors<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::decoded(like.into_primitive(), below(matrix)))
    }

    fn selected(
        like: FloatTensor<Self>,
        ids: IntTensor<Self>,
        matrix: PackedTensors<Self>,
    ) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::selected(like.into_primitive(), ids, below(matrix)))
    }

    fn product(
        input: FloatTensor<Self>,
        matrix: PackedTensors<Self>,
        flipped: bool,
    ) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        let matrix = below(matrix);
        let output = B::product(input, matrix.clone(), flipped);
        match Product(PhantomData)
            .prepare::<C>([node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(step) => step.finish((matrix, flipped), output),
            OpsKind::UnTracked(step) => step.finish(output),
        }
    }
}
