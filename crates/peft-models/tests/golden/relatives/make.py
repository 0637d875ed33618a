"""Tiny models of Llama's relatives with random weights, and what transformers computes with them.

Written with torch 2.15 and transformers 5.23: python make.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = dict(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def scrambled(model):
    """Every parameter matters: norms are not 1, biases not 0."""
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3 if parameter.dim() > 1 else 0.2)
        if parameter.dim() == 1:
            parameter.data.add_(0.8)
    return model.eval()


torch.manual_seed(0)
models = {
    # Biases on queries, keys and values; the head is the table.
    "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_theta=1e6, tie_word_embeddings=True)),
    # Heads that are wider than hidden_size / num_attention_heads.
    "mistral": MistralForCausalLM(MistralConfig(**SIZES, head_dim=12, rope_theta=1e6, sliding_window=None)),
    # Biases everywhere, and the scaling of Llama 3.1's frequencies.
    "llama3": LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3)),
}
ids = torch.tensor([[3, 17, 9, 40, 22, 5, 61, 8, 30, 12, 7, 2] + list(range(20, 60))])
mask = torch.ones_like(ids)
for name, model in models.items():
    folder = Path(__file__).parent / name
    scrambled(model).save_pretrained(folder)
    with torch.no_grad():
        output = model(ids, attention_mask=mask).logits.contiguous()
    save_file({"input_ids": ids, "attention_mask": mask, "output": output}, folder / "io.safetensors")
