//! Made-up runs for the tests of the report.

use serde_json::json;

use super::{BASE, FULL, HEAD_ONLY};
use crate::definition::Kind;
use crate::record::{
    Counts, Environment, Epoch, Failure, Forgetting, Git, Grid, GridSource, Latency, Memory,
    Method, Model, Rows, RunRecord, SCHEMA, StepTime, Trial,
};

#[derive(Clone, Copy)]
struct Profile {
    name: &'static str,
    title: &'static str,
    family: &'static str,
    test: f64,
    trainable: u64,
    step_ms: f64,
    unmerged_ms: f64,
    merges: bool,
}

const METHODS: [Profile; 8] = [
    Profile {
        name: "head-only",
        title: "Head only",
        family: "reference",
        test: 0.742,
        trainable: 0,
        step_ms: 21.0,
        unmerged_ms: 3.1,
        merges: false,
    },
    Profile {
        name: "full",
        title: "Full fine-tuning",
        family: "reference",
        test: 0.862,
        trainable: 4_386_178,
        step_ms: 92.0,
        unmerged_ms: 3.1,
        merges: false,
    },
    Profile {
        name: "lora",
        title: "LoRA (query, value)",
        family: "reparameterization",
        test: 0.843,
        trainable: 8_192,
        step_ms: 61.0,
        unmerged_ms: 3.6,
        merges: true,
    },
    Profile {
        name: "lora-all",
        title: "LoRA (all linear)",
        family: "reparameterization",
        test: 0.856,
        trainable: 49_152,
        step_ms: 74.0,
        unmerged_ms: 4.4,
        merges: true,
    },
    Profile {
        name: "houlsby",
        title: "Houlsby adapter",
        family: "additive",
        test: 0.846,
        trainable: 67_328,
        step_ms: 66.0,
        unmerged_ms: 3.9,
        merges: false,
    },
    Profile {
        name: "pfeiffer",
        title: "Pfeiffer adapter",
        family: "additive",
        test: 0.837,
        trainable: 33_664,
        step_ms: 58.0,
        unmerged_ms: 3.5,
        merges: false,
    },
    Profile {
        name: "bitfit",
        title: "BitFit",
        family: "selective",
        test: 0.744,
        trainable: 3_072,
        step_ms: 55.0,
        unmerged_ms: 3.1,
        merges: true,
    },
    Profile {
        name: "prompt-tuning",
        title: "Prompt tuning",
        family: "soft-prompt",
        test: 0.698,
        trainable: 1_280,
        step_ms: 79.0,
        unmerged_ms: 4.9,
        merges: false,
    },
];

const ANALYSIS: &str = "Sentiment of short reviews: shows whether a method adapts a small encoder at \
    all. It cannot show what happens on long inputs.\n\nThe test split is small, so that differences \
    under a point mean little.";

/// All methods with seeds from 1.
pub(crate) fn records(seeds: u64) -> Vec<RunRecord> {
    (1..=seeds)
        .flat_map(|seed| METHODS.map(|profile| record(profile.name, seed)))
        .collect()
}

