"""Bottleneck adapters of AdapterHub's `adapters` on the tiny random BERT: the hidden states that it computes, and gradients.

usage: generate.py OUT 11   (adapters 1.3.0, transformers 4.57.6, torch 2.15)

Writes a folder for each case: adapter_config.json, adapter.safetensors (the library's own file is a pickle),
io.safetensors and grads.safetensors (of mean(output²)). The base is that of crates/peft-models/tests/golden/bert/base.

Of a model without a head the library forgets `shared_parameters` when it saves: it looks for a name with a dot in
front. They are added here, under the name that the library gives them.
"""
import os
import sys

import adapters
import torch
from adapters import (
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    ParBnConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

OUT, SEED = sys.argv[1], int(sys.argv[2])
CASES = {
    "seq_bn": SeqBnConfig(reduction_factor=4),
    "double_seq_bn": DoubleSeqBnConfig(reduction_factor=4),
    "par_bn": ParBnConfig(reduction_factor=4),
    "scaled_par_bn": ParBnConfig(reduction_factor=4, scaling="learned"),
    # Stochastic depth acts in training only, and would need torchvision.
    "adapter_plus": AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
    # Every switch that fits into one adapter.
    "bn_norms": BnConfig(
        mh_adapter=True, output_adapter=True, reduction_factor={"0": 8, "default": 4}, non_linearity="leakyrelu",
        original_ln_before=True, residual_before_ln="post_add", ln_before=True, ln_after=True,
        adapter_residual_before_ln=True, use_gating=True, scaling="learned",
    ),
    "bn_residuals": BnConfig(
        mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="gelu_new", original_ln_before=True,
        residual_before_ln=False, ln_after=True, init_weights="houlsby", scaling="channel", leave_out=[0],
    ),
    "bn_parallel": BnConfig(
        mh_adapter=True, output_adapter=True, reduction_factor=4, non_linearity="quick_gelu", is_parallel=True,
        original_ln_before=False, original_ln_after=False, ln_before=True, ln_after=True, use_gating=True,
        scaling=0.7, init_weights="mam_adapter",
    ),
    "compacter": CompacterConfig(reduction_factor=4),
    "compacter_pp": CompacterPlusPlusConfig(reduction_factor=4, learn_phm=False),
    "phm_own": SeqBnConfig(
        reduction_factor=4, phm_layer=True, phm_dim=2, shared_phm_rule=False, factorized_phm_rule=True,
        factorized_phm_W=False, phm_bias=False, ln_before=True,
    ),
    "phm_shared": DoubleSeqBnConfig(
        reduction_factor=4, phm_layer=True, phm_rank=2, factorized_phm_rule=True, shared_W_phm=True, non_linearity="tanh",
    ),
    "seq_bn_inv": SeqBnInvConfig(reduction_factor=4, inv_adapter_reduction_factor=2),
}


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


def perturb(model, std):
    generator = torch.Generator().manual_seed(SEED + 1234)
    for name, parameter in model.named_parameters():
        # A rule that is not trained, too: it starts close to zero.
        if parameter.requires_grad or name.startswith("shared_parameters"):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * std)


def write_case(folder, name, config):
    ids, mask = inputs()
    model = base()
    adapters.init(model)
    torch.manual_seed(SEED + 5)
    model.add_adapter(name, config=config)
    model.train_adapter(name)
    # `learn_phm` is forgotten by `train_adapter` for what is shared.
    if name == "compacter_pp":
        model.shared_parameters[name]["phm_rule"].requires_grad = False
    # Products of small factors would change nothing.
    perturb(model, 0.3 if name.startswith("phm") else 0.05)
    model.eval()
    os.makedirs(folder, exist_ok=True)
    model.save_adapter(folder, name, use_safetensors=False)
    for file in os.listdir(folder):
        if file.startswith("pytorch_") and file.endswith(".bin"):
            state = torch.load(f"{folder}/{file}", map_location="cpu", weights_only=True)
            os.remove(f"{folder}/{file}")
            if "adapter" in file:
                tensors = {key: value.clone().contiguous() for key, value in state.items()}
    for key, value in model.named_parameters():
        if key.startswith(f"shared_parameters.{name}."):
            tensors[key] = value.detach().clone()
    save_file(tensors, f"{folder}/adapter.safetensors")
    output = model(input_ids=ids, attention_mask=mask).last_hidden_state
    output.square().mean().backward()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    count = sum(value.numel() for value in trained.values())
    meta = {"trainable": str(count)}
    written = {"input_ids": ids, "attention_mask": mask, "output": output.detach().contiguous()}
    save_file(written, f"{folder}/io.safetensors", metadata=meta)
    # By the name in memory, which has no adapter in it.
    key = lambda text: "base_model.model." + text.replace(f".adapters.{name}.", ".").replace(f".{name}.", ".")
    gradients = {key(text): value.grad.clone() for text, value in trained.items() if value.grad is not None}
    save_file(gradients, f"{folder}/grads.safetensors")
    print(name, count, len(tensors))


for name, config in CASES.items():
    write_case(f"{OUT}/{name}", name, config)
