//! LoRA on a linear layer: what its factors begin as, and which state holds them.

use burn::module::Param;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{Layer, LayoutParam, Plan};
use peft_core::nn::Lane;
use peft_core::ops::column_norms;
use peft_core::{Error, Result};

use crate::lora::alora::{ALoraLinear, Invocation};
use crate::lora::config::{LORA, LoraConfig};
use crate::lora::corda;
use crate::lora::eva;
use crate::lora::init::{Start, orthogonal};
use crate::lora::kasa::KasaLinear;
use crate::lora::loftq::{LoftqLinear, OfLayer};
use crate::lora::monteclora::MontecloraLinear;
use crate::lora::state::{InitialFactors, LoraLinear};
use crate::lora::values::{Size, on_device};
use crate::lora::velora::VeloraLinear;

/// Key of what aLoRA's states have in common.
const ALORA: &str = "alora";

impl LoraConfig {
    fn dropout(&self) -> Dropout {
        DropoutConfig::new(self.lora_dropout).init()
    }

    /// What data says that the factors begin as, and the base is without; none for other starts, and where a file has
    /// the factors.
    fn data_factors(
        &self,
        layer: &Layer,
        param: &LayoutParam,
        Size { rank, scale }: Size,
        start: Start,
        plan: &mut Plan,
    ) -> Result<Option<InitialFactors>> {
        if !plan.is_new() || !matches!(start, Start::Corda | Start::LoraGa) {
            return Ok(None);
        }
        let Some(calibration) = plan.calibration().cloned() else {
            let what = if start == Start::Corda {
                "second_moments"
            } else {
                "gradients"
            };
            let expected =
                format!("attached by `attach_with`, with a calibration that gathered `{what}`");
            let value = &self.init_lora_weights;
            return Err(Error::config(
                LORA.title,
                "init_lora_weights",
                value,
                expected,
            ));
        };
        let (size, weight) = ((rank, scale), param.value::<2>());
        let found = if start == Start::Corda {
            let method = self.corda_config.as_ref().map(|config| config.corda_method);
            let moment = calibration.inputs(&layer.name)?.second_moment()?;
            corda::factors(method.unwrap_or_default(), weight, moment, size)
        } else {
            let config = self.lora_ga_config.clone().unwrap_or_default();
            let gradient = calibration.gradients(&param.name)?.mean::<2>()?;
            config.factors(gradient, weight, size, plan.init())
        };
        let Some(factors) = found else {
            let expected = "a layer whose weight and statistics are finite";
            return Err(Error::config(
                LORA.title,
                "target_modules",
                &layer.name,
                expected,
            ));
        };
        let (device, dtype) = (param.device(), param.dtype());
        let [a, b] = factors.map(|factor| {
            let factor = on_device(factor.cast(dtype), &device);
            Param::from_tensor(factor).set_require_grad(false)
        });
        Ok(Some(InitialFactors { a, b }))
    }

    /// A and B of a linear layer, and the factors that its base is without.
    fn linear_factors(
        &self,
        layer: &Layer,
        param: &LayoutParam,
        size: Size,
        start: Start,
        plan: &mut Plan,
    ) -> Result<([Param<Tensor<2>>; 2], Option<InitialFactors>)> {
        let [d_in, d_out] = [param.shape()[0], param.shape()[1]];
        let like = (&param.device(), param.dtype());
        let rank = size.rank;
        let removed = if start.subtracts_from_base() {
            Some(start.removed(param, rank, size.scale))
        } else {
            self.data_factors(layer, param, size, start, plan)?
        };
        let factors = match &removed {
            Some(InitialFactors { a, b }) if plan.is_new() => {
                [a, b].map(|factor| Param::from_tensor(factor.val().detach()))
            }
            _ if start == Start::Orthogonal && plan.is_new() => {
                orthogonal(plan.init(), [d_in, rank, d_out], like)
            }
            _ if start == Start::Eva && plan.is_new() => {
                self.directions(layer, rank, [[d_in, rank], [rank, d_out]], like, plan)?
            }
            _ if start == Start::Mica => {
                Self::minor_factors(param, rank, [[d_in, rank], [rank, d_out]], plan)?
            }
            _ => {
                let shapes = [[d_in, rank], [rank, d_out]];
                Self::draw(start, plan.init(), size, shapes, d_in, like)
            }
        };
        Ok((factors, removed))
    }

