//! LoRA: what its configuration must be, and which factors go where.

use burn::module::Param;
use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device, Tensor};
use peft_core::calibration::CalibrationConfig;
use peft_core::method::{
    Bias, Init, LINEAR_EMBEDDING_AND_CONV, Layer, LayerKind, Layout, LayoutParam, Method,
    MethodConfig as _, MethodHooks, Plan, Promises, States, Value, layer_targets, train_biases,
};
use peft_core::ops::column_norms;
use peft_core::{Error, Result};

use crate::lora::config::{LORA, LoraConfig};
use crate::lora::conv::LoraConv2d;
use crate::lora::converted::convert;
use crate::lora::dora::{Magnitude, norms_of_rows};
use crate::lora::eva;
use crate::lora::init::Start;
use crate::lora::state::{Follower, LoraBias, LoraEmbedding};
use crate::lora::values::Size;

/// The kernel of a convolution of one or two axes, `[out, …]`.
fn kernel_rows(param: &LayoutParam) -> Tensor<2> {
    let rows = param.shape()[0] as isize;
    match param.shape().len() {
        3 => param.value::<3>().reshape([rows, -1]),
        _ => param.value::<4>().reshape([rows, -1]),
    }
}

impl LoraConfig {
    /// Initial values of both factors: A of `fan_in` inputs.
    pub(crate) fn draw<const D: usize>(
        start: Start,
        init: &mut Init,
        Size { rank, .. }: Size,
        [a, b]: [[usize; D]; 2],
        fan_in: usize,
        like: (&Device, DType),
    ) -> [Param<Tensor<D>>; 2] {
        let a = match start {
            Start::Gaussian => init.normal(a, 1.0 / rank as f64, like),
            _ => init.kaiming_uniform(a, fan_in, like),
        };
        let b = match start {
            Start::Kaiming { zero: false } => init.kaiming_uniform(b, rank, like),
            _ => init.zeros(b, like),
        };
        [a, b]
    }

    /// Trained or not, as `freeze_a` says.
    pub(crate) fn factor_a<const D: usize>(&self, a: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.freeze_a {
            a.set_require_grad(false)
        } else {
            a
        }
    }

    /// DoRA's magnitude: the norms of what the layer begins with.
    pub(crate) fn magnitude<const D: usize>(
        &self,
        plan: &mut Plan,
        shape: [usize; D],
        param: &LayoutParam,
        norms: impl FnOnce() -> Tensor<1>,
    ) -> Option<Magnitude<D>> {
        let value = if !self.use_dora {
            return None;
        } else if plan.is_new() {
            Param::from_tensor(norms().detach().reshape(shape))
        } else {
            plan.init().zeros(shape, (&param.device(), param.dtype()))
        };
        Some(Magnitude { value })
    }

    /// `head`: one that is the table, and follows.
    fn adapt_embedding(
        &self,
        param: &LayoutParam,
        size: Size,
        start: Start,
        head: Option<&Layer>,
        plan: &mut Plan,
    ) -> Result<()> {
        let [rows, width] = [param.shape()[0], param.shape()[1]];
        let like = (&param.device(), param.dtype());
        let [lora_a, lora_b] = if start == Start::Mica {
            let shapes = [[rows, size.rank], [size.rank, width]];
            Self::minor_factors(param, size.rank, shapes, plan)?
        } else {
            let init = plan.init();
            let lora_a = match start {
                Start::Kaiming { zero: false } => init.normal([rows, size.rank], 1.0, like),
                _ => init.zeros([rows, size.rank], like),
            };
            [lora_a, init.normal([size.rank, width], 1.0, like)]
        };
        let mut state = LoraEmbedding {
            lora_a: self.factor_a(lora_a),
            lora_b,
            scale: size.scale,
            magnitude: None,
            head: head.map(|head| Follower {
                name: head.name.clone(),
                dropout: DropoutConfig::new(self.lora_dropout).init(),
            }),
        };
        state.magnitude = self.magnitude(plan, [width], param, || {
            column_norms(param.value::<2>() + state.delta())
        });
        plan.adapt_weight(param, state);
        Ok(())
    }

    /// How many groups B has at a convolution with a kernel of `shape`: the layer's, or one in a file whose A is of one
    /// group's channels.
    fn groups(layer: &Layer, shape: &[usize], plan: &Plan) -> usize {
        match plan.stored_shape(layer, "lora_A.weight") {
            Some([_, channels, ..]) if *channels == shape[1] => 1,
            _ => layer.groups,
        }
    }

