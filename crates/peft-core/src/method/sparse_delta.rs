//! A change of a few elements of a parameter: their values are trained, their places are not.

use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use peft_ops::Sparse;

use crate::adapter::base::{BaseEmbedding, BaseLinear};
use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::contract::{Adapter, WeightAdapter};

/// `W' = W + S` of one parameter, where S is 0 but at k places.
///
/// What is trained, stepped by the optimizer and stored are the k values, never a matrix. A linear layer computes
/// `y = x W + b + x S` from the k values ([`add_sparse`](peft_ops::add_sparse)), and a table adds the rows that it is
/// asked for, so that no gradient of W's size exists. Other layers compose W'.
///
/// Where the elements are is said in upstream's order of the parameter, as a file has it: of a linear layer's weight that
/// is `[out, in]`, of others it is Burn's.
#[derive(Module, Debug)]
pub struct SparseDelta {
    /// The changes, `[k]`.
    pub values: Param<Tensor<1>>,
    /// Their places in upstream's parameter, not trained: `[2, k]`, rows and columns of a matrix, or `[1, k]`, indices
    /// into the flattened parameter.
    pub indices: Param<Tensor<2, Int>>,
    /// Shape of the parameter as Burn has it.
    #[module(skip)]
    shape: Vec<usize>,
    /// Whether upstream's is the transpose.
    #[module(skip)]
    transposed: bool,
    /// Rows of the indices.
    #[module(skip)]
    axes: usize,
    /// Keys of the values and of the indices below the layer; the file of a state without the second lacks the indices.
    #[module(skip)]
    keys: (String, Option<String>),
    /// Whether a head that is this table changes with it.
    #[module(skip)]
    follows: bool,
}

impl SparseDelta {
    /// Changes of the weight `[in, out]` of a linear layer, which is `[out, in]` upstream; `indices` are `[2, k]`, outputs,
    /// then inputs. Keys in the file are `sparse_values` and `sparse_indices`, if [`with_keys`](Self::with_keys) does not
    /// say otherwise.
    pub fn coordinates(
        values: Param<Tensor<1>>,
        indices: Param<Tensor<2, Int>>,
        shape: [usize; 2],
    ) -> Self {
        Self {
            axes: 2,
            ..Self::flat(values, indices, &shape, true)
        }
    }

    /// Changes of a parameter of this `shape`, which upstream is its transpose where `transposed` says so; `indices` are
    /// `[1, k]`, into upstream's flattened parameter. Keys are those of [`coordinates`](Self::coordinates).
    pub fn flat(
        values: Param<Tensor<1>>,
        indices: Param<Tensor<2, Int>>,
        shape: &[usize],
        transposed: bool,
    ) -> Self {
        Self {
            values,
            indices,
            shape: shape.to_vec(),
            transposed,
            axes: 1,
            keys: ("sparse_values".into(), Some("sparse_indices".into())),
            follows: false,
        }
    }

    /// Keys of the values and of the indices below the layer. With `None` the file lacks the indices: the configuration
    /// and the base say them.
    #[must_use]
    pub fn with_keys(mut self, values: &str, indices: Option<&str>) -> Self {
        self.keys = (values.into(), indices.map(str::to_string));
        self
    }

    /// A head that is this table changes with it.
    #[must_use]
    pub fn with_tied_head(mut self) -> Self {
        self.follows = true;
        self
    }

    /// Shape of the parameter as Burn has it.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Row `axis` of the indices, `[k]`.
    fn along(&self, axis: usize) -> Tensor<1, Int> {
        let [count] = self.values.dims();
        let row = self.indices.val().slice([axis..axis + 1, 0..count]);
        row.reshape([count])
    }

    /// Rows and columns of the elements in Burn's matrix.
    fn points(&self, [rows, columns]: [usize; 2]) -> [Tensor<1, Int>; 2] {
        let mut points = if self.axes == 2 {
            [self.along(0), self.along(1)]
        } else {
            let width = if self.transposed { rows } else { columns } as i64;
            let flat = self.along(0);
            [flat.clone() / width, flat % width]
        };
        if self.transposed {
            points.reverse();
        }
        points
    }

    /// The shape of a matrix; none of other parameters.
    fn matrix(&self) -> Option<[usize; 2]> {
        self.shape.clone().try_into().ok()
    }

    /// S of a matrix.
    fn sparse(&self) -> Option<Sparse> {
        let shape = self.matrix()?;
        let [inputs, outputs] = self.points(shape);
        Some(Sparse {
            values: self.values.val(),
            inputs,
            outputs,
            shape,
        })
    }

    /// The places in Burn's flattened parameter, `[k]`.
    fn places(&self) -> Tensor<1, Int> {
        match self.matrix() {
            None => self.along(0),
            Some(shape) => {
                let [rows, columns] = self.points(shape);
                rows * shape[1] as i64 + columns
            }
        }
    }
}

impl Adapter for SparseDelta {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let (values, indices) = &self.keys;
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        let indices = match indices {
            None => CheckpointKey::unsaved("indices"),
            Some(key) => {
                let key = CheckpointKey::layer("indices", key);
                if self.axes == 2 {
                    key.indices(&shape).distinct()
                } else {
                    let elements = shape.iter().product();
                    key.flat().indices(&[elements]).distinct()
                }
            }
        };
        vec![CheckpointKey::layer("values", values).sparse(), indices]
    }
}

impl WeightAdapter for SparseDelta {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let flat: Tensor<1> = weight.reshape([-1]);
        let (places, values) = (self.places(), self.values.val());
        flat.scatter(0, places, values, IndexingUpdateOp::Add)
            .reshape(shape)
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        match self.sparse() {
            Some(sparse) if peft_ops::multiplies_sparse(&input) => {
                let output = base.forward(input.clone());
                peft_ops::add_sparse(output, input, sparse)
            }
            _ => peft_ops::linear(input, self.compose(base.weight()), base.bias(), None),
        }
    }

    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        let output = base.forward(ids.clone());
        match self.sparse() {
            Some(sparse) => peft_ops::add_sparse_rows(output, ids, sparse),
            None => output,
        }
    }

    fn affects_tied_head(&self) -> bool {
        self.follows
    }
}
