"""Loads adapters, and heads beside them, with AdapterHub's `adapters` and says how far its outputs are from those in io.safetensors.

Usage: adapterhub_reads.py BASE CASES. Prints one JSON object: the largest difference of the outputs, or an error, by case.
"""

import json
import sys
from pathlib import Path

import adapters
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, logging

logging.set_verbosity_error()


@torch.no_grad()
def check(base, case):
    io = load_file(case / "io.safetensors")
    head, of_class = case / "head_config.json", AutoModel
    sizes = {}
    if head.exists():
        config = json.loads(head.read_text())
        of_class, sizes = getattr(transformers, config["model_class"]), {"num_labels": config["num_labels"]}
    model = of_class.from_pretrained(base, attn_implementation="eager", **sizes).eval()
    adapters.init(model)
    missed = {}
    model.load_adapter(str(case), set_active=True, use_safetensors=True, loading_info=missed)
    output = model(input_ids=io["input_ids"], attention_mask=io["attention_mask"])
    if "start_logits" in output:
        found = torch.stack([output.start_logits, output.end_logits], dim=-1)
    else:
        found = output.logits if head.exists() else output.last_hidden_state
    distance = (found - io["output"]).abs().max().item()
    # Names of one module below another count as missing where the file has it once.
    missing = [key for key in missed.get("missing_keys", []) if ".pool." not in key]
    return {"output": distance, "warnings": missing + missed.get("unexpected_keys", [])}


results = {}
for case in sorted(Path(sys.argv[2]).iterdir()):
    try:
        results[case.name] = check(sys.argv[1], case)
    except Exception as error:
        results[case.name] = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(results))
