//! The ratios that are quoted, and what each compares.

use crate::case::{
    Case,
    Engine::{Burn, Hf, Ours, Unfused},
    Method::{
        Base, BitFit, Full, Head, Houlsby, LoraAll, LoraQv, LoraQvMerged, LoraQvRows, Prompt,
    },
    Pass::{Infer, Train},
    Shape::{Linear, LlamaBlock, MiniLm, MiniLmDropout, MiniLmOne, MiniLmRows},
    case,
};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Seconds of an iteration.
    Time,
    /// Highest resident bytes of the process.
    Memory,
}

/// A bound on the median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Needed {
    AtLeast(f64),
    AtMost(f64),
    /// 1 within noise: the spread of the rounds contains it, or the median is within 2 %.
    One,
    Nothing,
}

/// `over` divided by `under`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    pub(crate) name: &'static str,
    pub(crate) over: Case,
    pub(crate) under: Case,
    pub(crate) measure: Measure,
    pub(crate) needed: Needed,
}

/// A ratio of times; a speed-up has the slower side over the faster.
const fn time(name: &'static str, over: Case, under: Case, needed: Needed) -> Ratio {
    Ratio {
        name,
        over,
        under,
        measure: Measure::Time,
        needed,
    }
}

const fn memory(name: &'static str, over: Case, under: Case, needed: Needed) -> Ratio {
    Ratio {
        measure: Measure::Memory,
        ..time(name, over, under, needed)
    }
}

use Needed::{AtLeast, AtMost, Nothing, One};

