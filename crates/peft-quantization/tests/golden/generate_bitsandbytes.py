"""What bitsandbytes makes of random matrices on a CPU: 4-bit codes, scales (plain and quantized again), decoded values.

usage: generate_bitsandbytes.py bitsandbytes.safetensors 11   (bitsandbytes 0.50.0, torch 2.15)
"""
import sys

import bitsandbytes.functional as functional
import torch
from safetensors.torch import save_file

OUT, SEED = sys.argv[1], int(sys.argv[2])
SHAPES = {"square": (64, 128), "wide": (24, 384), "tall": (384, 24), "ragged": (7, 51), "outlier": (128, 64)}


def main():
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in SHAPES.items():
        x = torch.randn(shape, generator=generator) * 0.05
        if name == "outlier":
            x[3, 5] = 7.0
            x[100] = 0.0
        tensors[f"{name}.x"] = x
        for kind in ("nf4", "fp4"):
            for block in (64, 128):
                codes, state = functional.quantize_4bit(x, blocksize=block, quant_type=kind, compress_statistics=False)
                tensors[f"{name}.{kind}.b{block}.packed"] = codes
                tensors[f"{name}.{kind}.b{block}.absmax"] = state.absmax
                tensors[f"{name}.{kind}.b{block}.dequant"] = functional.dequantize_4bit(codes, state)
            codes, state = functional.quantize_4bit(x, blocksize=64, quant_type=kind, compress_statistics=True)
            tensors[f"{name}.{kind}.dq.packed"] = codes
            tensors[f"{name}.{kind}.dq.absmax_u8"] = state.absmax
            tensors[f"{name}.{kind}.dq.offset"] = state.offset.reshape(1).float()
            tensors[f"{name}.{kind}.dq.nested_absmax"] = state.state2.absmax
            tensors[f"{name}.{kind}.dq.nested_code"] = state.state2.code
            tensors[f"{name}.{kind}.dq.dequant"] = functional.dequantize_4bit(codes, state)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, OUT)


if __name__ == "__main__":
    main()
