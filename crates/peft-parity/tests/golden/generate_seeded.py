"""Golden HF-PEFT checkpoints whose fixed numbers are not in the file but drawn again from a seed, on layers of several shapes.
usage: generate_seeded.py OUT 20261128 small   (the arguments, the base and its inputs are those of generate_hf_more.py)"""
import sys
sys.argv = sys.argv[:4] + ["no group of that script"]
import generate_hf_more as more
from peft import PveraConfig, TinyLoraConfig, UniLoraConfig, WaveFTConfig

WIDE = ["query", "intermediate.dense", "output.dense"]  # 32 x 32, 32 x 64, 64 x 32
CASES = {
    "unilora_seeded": UniLoraConfig(r=3, theta_d_length=50, proj_seed=2**40 + 7, target_modules=WIDE, init_weights=False),
    "tinylora_seeded": TinyLoraConfig(r=2, u=3, projection_seed=9, target_modules=WIDE, save_projection=False),
    "tinylora_table": TinyLoraConfig(r=3, u=6, weight_tying=0.5, target_modules=["word_embeddings", *WIDE], save_projection=False),
    "pvera_seeded": PveraConfig(r=5, projection_prng_key=4, target_modules=WIDE, init_weights=False, save_projection=False),
    "waveft_coif2": WaveFTConfig(n_frequency=60, wavelet_family="coif2", scaling=15.0, random_loc_seed=5, target_modules=WIDE,
                                 n_frequency_pattern={"query": 90}, init_weights=False),
    "waveft_db4": WaveFTConfig(n_frequency=70, wavelet_family="db4", scaling=15.0, target_modules=WIDE, proportional_parameters=True, init_weights=False),
}

if __name__ == "__main__":
    texts = more.texts("bert", 97)
    more.wanted = lambda group: group == "bert"
    for name, config in CASES.items(): more.case("bert", name, more.bert, config, texts)
