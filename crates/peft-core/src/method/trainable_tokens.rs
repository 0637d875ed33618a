//! Rows of an embedding table, trained in their place.

use burn::module::{Module, Param};
use burn::tensor::module::embedding;
use burn::tensor::{Int, Tensor, TensorData};

use crate::adapter::base::BaseEmbedding;
use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::contract::{Adapter, WeightAdapter};
use crate::layout::model_layout::{Layer, LayoutParam};

/// Trained copies of some rows of an embedding table: new tokens, as a rule. The table below keeps its own. A head that
/// is the table follows them.
///
/// [`Plan::train_tokens`](crate::method::Plan::train_tokens) adds it beside what a method does; a method that is nothing
/// else plans it with [`Plan::adapt_weight`](crate::method::Plan::adapt_weight).
#[derive(Module, Debug)]
pub struct TrainableTokens {
    /// The rows, `[count, d]`.
    pub values: Param<Tensor<2>>,
    #[module(skip)]
    indices: Vec<i64>,
    #[module(skip)]
    key: String,
    /// Upstream's name of a tied head, where its file has the rows a second time.
    #[module(skip)]
    head: Option<String>,
}

impl TrainableTokens {
    /// `values` `[count, d]` in the place of the rows `indices`; `key` is their name below the layer in the checkpoint.
    pub fn new(values: Param<Tensor<2>>, indices: &[usize], key: &str) -> Self {
        Self {
            values,
            indices: indices.iter().map(|index| *index as i64).collect(),
            key: key.into(),
            head: None,
        }
    }

    /// The file has the rows below the tied head `head`, too.
    #[must_use]
    pub fn with_head(mut self, head: &Layer) -> Self {
        self.head = Some(head.name.clone());
        self
    }

    /// The rows as they are in the table.
    pub(crate) fn of(param: &LayoutParam, indices: &[usize]) -> Param<Tensor<2>> {
        let table = param.value::<2>().detach();
        let places: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
        let count = places.len();
        let device = table.device();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device);
        Param::from_tensor(table.select(0, places).detach())
    }

    fn places(&self, like: &Tensor<2>) -> Tensor<1, Int> {
        let data = TensorData::new(self.indices.clone(), [self.indices.len()]);
        Tensor::from_data(data, &like.device())
    }
}

impl Adapter for TrainableTokens {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let rows = CheckpointKey::layer("values", &self.key).sparse();
        vec![match &self.head {
            Some(head) => {
                let name = format!("{head}.{}", self.key);
                rows.twin(CheckpointKey::named("values", &name))
            }
            None => rows,
        }]
    }
}

impl WeightAdapter for TrainableTokens {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let [_, width] = self.values.dims();
        let table: Tensor<2> = weight.reshape([-1, width as isize]);
        let [rows, _] = table.dims();
        let places = self.places(&table);
        // Rows are replaced, not added to: to the last bit, whatever the table holds.
        let ones = Tensor::<2>::ones([self.indices.len(), 1], &table.device());
        let kept = Tensor::<2>::zeros([rows, 1], &table.device()).cast(table.dtype());
        let ones = ones.cast(table.dtype());
        let replaced = kept.select_assign(0, places.clone(), ones, ADD);
        let new = table
            .zeros_like()
            .select_assign(0, places, self.values.val(), ADD);
        let mask = replaced.equal_elem(1.0).expand([rows, width]);
        table.mask_where(mask, new).reshape(shape)
    }

    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        let values = self.values.val();
        let [count, width] = values.dims();
        let [batch, length] = ids.dims();
        if count > FEW {
            return embedding(self.compose(base.weight()), ids);
        }
        let below = base.forward(ids.clone());
        // Which of the rows a token is: one row of ones and zeros a token.
        let tokens: Tensor<2, Int> = ids.reshape([batch * length, 1]);
        let places: Tensor<2, Int> = self.places(&values).reshape([1, count]);
        let is = tokens
            .expand([batch * length, count])
            .equal(places.expand([batch * length, count]));
        let any = is.clone().any_dim(1).expand([batch * length, width]);
        let new = is.float().cast(values.dtype()).matmul(values);
        let below: Tensor<2> = below.reshape([batch * length, width]);
        below.mask_where(any, new).reshape([batch, length, width])
    }

    fn needs_weight(&self) -> bool {
        self.indices.len() > FEW
    }

    fn keeps_weight(&self) -> bool {
        self.indices.len() > FEW
    }

    fn affects_tied_head(&self) -> bool {
        true
    }
}

/// More rows than this are not looked for one by one.
const FEW: usize = 64;

const ADD: burn::tensor::IndexingUpdateOp = burn::tensor::IndexingUpdateOp::Add;
