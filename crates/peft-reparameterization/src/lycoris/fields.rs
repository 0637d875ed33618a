//! What LoHa and LoKr have in common: dropout of a change, and fields by layer.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::method::{
    MethodInfo, Patterns, Plan, Target, at_least_one, patterns, refuse_unused,
};
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::{Error, Result};
use serde_json::{Map, Value};

/// Dropout of a change as a whole, and of single output features of it. It acts on the activation
/// side and in training only.
#[derive(Module, Debug)]
pub struct ChangeDropout {
    /// Of single output features of the change: upstream's `rank_dropout`.
    pub features: Dropout,
    /// Of the whole change, of one layer in one pass: upstream's `module_dropout`.
    pub whole: Dropout,
    /// Whether the features that stay grow by the inverse of the share that stayed.
    pub rescaled: bool,
}

impl ChangeDropout {
    pub(crate) fn new(features: f64, whole: f64, rescaled: bool) -> Self {
        Self {
            features: DropoutConfig::new(features).init(),
            whole: DropoutConfig::new(whole).init(),
            rescaled,
        }
    }

    /// Whether something may be dropped, for parameters on the device of `like`.
    pub(crate) fn is_on(&self, like: &Tensor<2>) -> bool {
        like.is_autodiff() && dropout_rate(&self.features) + dropout_rate(&self.whole) > 0.0
    }

    /// What the `out` output features of the change are to be multiplied by, `[1, out]`; none where
    /// nothing is dropped.
    pub(crate) fn factors(&self, out: usize, like: &Tensor<2>) -> Option<Tensor<2>> {
        if !self.is_on(like) {
            return None;
        }
        let (device, dtype) = (like.device(), like.dtype());
        let coins = |dropout: &Dropout, count: usize| {
            let ones = Tensor::<2>::ones([1, count], (&device, dtype));
            // Dropout scales what it keeps, which is not wanted here.
            dropout.adapted(ones) * (1.0 - dropout_rate(dropout))
        };
        let features = coins(&self.features, out);
        let whole = coins(&self.whole, 1);
        if !self.rescaled {
            return Some(features * whole);
        }
        // At least one feature's, so that dropping all of them is no division by zero.
        let share = features.clone().mean().clamp_min(1.0 / out as f64);
        Some(features * whole / share.unsqueeze::<2>())
    }
}

/// The fields that LoHa and LoKr have in common, as they are checked and read.
pub(crate) struct LycorisFields<'a> {
    pub(crate) info: &'static MethodInfo,
    pub(crate) r: usize,
    pub(crate) alpha: f64,
    pub(crate) rank_dropout: f64,
    pub(crate) module_dropout: f64,
    pub(crate) rank_pattern: &'a Map<String, Value>,
    pub(crate) alpha_pattern: &'a Map<String, Value>,
}

impl LycorisFields<'_> {
    /// Ranks by pattern.
    pub(crate) fn ranks(&self) -> Result<Patterns<usize>> {
        let field = (self.info, "rank_pattern");
        let expected = "a whole number of at least 1";
        patterns(self.rank_pattern, field, expected, at_least_one)
    }

    fn alphas(&self) -> Result<Patterns<f64>> {
        let field = (self.info, "alpha_pattern");
        patterns(self.alpha_pattern, field, "a number", Value::as_f64)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let title = self.info.title;
        if self.r == 0 {
            return Err(Error::config(title, "r", self.r, "at least 1"));
        }
        if !self.alpha.is_finite() {
            let expected = "a finite number";
            return Err(Error::config(title, "alpha", self.alpha, expected));
        }
        for (field, value) in [
            ("rank_dropout", self.rank_dropout),
            ("module_dropout", self.module_dropout),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::config(title, field, value, "in [0, 1)"));
            }
        }
        self.ranks()?;
        self.alphas().map(|_| ())
    }

    /// Ranks and scales of the targets.
    pub(crate) fn sizes(&self, targets: &[Target<'_>], plan: &Plan) -> Result<LycorisSizes> {
        let (ranks, alphas) = (self.ranks()?, self.alphas()?);
        refuse_unused(&ranks, targets, plan)?;
        refuse_unused(&alphas, targets, plan)?;
        Ok(LycorisSizes {
            ranks,
            alphas,
            default: (self.r, self.alpha),
        })
    }
}

/// Ranks and scales by layer.
pub(crate) struct LycorisSizes {
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    default: (usize, f64),
}

impl LycorisSizes {
    /// Rank of the layer called `name`, and its scale, alpha / r.
    pub(crate) fn of(&self, name: &str) -> Result<(usize, f64)> {
        let rank = self.ranks.get(name)?.unwrap_or(self.default.0);
        let alpha = self.alphas.get(name)?.unwrap_or(self.default.1);
        Ok((rank, alpha / rank as f64))
    }
}
