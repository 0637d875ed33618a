"""What Hugging Face PEFT begins CorDA and LoRA-GA with on one long text: `init.safetensors` (A, B and the base that is left), and
the text in `io.safetensors`. With one text CorDA's C is the mean over its tokens, but for a factor; and it has so many tokens that C and
the gradient have full rank.
usage: generate_starts.py OUT 20261128 small   (the arguments and the base are those of generate_hf_more.py)"""
import os
import sys
sys.argv = sys.argv[:4] + ["no group of that script"]
import generate_hf_more as more
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import save_file

TEXT_SEED, LENGTH = 12, 40

def lora(**fields): return LoraConfig(r=2, lora_alpha=3, target_modules=["query", "value"], **fields)
CASES = {f"start_corda_{way}": lora(init_lora_weights="corda", corda_config=CordaConfig(corda_method=way)) for way in ("ipm", "kpm")}
for direction, scale in (("ArB2r", "stable"), ("A2rBr", "unit"), ("ArBr", "gd_scale")):
    CASES[f"start_lora_ga_{direction}_{scale}".lower()] = lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(direction=direction, scale=scale))

def gradient(model, text):
    def step():
        model.zero_grad(); more.loss(model, text).backward()
    return step

if __name__ == "__main__":
    ids = torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(TEXT_SEED))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, config in CASES.items():
        model = more.bert()
        if config.corda_config: preprocess_corda(model, config, run_model=lambda: more.run(model, text))
        else: preprocess_loraga(model, config, gradient(model, text))
        model = get_peft_model(model, config)
        folder = f"{sys.argv[1]}/{name}"
        os.makedirs(folder, exist_ok=True)
        rename = lambda name: name.replace(".base_layer", "").replace("base_model.model.", "").replace(".default", "")
        save_file({rename(name): param.detach().contiguous() for name, param in model.named_parameters()
                   if "lora_" in name or ".base_layer.weight" in name}, f"{folder}/init.safetensors")
        save_file(text, f"{folder}/io.safetensors")