/// Groups whose processes live at the same time.
#[rustfmt::skip]
pub(crate) const GROUPS: &[(&str, &[Ratio])] = &[
    ("MiniLM-L6, training, 32 x 64 tokens", &[
        time("lora_all_speed_vs_burn", case(MiniLm, Train, LoraAll, Burn), case(MiniLm, Train, LoraAll, Ours), AtLeast(1.6)),
        memory("lora_all_memory_vs_burn", case(MiniLm, Train, LoraAll, Ours), case(MiniLm, Train, LoraAll, Burn), AtMost(0.70)),
        time("lora_all_speed_unfused_vs_burn", case(MiniLm, Train, LoraAll, Burn), case(MiniLm, Train, LoraAll, Unfused), Nothing),
        time("lora_qv_step_vs_full", case(MiniLm, Train, LoraQv, Ours), case(MiniLm, Train, Full, Ours), AtMost(0.60)),
        time("lora_all_step_vs_full", case(MiniLm, Train, LoraAll, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("head_step_vs_full", case(MiniLm, Train, Head, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("houlsby_step_vs_full", case(MiniLm, Train, Houlsby, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("bitfit_step_vs_full", case(MiniLm, Train, BitFit, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("prompt_step_vs_full", case(MiniLm, Train, Prompt, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        memory("lora_qv_memory_vs_full", case(MiniLm, Train, LoraQv, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("lora_qv_speed_vs_hf", case(MiniLm, Train, LoraQv, Hf), case(MiniLm, Train, LoraQv, Ours), AtLeast(0.80)),
        memory("lora_qv_rss_vs_hf", case(MiniLm, Train, LoraQv, Ours), case(MiniLm, Train, LoraQv, Hf), AtMost(0.30)),
        time("lora_all_speed_vs_hf", case(MiniLm, Train, LoraAll, Hf), case(MiniLm, Train, LoraAll, Ours), Nothing),
        time("full_speed_vs_hf", case(MiniLm, Train, Full, Hf), case(MiniLm, Train, Full, Ours), Nothing),
        time("bitfit_speed_vs_hf", case(MiniLm, Train, BitFit, Hf), case(MiniLm, Train, BitFit, Ours), Nothing),
        time("prompt_speed_vs_hf", case(MiniLm, Train, Prompt, Hf), case(MiniLm, Train, Prompt, Ours), Nothing),
    ]),
    ("MiniLM-L6 with its dropout, training, 32 x 64 tokens", &[
        time("lora_qv_dropout_speed_vs_burn", case(MiniLmDropout, Train, LoraQv, Burn), case(MiniLmDropout, Train, LoraQv, Ours), Nothing),
        time("lora_qv_dropout_step_vs_full", case(MiniLmDropout, Train, LoraQv, Ours), case(MiniLmDropout, Train, Full, Ours), Nothing),
        time("lora_qv_dropout_speed_vs_hf", case(MiniLmDropout, Train, LoraQv, Hf), case(MiniLmDropout, Train, LoraQv, Ours), Nothing),
    ]),
    ("MiniLM-L6, inference, 1 x 128 tokens", &[
        time("lora_qv_latency_unmerged", case(MiniLmOne, Infer, LoraQv, Ours), case(MiniLmOne, Infer, Base, Ours), AtMost(1.08)),
        time("lora_qv_latency_merged", case(MiniLmOne, Infer, LoraQvMerged, Ours), case(MiniLmOne, Infer, Base, Ours), One),
        time("lora_all_latency_unmerged", case(MiniLmOne, Infer, LoraAll, Ours), case(MiniLmOne, Infer, Base, Ours), Nothing),
        time("houlsby_latency", case(MiniLmOne, Infer, Houlsby, Ours), case(MiniLmOne, Infer, Base, Ours), Nothing),
        time("bitfit_latency_unmerged", case(MiniLmOne, Infer, BitFit, Ours), case(MiniLmOne, Infer, Base, Ours), Nothing),
        time("prompt_latency", case(MiniLmOne, Infer, Prompt, Ours), case(MiniLmOne, Infer, Base, Ours), Nothing),
        time("base_inference_speed_vs_burn", case(MiniLmOne, Infer, Base, Burn), case(MiniLmOne, Infer, Base, Ours), Nothing),
        time("base_inference_speed_vs_hf", case(MiniLmOne, Infer, Base, Hf), case(MiniLmOne, Infer, Base, Ours), Nothing),
        time("lora_qv_inference_speed_vs_hf", case(MiniLmOne, Infer, LoraQv, Hf), case(MiniLmOne, Infer, LoraQv, Ours), Nothing),
    ]),
    ("MiniLM-L6, inference, 8 x 32 tokens", &[
        time("eight_adapters_vs_one", case(MiniLmRows, Infer, LoraQvRows, Ours), case(MiniLmRows, Infer, LoraQv, Ours), Nothing),
        time("eight_adapters_speed_vs_hf", case(MiniLmRows, Infer, LoraQvRows, Hf), case(MiniLmRows, Infer, LoraQvRows, Ours), Nothing),
    ]),
    ("Llama block, training, 1 x 256 tokens", &[
        time("llama_lora_all_step_vs_full", case(LlamaBlock, Train, LoraAll, Ours), case(LlamaBlock, Train, Full, Ours), Nothing),
        time("llama_lora_all_speed_vs_burn", case(LlamaBlock, Train, LoraAll, Burn), case(LlamaBlock, Train, LoraAll, Ours), Nothing),
        memory("llama_lora_all_memory_vs_burn", case(LlamaBlock, Train, LoraAll, Ours), case(LlamaBlock, Train, LoraAll, Burn), Nothing),
        time("llama_lora_all_latency_unmerged", case(LlamaBlock, Infer, LoraAll, Ours), case(LlamaBlock, Infer, Base, Ours), Nothing),
        time("llama_lora_qv_step_vs_full", case(LlamaBlock, Train, LoraQv, Ours), case(LlamaBlock, Train, Full, Ours), Nothing),
        time("llama_lora_qv_latency_unmerged", case(LlamaBlock, Infer, LoraQv, Ours), case(LlamaBlock, Infer, Base, Ours), Nothing),
        time("llama_lora_qv_speed_vs_hf", case(LlamaBlock, Train, LoraQv, Hf), case(LlamaBlock, Train, LoraQv, Ours), Nothing),
        time("llama_lora_all_speed_vs_hf", case(LlamaBlock, Train, LoraAll, Hf), case(LlamaBlock, Train, LoraAll, Ours), Nothing),
    ]),
    ("Linear 4096 x 4096, training, 512 tokens", &[
        time("linear_lora_step_vs_full", case(Linear, Train, LoraAll, Ours), case(Linear, Train, Full, Ours), Nothing),
        time("linear_lora_speed_vs_burn", case(Linear, Train, LoraAll, Burn), case(Linear, Train, LoraAll, Ours), Nothing),
        memory("linear_lora_memory_vs_burn", case(Linear, Train, LoraAll, Ours), case(Linear, Train, LoraAll, Burn), Nothing),
        time("linear_lora_speed_vs_hf", case(Linear, Train, LoraAll, Hf), case(Linear, Train, LoraAll, Ours), Nothing),
        time("linear_lora_latency_unmerged", case(Linear, Infer, LoraAll, Ours), case(Linear, Infer, Base, Ours), Nothing),
    ]),
];
