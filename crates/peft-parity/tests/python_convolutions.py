"""Loads adapters of a small network with Hugging Face PEFT and says how far its outputs are from those in io.safetensors.

Usage: python_convolutions.py BASE CASES. Prints one JSON object: the largest difference of the outputs and of the merged
model's outputs, or an error, by case.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.line = nn.Conv1d(4, 8, 3, padding=1)
        self.grouped_line = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.picture = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, input):
        line = self.line(self.table(input).transpose(1, 2)).relu()
        line = self.grouped_line(line).relu()
        picture = self.picture(line.reshape(-1, 8, 2, 5)).relu()
        features = self.norm(self.grouped(picture)).relu().mean((2, 3))
        return self.head(features)[:, None]


@torch.no_grad()
def check(base, case):
    io = load_file(case / "io.safetensors")

    def run(model):
        return (model(input=io["input"]) - io["output"]).abs().max().item()

    model = Net().eval()
    missing = model.load_state_dict(load_file(base), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"norm.num_batches_tracked"}, missing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, case).eval()
    found = {"output": run(model), "warnings": [str(w.message) for w in caught if "adapter keys" in str(w.message)]}
    try:
        found["merged"] = run(model.merge_and_unload())
    except NotImplementedError:
        pass  # LoRA on groups cannot be merged.
    return found


results = {}
for case in sorted(Path(sys.argv[2]).iterdir()):
    try:
        results[case.name] = check(sys.argv[1], case)
    except Exception as error:
        results[case.name] = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(results))
