//! What AdaMSS adds to a layer.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::method::prelude::{
    Adapter, CheckpointKey, LowRank, LowRankAdapter, Shared, WeightAdapter,
};

/// Factors of groups of outputs, in a subspace of the inputs. A layer's weight and its bias have them in common.
#[derive(Module, Debug)]
pub struct AdamssSubspaces {
    /// V, `[in, r]`, and one more row where the layer has a bias: right singular vectors of its weight. Frozen.
    pub projection: Shared<2>,
    /// Aₖ of each group, `[r, rₖ]`.
    pub a: Vec<Shared<2>>,
    /// Bₖ of each group, `[rₖ, nₖ]`.
    pub b: Vec<Shared<2>>,
    /// For each output, which of the groups' outputs it is, one group's behind the other's, `[out]`.
    pub places: Shared<1, Int>,
}

impl AdamssSubspaces {
    /// `count` of them, which are one to whoever looks for parameters.
    pub(super) fn shared(
        projection: Param<Tensor<2>>,
        factors: Vec<[Param<Tensor<2>>; 2]>,
        places: Param<Tensor<1, Int>>,
        count: usize,
    ) -> Vec<Self> {
        let projections = Shared::new(projection, count);
        let states = projections.zip(Shared::new(places, count));
        let mut states: Vec<Self> = states
            .map(|(projection, places)| Self {
                projection,
                a: Vec::new(),
                b: Vec::new(),
                places,
            })
            .collect();
        for [a, b] in factors {
            let handles = Shared::new(a, count).zip(Shared::new(b, count));
            for (state, (a, b)) in states.iter_mut().zip(handles) {
                state.a.push(a);
                state.b.push(b);
            }
        }
        states
    }

    fn keys(&self) -> Vec<CheckpointKey> {
        let key = |field: &str, key: &str| CheckpointKey::layer(field, key).transposed();
        let mut keys = vec![
            key("projection", "adamss_newB"),
            CheckpointKey::unsaved("places"),
        ];
        for at in 0..self.a.len() {
            keys.push(key(&format!("a.{at}"), &format!("adamss_A.{at}")));
            keys.push(key(&format!("b.{at}"), &format!("adamss_B.{at}")));
        }
        keys.into_iter()
            .map(|key| key.within("subspaces"))
            .collect()
    }

    /// The factors of all groups in one: of V's rows `[from, from + count)` with all Aₖ, `[count, Σ rₖ]`, and of all Bₖ,
    /// `[Σ rₖ, out]`.
    fn factors(&self, from: usize, count: usize) -> [Tensor<2>; 2] {
        let rows = self.projection.val().narrow(0, from, count);
        let a = Tensor::cat(self.a.iter().map(Shared::val).collect(), 1);
        let [width] = self.places.val().dims();
        let mut before = 0;
        let blocks = self.b.iter().map(|b| {
            let b = b.val();
            let [rank, columns] = b.dims();
            let zeros = |count: usize| {
                let like = (&b.device(), b.dtype());
                (count > 0).then(|| Tensor::zeros([rank, count], like))
            };
            let after = width - before - columns;
            let parts = [zeros(before), Some(b.clone()), zeros(after)];
            before += columns;
            Tensor::cat(parts.into_iter().flatten().collect(), 1)
        });
        let b = Tensor::cat(blocks.collect(), 0);
        [rows.matmul(a), b.select(1, self.places.val())]
    }
}

/// AdaMSS on a linear layer's weight: W' = W + V A B, where A is all Aₖ side by side, and B has a block Bₖ for each.
#[derive(Module, Debug)]
pub struct AdamssLinear {
    /// The factors.
    pub subspaces: AdamssSubspaces,
    /// Number of inputs, without the bias.
    pub d_in: usize,
}

impl Adapter for AdamssLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        self.subspaces.keys()
    }
}

impl LowRankAdapter for AdamssLinear {
    fn factors(&self) -> LowRank {
        let [down, up] = self.subspaces.factors(0, self.d_in);
        LowRank::new(down, up, 1.0)
    }

    // A product with V, and blocks that are put into their places.
    fn computes_factors(&self) -> bool {
        true
    }
}

/// AdaMSS on a linear layer's bias, which is one more row of the weight: b' = b + v A B, v being the last row of V.
#[derive(Module, Debug)]
pub struct AdamssBias {
    /// The factors: the weight's.
    pub subspaces: AdamssSubspaces,
    /// Number of inputs, without the bias.
    pub d_in: usize,
}

impl Adapter for AdamssBias {
    fn tensors(&self) -> Vec<CheckpointKey> {
        self.subspaces.keys()
    }
}

impl WeightAdapter for AdamssBias {
    fn compose<const D: usize>(&self, bias: Tensor<D>) -> Tensor<D> {
        let [down, up] = self.subspaces.factors(self.d_in, 1);
        let shape = bias.shape();
        bias + down.matmul(up).reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn each_group_changes_its_own_outputs() {
        for (_, device) in peft_core::device::cpu_devices() {
            let matrix = |values: &[f32], shape: [usize; 2], device: &Device| {
                let data = TensorData::new(values.to_vec(), shape);
                Param::from_tensor(Tensor::<2>::from_data(data, device))
            };
            // Two inputs and a bias; outputs 1 and 2 are of the first group, output 0 of the second.
            let factors = vec![
                [
                    matrix(&[1.0, 2.0], [2, 1], &device),
                    matrix(&[3.0, 5.0], [1, 2], &device),
                ],
                [
                    matrix(&[-1.0, 1.0], [2, 1], &device),
                    matrix(&[7.0], [1, 1], &device),
                ],
            ];
            let projection = matrix(&[1.0, 0.0, 0.0, 1.0, 2.0, 3.0], [3, 2], &device);
            let places = Tensor::<1, Int>::from_data([2, 0, 1], &device);
            let places = Param::initialized(burn::module::ParamId::new(), places);
            let mut both = AdamssSubspaces::shared(projection, factors, places, 2).into_iter();
            let weight = AdamssLinear {
                subspaces: both.next().unwrap(),
                d_in: 2,
            };
            let bias = AdamssBias {
                subspaces: both.next().unwrap(),
                d_in: 2,
            };
            let changed = weight.compose(Tensor::<2>::zeros([2, 3], &device));
            let expected = TensorData::from([[-7.0_f32, 3.0, 5.0], [7.0, 6.0, 10.0]]);
            changed.into_data().assert_eq(&expected, false);
            // 2·(1, −1) + 3·(2, 1).
            let changed = bias.compose(Tensor::<1>::ones([3], &device));
            let expected = TensorData::from([8.0_f32, 25.0, 41.0]);
            changed.into_data().assert_eq(&expected, false);
        }
    }
}
