//! `SHiRA`: a few elements of each weight are trained, at places that a mask chooses.

use burn::tensor::DType;
use peft_core::calibration::CalibrationConfig;
use peft_core::method::{
    Common, Init, Layout, Method, Plan, SparseDelta, TargetLayer, Targets, Value, adapt_each,
    linear_targets, method_config,
};
use peft_core::{Error, Result};

use crate::mask::{self, MaskContext, MaskFn};
use crate::upstream::json_without;

/// The only mask type that upstream has.
const RANDOM: &str = "random";
/// Those that are chosen by gradients on the user's data.
const BY_GRADIENTS: [&str; 2] = ["gradient", "snip"];

/// SHiRA's configuration. Fields are called and behave as in Hugging Face PEFT's `ShiraConfig`.
#[method_config(
    SHIRA, peft_type = "SHIRA", title = "SHiRA", family = Selective, identity_at_init, mergeable, new(r),
    reference = "Bhardwaj et al. 2024, Sparse High Rank Adapters, sections 3 and 4",
    unsupported("fan_in_fan_out"), to_json = ShiraConfig::json
)]
pub struct ShiraConfig {
    /// Says how many elements of a weight `[in, out]` train: `r · (in + out)`, as many as LoRA of this rank trains. The
    /// change's rank is not bounded by it.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// `random`, `magnitude`, `gradient`, `snip` or `structured`, as [`MaskFn`] has them; or a name of the user's own for
    /// what [`mask_fn`](Self::mask_fn) chooses.
    #[field(default = "random")]
    pub mask_type: String,
    /// Seed of random masks. Default: drawn from the device's random numbers.
    #[field(any)]
    pub random_seed: Option<u64>,
    /// Chooses the mask where `mask_type` is not `random`. It is in no file: a file has the places. Default: what
    /// `mask_type` says.
    #[field(skip)]
    pub mask_fn: Option<MaskFn>,
    /// Whether the changes start at 0, so that a fresh adapter changes nothing; else they are standard normal, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// Layers to adapt.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl ShiraConfig {
    fn json(&self) -> Value {
        let others = ["exclude_modules", "layers_to_transform", "layers_pattern"];
        json_without(self, &others)
    }

    /// How many elements of a layer's weight train.
    fn count(&self, target: &TargetLayer<'_>) -> Result<usize> {
        let (name, d_in, d_out) = (target.name(), target.d_in, target.d_out);
        let all = d_in.saturating_mul(d_out);
        if all > i32::MAX as usize {
            let (field, expected) = ("target_modules", "layers with fewer than 2^31 elements");
            return Err(Error::config(SHIRA.title, field, name, expected));
        }
        let count = self.r.saturating_mul(d_in + d_out);
        if count > all {
            let most = all / (d_in + d_out);
            let expected = format!(
                "at most {most}: `{name}` has {all} elements, and r times {d_in} + {d_out} of them train"
            );
            return Err(Error::config(SHIRA.title, "r", self.r, expected));
        }
        Ok(count)
    }

    /// What chooses the mask, if it is not random.
    fn chooses(&self) -> Option<MaskFn> {
        self.mask_fn
            .clone()
            .or_else(|| MaskFn::named(&self.mask_type))
    }

    /// The places in the flattened weight that the user's function chooses.
    fn chosen(
        choose: &MaskFn,
        target: &TargetLayer<'_>,
        count: usize,
        plan: &Plan,
    ) -> Result<Vec<usize>> {
        let weight = target.weight;
        let mask = choose.choose(&MaskContext {
            name: &weight.name,
            weight: weight.value::<2>().detach(),
            count,
            calibration: plan.calibration(),
        })?;
        let (shape, wanted) = (mask.dims(), [target.d_in, target.d_out]);
        let places = mask::places(mask);
        if shape != wanted || places.len() != count {
            let found = format!("a mask {shape:?} of {} elements", places.len());
            let expected = format!(
                "a mask {wanted:?} of {count} elements for `{}`",
                weight.name
            );
            return Err(Error::config(SHIRA.title, "mask_fn", found, expected));
        }
        Ok(places)
    }
}

impl Method for ShiraConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let chooses = self.chooses();
        let random = self.mask_type == RANDOM;
        if plan.is_new() && random == chooses.is_some() {
            let (expected, kind) = (
                "`random` without a mask_fn, `magnitude`, `gradient`, `snip`, `structured`, or another name with a mask_fn",
                &self.mask_type,
            );
            return Err(Error::config(SHIRA.title, "mask_type", kind, expected));
        }
        let mut seeded = self.random_seed.map(Init::new);
        let targets = linear_targets(self, layout, plan)?;
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let (shape, count) = ([target.d_in, target.d_out], self.count(target)?);
            let chosen = match &chooses {
                Some(choose) if plan.is_new() => Some(Self::chosen(choose, target, count, plan)?),
                _ => None,
            };
            let device = target.weight.device();
            let indices = plan
                .init()
                .integers([2, count], (&device, DType::I32), |init| {
                    let places = chosen.unwrap_or_else(|| {
                        let init = seeded.as_mut().unwrap_or(init);
                        init.indices(count, shape[0] * shape[1])
                    });
                    mask::coordinates(&places, shape[1])
                });
            let values =
                plan.init()
                    .zeros_or_normal(self.init_weights, [count], 1.0, target.like());
            let keys = ("shira_weight", Some("shira_indices"));
            Ok(SparseDelta::coordinates(values, indices, shape).with_keys(keys.0, keys.1))
        })
    }

    fn statistics(&self) -> Option<CalibrationConfig> {
        let by_gradients = BY_GRADIENTS.contains(&self.mask_type.as_str());
        (by_gradients && self.mask_fn.is_none()).then(|| CalibrationConfig {
            targets: self.targets.clone(),
            squared_gradients: true,
            unreached: true,
            ..CalibrationConfig::default()
        })
    }
}