/// One method with one seed.
pub(crate) fn record(name: &str, seed: u64) -> RunRecord {
    let index = METHODS
        .iter()
        .position(|profile| profile.name == name)
        .unwrap();
    let Profile {
        name,
        title,
        family,
        test,
        trainable,
        step_ms,
        unmerged_ms,
        merges,
    } = METHODS[index];
    let learning_rate = 1e-3_f64;
    let config = json!({
        "method": name, "rank": 8, "alpha": 16.0, "target_modules": ["query", "value"]
    });
    // Small, different for every method and seed, and the same on every call.
    let wobble = ((seed as usize * (7 + index * 4) + index) % 11) as f64 / 1000.0 - 0.005;
    let test = test + wobble;
    RunRecord {
        schema: SCHEMA,
        id: format!("{:08x}{seed:08x}", 0xabc0_u64 + index as u64),
        suite: "default".into(),
        task: "reviews".into(),
        kind: Kind::Classification,
        task_analysis: ANALYSIS.into(),
        model: Model {
            name: "bert-tiny".into(),
            parameters: 4_386_178,
            source: "google/bert_uncased_L-2_H-128_A-2".into(),
        },
        method: Method {
            name: name.into(),
            title: title.into(),
            family: family.into(),
            reference: "Author et al. (2021), section 4".into(),
            config: config.clone(),
        },
        seed,
        learning_rate,
        tuning: [3e-4, 1e-3, 3e-3]
            .map(|rate| Trial {
                learning_rate: rate,
                dev: test - (rate - learning_rate).abs() * 9.0,
                error: None,
            })
            .to_vec(),
        grid: Some(Grid {
            source: GridSource::Task,
            factor: 1.0,
            learning_rates: vec![3e-4, 1e-3, 3e-3],
        }),
        definition: json!({ "task": "reviews", "method": config, "epochs": 6 }),
        definition_hash: format!("{:016x}", 0x1234_5678_u64 * (index as u64 + 1)),
        git: Git {
            revision: "0123456789abcdef".into(),
            dirty: false,
        },
        environment: environment(),
        started_at: format!("2026-01-0{seed}T12:00:00Z"),
        wall_s: 12.5,
        rows: Rows {
            train: 2000,
            dev: 500,
            test: 872,
            general: 0,
        },
        metric: Kind::Classification.metric(),
        baseline: 0.509,
        curve: curve(test, wobble),
        dev: test + 0.006,
        test,
        forgetting: None,
        counts: Counts {
            trainable,
            changed: (trainable * 4).min(4_386_178),
            stored: trainable,
            total: 4_386_178 + trainable,
            head: 258,
        },
        adapter_bytes: trainable * 4 + 1400,
        step_s: StepTime {
            median: step_ms / 1e3 + wobble / 10.0,
            p90: step_ms / 900.0,
        },
        tokens_per_s: 64_000.0 / step_ms,
        memory: Memory {
            peak_bytes: (60 + trainable / 60_000 + step_ms as u64) << 20,
            baseline_bytes: 48 << 20,
        },
        latency_ms: Latency {
            base: 3.1,
            unmerged: unmerged_ms,
            merged: merges.then_some(3.1),
        },
        rank_of_change: merges.then_some(8),
        notes: Vec::new(),
    }
}

/// A run of a method that failed.
pub(crate) fn failure(method: &str, learning_rate: f64) -> Failure {
    Failure {
        id: format!("{:016x}", learning_rate.to_bits()),
        suite: "default".into(),
        task: "reviews".into(),
        model: "bert-tiny".into(),
        method: method.into(),
        learning_rate,
        seed: 1,
        error: "the machine ran out of memory\nsignal: 9".into(),
        failed_at: "2026-01-01T12:00:00Z".into(),
    }
}

/// The base model, LoRA and full fine-tuning on running text, with seeds from 1.
pub(crate) fn language_model_records(seeds: u64) -> Vec<RunRecord> {
    const BEFORE: f64 = 3.1;
    let methods = [(BASE, 3.4, 0.0), ("lora", 3.1, 0.02), (FULL, 2.9, 0.15)];
    let run = |seed: u64, (name, loss, rise): (&str, f64, f64)| {
        let base = name == BASE;
        let mut record = record(if base { HEAD_ONLY } else { name }, seed);
        // The base model draws nothing.
        let wobble = if base { 0.0 } else { seed as f64 / 1e3 };
        record.task = "novels".into();
        record.kind = Kind::LanguageModel;
        record.metric = Kind::LanguageModel.metric();
        record.method.name = name.into();
        record.baseline = 3.4;
        record.test = loss + wobble;
        record.dev = record.test - 0.1;
        record.rows = Rows {
            train: 200,
            dev: 20,
            test: 40,
            general: 40,
        };
        record.forgetting = Some(Forgetting {
            before: BEFORE,
            after: BEFORE + rise + wobble,
        });
        record.curve = vec![Epoch {
            epoch: 0,
            train_loss: f64::NAN,
            dev: 3.3,
        }];
        if base {
            record.tuning.clear();
            record.grid = None;
            record.learning_rate = 0.0;
        } else {
            record.curve.push(Epoch {
                epoch: 1,
                train_loss: record.test,
                dev: record.dev,
            });
        }
        record
    };
    (1..=seeds)
        .flat_map(|seed| methods.map(|method| run(seed, method)))
        .collect()
}

fn environment() -> Environment {
    Environment {
        device: "flex (cpu)".into(),
        threads: 2,
        os: "linux x86_64".into(),
        cpu: "AMD EPYC".into(),
        kernels: "avx2 fma".into(),
        burn: "0.22.1".into(),
        peft: "0.1.0".into(),
        rustc: "1.95.0".into(),
    }
}

fn curve(test: f64, wobble: f64) -> Vec<Epoch> {
    (1..=6)
        .map(|epoch| {
            let left = (-0.7 * epoch as f64).exp();
            Epoch {
                epoch,
                train_loss: 0.3 + left,
                dev: test - 0.3 * left + wobble,
            }
        })
        .collect()
}