    /// EVA's: A the leading directions of the layer's inputs, B zero.
    fn directions(
        &self,
        layer: &Layer,
        rank: usize,
        [a, b]: [[usize; 2]; 2],
        like: (&Device, DType),
        plan: &mut Plan,
    ) -> Result<[Param<Tensor<2>>; 2]> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        let Some(calibration) = plan.calibration() else {
            let expected = "attached with statistics of inputs";
            return refuse("init_lora_weights", &self.init_lora_weights, expected);
        };
        let moment = calibration.inputs(&layer.name)?.second_moment()?;
        let Some(found) = eva::directions(moment, rank) else {
            return refuse(
                "target_modules",
                &layer.name,
                "a layer whose inputs are finite",
            );
        };
        if found.dims() != a {
            let expected = format!("at most {}, the inputs of `{}`", a[0], layer.name);
            return refuse("r", &rank, &expected);
        }
        let a = Param::from_tensor(on_device(found.cast(like.1), like.0));
        Ok([a, plan.init().zeros(b, like)])
    }

    /// MiCA's: A zero, B frozen.
    pub(crate) fn minor_factors(
        param: &LayoutParam,
        rank: usize,
        [a, b]: [[usize; 2]; 2],
        plan: &mut Plan,
    ) -> Result<[Param<Tensor<2>>; 2]> {
        let (device, dtype) = (param.device(), param.dtype());
        let like = (&device, dtype);
        let b = if plan.is_new() {
            let Some(minor) = Start::minor(param.value(), rank) else {
                let expected = "a layer whose weight is finite";
                return Err(Error::config(
                    LORA.title,
                    "target_modules",
                    &param.name,
                    expected,
                ));
            };
            Param::from_tensor(on_device(minor.cast(dtype), &device))
        } else {
            plan.init().zeros(b, like)
        };
        Ok([plan.init().zeros(a, like), b.set_require_grad(false)])
    }

    /// `added_bias`: whether B has a bias that is not on the layer's own.
    pub(crate) fn adapt_linear(
        &self,
        (layer, param): (&Layer, &LayoutParam),
        size: Size,
        start: Start,
        added_bias: bool,
        plan: &mut Plan,
    ) -> Result<()> {
        let [d_in, d_out] = [param.shape()[0], param.shape()[1]];
        let like = (&param.device(), param.dtype());
        let dropout = self.dropout();
        if let Some(config) = &self.use_bdlora {
            let wide = (d_in, d_out);
            let init = plan.init();
            if let Some(state) = config.state(layer, wide, size, dropout.clone(), like, init)? {
                plan.adapt_weight(param, state.with_a(|a| self.factor_a(a)));
                return Ok(());
            }
        }
        let ([lora_a, lora_b], removed) = self.linear_factors(layer, param, size, start, plan)?;
        let lora_a = self.factor_a(lora_a);
        if self.kasa_config.is_some() {
            let state = KasaLinear::new([lora_a, lora_b], size, dropout, param, plan.init());
            plan.adapt_weight(param, state);
            return Ok(());
        }
        let mut state = LoraLinear {
            lora_a,
            lora_b,
            scale: size.scale,
            dropout,
            removed,
            magnitude: None,
            added_bias: added_bias.then(|| plan.init().zeros([d_out], like)),
        };
        state.magnitude = self.magnitude(plan, [d_out], param, || {
            column_norms(param.value::<2>() + state.delta())
        });
        self.adapt_as_variant(param, state, (size, start), plan);
        Ok(())
    }

    /// Puts a LoRA on a linear layer, or what the configuration makes of it.
    fn adapt_as_variant(
        &self,
        param: &LayoutParam,
        mut lora: LoraLinear,
        (size, start): (Size, Start),
        plan: &mut Plan,
    ) {
        let like = (&param.device(), param.dtype());
        let place = plan.places().count();
        if start == Start::Loftq {
            let config = self.loftq_config.clone().unwrap_or_default();
            let of_layer = OfLayer::new(param, size.rank, config);
            if plan.is_new() {
                [lora.lora_a, lora.lora_b] = of_layer.factors(size.scale, like);
            }
            let taken = of_layer.taken(like);
            plan.adapt_weight(param, LoftqLinear { lora, taken });
        } else if let Some(tokens) = &self.alora_invocation_tokens {
            let lane = plan.in_common(ALORA, Lane::default);
            let invocation = Invocation::new(tokens, lane, place);
            plan.adapt_weight(param, ALoraLinear { lora, invocation });
        } else if let Some(config) = &self.velora_config {
            let d_in = param.shape()[0];
            let state = VeloraLinear::new(lora, config, d_in, like, plan);
            plan.adapt_weight(param, state);
        } else if let Some(config) = &self.monteclora_config {
            let state = MontecloraLinear::new(lora, config, (size.rank, place), like, plan);
            plan.adapt_weight(param, state);
        } else {
            plan.adapt_weight(param, lora);
        }
    }
}
