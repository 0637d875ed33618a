//! VeRA: two frozen random projections that all layers share, scaled by trained vectors.

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::prelude::*;

use crate::shared_projection::projections::{VeraProjections, corner, vera_vectors};
use crate::shared_projection::vera_adapterhub::AdapterHubVera;

/// Kopiczko et al. 2024, section 3.1: `y = xW + ((drop(x) A) ∘ d) B ∘ b`, where A and B are corners
/// of two frozen matrices that all layers share.
#[derive(Module, Adapter, Debug)]
pub struct VeraLinear {
    /// A of the widest layer, `[in, r]`, frozen. A layer uses its first rows.
    #[tensor(root = "base_model.vera_A", transposed, saved_if = save_projection)]
    pub vera_a: Shared<2>,
    /// B of the widest layer, `[r, out]`, frozen. A layer uses its first columns.
    #[tensor(root = "base_model.vera_B", transposed, saved_if = save_projection)]
    pub vera_b: Shared<2>,
    /// d, `[r]`.
    #[tensor("vera_lambda_d")]
    pub vera_lambda_d: Param<Tensor<1>>,
    /// b, `[out]`.
    #[tensor("vera_lambda_b")]
    pub vera_lambda_b: Param<Tensor<1>>,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// The layer's input width.
    pub d_in: usize,
    /// Whether A and B are in the checkpoint; if not, the configuration's key says all about them.
    pub save_projection: bool,
}

impl LowRankAdapter for VeraLinear {
    // Both vectors are in the second factor, so that the first is frozen and costs no gradient.
    fn factors(&self) -> LowRank {
        let (d, b) = (self.vera_lambda_d.val(), self.vera_lambda_b.val());
        let ([rank], [d_out]) = (d.dims(), b.dims());
        let up = corner(self.vera_b.val(), [rank, d_out]);
        let up = up * d.reshape([rank, 1]) * b.reshape([1, d_out]);
        LowRank::new(corner(self.vera_a.val(), [self.d_in, rank]), up, 1.0)
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(&self.dropout)
    }
}

/// VeRA's configuration. Fields are called and behave as in Hugging Face PEFT's `VeraConfig`.
#[method_config(
    VERA, peft_type = "VERA", title = "VeRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Kopiczko et al. 2024, VeRA: Vector-based Random Matrix Adaptation, section 3.1",
    parse = VeraConfig::PARSE, recognises = VeraConfig::RECOGNISES, to_json = VeraConfig::json
)]
pub struct VeraConfig {
    /// Rank of the projections. It may exceed a layer's width.
    #[field(default = 256, at_least = 1)]
    pub r: usize,
    /// Seed of the projections, for torch's generator.
    #[field(any)]
    pub projection_prng_key: i64,
    /// Whether the projections are in the checkpoint.
    #[field(default = true)]
    pub save_projection: bool,
    /// Dropout probability on the projections' input, on the activation side only.
    #[field(probability)]
    pub vera_dropout: f64,
    /// Initial value of d.
    #[field(default = 0.1, finite)]
    pub d_initial: f64,
    pub bias: Bias,
    /// Initial values. True: d at `d_initial` and b zero. False: d normal and b one, so that the fresh adapter does
    /// change outputs; for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// Writes files in AdapterHub's layout, and adapts the layers that these fields of its name, with matrices in the place of
    /// both vectors. Default: none, Hugging Face PEFT's layout.
    #[field(skip)]
    pub adapterhub: Option<AdapterHubVera>,
    pub targets: Targets,
    pub common: Common,
}

impl Method for VeraConfig {
    fn promises(&self) -> Promises {
        self.kept()
    }

    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.check_layout()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if let Some(fields) = &self.adapterhub {
            return self.plan_adapterhub(fields, layout, plan);
        }
        let targets = linear_targets(self, layout, plan)?;
        let projections = VeraProjections {
            key: self.projection_prng_key,
            saved: self.save_projection,
            down: self.r,
            up: self.r,
        };
        let mut handles = projections.handles(&VERA, &targets, layout, plan)?;
        let d_initial = self.init_weights.then_some(self.d_initial);
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let (vera_a, vera_b) = handles.next().expect("a handle for each target");
            let [vera_lambda_d, vera_lambda_b] = vera_vectors(d_initial, self.r, target, plan);
            Ok(VeraLinear {
                vera_a,
                vera_b,
                vera_lambda_d,
                vera_lambda_b,
                dropout: DropoutConfig::new(self.vera_dropout).init(),
                d_in: target.d_in,
                save_projection: self.save_projection,
            })
        })
    }

    fn max_rank(&self) -> Option<usize> {
        let fields = self.adapterhub.as_ref();
        let low_rank = fields.is_none_or(|fields| !(fields.use_dora || fields.use_gating));
        low_rank.then_some(self.r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Shape, TensorData};

    #[test]
    fn a_layer_uses_the_corner_of_what_all_share() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        let tensor = |data: &[f32], shape: [usize; 2]| {
            let data = TensorData::new(data.to_vec(), Shape::from(shape.to_vec()));
            Param::from_tensor(Tensor::<2>::from_data(data, device))
        };
        let vector = |data: &[f32]| {
            let data = TensorData::new(data.to_vec(), Shape::from(vec![data.len()]));
            Param::from_tensor(Tensor::<1>::from_data(data, device))
        };
        let a = tensor(&[1.0, 2.0, 3.0, 4.0, 9.0, 9.0], [3, 2]);
        let b = tensor(&[1.0, -1.0, 9.0, 2.0, 5.0, 9.0], [2, 3]);
        let state = VeraLinear {
            vera_a: Shared::new(a, 1).next().unwrap(),
            vera_b: Shared::new(b, 1).next().unwrap(),
            vera_lambda_d: vector(&[10.0, 1.0]),
            vera_lambda_b: vector(&[1.0, 2.0]),
            dropout: DropoutConfig::new(0.0).init(),
            d_in: 2,
            save_projection: true,
        };
        let change = state.compose(Tensor::<2>::zeros([2, 2], device));
        // Rows [1, 2] and [3, 4], times [[10, -20], [2, 10]].
        let expected = TensorData::from([[14.0_f32, 0.0], [38.0, -20.0]]);
        change.into_data().assert_eq(&expected, false);
    }
}
