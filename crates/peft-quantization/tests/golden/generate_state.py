"""Weights as bitsandbytes keeps them in checkpoints. usage: generate_state.py OUT.safetensors (bitsandbytes 0.50, CPU)"""
import sys

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

generator = torch.Generator().manual_seed(7)
tensors = {}
cases = [
    ("nested", (48, 80), "nf4", 64, True, torch.float32),
    ("large", (272, 256), "nf4", 64, True, torch.bfloat16),
    ("plain", (5, 7), "fp4", 32, False, torch.float16),
]
for name, shape, kind, block_size, nested, dtype in cases:
    weight = (torch.randn(shape, generator=generator) * 0.05).to(dtype)
    codes, state = F.quantize_4bit(weight, blocksize=block_size, quant_type=kind, compress_statistics=nested)
    tensors[f"{name}.input"] = weight.float()
    tensors[f"{name}.weight"] = codes
    for key, value in state.as_dict(packed=True).items():
        tensors[f"{name}.weight.{key}"] = value
save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, sys.argv[1])
