"""Loads adapters with Hugging Face PEFT and says how far its outputs are from those in io.safetensors.

Usage: python_reads.py BASE CASES. Prints one JSON object: the largest difference of the outputs and of the
merged model's outputs, or an error, by case.
"""

import inspect
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils.loftq_utils import loftq_init
from safetensors.torch import load_file
from transformers import AutoModel, logging

logging.set_verbosity_error()
logging.disable_progress_bar()

# Upstream asks for CUDA by name where it quantizes; the same code runs on a CPU.
inner = inspect.unwrap(loftq_init)
constants = tuple("cpu" if constant == "cuda" else constant for constant in inner.__code__.co_consts)
inner.__code__ = inner.__code__.replace(co_consts=constants)


@torch.no_grad()
def check(base, case):
    io = load_file(case / "io.safetensors")

    def run(model):
        output = model(input_ids=io["input_ids"], attention_mask=io["attention_mask"])
        return (output.last_hidden_state - io["output"]).abs().max().item()

    model = AutoModel.from_pretrained(base, attn_implementation="eager").eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, case).eval()
    found = {"output": run(model), "warnings": [str(w.message) for w in caught if "adapter keys" in str(w.message)]}
    try:
        found["merged"] = run(model.merge_and_unload(safe_merge=True))
    except (AttributeError, NotImplementedError):
        pass  # Prompts and mixtures cannot be merged.
    return found


results = {}
for case in sorted(Path(sys.argv[2]).iterdir()):
    try:
        results[case.name] = check(sys.argv[1], case)
    except Exception as error:
        kind = "left_out" if "bitsandbytes is not available" in str(error) else "error"
        results[case.name] = {kind: f"{type(error).__name__}: {error}"}
print(json.dumps(results))
