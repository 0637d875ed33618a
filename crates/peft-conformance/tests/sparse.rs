//! The suite on a method whose files hold integers: a few elements of each weight change, as in SHiRA.

use burn::module::{Module, Param};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};
use peft_core::Result;
use peft_core::Targets;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Family, LINEAR, Layout, Method, MethodInfo, Plan,
    WeightAdapter, by_peft_type, config_from_json, config_to_json, select,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

static SPARSE: MethodInfo = MethodInfo {
    name: "sparse",
    peft_type: "SPARSE",
    title: "Sparse",
    family: Family::Selective,
    reference: "a method for this test",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<SparseConfig>,
    recognises: by_peft_type,
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
    const METHOD: &'static str = "sparse";

    fn tensors(&self) -> Vec<CheckpointKey> {
        let [inputs, outputs] = self.shape;
        vec![
            CheckpointKey::layer("values", "shira_weight").sparse(),
            CheckpointKey::layer("indices", "shira_indices")
                .coordinates(&[outputs, inputs])
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

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SparseConfig {
    /// How many elements of each weight change.
    count: usize,
    #[serde(flatten)]
    targets: Targets,
    #[serde(flatten)]
    common: Common,
}

impl Method for SparseConfig {
    fn info(&self) -> &'static MethodInfo {
        &SPARSE
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for (_, weight) in select(&self.targets, layout, plan, &SPARSE, LINEAR)? {
            let shape = [weight.shape()[0], weight.shape()[1]];
            let (device, count) = (weight.device(), self.count);
            let init = plan.init();
            let state = SparseDelta {
                values: init.zeros([count], (&device, weight.dtype())),
                indices: init.integers([2, count], (&device, DType::I32), |init| {
                    let places = init.indices(count, shape[0] * shape[1]);
                    let outputs = places.iter().map(|place| (place % shape[1]) as i64);
                    outputs
                        .chain(places.iter().map(|place| (place / shape[1]) as i64))
                        .collect()
                }),
                shape,
            };
            plan.adapt_weight(weight, state);
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        config_to_json(self, &SPARSE)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
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
