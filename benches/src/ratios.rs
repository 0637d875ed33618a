//! The ratios that are quoted, and what each compares.

use crate::case::{
    Engine::{Burn, Hf, HfBf16, Ours, OursBf16, Unfused},
    Method::{
        Base, BitFit, DiffPruning, FishMask, Full, Head, Houlsby, Last1, Last2, Last4, Last6,
        LoraAll, LoraAllCheckpointed, LoraAllHalves, LoraQv, LoraQvMerged, LoraQvRows, Lst, Prompt,
        QloraAll, QloraAllCheckpointed, QloraAllFp4, QloraQv, Sparse, VeloraAll,
    },
    Pass::{Infer, Train},
    Shape::{Linear, MiniLm, MiniLmDropout, MiniLmOne, MiniLmRows, SmolLm2},
    case,
};
use crate::ratio::Needed::{AtLeast, AtMost, Nothing, One};
use crate::ratio::{Ratio, bits, memory, time};

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
        time("lst_step_vs_lora_qv", case(MiniLm, Train, Lst, Ours), case(MiniLm, Train, LoraQv, Ours), Nothing),
        memory("lst_memory_vs_lora_qv", case(MiniLm, Train, Lst, Ours), case(MiniLm, Train, LoraQv, Ours), AtMost(0.99)),
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
    ("MiniLM-L6 in mixed precision, training, 32 x 64 tokens", &[
        time("bf16_lora_qv_speed_vs_f32", case(MiniLm, Train, LoraQv, Ours), case(MiniLm, Train, LoraQv, OursBf16), Nothing),
        time("bf16_lora_qv_speed_vs_hf", case(MiniLm, Train, LoraQv, Hf), case(MiniLm, Train, LoraQv, OursBf16), Nothing),
        time("bf16_lora_qv_speed_vs_hf_bf16", case(MiniLm, Train, LoraQv, HfBf16), case(MiniLm, Train, LoraQv, OursBf16), Nothing),
        memory("bf16_lora_qv_rss_vs_hf", case(MiniLm, Train, LoraQv, OursBf16), case(MiniLm, Train, LoraQv, Hf), Nothing),
        time("bf16_lora_all_speed_vs_f32", case(MiniLm, Train, LoraAll, Ours), case(MiniLm, Train, LoraAll, OursBf16), Nothing),
        time("bf16_lora_all_speed_vs_hf", case(MiniLm, Train, LoraAll, Hf), case(MiniLm, Train, LoraAll, OursBf16), Nothing),
        time("bf16_lora_all_speed_vs_hf_bf16", case(MiniLm, Train, LoraAll, HfBf16), case(MiniLm, Train, LoraAll, OursBf16), Nothing),
        time("bf16_lora_qv_dropout_speed_vs_f32", case(MiniLmDropout, Train, LoraQv, Ours), case(MiniLmDropout, Train, LoraQv, OursBf16), Nothing),
        time("bf16_lora_qv_dropout_speed_vs_hf", case(MiniLmDropout, Train, LoraQv, Hf), case(MiniLmDropout, Train, LoraQv, OursBf16), Nothing),
        time("bf16_lora_qv_dropout_speed_vs_hf_bf16", case(MiniLmDropout, Train, LoraQv, HfBf16), case(MiniLmDropout, Train, LoraQv, OursBf16), Nothing),
    ]),
    ("MiniLM-L6, sparse and gated training, 32 x 64 tokens", &[
        time("sparse_step_vs_full", case(MiniLm, Train, Sparse, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("sparse_step_vs_lora_all", case(MiniLm, Train, Sparse, Ours), case(MiniLm, Train, LoraAll, Ours), Nothing),
        memory("sparse_memory_vs_full", case(MiniLm, Train, Sparse, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        memory("sparse_memory_vs_lora_all", case(MiniLm, Train, Sparse, Ours), case(MiniLm, Train, LoraAll, Ours), Nothing),
        time("fishmask_step_vs_full", case(MiniLm, Train, FishMask, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        time("fishmask_step_vs_lora_all", case(MiniLm, Train, FishMask, Ours), case(MiniLm, Train, LoraAll, Ours), Nothing),
        memory("fishmask_memory_vs_full", case(MiniLm, Train, FishMask, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        memory("fishmask_memory_vs_lora_all", case(MiniLm, Train, FishMask, Ours), case(MiniLm, Train, LoraAll, Ours), Nothing),
        time("diff_pruning_step_vs_full", case(MiniLm, Train, DiffPruning, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        memory("diff_pruning_memory_vs_full", case(MiniLm, Train, DiffPruning, Ours), case(MiniLm, Train, Full, Ours), AtLeast(1.0)),
        time("velora_all_step_vs_lora_all", case(MiniLm, Train, VeloraAll, Ours), case(MiniLm, Train, LoraAll, Ours), Nothing),
        memory("velora_all_memory_vs_lora_all", case(MiniLm, Train, VeloraAll, Ours), case(MiniLm, Train, LoraAll, Ours), Nothing),
    ]),
    ("MiniLM-L6, the last blocks, training, 32 x 64 tokens", &[
        time("last_1_step_vs_last_6", case(MiniLm, Train, Last1, Ours), case(MiniLm, Train, Last6, Ours), AtMost(0.60)),
        memory("last_1_memory_vs_last_6", case(MiniLm, Train, Last1, Ours), case(MiniLm, Train, Last6, Ours), AtMost(0.60)),
        time("last_2_step_vs_last_6", case(MiniLm, Train, Last2, Ours), case(MiniLm, Train, Last6, Ours), AtMost(0.70)),
        memory("last_2_memory_vs_last_6", case(MiniLm, Train, Last2, Ours), case(MiniLm, Train, Last6, Ours), AtMost(0.70)),
        time("last_4_step_vs_last_6", case(MiniLm, Train, Last4, Ours), case(MiniLm, Train, Last6, Ours), AtMost(0.90)),
        memory("last_4_memory_vs_last_6", case(MiniLm, Train, Last4, Ours), case(MiniLm, Train, Last6, Ours), AtMost(0.90)),
        time("last_6_step_vs_full", case(MiniLm, Train, Last6, Ours), case(MiniLm, Train, Full, Ours), Nothing),
        memory("last_6_memory_vs_full", case(MiniLm, Train, Last6, Ours), case(MiniLm, Train, Full, Ours), Nothing),
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
    ("SmolLM2-135M, training, 1 x 256 tokens", &[
        time("llama_lora_qv_step_vs_full", case(SmolLm2, Train, LoraQv, Ours), case(SmolLm2, Train, Full, Ours), Nothing),
        time("llama_lora_all_step_vs_full", case(SmolLm2, Train, LoraAll, Ours), case(SmolLm2, Train, Full, Ours), Nothing),
        memory("llama_lora_qv_memory_vs_full", case(SmolLm2, Train, LoraQv, Ours), case(SmolLm2, Train, Full, Ours), Nothing),
        memory("llama_lora_all_memory_vs_full", case(SmolLm2, Train, LoraAll, Ours), case(SmolLm2, Train, Full, Ours), Nothing),
        time("llama_lst_step_vs_lora_qv", case(SmolLm2, Train, Lst, Ours), case(SmolLm2, Train, LoraQv, Ours), Nothing),
        memory("llama_lst_memory_vs_lora_qv", case(SmolLm2, Train, Lst, Ours), case(SmolLm2, Train, LoraQv, Ours), AtMost(0.99)),
        time("llama_lora_all_speed_vs_burn", case(SmolLm2, Train, LoraAll, Burn), case(SmolLm2, Train, LoraAll, Ours), Nothing),
        memory("llama_lora_all_memory_vs_burn", case(SmolLm2, Train, LoraAll, Ours), case(SmolLm2, Train, LoraAll, Burn), Nothing),
        time("llama_lora_qv_speed_vs_hf", case(SmolLm2, Train, LoraQv, Hf), case(SmolLm2, Train, LoraQv, Ours), Nothing),
        memory("llama_lora_qv_rss_vs_hf", case(SmolLm2, Train, LoraQv, Ours), case(SmolLm2, Train, LoraQv, Hf), Nothing),
        time("llama_lora_all_speed_vs_hf", case(SmolLm2, Train, LoraAll, Hf), case(SmolLm2, Train, LoraAll, Ours), Nothing),
        memory("llama_lora_all_rss_vs_hf", case(SmolLm2, Train, LoraAll, Ours), case(SmolLm2, Train, LoraAll, Hf), Nothing),
    ]),
    ("SmolLM2-135M on 4 bits, training, 1 x 256 tokens", &[
        memory("qlora_peak_vs_lora", case(SmolLm2, Train, QloraQv, Ours), case(SmolLm2, Train, LoraQv, Ours), AtMost(0.45)),
        time("qlora_step_vs_lora", case(SmolLm2, Train, QloraQv, Ours), case(SmolLm2, Train, LoraQv, Ours), AtMost(1.6)),
        bits("qlora_bits_per_weight", case(SmolLm2, Train, QloraQv, Ours), AtMost(4.13)),
        memory("qlora_all_peak_vs_lora", case(SmolLm2, Train, QloraAll, Ours), case(SmolLm2, Train, LoraAll, Ours), AtMost(0.45)),
        time("qlora_all_step_vs_lora", case(SmolLm2, Train, QloraAll, Ours), case(SmolLm2, Train, LoraAll, Ours), AtMost(1.6)),
        bits("qlora_all_bits_per_weight", case(SmolLm2, Train, QloraAll, Ours), AtMost(4.13)),
        time("qlora_fp4_step_vs_nf4", case(SmolLm2, Train, QloraAllFp4, Ours), case(SmolLm2, Train, QloraAll, Ours), Nothing),
        memory("qlora_fp4_peak_vs_nf4", case(SmolLm2, Train, QloraAllFp4, Ours), case(SmolLm2, Train, QloraAll, Ours), Nothing),
        bits("qlora_fp4_bits_per_weight", case(SmolLm2, Train, QloraAllFp4, Ours), AtMost(4.13)),
        time("qlora_all_speed_vs_hf", case(SmolLm2, Train, QloraAll, Hf), case(SmolLm2, Train, QloraAll, Ours), Nothing),
        memory("qlora_all_rss_vs_hf", case(SmolLm2, Train, QloraAll, Ours), case(SmolLm2, Train, QloraAll, Hf), Nothing),
    ]),
    ("SmolLM2-135M in mixed precision, training, 1 x 256 tokens", &[
        time("bf16_llama_lora_qv_speed_vs_f32", case(SmolLm2, Train, LoraQv, Ours), case(SmolLm2, Train, LoraQv, OursBf16), Nothing),
        memory("bf16_llama_lora_qv_peak_vs_f32", case(SmolLm2, Train, LoraQv, OursBf16), case(SmolLm2, Train, LoraQv, Ours), Nothing),
        time("bf16_llama_lora_qv_speed_vs_hf", case(SmolLm2, Train, LoraQv, Hf), case(SmolLm2, Train, LoraQv, OursBf16), Nothing),
        time("bf16_llama_lora_qv_speed_vs_hf_bf16", case(SmolLm2, Train, LoraQv, HfBf16), case(SmolLm2, Train, LoraQv, OursBf16), Nothing),
        time("bf16_llama_lora_all_speed_vs_f32", case(SmolLm2, Train, LoraAll, Ours), case(SmolLm2, Train, LoraAll, OursBf16), Nothing),
        time("bf16_llama_lora_all_speed_vs_hf", case(SmolLm2, Train, LoraAll, Hf), case(SmolLm2, Train, LoraAll, OursBf16), Nothing),
        time("bf16_llama_lora_all_speed_vs_hf_bf16", case(SmolLm2, Train, LoraAll, HfBf16), case(SmolLm2, Train, LoraAll, OursBf16), Nothing),
        time("bf16_llama_lora_all_halves_speed_vs_f32", case(SmolLm2, Train, LoraAll, Ours), case(SmolLm2, Train, LoraAllHalves, OursBf16), Nothing),
        time("bf16_llama_lora_all_halves_speed_vs_bf16", case(SmolLm2, Train, LoraAll, OursBf16), case(SmolLm2, Train, LoraAllHalves, OursBf16), Nothing),
        memory("bf16_llama_lora_all_halves_peak_vs_f32", case(SmolLm2, Train, LoraAllHalves, OursBf16), case(SmolLm2, Train, LoraAll, Ours), Nothing),
        time("bf16_qlora_all_speed_vs_f32", case(SmolLm2, Train, QloraAll, Ours), case(SmolLm2, Train, QloraAll, OursBf16), Nothing),
        memory("bf16_qlora_all_peak_vs_f32", case(SmolLm2, Train, QloraAll, OursBf16), case(SmolLm2, Train, QloraAll, Ours), Nothing),
        time("bf16_qlora_all_speed_vs_hf", case(SmolLm2, Train, QloraAll, Hf), case(SmolLm2, Train, QloraAll, OursBf16), Nothing),
        time("bf16_qlora_all_speed_vs_hf_bf16", case(SmolLm2, Train, QloraAll, HfBf16), case(SmolLm2, Train, QloraAll, OursBf16), Nothing),
    ]),
    ("SmolLM2-135M with gradient checkpointing, training, 1 x 256 tokens", &[
        memory("llama_checkpointing_peak", case(SmolLm2, Train, LoraAllCheckpointed, Ours), case(SmolLm2, Train, LoraAll, Ours), Nothing),
        time("llama_checkpointing_step", case(SmolLm2, Train, LoraAllCheckpointed, Ours), case(SmolLm2, Train, LoraAll, Ours), Nothing),
        memory("qlora_checkpointing_peak", case(SmolLm2, Train, QloraAllCheckpointed, Ours), case(SmolLm2, Train, QloraAll, Ours), Nothing),
        time("qlora_checkpointing_step", case(SmolLm2, Train, QloraAllCheckpointed, Ours), case(SmolLm2, Train, QloraAll, Ours), Nothing),
        memory("qlora_checkpointing_peak_vs_lora", case(SmolLm2, Train, QloraAllCheckpointed, Ours), case(SmolLm2, Train, LoraAll, Ours), Nothing),
    ]),
    ("SmolLM2-135M, reading a prompt, 1 x 256 tokens", &[
        time("llama_lora_qv_latency_unmerged", case(SmolLm2, Infer, LoraQv, Ours), case(SmolLm2, Infer, Base, Ours), Nothing),
        time("llama_lora_all_latency_unmerged", case(SmolLm2, Infer, LoraAll, Ours), case(SmolLm2, Infer, Base, Ours), Nothing),
        time("qlora_all_latency_unmerged", case(SmolLm2, Infer, QloraAll, Ours), case(SmolLm2, Infer, Base, Ours), Nothing),
    ]),
    ("Linear 4096 x 4096, training, 512 tokens", &[
        time("linear_lora_step_vs_full", case(Linear, Train, LoraAll, Ours), case(Linear, Train, Full, Ours), Nothing),
        time("linear_lora_speed_vs_burn", case(Linear, Train, LoraAll, Burn), case(Linear, Train, LoraAll, Ours), Nothing),
        memory("linear_lora_memory_vs_burn", case(Linear, Train, LoraAll, Ours), case(Linear, Train, LoraAll, Burn), Nothing),
        time("linear_lora_speed_vs_hf", case(Linear, Train, LoraAll, Hf), case(Linear, Train, LoraAll, Ours), Nothing),
        time("linear_lora_latency_unmerged", case(Linear, Infer, LoraAll, Ours), case(Linear, Infer, Base, Ours), Nothing),
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_ratio_has_a_name_of_its_own() {
        let mut names = HashSet::new();
        for ratio in GROUPS.iter().flat_map(|(_, group)| *group) {
            assert!(names.insert(ratio.name), "{} twice", ratio.name);
        }
    }
}
