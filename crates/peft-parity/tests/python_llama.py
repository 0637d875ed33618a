"""Loads adapters with Hugging Face PEFT, and merged models with transformers, and says how far their logits are from
those in io.safetensors.

Usage: python_llama.py BASE CASES, where a case is a folder with `adapter`, `merged` (or not) and `io.safetensors`.
Prints one JSON object: the largest differences, relative to the largest logit, or an error, by case.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def check(base, case):
    io = load_file(case / "io.safetensors")

    def run(model):
        config = getattr(model, "active_peft_config", None)
        several = config is not None and config.peft_type == "MULTITASK_PROMPT_TUNING"
        tasks = {"task_ids": io["task_of_each_token"][:, 0]} if several else {}
        logits = model(input_ids=io["input_ids"], **tasks).logits
        return ((logits - io["output"]).abs().max() / io["output"].abs().max()).item()

    found = {"warnings": []}
    if (case / "adapter").exists():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(plain(base), case / "adapter").eval()
        found["warnings"] = [str(w.message) for w in caught if "adapter keys" in str(w.message)]
        found["adapter"] = run(model)
    if (case / "merged").exists():
        found["merged"] = run(plain(case / "merged"))
    return found


results = {}
for case in sorted(Path(sys.argv[2]).iterdir()):
    try:
        results[case.name] = check(sys.argv[1], case)
    except Exception as error:
        results[case.name] = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(results))
