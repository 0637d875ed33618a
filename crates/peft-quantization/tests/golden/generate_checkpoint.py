"""Tiny Llamas as transformers saves them in 4 bits, and their logits. usage: generate_checkpoint.py OUT
(transformers 5.23, bitsandbytes 0.50, accelerate 1.15, CPU). Widths are multiples of a block: where they are not,
bitsandbytes' AVX-512 kernel takes scales of other blocks."""
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
IDS = torch.tensor([[1, 17, 5, 40, 33, 52, 2, 31, 44, 9], [1, 9, 8, 7, 6, 5, 4, 3, 30, 50]])
CASES = {
    "nf4": ({"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, True, 2),
    "fp4": (
        {
            "bnb_4bit_quant_type": "fp4",
            "bnb_4bit_quant_storage": torch.bfloat16,
            "llm_int8_skip_modules": ["lm_head", "model.layers.0.self_attn.o_proj"],
        },
        False,
        1,
    ),
}

for name, (settings, tied, layers) in CASES.items():
    config = LlamaConfig(
        vocab_size=53,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(7)
    dense = LlamaForCausalLM(config)
    with torch.no_grad():
        for key, value in dense.named_parameters():
            if "norm" in key:
                value.uniform_(0.5, 1.5)
    out = Path(sys.argv[1]) / f"llama_{name}"
    with tempfile.TemporaryDirectory() as folder:
        dense.save_pretrained(folder)
        quantization = BitsAndBytesConfig(load_in_4bit=True, **settings)
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=quantization, device_map="cpu", dtype=torch.float32
        )
    model.save_pretrained(out)
    (out / "generation_config.json").unlink()
    # In training: what is evaluated on a CPU is rounded to bfloat16 if the CPU can multiply those.
    model = LlamaForCausalLM.from_pretrained(out, device_map="cpu", dtype=torch.float32).train()
    with torch.no_grad():
        save_file({"input_ids": IDS, "logits": model(IDS).logits.contiguous()}, out / "io.safetensors")
