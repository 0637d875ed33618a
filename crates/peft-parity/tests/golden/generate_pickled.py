"""The files that AdapterHub's `adapters` writes by pickling, with a head beside the adapter.

usage: generate_pickled.py OUT 11   (adapters 1.3.0, transformers 4.57.6, torch 2.15)

Writes OUT/static (a head of `BertForSequenceClassification`), OUT/flexible and OUT/two_layers (of `BertAdapterModel`): the folder as
`save_adapter` leaves it, with `pytorch_adapter.bin` and `pytorch_model_head.bin`, and `io.safetensors` with the logits of the
head. The encoder is that of crates/peft-models/tests/golden/bert/base. OUT/legacy.bin is LoRA's tensors in the layout
before torch 1.6, OUT/expanded.bin one tensor of a single number that says it has a GiB.
"""
import os
import sys

import adapters
import torch
from adapters import BertAdapterModel, SeqBnConfig
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

import generate_adapterhub as common


def write(folder, model, name, batch, head=None):
    torch.manual_seed(5)
    model.add_adapter(name, config=SeqBnConfig(**common.FACTOR))
    if head:
        model.add_classification_head(name, num_labels=3, **head)
    model.train_adapter(name)
    common.perturb(model, 11)
    model.eval()
    model.set_active_adapters(name)
    with torch.no_grad():
        logits = model(**batch).logits.contiguous()
    os.makedirs(folder, exist_ok=True)
    model.save_adapter(folder, name, with_head=True)
    save_file({**batch, "output": logits}, f"{folder}/io.safetensors")


if __name__ == "__main__":
    out, seed = sys.argv[1], int(sys.argv[2])
    batch, encoder = common.inputs(seed), common.base(seed)
    config = encoder.config
    config.num_labels = 3
    torch.manual_seed(seed + 1)
    static = BertForSequenceClassification(config)
    adapters.init(static)
    flexible = BertAdapterModel(config)
    for model in (static, flexible):
        model.bert.load_state_dict(encoder.state_dict())
    write(f"{out}/static", static, "a", batch)
    write(f"{out}/flexible", flexible, "b", batch, {"layers": 1, "use_pooler": True})
    write(f"{out}/two_layers", flexible, "c", batch, {"layers": 2})
    query = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {
        f"{query}.lora_A.weight": torch.arange(64.0).reshape(2, 32),
        f"{query}.lora_B.weight": torch.arange(64.0).reshape(2, 32).t(),
    }
    torch.save(tensors, f"{out}/legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(1).expand(1 << 18, 1 << 10)}, f"{out}/expanded.bin")
