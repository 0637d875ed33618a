//! KronA beside feed-forward: a Kronecker product that sees what feed-forward sees, and a trained residual.

use peft_core::method::prelude::*;
use peft_core::method::{HiddenParts, HiddenState, SiteContext, SiteKind};

use crate::lycoris::change_dropout::ChangeDropout;
use crate::lycoris::lokr::{KroneckerFactor, LokrLinear, split};

/// Edalati et al. 2022: `h + s·x (K₁ ⊗ K₂) + t·x` for feed-forward's output h and its input x.
///
/// With t it is KronA^B_res, without KronA^B.
#[derive(Module, Debug)]
pub struct KronaBlock {
    /// K₁, K₂ and s.
    pub kronecker: LokrLinear,
    /// t, `[1]`: the weight of the residual.
    pub residual: Option<Param<Tensor<1>>>,
}

impl Adapter for KronaBlock {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let LokrLinear { w1, w2, .. } = &self.kronecker;
        let mut tensors = w1.tensors("kronecker.w1", "krona_A");
        tensors.extend(w2.tensors("kronecker.w2", "krona_B"));
        if self.residual.is_some() {
            tensors.push(CheckpointKey::layer("residual", "krona_residual"));
        }
        tensors
    }
}

impl HiddenAdapter for KronaBlock {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let parts = self.parts(hidden, context);
        parts.kept + parts.added
    }

    fn parts(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> HiddenParts {
        let seen = context.sublayer_input.clone().expect(
            "KronA beside feed-forward needs feed-forward's input, and the model gives this site none: make the \
             context with `SiteContext::post_norm` or `SiteContext::pre_norm`",
        );
        let [rows, tokens, width] = seen.dims();
        let input = seen.clone().reshape([rows * tokens, width]);
        let change = self.kronecker.product(input);
        let mut added = change.reshape([rows, tokens, width]);
        if let Some(residual) = &self.residual {
            added = added + seen.clone() * residual.val().unsqueeze();
        }
        HiddenParts {
            seen,
            kept: hidden,
            added,
        }
    }
}

/// KronA beside feed-forward. There is no upstream; names of fields are this library's.
#[method_config(
    KRONA_B, name = "krona-block", peft_type = "KRONA_BLOCK", title = "KronA beside feed-forward", family = Reparameterization,
    identity_at_init, new(scale),
    reference = "Edalati et al. 2022, KronA: Parameter Efficient Tuning with Kronecker Adapter, KronA^B and KronA^B_res"
)]
pub struct KronaBlockConfig {
    /// s.
    #[field(default = 1.0, finite)]
    pub scale: f64,
    /// Whether the adapter's input is added, too, with a trained weight (KronA^B_res).
    #[field(default = true)]
    pub residual: bool,
    /// What the weight of that input begins at. With another value than 0 a fresh adapter changes outputs.
    #[field(default = 0.0, finite)]
    pub residual_init: f64,
    pub common: Common,
}

impl Method for KronaBlockConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let kind = HiddenState::FeedForwardOutput;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let mut found = false;
        for site in layout.hidden_sites(kind) {
            found = true;
            let [first, second] = split(site.width, -1);
            let init = plan.init();
            // The second factor has the sides of the first, the other way round.
            let zero = [true, true];
            let w1 = KroneckerFactor::draw(init, [first, second], None, zero, like);
            let w2 = KroneckerFactor::draw(init, [second, first], None, [false, false], like);
            let residual = self.residual.then(|| {
                init.zeros([1], like).map(|zeros| {
                    let start =
                        Tensor::full([1], self.residual_init, (&zeros.device(), zeros.dtype()));
                    start.set_require_grad(zeros.is_require_grad())
                })
            });
            let kronecker = LokrLinear {
                w1,
                w2,
                scale: self.scale,
                dropout: ChangeDropout::new(0.0, 0.0, false),
            };
            plan.adapt_hidden(
                site,
                KronaBlock {
                    kronecker,
                    residual,
                },
            );
        }
        if found {
            Ok(())
        } else {
            Err(layout.no_site(KRONA_B.title, SiteKind::Hidden(kind)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::nn::ForwardContext;

    /// Element by element: out (c, d) of input (a, b) goes through K₁[a, c] · K₂[b, d].
    #[test]
    fn the_output_is_the_sum_of_its_parts() {
        for (_, device) in peft_core::device::cpu_devices() {
            let mut init = Init::new(5);
            let like = (&device, DType::F32);
            let mut draw = |shape| KroneckerFactor::draw(&mut init, shape, None, [false; 2], like);
            let kronecker = LokrLinear {
                w1: draw([2, 3]),
                w2: draw([3, 2]),
                scale: 0.7,
                dropout: ChangeDropout::new(0.0, 0.0, false),
            };
            let residual = Param::from_tensor(Tensor::<1>::from_data([-0.4_f32], &device));
            let values = |tensor: Tensor<2>| -> Vec<f32> { tensor.into_data().iter().collect() };
            let (one, two) = (
                values(kronecker.w1.first.val()),
                values(kronecker.w2.first.val()),
            );
            let state = KronaBlock {
                kronecker,
                residual: Some(residual),
            };
            let number = |at: usize| (at as f32 * 0.9).sin();
            let input: Vec<f32> = (0..6).map(number).collect();
            let hidden: Vec<f32> = (6..12).map(number).collect();
            let tensor = |values: &[f32]| {
                Tensor::<3>::from_data(TensorData::new(values.to_vec(), [1, 1, 6]), &device)
            };
            let forward = ForwardContext::new();
            let mut context = SiteContext::new(&forward);
            context.sublayer_input = Some(tensor(&input));
            let found: Vec<f32> = state
                .forward(tensor(&hidden), &context)
                .into_data()
                .iter()
                .collect();
            for out in 0..6 {
                let (c, d) = (out / 2, out % 2);
                let product = (0..6).map(|at| {
                    let (a, b) = (at / 3, at % 3);
                    input[at] * one[a * 3 + c] * two[b * 2 + d]
                });
                let expected = hidden[out] + 0.7 * product.sum::<f32>() - 0.4 * input[out];
                assert!((found[out] - expected).abs() < 1e-5, "{out}: {found:?}");
            }
        }
    }
}
