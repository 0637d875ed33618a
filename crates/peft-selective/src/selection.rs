//! Which layers to train, by statistics that were gathered on the user's data.

use std::fmt;

use burn::tensor::{DType, Tensor};
use peft_core::calibration::{Calibration, CalibrationConfig};
use peft_core::method::{Layer, LayoutParam};
use peft_core::{Error, PeftModule, Result, Selection, Targets};

use crate::elements::of_rank;

/// What error messages call this, in the place of a method.
const TITLE: &str = "Selection of layers";

/// By which number layers are compared: the larger, the sooner a layer is chosen. g is the mean gradient of a layer's
/// parameters over the batches, w their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Criterion {
    /// ‖g‖: how steep the loss is in the layer.
    GradientNorm,
    /// ‖g‖ / ‖w‖: the same, for the layer's size (Lee et al. 2022, Surgical Fine-Tuning Improves Adaptation to Distribution
    /// Shifts, section 4.2, Auto-RGN).
    RelativeGradientNorm,
    /// The mean of E\[g²\] over the layer's parameters: the diagonal of the empirical Fisher information, if each backward
    /// pass is of one example (Sung et al. 2021, Training Neural Networks with Fixed Sparse Masks, section 3.2).
    Fisher,
    /// Σ |g · w|: about how much the loss changes without the layer (Lee et al. 2019, `SNIP`, section 4.1; there it is of
    /// single weights).
    Sensitivity,
    /// ‖w' − w‖ / ‖w‖: how far a short training moved the layer, from w to w'.
    RelativeChange,
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GradientNorm => "gradient norm",
            Self::RelativeGradientNorm => "relative gradient norm",
            Self::Fisher => "Fisher information",
            Self::Sensitivity => "sensitivity",
            Self::RelativeChange => "relative change",
        })
    }
}

impl Criterion {
    /// What a calibration has to gather for it, of these layers.
    pub fn statistics(self, layers: impl Into<Selection>) -> CalibrationConfig {
        let fisher = self == Self::Fisher;
        CalibrationConfig {
            gradients: !fisher,
            squared_gradients: fisher,
            ..CalibrationConfig::new(layers)
        }
    }

    /// The number, from two sums over the parameters.
    fn score(self, sums: [f64; 2]) -> f64 {
        let [first, second] = sums;
        match self {
            // Nothing of nothing is no number.
            _ if first == 0.0 => 0.0,
            Self::GradientNorm => first.sqrt(),
            Self::RelativeGradientNorm | Self::RelativeChange => (first / second).sqrt(),
            Self::Fisher => first / second,
            Self::Sensitivity => first,
        }
    }

    /// The sums of one parameter with `D` axes.
    fn sums<const D: usize>(
        self,
        param: &LayoutParam,
        calibration: &Calibration,
    ) -> Result<[f64; 2]> {
        let statistics = calibration.gradients(&param.name)?;
        let value = || param.value::<D>().without_autodiff();
        Ok(match self {
            Self::GradientNorm => [squares(statistics.mean::<D>()?), 1.0],
            Self::RelativeGradientNorm => [squares(statistics.mean::<D>()?), squares(value())],
            Self::Fisher => [sum(statistics.mean_square::<D>()?), param.elements() as f64],
            Self::Sensitivity => [sum((statistics.mean::<D>()? * value()).abs()), 1.0],
            Self::RelativeChange => {
                let expected =
                    "`LayerScores::of_change` for it: it needs two models and no calibration";
                return Err(Error::config(TITLE, "criterion", self, expected));
            }
        })
    }
}

/// In 32 bits: of a matrix in 16, the sum would be coarse or infinite.
fn sum<const D: usize>(tensor: Tensor<D>) -> f64 {
    f64::from(tensor.cast(DType::F32).sum().into_scalar::<f32>())
}

fn squares<const D: usize>(tensor: Tensor<D>) -> f64 {
    sum(tensor.cast(DType::F32).square())
}

/// A layer, or a block of layers, with its number.
#[derive(Clone, Debug)]
struct Scored {
    name: String,
    /// The layers in it.
    layers: Vec<String>,
    sums: [f64; 2],
}

