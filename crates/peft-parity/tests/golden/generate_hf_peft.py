"""Checkpoints of Hugging Face PEFT on a tiny random BERT and a tiny random Llama, and what PEFT computes from them.

usage: generate_hf_peft.py OUT SEED [small|hidden]

Writes OUT/bert and OUT/llama: a folder `base` (config.json, model.safetensors, io.safetensors) and one folder a case
(adapter_config.json and adapter_model.safetensors as PEFT saves them, io.safetensors, grads.safetensors and, where
PEFT drops the encoder of a soft prompt when it saves, encoder.safetensors). README.md says where they lie here. `hidden`
makes wider models with more layers and ranks; the files of this repository are `small`, which is the default.
"""
import json
import os
import shutil
import sys
import warnings

import peft
import torch
from peft import (
    AdaLoraConfig, AdaptionPromptConfig, BOFTConfig, C3AConfig, CPTConfig, FourierFTConfig, HRAConfig, IA3Config,
    LNTuningConfig, LoHaConfig, LoKrConfig, LoraConfig, MissConfig, OFTConfig, PeftModel, PrefixTuningConfig,
    PromptEncoderConfig, PromptTuningConfig, RandLoraConfig, RoadConfig, ShiraConfig, TrainableTokensConfig, VBLoRAConfig,
    VeraConfig, get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
OUT, SEED = sys.argv[1], int(sys.argv[2])
HIDDEN = sys.argv[3:4] == ["hidden"]
HiraConfig = PEFT_TYPE_TO_CONFIG_MAPPING["HIRA"]

Q = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
ALL = {
    "bert": ["query", "key", "value", "dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
RANK = 6 if HIDDEN else 4
WIDTH = 48 if HIDDEN else 32
LAYERS = 3 if HIDDEN else 2
# The case whose adapter is trained, because only that gives it ranks of its own.
SCHEDULED = "adalora_rank_pattern"
# What PEFT cannot merge, besides prompts: a bias of B where the layer has none, and prompts inside of attention.
UNMERGEABLE = [("llama", "lora_bias"), ("llama", "adaption_prompt")]


def scramble(model):
    """Norms and biases that are not 1 and 0, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(SEED + 7)
    for _, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        else:
            parameter.data.mul_(3.0)
    return model


def bert():
    config = BertConfig(
        vocab_size=97, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=2 * WIDTH,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(SEED)
    return scramble(BertModel(config, add_pooling_layer=True).eval())


def llama():
    config = LlamaConfig(
        vocab_size=101, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * WIDTH, max_position_embeddings=64, tie_word_embeddings=True, rope_theta=10000.0,
    )
    torch.manual_seed(SEED + 1)
    return scramble(LlamaForCausalLM(config).eval())


def of_both(arch):
    """The cases of both models."""
    q, every = Q[arch], ALL[arch]
    is_bert = arch == "bert"
    task = "FEATURE_EXTRACTION" if is_bert else "CAUSAL_LM"
    lora = {"r": RANK, "init_lora_weights": False}
    own = {"target_modules": q, "init_weights": False}
    # VeRA and RandLoRA share their projections between layers, whose shapes must be equal then.
    equal = q if is_bert else ["q_proj"]
    embeddings = ["word_embeddings"] if is_bert else ["embed_tokens"]
    layer_1 = r".*layers?\.1\..*(query|value|q_proj|v_proj)"
    return {
        "lora": LoraConfig(lora_alpha=3 * RANK, target_modules=q, **lora),
        "lora_all_linear": LoraConfig(lora_alpha=RANK, target_modules="all-linear", **lora),
        "lora_rslora": LoraConfig(lora_alpha=5, use_rslora=True, target_modules=every, **lora),
        "lora_dora": LoraConfig(lora_alpha=7, use_dora=True, target_modules=q, **lora),
        "lora_patterns": LoraConfig(
            lora_alpha=4, target_modules=every, rank_pattern={q[0]: RANK + 2, q[1]: 2}, alpha_pattern={q[1]: 9}, **lora
        ),
        "lora_regex_layers": LoraConfig(lora_alpha=4, target_modules=layer_1, **lora),
        "lora_layers_to_transform": LoraConfig(
            lora_alpha=4, target_modules=q, layers_to_transform=[0], layers_pattern="layer" if is_bert else "layers", **lora
        ),
        "lora_exclude": LoraConfig(lora_alpha=4, target_modules=every, exclude_modules=[q[0]], **lora),
        "lora_embedding": LoraConfig(lora_alpha=4, target_modules=q + embeddings, **lora),
        "lora_bias": LoraConfig(lora_alpha=4, target_modules=q, lora_bias=True, **lora),
        "lora_pissa": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=q, init_lora_weights="pissa"),
        "adalora": AdaLoraConfig(
            init_r=RANK, target_r=2, total_step=100, tinit=10, tfinal=10, lora_alpha=8, target_modules=q,
            init_lora_weights=False,
        ),
        "loha": LoHaConfig(r=RANK, alpha=8, **own),
        "lokr": LoKrConfig(r=RANK, alpha=8, **own),
        "lokr_both": LoKrConfig(
            r=2, alpha=8, decompose_both=True, decompose_factor=4, target_modules=every, init_weights=False
        ),
        "oft": OFTConfig(r=0, oft_block_size=8, **own),
        "boft": BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, **own),
        "hra": HRAConfig(r=RANK, **own),
        "vera": VeraConfig(r=16, target_modules=equal, init_weights=False, save_projection=True),
        "fourierft": FourierFTConfig(n_frequency=40, **own),
        "randlora": RandLoraConfig(r=RANK, target_modules=equal, init_weights=False, save_projection=True),
        "vblora": VBLoRAConfig(r=RANK, num_vectors=20, vector_length=8, topk=2, target_modules=q),
        "c3a": C3AConfig(block_size=8, **own),
        "miss": MissConfig(r=RANK, **own),
        "prompt_tuning": PromptTuningConfig(task_type=task, num_virtual_tokens=5),
        "prefix_tuning": PrefixTuningConfig(task_type=task, num_virtual_tokens=4),
        "prefix_tuning_projection": PrefixTuningConfig(
            task_type=task, num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=24
        ),
    }


def of_other_types(arch):
    """Further types of PEFT, on both models or on the Llama alone."""
    q = Q[arch]
    is_bert = arch == "bert"
    task = "FEATURE_EXTRACTION" if is_bert else "CAUSAL_LM"
    key, down = ("key", "output.dense") if is_bert else ("k_proj", "down_proj")
    norms = ["LayerNorm"] if is_bert else ["input_layernorm", "post_attention_layernorm"]
    p_tuning = {"task_type": task, "num_virtual_tokens": 5, "encoder_hidden_size": 24}
    cases = {
        "ia3": IA3Config(target_modules=[key, q[1], down], feedforward_modules=[down], init_ia3_weights=False),
        "ln_tuning": LNTuningConfig(target_modules=norms),
        "p_tuning_lstm": PromptEncoderConfig(
            encoder_reparameterization_type="LSTM", encoder_num_layers=2, **p_tuning
        ),
        "p_tuning_mlp": PromptEncoderConfig(**p_tuning),
        "road": RoadConfig(
            variant="road_2" if HIDDEN else "road_1", group_size=8, target_modules=q, init_weights=False
        ),
        "shira": ShiraConfig(r=RANK, target_modules=q, init_weights=False),
    }
    if not is_bert:
        cases["adaption_prompt"] = AdaptionPromptConfig(task_type=task, adapter_len=4, adapter_layers=2)
        cases["cpt"] = CPTConfig(
            task_type=task, cpt_token_ids=[3, 5, 7, 11, 13], cpt_mask=[1] * 5, cpt_tokens_type_mask=[1, 2, 2, 3, 4]
        )
        cases["trainable_tokens"] = TrainableTokensConfig(token_indices=[2, 5, 60], target_modules=["embed_tokens"])
    return cases


def of_bert():
    """What is checked on BERT alone: options of the methods above."""
    q, every = Q["bert"], ALL["bert"]
    lora = {"r": RANK, "init_lora_weights": False}
    return {
        "lora_bias_all": LoraConfig(lora_alpha=4, target_modules=q, bias="all", **lora),
        "lora_bias_lora_only": LoraConfig(lora_alpha=4, target_modules=q, bias="lora_only", **lora),
        "lora_modules_to_save": LoraConfig(lora_alpha=4, target_modules=q, modules_to_save=["pooler"], **lora),
        "lora_token_rows": LoraConfig(lora_alpha=6, target_modules=q, trainable_token_indices=[4, 9, 60], **lora),
        "lora_token_rows_named": LoraConfig(
            lora_alpha=6, target_modules=["query"],
            trainable_token_indices={"word_embeddings": [7, 5], "position_embeddings": [0, 3]}, **lora,
        ),
        SCHEDULED: AdaLoraConfig(
            init_r=6, target_r=3, total_step=12, tinit=2, tfinal=3, deltaT=2, lora_alpha=20,
            target_modules=["query", "value", "output.dense"],
        ),
        "boft_butterfly": BOFTConfig(
            boft_block_size=0, boft_block_num=8, boft_n_butterfly_factor=3, target_modules=["query", "output.dense"],
            init_weights=False,
        ),
        "c3a_patterns": C3AConfig(
            block_size=8, block_size_pattern={"query": WIDTH, r"layer\.1\..*dense": 2},
            target_modules=["query", "key", "output.dense"], init_weights="gaussian",
        ),
        "fourierft_patterns": FourierFTConfig(
            n_frequency=6, n_frequency_pattern={"query": 90, r"layer\.1\..*value": 1000}, scaling=60.0,
            random_loc_seed=1099511627787, target_modules=["query", "value", "output.dense"], init_weights=False,
        ),
        "hira": HiraConfig(r=RANK, target_modules=q, init_weights=False),
        "hira_patterns_embedding": HiraConfig(
            r=RANK, rank_pattern={"query": 6, r"layer\.1\..*dense": 2}, exclude_modules=".*pooler.*",
            target_modules=["query", "value", "dense", "word_embeddings"], init_weights=False,
        ),
        "hra_all": HRAConfig(r=7, target_modules=every, init_weights=False),
        "hra_gs": HRAConfig(r=3, apply_GS=True, bias="hra_only", target_modules=["value", "dense"], init_weights=False),
        "loha_patterns": LoHaConfig(
            r=2, rank_pattern={"query": 5}, alpha=12, alpha_pattern={r"layer\.1\..*": 20}, target_modules=every,
            init_weights=False,
        ),
        "lokr_patterns": LoKrConfig(
            r=1, rank_pattern={"value": 3}, alpha=3, alpha_pattern={"key": 6}, decompose_both=True, decompose_factor=8,
            target_modules=every, init_weights="lycoris",
        ),
        "road_2": RoadConfig(variant="road_2", group_size=16, target_modules=every, init_weights=False),
        "road_4": RoadConfig(variant="road_4", group_size=4, target_modules=every, init_weights=False),
        "miss_bat": MissConfig(r=8, target_modules=every, init_weights="bat"),
        "miss_mini": MissConfig(r=6, mini_r=8, target_modules=every, init_weights="mini"),
        "miss_remainder": MissConfig(r=5, bias="all", target_modules=every, init_weights=False),
        "oft_coft_share": OFTConfig(
            r=0, oft_block_size=7, block_share=True, coft=True, eps=0.4, num_cayley_neumann_terms=3, target_modules=q,
            init_weights=False,
        ),
        "oft_exact": OFTConfig(
            r=4, oft_block_size=0, use_cayley_neumann=False, bias="oft_only", exclude_modules=["pooler.dense"],
            target_modules=["query", "dense"], init_weights=False,
        ),
    }


def of_llama():
    """What is checked on the Llama alone."""
    lora = {"r": RANK, "init_lora_weights": False}
    return {"lora_trainable_tokens": LoraConfig(target_modules=Q["llama"], trainable_token_indices=[4, 9], **lora)}


def inputs(vocabulary):
    generator = torch.Generator().manual_seed(SEED + 99)
    ids = torch.randint(1, vocabulary, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    mask[2, 5:] = 0
    return ids, mask


def perturb(model):
    """A "trained" adapter: no output depends on the initial values alone."""
    generator = torch.Generator().manual_seed(SEED + 1234)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def output(model, ids, mask):
    result = model(input_ids=ids, attention_mask=mask)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def allocate(model, ids, mask):
    """AdaLoRA's schedule, to its end: ranks are taken from singular values and gradients."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(12):
        optimizer.zero_grad()
        (output(model, ids, mask) ** 2).mean().backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)


def tidy(folder):
    """Drops the model card, and what depends on the machine and the order of sets."""
    card = f"{folder}/README.md"
    if os.path.exists(card):
        os.remove(card)
    path = f"{folder}/adapter_config.json"
    with open(path) as file:
        config = json.load(file)
    config["base_model_name_or_path"] = "../base"
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    with open(path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)


def write_case(folder, arch, name, make, config, ids, mask):
    torch.manual_seed(SEED + 5)
    model = get_peft_model(make(), config).eval()
    perturb(model)
    if name == SCHEDULED:
        allocate(model, ids, mask)
    if config.is_prompt_learning:
        model.peft_config["default"].inference_mode = False
    model.save_pretrained(folder)
    tidy(folder)
    if name == SCHEDULED:
        # Of the ranks that are left.
        model = PeftModel.from_pretrained(make(), folder, is_trainable=True).eval()
    with safe_open(f"{folder}/adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    named = {n.replace(".default", ""): p for n, p in model.named_parameters()}
    # PEFT saves what the encoder of a soft prompt computes, not the encoder.
    encoder = {n: p.detach().clone().contiguous() for n, p in named.items() if n.startswith("prompt_encoder.")}
    if encoder:
        save_file(encoder, f"{folder}/encoder.safetensors")
    model.zero_grad()
    (output(model, ids, mask) ** 2).mean().backward()
    trained = {n: p for n, p in named.items() if p.requires_grad and p.grad is not None}
    grads = {n: p.grad.detach().clone().contiguous() for n, p in trained.items() if n in saved or n in encoder}
    save_file(grads, f"{folder}/grads.safetensors")
    # What is checked is what a fresh load of the folder computes.
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(make(), folder).eval()
        io = {"input_ids": ids, "attention_mask": mask, "output": output(loaded, ids, mask)}
        metadata = {"trainable": trainable, "peft_version": peft.__version__}
        if not config.is_prompt_learning and (arch, name) not in UNMERGEABLE:
            io["merged"] = output(loaded.merge_and_unload(), ids, mask)
            metadata["merge_max_abs"] = float((io["merged"] - io["output"]).abs().max())
    io = {key: tensor.contiguous() for key, tensor in io.items()}
    save_file(io, f"{folder}/io.safetensors", metadata={key: str(value) for key, value in metadata.items()})
    print(folder, metadata, len(grads), "gradients")


def methods(arch):
    """All cases of a model."""
    own = of_bert() if arch == "bert" else of_llama()
    return {**of_both(arch), **own, **of_other_types(arch)}


def main():
    for arch, make in (("bert", bert), ("llama", llama)):
        root = f"{OUT}/{arch}"
        shutil.rmtree(root, ignore_errors=True)
        base = make()
        base.save_pretrained(f"{root}/base")
        ids, mask = inputs(base.config.vocab_size)
        with torch.no_grad():
            io = {"input_ids": ids, "attention_mask": mask, "output": output(base, ids, mask).contiguous()}
        save_file(io, f"{root}/base/io.safetensors")
        for name, config in methods(arch).items():
            write_case(f"{root}/{name}", arch, name, make, config, ids, mask)


if __name__ == "__main__":
    main()
