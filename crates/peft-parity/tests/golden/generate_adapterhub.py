"""Adapters of AdapterHub's `adapters` on the tiny random BERT, and the hidden states that it computes.

usage: generate_adapterhub.py OUT 11 [CASE ...]   (adapters 1.3.0, transformers 4.57.6, torch 2.15)

Writes OUT/CASE for each case: adapter_config.json, adapter.safetensors (the library's own file is a pickle),
io.safetensors and, for one adapter, grads.safetensors (of mean(output^2), by the names of the file). The base is that of
crates/peft-models/tests/golden/bert/base.

Of a model without a head the library forgets `shared_parameters` when it saves: it looks for a name with a dot in front.
They are added here, under the name that the library gives them.
"""
import json
import os
import sys

import adapters
import adapters.composition as composition
import torch
from adapters import (
    AdapterPlusConfig, BnConfig, CompacterConfig, CompacterPlusPlusConfig, DiReftConfig, DoRAConfig, DoubleSeqBnConfig, IA3Config,
    DvoRAConfig, LoRAConfig, LoReftConfig, MAMConfig, MTLLoRAConfig, NoReftConfig, ParBnConfig, PrefixTuningConfig,
    PromptTuningConfig, SeqBnConfig, SeqBnInvConfig, UniPELTConfig, VeraConfig,
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
    "prefix_tuning_leaky": PrefixTuningConfig(
        prefix_length=2, bottleneck_size=6, non_linearity="leakyrelu", leave_out=[0]
    ),
    "prompt_tuning": PromptTuningConfig(prompt_length=5),
    "prompt_tuning_eager": PromptTuningConfig(prompt_length=5),
    "prompt_bos_eager": PromptTuningConfig(prompt_length=4, combine="prefix_after_bos"),
    "lora": LoRAConfig(r=4, alpha=8),
    "lora_everywhere": LoRAConfig(
        r=3, alpha=7, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, leave_out=[1]
    ),
    "lora_gating": LoRAConfig(r=4, alpha=8, use_gating=True, intermediate_lora=True),
    "lora_bert": LoRAConfig(r=2, alpha=6, init_weights="bert", attn_matrices=["k"], composition_mode="add"),
    "dora": DoRAConfig(r=4, alpha=8, output_lora=True),
    "dora_gating": DoRAConfig(r=2, alpha=4, use_gating=True),
    "vera": VeraConfig(r=3, alpha=6, vera_b=0.2, init_weights_seed=5),
    "vera_ones": VeraConfig(r=3, alpha=6, vera_b=0.2, init_weights="ia3", init_weights_seed=5),
    "vera_saved": VeraConfig(r=3, alpha=6, use_gating=True),
    "vera_zero": LoRAConfig(r=3, alpha=6, vera_d=0.1, vera_b=0.2),
    "dvora": DvoRAConfig(r=3, alpha=6, vera_b=0.2, init_weights_seed=7, attn_matrices=["q", "k", "v"]),
    "mtl_lora": MTLLoRAConfig(r=3, alpha=7, n_up_projection=2, weights_sharpness=0.5, output_lora=True),
    "mtl_lora_gating": MTLLoRAConfig(r=2, alpha=4, use_gating=True),
    "ia3": IA3Config(),
    "ia3_gating": IA3Config(use_gating=True, output_lora=True),
    "ia3_alpha": IA3Config(alpha=2, attn_matrices=["q"], init_weights="bert"),
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
EAGER = ["prompt_tuning_eager", "prompt_bos_eager"]
# Of VeRA's shared matrices these configurations say all: by a seed, or as a product with zeros.
LACKING = ["vera", "vera_ones", "vera_zero", "dvora"]
# Those of which the merged model's output is written, too.
MERGED = ["lora", "lora_everywhere", "lora_bert"]
# Compositions of compositions. The library applies a sublayer's residual and norm once more to each adapter of a stack that
# is inside another composition, where the adapters see the state behind them (as SeqBnConfig's do); those of
# DoubleSeqBnConfig do not.
NESTED_KINDS = {
    "bn": DoubleSeqBnConfig(reduction_factor=8),
    "lora": LoRAConfig(r=2, alpha=6),
    "ia3": IA3Config(),
}
Stack, Average, Parallel = composition.Stack, composition.Average, composition.Parallel
BatchSplit, Split, Fuse = composition.BatchSplit, composition.Split, composition.Fuse
NESTED = {
    "stack_average": Stack("b", Average("c", "a", weights=[0.3, 0.7])),
    "average_stack": Average(Stack("b", "a"), "c"),
    "split_rows_stack": BatchSplit(Stack("b", "a"), "c", batch_sizes=[1, 2]),
    "stack_split_rows": Stack("b", BatchSplit("a", "c", batch_sizes=[2, 1])),
    "rows_average": BatchSplit("b", Average("c", "a"), batch_sizes=[1, 2]),
    "rows_rows": BatchSplit("b", BatchSplit("a", "c", batch_sizes=[1, 1]), batch_sizes=[1, 2]),
    "average_rows": Average("b", BatchSplit("a", "c", batch_sizes=[1, 2]), weights=[0.2, 0.8]),
    "stack_parallel": Stack("b", Parallel("a", "c")),
    "parallel_stack": Parallel(Stack("b", "a"), "c"),
    "parallel_average": Parallel("b", Average("c", "a")),
    "split": Split("b", "a", splits=[4, 7]),
    "stack_split": Stack("b", Split("a", "c", splits=[4, 7])),
    "split_stack": Split(Stack("b", "a"), "c", splits=[4, 7]),
    "split_average": Split("b", Average("c", "a"), splits=[4, 7]),
    "split_rows": Split("b", BatchSplit("a", "c", batch_sizes=[1, 2]), splits=[4, 7]),
    "split_split": Split("b", Split("a", "c", splits=[3, 4]), splits=[4, 7]),
    "average_split": Average("b", Split("a", "c", splits=[4, 7])),
    "stack_fuse": Stack("c", Fuse("a", "b")),
    "fuse_stack": Fuse(Stack("c", "a"), "b"),
}
# Of LoRA and IA3 the library has no Split and no Fuse. It puts the change of one LoRA into the next of a stack, as if the
# layers were one behind the other, and so drops the first one's.
NESTED_OF = {
    "bn": list(NESTED),
    "lora": ["rows_average", "rows_rows", "average_rows", "parallel_average"],
    "ia3": ["split_rows_stack", "stack_split_rows", "rows_rows", "stack_parallel", "parallel_stack"],
}
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
    forgotten = [] if name in LACKING else model.named_parameters()
    keys = plain_tensors(folder, {key: p.detach() for key, p in forgotten if key.startswith(shared)})
    grads = {key: grad.clone().contiguous() for key, grad in grads.items() if key in keys}
    io = {**batch, "output": found.detach().contiguous()}
    if name in MERGED:
        model.merge_adapter(name)
        with torch.no_grad():
            io["merged"] = output(model, batch).contiguous()
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


def write_nested(out, kind, chosen, seed):
    batch = inputs(seed)
    model = base(seed)
    torch.manual_seed(seed + 6)
    for adapter in ("a", "b", "c"):
        model.add_adapter(adapter, config=NESTED_KINDS[kind])
    for adapter in ("a", "b", "c"):
        model.train_adapter([adapter])
        perturb(model, seed + ord(adapter))
    first = None
    for name in NESTED_OF[kind]:
        folder = f"{out}/nested_{kind}_{name}"
        setup = NESTED[name]
        os.makedirs(folder, exist_ok=True)
        if first is None:
            first = folder
            for adapter in ("a", "b", "c"):
                os.makedirs(f"{folder}/{adapter}", exist_ok=True)
                model.save_adapter(f"{folder}/{adapter}", adapter)
                plain_tensors(f"{folder}/{adapter}")
        else:
            with open(f"{folder}/adapters", "w") as file:
                file.write(f"../{os.path.basename(first)}\n")
        if "fuse" in name and not os.path.exists(f"{first}/fusion"):
            model.add_adapter_fusion(["a", "b"])
            model.train_adapter_fusion(Fuse("a", "b"))
            perturb(model, seed)
            os.makedirs(f"{first}/fusion", exist_ok=True)
            model.save_adapter_fusion(f"{first}/fusion", "a,b")
            plain_tensors(f"{first}/fusion")
        model.active_adapters = setup
        model.eval()
        with torch.no_grad():
            found = output(model, batch).contiguous()
        with open(f"{folder}/adapter_setup.json", "w") as file:
            json.dump({"adapter_composition": model.active_adapters.to_dict()}, file, indent=1)
            file.write("\n")
        copies = found.shape[0] // batch["input_ids"].shape[0]
        repeated = {key: value.repeat(copies, 1) for key, value in batch.items()}
        if f"nested_{kind}_{name}" in chosen:
            save_file({**repeated, "output": found}, f"{folder}/io.safetensors")


if __name__ == "__main__":
    out, seed = sys.argv[1], int(sys.argv[2])
    nested = [f"nested_{kind}_{name}" for kind, names in NESTED_OF.items() for name in names]
    chosen = sys.argv[3:] or [*CASES, *COMPOSED, *nested]
    for name, config in CASES.items():
        if name in chosen:
            write_case(f"{out}/{name}", name, config, seed)
    if any(name in COMPOSED for name in chosen):
        write_composed(out, chosen, seed)
    for kind in NESTED_KINDS:
        if any(name.startswith(f"nested_{kind}_") for name in chosen):
            write_nested(out, kind, chosen, seed)