/// The numbers of layers by one criterion, to choose the largest of.
///
/// ```
/// # use burn::tensor::Tensor;
/// # use peft_core::PeftModule;
/// use peft_core::calibration::Calibrate as _;
/// use peft_selective::{Criterion, LayerScores, PartialConfig};
///
/// # fn f<M: PeftModule>(model: &M, batches: Vec<()>, loss_of: impl Fn(&M, &()) -> Tensor<1>) -> peft_core::Result<M> {
/// let criterion = Criterion::RelativeGradientNorm;
/// let mut calibrator = model.calibrate(&criterion.statistics("all-linear"))?;
/// for batch in &batches {
///     let loss = loss_of(calibrator.model(), batch);
///     calibrator.record_gradients(&loss.backward())?;
/// }
/// let scores = LayerScores::new(criterion, model, &calibrator.finish()?)?;
/// let chosen = scores.by_block().largest(2)?;
/// println!("{chosen}"); // each block, its number, and why it trains or not
/// model.attach("mine", &PartialConfig::new().with_targets(chosen.layers()))
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LayerScores {
    criterion: Criterion,
    /// In the order of the model.
    scored: Vec<Scored>,
}

impl LayerScores {
    /// The numbers of all layers of `model` whose parameters' gradients were gathered.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if gradients were gathered of none, or not as the criterion needs them
    /// ([`Criterion::statistics`]); [`Error::Config`] for [`Criterion::RelativeChange`].
    pub fn new<M: PeftModule>(
        criterion: Criterion,
        model: &M,
        calibration: &Calibration,
    ) -> Result<Self> {
        let layout = model.layout();
        let params = |layer: &Layer| -> Vec<&LayoutParam> {
            let params = layer.params.iter().map(|index| &layout.params[*index]);
            params
                .filter(|param| !param.is_tied() && !param.is_buffer())
                .collect()
        };
        let mut scored = Vec::new();
        let mut first_error = None;
        for layer in &layout.layers {
            let mut sums = [0.0; 2];
            let params = params(layer);
            let missing = params
                .iter()
                .find_map(|param| calibration.gradients(&param.name).err());
            if params.is_empty() || missing.is_some() {
                first_error = first_error.or(missing);
                continue;
            }
            for param in params {
                let own = of_rank!(param, D => criterion.sums::<D>(param, calibration))?;
                sums = [sums[0] + own[0], sums[1] + own[1]];
            }
            scored.push(Scored::of(&layer.name, sums));
        }
        match first_error {
            Some(error) if scored.is_empty() => Err(error),
            _ => Ok(Self { criterion, scored }),
        }
    }

    /// The relative change of all layers from one model to another, with adapters of either merged: of a short training that
    /// shows which layers move.
    ///
    /// # Errors
    ///
    /// As [`PeftModule::merge_and_unload`], and [`Error::Config`] if the two have not the same parameters.
    pub fn of_change<M: PeftModule>(before: &M, after: &M) -> Result<Self> {
        let (before, after) = (before.merge_and_unload()?, after.merge_and_unload()?);
        let (old, new) = (before.layout(), after.layout());
        let shapes = |params: &[LayoutParam]| -> Vec<(String, Vec<usize>)> {
            let params = params.iter();
            params
                .map(|param| (param.name.clone(), param.shape()))
                .collect()
        };
        if shapes(&old.params) != shapes(&new.params) {
            let expected = "two states of one model";
            return Err(Error::config(TITLE, "after", "another model", expected));
        }
        let mut scored = Vec::new();
        for layer in &old.layers {
            let mut sums = [0.0; 2];
            for index in &layer.params {
                let (old, new) = (&old.params[*index], &new.params[*index]);
                if old.is_tied() || old.is_buffer() {
                    continue;
                }
                let own = of_rank!(old, D => Ok(change::<D>(old, new)))?;
                sums = [sums[0] + own[0], sums[1] + own[1]];
            }
            if sums[1] > 0.0 {
                scored.push(Scored::of(&layer.name, sums));
            }
        }
        Ok(Self {
            criterion: Criterion::RelativeChange,
            scored,
        })
    }

    /// The numbers of whole blocks: the same sums, over all layers of a block. Layers that are in no block are left out.
    #[must_use]
    pub fn by_block(self) -> Self {
        let mut blocks: Vec<Scored> = Vec::new();
        for scored in self.scored {
            let mut segments = scored.name.split('.');
            let Some(at) = segments.position(|segment| segment.parse::<usize>().is_ok()) else {
                continue;
            };
            let name: Vec<&str> = scored.name.split('.').take(at + 1).collect();
            let name = name.join(".");
            match blocks.iter_mut().find(|block| block.name == name) {
                Some(block) => {
                    block.layers.extend(scored.layers);
                    block.sums = [0, 1].map(|at| block.sums[at] + scored.sums[at]);
                }
                None => blocks.push(Scored { name, ..scored }),
            }
        }
        Self {
            scored: blocks,
            ..self
        }
    }

