"""Bottleneck adapters of AdapterHub's `adapters` on the tiny random BERT, and the hidden states that it computes.

usage: generate.py OUT 11   (adapters 1.3.0, transformers 4.57.6, torch 2.15)

Writes OUT/seq_bn and OUT/double_seq_bn: adapter_config.json, adapter.safetensors (the library's own file is a pickle)
and io.safetensors. The base is that of crates/peft-models/tests/golden/bert/base.
"""
import os
import sys

import adapters
import torch
from adapters import DoubleSeqBnConfig, SeqBnConfig
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

OUT, SEED = sys.argv[1], int(sys.argv[2])
CASES = {"seq_bn": SeqBnConfig(reduction_factor=4), "double_seq_bn": DoubleSeqBnConfig(reduction_factor=4)}


def base():
    """As `bert` of crates/peft-parity/tests/golden/generate_hf_peft.py."""
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(SEED)
    model = BertModel(config).eval()
    generator = torch.Generator().manual_seed(SEED + 7)
    for _, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        else:
            parameter.data.mul_(3.0)
    return model


def inputs():
    generator = torch.Generator().manual_seed(SEED + 99)
    ids = torch.randint(1, 97, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    mask[2, 5:] = 0
    return ids, mask


def perturb(model):
    generator = torch.Generator().manual_seed(SEED + 1234)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def write_case(folder, name, config):
    ids, mask = inputs()
    model = base()
    adapters.init(model)
    torch.manual_seed(SEED + 5)
    model.add_adapter(name, config=config)
    model.train_adapter(name)
    perturb(model)
    model.eval()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask).last_hidden_state.contiguous()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    os.makedirs(folder, exist_ok=True)
    model.save_adapter(folder, name)
    for file in os.listdir(folder):
        if file.startswith("pytorch_") and file.endswith(".bin"):
            tensors = torch.load(f"{folder}/{file}", map_location="cpu", weights_only=True)
            tensors = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
            save_file(tensors, f"{folder}/adapter.safetensors")
            os.remove(f"{folder}/{file}")
    io = {"input_ids": ids, "attention_mask": mask, "output": output}
    save_file(io, f"{folder}/io.safetensors", metadata={"trainable": str(trainable)})


if __name__ == "__main__":
    for name, config in CASES.items():
        write_case(f"{OUT}/{name}", name, config)
