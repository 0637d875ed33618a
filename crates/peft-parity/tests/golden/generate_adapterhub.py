"""Adapters of AdapterHub's `adapters` on the tiny random BERT, and the hidden states that it computes.

usage: generate_adapterhub.py OUT 11 [CASE ...]   (adapters 1.3.0, transformers 4.57.6, torch 2.15)

Writes OUT/CASE for each case: adapter_config.json, adapter.safetensors (the library's own file is a pickle),
io.safetensors and, for one adapter, grads.safetensors (of mean(output^2), by the names of the file). The base is that of
crates/peft-models/tests/golden/bert/base.

Of a model without a head the library forgets `shared_parameters` when it saves: it looks for a name with a dot in front.
They are added here, under the name that the library gives them.
"""
import os
import sys

import adapters
import adapters.composition as composition
import torch
from adapters import (
    AdapterPlusConfig, BnConfig, CompacterConfig, CompacterPlusPlusConfig, DiReftConfig, DoRAConfig, DoubleSeqBnConfig, IA3Config,
    LoRAConfig, LoReftConfig, MAMConfig, NoReftConfig, ParBnConfig, PrefixTuningConfig, PromptTuningConfig, SeqBnConfig,
    SeqBnInvConfig, UniPELTConfig,
)
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

FACTOR = {"reduction_factor": 4}
PREFIX = {"prefix_length": 4, "bottleneck_size": 24}
CASES = {
    "seq_bn": SeqBnConfig(**FACTOR),
    "double_seq_bn": DoubleSeqBnConfig(**FACTOR),
    "par_bn": ParBnConfig(**FACTOR),
    "scaled_par_bn": ParBnConfig(scaling="learned", **FACTOR),
    "seq_bn_inv": SeqBnInvConfig(inv_adapter_reduction_factor=2, **FACTOR),
    # Stochastic depth acts in training only, and would need torchvision.
    "adapter_plus": AdapterPlusConfig(
        original_ln_after=True, residual_before_ln=True, stochastic_depth=0.0, **FACTOR
    ),
    "adapter_plus_end": AdapterPlusConfig(stochastic_depth=0.0, **FACTOR),
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
    "phm_own": SeqBnConfig(
        phm_layer=True, phm_dim=2, shared_phm_rule=False, factorized_phm_rule=True, factorized_phm_W=False,
        phm_bias=False, ln_before=True, **FACTOR,
    ),
    "phm_shared": DoubleSeqBnConfig(
        phm_layer=True, phm_rank=2, factorized_phm_rule=True, shared_W_phm=True, non_linearity="tanh", **FACTOR,
    ),
    "compacter": CompacterConfig(phm_dim=4, **FACTOR),
    "compacter_pp": CompacterPlusPlusConfig(phm_dim=4, **FACTOR),
    "prefix_tuning": PrefixTuningConfig(**PREFIX),
    "prefix_tuning_flat": PrefixTuningConfig(prefix_length=4, flat=True),
    "prompt_tuning": PromptTuningConfig(prompt_length=5),
    "prompt_tuning_eager": PromptTuningConfig(prompt_length=5),
    "lora": LoRAConfig(r=4, alpha=8),
    "lora_everywhere": LoRAConfig(
        r=3, alpha=7, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, leave_out=[1]
    ),
    "lora_gating": LoRAConfig(r=4, alpha=8, use_gating=True, intermediate_lora=True),
    "dora": DoRAConfig(r=4, alpha=4, output_lora=True),
    "ia3": IA3Config(),
    "loreft": LoReftConfig(prefix_positions=2, r=2),
    "noreft": NoReftConfig(prefix_positions=2, r=2),
    "direft": DiReftConfig(prefix_positions=2, r=2),
    # Of the shortest text one token is among the first and among the last ones.
    "loreft_tied": LoReftConfig(prefix_positions=3, suffix_positions=3, r=3, tied_weights=True, layers=[1]),
    "noreft_both": NoReftConfig(prefix_positions=3, suffix_positions=3, r=2, non_linearity="relu"),
    "direft_suffix": DiReftConfig(prefix_positions=0, suffix_positions=2, r=1),
    "mam": MAMConfig(PrefixTuningConfig(**PREFIX), ParBnConfig(**FACTOR)),
    "unipelt": UniPELTConfig(PrefixTuningConfig(**PREFIX), SeqBnConfig(**FACTOR), LoRAConfig(r=4, use_gating=True)),
}
# With torch's scaled dot product, the library lets virtual tokens attend to padding; with its own attention it does not.
EAGER = ["prompt_tuning_eager"]
# Those of which the merged model's output is written, too.
MERGED = ["lora", "lora_everywhere"]
# The library's unmerged DoRA multiplies a layer's bias, too, with magnitude over norm; its merged one does not, as the
# paper. So the merged model's output is written, and no gradients.
MERGED_ONLY = ["dora"]
COMPOSED = {
    "composition_stack": composition.Stack("a", "b"),
    "composition_average": composition.Average("a", "b", weights=[0.3, 0.7]),
    "composition_fuse": composition.Fuse("a", "b"),
}