    /// Names and numbers, in the order of the model.
    pub fn scores(&self) -> impl Iterator<Item = (&str, f64)> {
        let scored = self.scored.iter();
        scored.map(|scored| (scored.name.as_str(), self.criterion.score(scored.sums)))
    }

    /// The `count` layers, or blocks, with the largest numbers; of equal ones the first.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for 0, and for more than there are.
    pub fn largest(&self, count: usize) -> Result<LayerSelection> {
        let all = self.scored.len();
        if count == 0 || count > all {
            let expected =
                format!("at least 1 and at most {all}, the number of those with statistics");
            return Err(Error::config(TITLE, "count", count, expected));
        }
        let scores: Vec<f64> = self.scores().map(|(_, score)| score).collect();
        let mut order: Vec<usize> = (0..all).collect();
        order.sort_by(|one, other| scores[*other].total_cmp(&scores[*one]));
        let mut choices: Vec<LayerChoice> = Vec::with_capacity(all);
        for (index, scored) in self.scored.iter().enumerate() {
            let rank = 1 + order.iter().position(|at| *at == index).unwrap_or(all);
            choices.push(LayerChoice {
                name: scored.name.clone(),
                layers: scored.layers.clone(),
                score: scores[index],
                rank,
                chosen: rank <= count,
            });
        }
        Ok(LayerSelection {
            criterion: self.criterion,
            choices,
        })
    }
}

impl Scored {
    fn of(layer: &str, sums: [f64; 2]) -> Self {
        Self {
            name: layer.to_string(),
            layers: vec![layer.to_string()],
            sums,
        }
    }
}

fn change<const D: usize>(old: &LayoutParam, new: &LayoutParam) -> [f64; 2] {
    let (old, new) = (
        old.value::<D>().without_autodiff(),
        new.value::<D>().without_autodiff(),
    );
    [squares(new - old.clone()), squares(old)]
}

/// A layer, or a block, and whether it was chosen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerChoice {
    /// Its upstream name.
    pub name: String,
    /// The layers in it.
    pub layers: Vec<String>,
    /// Its number.
    pub score: f64,
    /// Its place among all, from 1 for the largest number.
    pub rank: usize,
    /// Whether it was chosen.
    pub chosen: bool,
}

/// Layers that were chosen, and why. Printing it gives a line with the reason for each.
#[derive(Clone, Debug)]
pub struct LayerSelection {
    criterion: Criterion,
    choices: Vec<LayerChoice>,
}

impl LayerSelection {
    /// All layers, or blocks, in the order of the model.
    pub fn choices(&self) -> &[LayerChoice] {
        &self.choices
    }

    /// The whole names of the chosen layers, in the order of the model: for `target_modules` of any method.
    pub fn layers(&self) -> Vec<String> {
        let chosen = self.choices.iter().filter(|choice| choice.chosen);
        chosen.flat_map(|choice| choice.layers.clone()).collect()
    }

    /// The same as targets.
    pub fn targets(&self) -> Targets {
        Targets::new(self.layers())
    }

    /// Why a layer was chosen or left out, in words.
    pub fn reason(&self, choice: &LayerChoice) -> String {
        let (criterion, all) = (self.criterion, self.choices.len());
        let LayerChoice { score, rank, .. } = choice;
        let number = format!("{criterion} {score:.3e} is number {rank} of {all}");
        if choice.chosen {
            return format!("trains: its {number}");
        }
        let chosen = self.choices.iter().filter(|choice| choice.chosen);
        let least = chosen.min_by_key(|choice| std::cmp::Reverse(choice.rank));
        match least {
            Some(least) => format!(
                "left out: its {number}, and the last that trains, `{}`, has {:.3e}",
                least.name, least.score
            ),
            None => format!("left out: its {number}"),
        }
    }
}

impl fmt::Display for LayerSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.choices.iter().map(|choice| choice.name.len()).max();
        let width = width.unwrap_or(0);
        for choice in &self.choices {
            writeln!(f, "{:width$}  {}", choice.name, self.reason(choice))?;
        }
        Ok(())
    }
}