    fn adapt_conv(
        &self,
        layer: &Layer,
        param: &LayoutParam,
        (size, start): (Size, Start),
        plan: &mut Plan,
    ) -> Result<()> {
        let shape = param.shape();
        let groups = Self::groups(layer, &shape, plan).max(1);
        if !size.rank.is_multiple_of(groups) {
            let expected = format!("a multiple of {groups}, the groups of `{}`", layer.name);
            return Err(Error::config(LORA.title, "r", size.rank, expected));
        }
        let like = (&param.device(), param.dtype());
        let (height, width) = (shape[2], shape.get(3).copied().unwrap_or(1));
        let channels = shape[1] * groups;
        let shapes = [
            [size.rank, channels, height, width],
            [shape[0], size.rank / groups, 1, 1],
        ];
        let fan_in = channels * height * width;
        let [lora_a, lora_b] = Self::draw(start, plan.init(), size, shapes, fan_in, like);
        let mut state = LoraConv2d {
            lora_a: self.factor_a(lora_a),
            lora_b,
            scale: size.scale,
            dropout: DropoutConfig::new(self.lora_dropout).init(),
            magnitude: None,
            axes: shape.len() - 2,
        };
        state.magnitude = self.magnitude(plan, [1, shape[0], 1, 1], param, || {
            let kernel = kernel_rows(param);
            norms_of_rows(kernel + state.delta())
        });
        plan.adapt_weight(param, state);
        Ok(())
    }

    /// A bias for B, on the layer's own.
    fn adapt_bias(layout: &Layout, layer: &Layer, scale: f64, plan: &mut Plan) -> Result<()> {
        let Some(bias) = layout.param(layer, "bias") else {
            let expected = format!("false: `{}` has no bias to add to", layer.name);
            return Err(Error::config(LORA.title, "lora_bias", true, expected));
        };
        let lora_b = plan
            .init()
            .zeros([bias.elements()], (&bias.device(), bias.dtype()));
        plan.adapt_weight(bias, LoraBias { lora_b, scale });
        Ok(())
    }

    /// Checks what only a layer's shape tells.
    fn fits(&self, layer: &Layer, param: &LayoutParam, size: Size, start: Start) -> Result<()> {
        let shape = param.shape();
        let rows = shape[0];
        let columns: usize = shape[1..].iter().product();
        let refuse = |field, value: &dyn std::fmt::Debug, expected: String| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        if let Some(field) = self.linear_only()
            && layer.kind != LayerKind::Linear
        {
            let expected = format!("linear layers with `{field}`; this one is {}", layer.kind);
            return refuse("target_modules", &layer.name, expected);
        }
        // A decomposition gives so many directions. Others may be more, as upstream has it: no use, but harmless.
        let (most, why) = match start.most(rows.min(columns)) {
            _ if self.kasa_config.is_some() => (rows.min(columns) - 1, "`kasa_config`".into()),
            most => (
                most,
                format!("init_lora_weights {:?}", self.init_lora_weights),
            ),
        };
        if size.rank > most {
            let expected = format!(
                "`{}` has shape {shape:?}, so at most {most} with {why}",
                layer.name
            );
            return refuse("r", &size.rank, expected);
        }
        if start == Start::Orthogonal && size.rank % 2 == 1 {
            let expected = format!("an even number for \"orthogonal\" at `{}`", layer.name);
            return refuse("r", &size.rank, expected);
        }
        let plain = matches!(start, Start::Kaiming { .. } | Start::Gaussian);
        let of_table = start == Start::Mica && layer.kind == LayerKind::Embedding;
        if !plain && !of_table && layer.kind != LayerKind::Linear {
            let expected = format!(
                "true, false or \"gaussian\": `{}` is {}, not Linear",
                layer.name, layer.kind
            );
            return refuse("init_lora_weights", &self.init_lora_weights, expected);
        }
        Ok(())
    }
}

impl Method for LoraConfig {
    fn promises(&self) -> Promises {
        self.variant_promises()
    }

    fn ties_heads(&self) -> bool {
        self.ensure_weight_tying
    }

