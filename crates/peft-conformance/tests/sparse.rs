//! The suite on a method whose files hold integers: a few elements of each weight change, as in SHiRA.

use burn::module::{Module, Param};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};
use peft_core::Result;
use peft_core::Targets;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, MethodInfo, Plan, WeightAdapter,
    linear_targets, method_config,
};

const METHODS: &[&MethodInfo] = &[&SPARSE];

/// W + S, where S is zero but at some places.
#[derive(Module, Debug)]
struct SparseDelta {
    /// The differences, `[count]`.
    values: Param<Tensor<1>>,
    /// Their places in upstream's weight, `[2, count]`: outputs, then inputs.
    indices: Param<Tensor<2, Int>>,
    /// Shape of the weight as Burn has it, `[in, out]`.
    #[module(skip)]
    shape: [usize; 2],
}

impl Adapter for SparseDelta {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let [inputs, outputs] = self.shape;
        vec![
            CheckpointKey::layer("values", "shira_weight").sparse(),
            CheckpointKey::layer("indices", "shira_indices")
                .indices(&[outputs, inputs])
                .distinct(),
        ]
    }
}

impl WeightAdapter for SparseDelta {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let [count] = self.values.dims();
        let along = |axis| -> Tensor<1, Int> {
            let indices = self.indices.val().slice([axis..axis + 1, 0..count]);
            indices.reshape([count])
        };
        let places = along(1) * self.shape[1] as i32 + along(0);
        let flat: Tensor<1> = weight.reshape([-1]);
        flat.scatter(0, places, self.values.val(), IndexingUpdateOp::Add)
            .reshape(shape)
    }
}

/// Which elements change.
#[method_config(
    SPARSE, peft_type = "SPARSE", title = "Sparse", family = Selective, identity_at_init, mergeable, new(count),
    reference = "a method for this test"
)]
pub struct SparseConfig {
    /// How many elements of each weight change.
    #[field(default = 8, at_least = 1)]
    count: usize,
    targets: Targets,
    common: Common,
}

impl Method for SparseConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for target in linear_targets(self, layout, plan)? {
            let (shape, count) = ([target.d_in, target.d_out], self.count);
            let init = plan.init();
            let state = SparseDelta {
                values: init.zeros([count], target.like()),
                indices: init.integers([2, count], (target.like().0, DType::I32), |init| {
                    let places = init.indices(count, shape[0] * shape[1]);
                    let outputs = places.iter().map(|place| (place % shape[1]) as i64);
                    outputs
                        .chain(places.iter().map(|place| (place / shape[1]) as i64))
                        .collect()
                }),
                shape,
            };
            plan.adapt_weight(target.weight, state);
        }
        Ok(())
    }
}

peft_conformance::conformance_suite!(
    METHODS,
    vec![Case::new(
        "sparse",
        SparseConfig {
            count: 40,
            targets: Targets::new(["query", "value"]),
            common: Common::default(),
        }
    )]
);
