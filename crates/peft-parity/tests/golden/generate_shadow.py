"""Golden ShadowPEFT checkpoints beside the one of generate_hf_more.py: embeddings that are shared, several blocks of the shadow
network, and some of the model's blocks only.
usage: generate_shadow.py OUT 20261128 small   (the arguments, the base and its inputs are those of generate_hf_more.py)"""
import sys
sys.argv = sys.argv[:4] + ["no group of that script"]
import generate_hf_more as more
from peft import ShadowConfig

def shadow(**fields):
    return ShadowConfig(task_type="CAUSAL_LM", r=3, shadow_alpha=0.3, shadow_dropout=0.0, init_weights=False, **fields)

CASES = {
    "shadow_shared": shadow(shadow_num_hidden_layers=2),
    "shadow_last_block": shadow(target_modules=["model.layers.1"], share_embeddings=False, shadow_intermediate_size=20),
    "shadow_first_block": shadow(target_modules=["model.layers.0"], shadow_hidden_size=24, update_hidden_size=5),
}

if __name__ == "__main__":
    texts = more.texts("llama", 101)
    more.wanted = lambda group: group == "llama"
    for name, config in CASES.items(): more.case("llama", name, more.llama, config, texts)