    fn statistics(&self) -> Option<CalibrationConfig> {
        let start = self.init_lora_weights.start().ok()?;
        let second_moments = matches!(start, Start::Corda | Start::Eva);
        let gradients = matches!(start, Start::LoraGa);
        (second_moments || gradients).then(|| CalibrationConfig {
            targets: self.targets.clone(),
            second_moments,
            gradients,
            ..CalibrationConfig::default()
        })
    }

    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        let start = self.init_lora_weights.start()?;
        let mut all = self.alpha_pattern.values().chain([self.lora_alpha]);
        let divides = matches!(start, Start::Loftq | Start::Corda | Start::LoraGa);
        if (start.subtracts_from_base() || divides) && !all.all(|alpha| alpha > 0.0) {
            return refuse(
                "lora_alpha",
                &self.lora_alpha,
                "above 0, as the base's singular values are",
            );
        }
        self.refuse_replication()?;
        self.check_variant(start)?;
        if self.freeze_a && start.subtracts_from_base() {
            return refuse(
                "freeze_a",
                &true,
                "false: PiSSA and OLoRA train both factors",
            );
        }
        self.check_layout()?;
        if self.lora_bias && (self.bias != Bias::None || self.use_dora) {
            return refuse("lora_bias", &true, "false with `bias` or `use_dora`");
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let start = self.init_lora_weights.start()?;
        if start == Start::Eva && plan.is_new() && plan.calibration().is_none() {
            let expected = "attached by `peft_reparameterization::eva`, which looks at activations, or by `attach_on`";
            let value = &self.init_lora_weights;
            return Err(Error::config(
                LORA.title,
                "init_lora_weights",
                value,
                expected,
            ));
        }
        if let Some(fields) = &self.adapterhub {
            return self.plan_adapterhub(fields, layout, plan);
        }
        let kinds = if start == Start::Eva && plan.is_new() {
            eva::check(self)?;
            &[LayerKind::Linear]
        } else {
            LINEAR_EMBEDDING_AND_CONV
        };
        let targets = layer_targets(self, layout, plan, kinds)?;
        let targets = targets.iter().map(|target| (target.layer, target.weight));
        let targets = targets.collect();
        let size = |layer: &Layer| {
            let rank = self.rank_pattern.of(&layer.name, self.r)?;
            let alpha = self.alpha_pattern.of(&layer.name, self.lora_alpha)?;
            let divisor = if self.use_rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            };
            Ok(Size {
                rank,
                scale: alpha / divisor,
            })
        };
        let (targets, followed) = self.tied_targets(layout, targets, plan, size)?;
        for &(layer, weight) in &targets {
            let size = size(layer)?;
            // What is taken out of the base is as large as the configuration says.
            if plan.is_new() || start.subtracts_from_base() || self.kasa_config.is_some() {
                self.fits(layer, weight, size, start)?;
            }
            let with_bias = self.lora_bias && layer.kind != LayerKind::Embedding;
            let added = with_bias
                && layer.kind == LayerKind::Linear
                && layout.param(layer, "bias").is_none();
            match layer.kind {
                LayerKind::Linear => {
                    self.adapt_linear((layer, weight), size, start, added, plan)?;
                }
                LayerKind::Embedding => {
                    let mut pairs = followed.iter();
                    let pair = pairs.find(|(_, table)| table.name == layer.name);
                    let head = pair.map(|(head, _)| *head);
                    self.adapt_embedding(weight, size, start, head, plan)?;
                }
                _ => self.adapt_conv(layer, weight, (size, start), plan)?,
            }
            if with_bias && !added {
                Self::adapt_bias(layout, layer, size.scale, plan)?;
            }
        }
        train_biases(self.bias, layout, &targets, plan);
        self.train_token_rows(layout, &targets, plan)
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        Ok(self.training_hooks(steps, states))
    }

    fn finalize(&self, states: &mut States) -> Result<serde_json::Map<String, Value>> {
        convert(self, states)
    }

    fn max_rank(&self) -> Option<usize> {
        // DoRA scales the columns of the whole weight, and LoftQ begins with another one.
        let start = self
            .init_lora_weights
            .start()
            .ok()
            .filter(|start| !self.use_dora && *start != Start::Loftq)?;
        let rank = self.rank_pattern.values().chain([self.r]).max()?;
        // What is taken out is of that rank, too.
        let twice = matches!(start, Start::Corda | Start::LoraGa) || self.kasa_config.is_some();
        Some(if start.subtracts_from_base() || twice {
            2 * rank
        } else {
            rank
        })
    }
}
