//! What a method costs, and the axes on which that is weighed against quality.

use serde::Serialize;

use crate::definition::Kind;
use crate::record::{Forgetting, RunRecord};
use crate::statistics::mean;

/// Means over seeds; `None` where a run did not measure it.
#[derive(Serialize, Debug, Clone)]
pub struct Costs {
    /// Trainable parameters.
    pub trainable: Option<f64>,
    /// Changed parameters.
    pub changed: Option<f64>,
    /// Stored numbers.
    pub stored: Option<f64>,
    /// Parameters of the task head, in none of the three above.
    pub head: Option<f64>,
    /// Adapter on disk.
    pub adapter_bytes: Option<f64>,
    /// Median step.
    pub step_ms: Option<f64>,
    /// 90th percentile of the step.
    pub step_p90_ms: Option<f64>,
    /// Throughput of training.
    pub tokens_per_s: Option<f64>,
    /// Peak of training above the loaded model.
    pub memory_bytes: Option<f64>,
    /// Latency of the model without the method.
    pub base_ms: Option<f64>,
    /// Latency with the method attached.
    pub unmerged_ms: Option<f64>,
    /// Latency with the change merged.
    pub merged_ms: Option<f64>,
    /// Largest rank of the change.
    pub rank_of_change: Option<f64>,
    /// What the loss on general text rose by, in nats a token; language models only.
    pub forgetting: Option<f64>,
}

/// A cost against which quality is weighed.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Trainable parameters.
    Parameters,
    /// Memory of training.
    Memory,
    /// Time of a training step.
    Time,
    /// Adapter on disk.
    Bytes,
    /// Latency unmerged.
    Latency,
    /// Rise of the loss on general text.
    Forgetting,
}

impl Axis {
    /// All axes.
    pub const ALL: [Self; 6] = [
        Self::Parameters,
        Self::Memory,
        Self::Time,
        Self::Bytes,
        Self::Latency,
        Self::Forgetting,
    ];

    /// Those that a kind of task has.
    pub fn of_kind(kind: Kind) -> impl Iterator<Item = Self> {
        let has = move |axis: &Self| *axis != Self::Forgetting || kind == Kind::LanguageModel;
        Self::ALL.into_iter().filter(has)
    }

    /// The letter that marks the axis in narrow tables.
    pub fn letter(self) -> char {
        match self {
            Self::Parameters => 'P',
            Self::Memory => 'M',
            Self::Time => 'T',
            Self::Bytes => 'B',
            Self::Latency => 'L',
            Self::Forgetting => 'F',
        }
    }

    pub(super) fn of(self, costs: &Costs) -> Option<f64> {
        match self {
            Self::Parameters => costs.trainable,
            Self::Memory => costs.memory_bytes,
            Self::Time => costs.step_ms,
            Self::Bytes => costs.adapter_bytes,
            Self::Latency => costs.unmerged_ms,
            Self::Forgetting => costs.forgetting,
        }
    }
}

impl Costs {
    pub(super) fn new(runs: &[RunRecord]) -> Self {
        let of = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
            runs.iter()
                .map(value)
                .collect::<Option<Vec<f64>>>()
                .and_then(|values| mean(&values))
        };
        Self {
            trainable: of(&|run| Some(run.counts.trainable as f64)),
            changed: of(&|run| Some(run.counts.changed as f64)),
            stored: of(&|run| Some(run.counts.stored as f64)),
            head: of(&|run| Some(run.counts.head as f64)),
            adapter_bytes: of(&|run| Some(run.adapter_bytes as f64)),
            step_ms: of(&|run| measured(run.step_s.median * 1e3)),
            step_p90_ms: of(&|run| measured(run.step_s.p90 * 1e3)),
            tokens_per_s: of(&|run| measured(run.tokens_per_s)),
            memory_bytes: of(&|run| run.memory.needed().map(|bytes| bytes as f64)),
            base_ms: of(&|run| measured(run.latency_ms.base)),
            unmerged_ms: of(&|run| measured(run.latency_ms.unmerged)),
            merged_ms: of(&|run| run.latency_ms.merged.and_then(measured)),
            rank_of_change: of(&|run| run.rank_of_change.map(|rank| rank as f64)),
            forgetting: of(&|run| run.forgetting.map(Forgetting::change)),
        }
    }
}

/// Records have 0 where nothing was measured.
pub(super) fn measured(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}
