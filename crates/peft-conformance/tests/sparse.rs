//! The suite on a method whose files hold integers: a few elements of each weight change, as in SHiRA.

use burn::tensor::DType;
use peft_core::Result;
use peft_core::Targets;
use peft_core::method::{
    Common, Layout, Method, MethodInfo, Plan, SparseDelta, linear_targets, method_config,
};

const METHODS: &[&MethodInfo] = &[&SPARSE];

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
            let values = init.zeros([count], target.like());
            let like = (target.like().0, DType::I32);
            let indices = init.integers([2, count], like, |init| {
                let places = init.indices(count, shape[0] * shape[1]);
                let outputs = places.iter().map(|place| (place % shape[1]) as i64);
                outputs
                    .chain(places.iter().map(|place| (place / shape[1]) as i64))
                    .collect()
            });
            let state = SparseDelta::coordinates(values, indices, shape);
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