def base(seed, attention="sdpa"):
    """As `bert` of generate_hf_peft.py."""
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    torch.manual_seed(seed)
    model = BertModel(config).eval()
    generator = torch.Generator().manual_seed(seed + 7)
    for _, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        else:
            parameter.data.mul_(3.0)
    adapters.init(model)
    return model


def inputs(seed):
    generator = torch.Generator().manual_seed(seed + 99)
    ids = torch.randint(1, 97, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    mask[2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def perturb(model, seed, std=0.05):
    generator = torch.Generator().manual_seed(seed + 1234)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * std)


def plain_tensors(folder, shared=()):
    """The pickled file as safetensors, with what the library forgets; its keys."""
    for file in os.listdir(folder):
        if file.startswith("pytorch_") and file.endswith(".bin"):
            tensors = torch.load(f"{folder}/{file}", map_location="cpu", weights_only=True)
            tensors = {key: tensor.clone().contiguous() for key, tensor in {**tensors, **dict(shared)}.items()}
            save_file(tensors, f"{folder}/adapter.safetensors")
            os.remove(f"{folder}/{file}")
            return set(tensors)


def output(model, batch):
    return model(**batch).last_hidden_state


def write_case(folder, name, config, seed):
    batch = inputs(seed)
    model = base(seed, "eager" if name in EAGER else "sdpa")
    torch.manual_seed(seed + 5)
    model.add_adapter(name, config=config)
    model.train_adapter(name)
    # Products of small factors would change nothing.
    perturb(model, seed, 0.3 if name.startswith("phm") else 0.05)
    model.eval()
    found = output(model, batch)
    (found**2).mean().backward()
    # A parameter may have several names in the file: the shortest is listed.
    names = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.grad is not None and len(key) < len(names.get(id(parameter), (key + " ",))[0]):
            names[id(parameter)] = key, parameter.grad
    grads = dict(names.values())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    os.makedirs(folder, exist_ok=True)
    model.save_adapter(folder, name)
    shared = f"shared_parameters.{name}."
    keys = plain_tensors(folder, {key: p.detach() for key, p in model.named_parameters() if key.startswith(shared)})
    grads = {key: grad.clone().contiguous() for key, grad in grads.items() if key in keys}
    io = {**batch, "output": found.detach().contiguous()}
    if name in MERGED + MERGED_ONLY:
        model.merge_adapter(name)
        with torch.no_grad():
            io["merged"] = output(model, batch).contiguous()
    if name in MERGED_ONLY:
        io["output"], grads = io.pop("merged"), {}
    save_file(io, f"{folder}/io.safetensors", metadata={"trainable": str(trainable)})
    if grads:
        save_file(grads, f"{folder}/grads.safetensors")


def write_composed(out, names, seed):
    batch = inputs(seed)
    model = base(seed)
    torch.manual_seed(seed + 6)
    for adapter in ("a", "b"):
        model.add_adapter(adapter, config=SeqBnConfig(**FACTOR))
    for adapter in ("a", "b"):
        model.train_adapter([adapter])
        perturb(model, seed)
    for name in COMPOSED:
        folder = f"{out}/{name}"
        if name == "composition_fuse":
            model.add_adapter_fusion(["a", "b"])
            model.train_adapter_fusion(COMPOSED[name])
            perturb(model, seed)
            os.makedirs(f"{folder}/fusion", exist_ok=True)
            model.save_adapter_fusion(f"{folder}/fusion", "a,b")
            plain_tensors(f"{folder}/fusion")
        model.active_adapters = COMPOSED[name]
        model.eval()
        if name not in names:
            continue
        for adapter in ("a", "b"):
            os.makedirs(f"{folder}/{adapter}", exist_ok=True)
            model.save_adapter(f"{folder}/{adapter}", adapter)
            plain_tensors(f"{folder}/{adapter}")
        with torch.no_grad():
            found = output(model, batch).contiguous()
        save_file({**batch, "output": found}, f"{folder}/io.safetensors")


if __name__ == "__main__":
    out, seed = sys.argv[1], int(sys.argv[2])
    chosen = sys.argv[3:] or [*CASES, *COMPOSED]
    for name, config in CASES.items():
        if name in chosen:
            write_case(f"{out}/{name}", name, config, seed)
    if any(name in COMPOSED for name in chosen):
        write_composed(out, chosen, seed)
