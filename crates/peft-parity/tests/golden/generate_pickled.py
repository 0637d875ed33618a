"""The files that AdapterHub's `adapters` writes by pickling, with a head beside the adapter.

usage: generate_pickled.py OUT 11   (adapters 1.3.0, transformers 4.57.6, torch 2.15)

Writes OUT/static, OUT/static_tokens, OUT/static_answers and OUT/static_choices (heads of `BertForSequenceClassification` and its like)
and OUT/flexible, OUT/two_layers, OUT/tokens, OUT/answers and OUT/choices (of `BertAdapterModel`): the folder as `save_adapter`
leaves it, with `pytorch_adapter.bin` and `pytorch_model_head.bin`, and `io.safetensors` with the logits of the head, and their
gradients' sum by parameter (`grad.NAME`, of mean(output^2)) for the head. Of answers the logits are those of the start and of the end, of
choices one for each text. The encoder is that of crates/peft-models/tests/golden/bert/base. OUT/legacy.bin is LoRA's tensors in the layout
before torch 1.6, OUT/expanded.bin one tensor of a single number that says it has a GiB.
"""
import os
import sys

import adapters
import torch
from adapters import BertAdapterModel, SeqBnConfig
from safetensors.torch import save_file
from transformers import (
    BertForMultipleChoice, BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification,
)

import generate_adapterhub as common


def scores(output):
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits


def write(folder, model, name, batch, add=None, **head):
    torch.manual_seed(5)
    model.add_adapter(name, config=SeqBnConfig(**common.FACTOR))
    if add:
        getattr(model, add)(name, **head)
    model.train_adapter(name)
    common.perturb(model, 11)
    model.eval()
    model.set_active_adapters(name)
    model.zero_grad()
    logits = scores(model(**batch))
    (logits**2).mean().backward()
    heads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and not key.startswith("bert.")}
    heads = {f"grad.{key}": grad.clone() for key, grad in heads.items() if "heads." not in key or f"heads.{name}." in key}
    os.makedirs(folder, exist_ok=True)
    model.save_adapter(folder, name, with_head=True)
    save_file({**batch, **heads, "output": logits.detach().contiguous()}, f"{folder}/io.safetensors")


if __name__ == "__main__":
    out, seed = sys.argv[1], int(sys.argv[2])
    batch, encoder = common.inputs(seed), common.base(seed)
    config = encoder.config
    config.num_labels = 3
    # One row of three choices.
    choices = {key: value.reshape(1, *value.shape) for key, value in batch.items()}
    for folder, of_class in [
        ("static", BertForSequenceClassification), ("static_tokens", BertForTokenClassification),
        ("static_answers", BertForQuestionAnswering), ("static_choices", BertForMultipleChoice),
    ]:
        torch.manual_seed(seed + 1)
        config.num_labels = 2 if of_class is BertForQuestionAnswering else 3
        static = of_class(config)
        adapters.init(static)
        known = {key: value for key, value in encoder.state_dict().items() if key in static.bert.state_dict()}
        static.bert.load_state_dict(known)
        write(f"{out}/{folder}", static, "a", choices if folder == "static_choices" else batch)
    config.num_labels = 3
    torch.manual_seed(seed + 1)
    flexible = BertAdapterModel(config)
    flexible.bert.load_state_dict(encoder.state_dict())
    classes = "add_classification_head"
    write(f"{out}/flexible", flexible, "b", batch, classes, num_labels=3, layers=1, use_pooler=True)
    write(f"{out}/two_layers", flexible, "c", batch, classes, num_labels=3, layers=2)
    write(f"{out}/tokens", flexible, "d", batch, "add_tagging_head", num_labels=3)
    write(f"{out}/answers", flexible, "e", batch, "add_qa_head")
    write(f"{out}/choices", flexible, "f", choices, "add_multiple_choice_head", num_choices=3)
    query = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {
        f"{query}.lora_A.weight": torch.arange(64.0).reshape(2, 32),
        f"{query}.lora_B.weight": torch.arange(64.0).reshape(2, 32).t(),
    }
    torch.save(tensors, f"{out}/legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(1).expand(1 << 18, 1 << 10)}, f"{out}/expanded.bin")
