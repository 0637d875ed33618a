"""What transformers computes from published weights: minilm_l6.safetensors and smollm2_135m.safetensors.

usage: real_models.py MINILM SMOLLM2   (the folders of all-MiniLM-L6-v2 and SmolLM2-135M-Instruct)

With torch 2.15 and transformers 5.24, in f32 on a CPU. Of SmolLM2's logits every 32nd is kept. The two files here were
written by a forerunner of this script that is lost; this one says what they hold, and has not been run on the
published weights yet.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
EVERY = 32
SENTENCES = [
    "A gripping, funny and surprisingly tender film.",
    "The plot is a mess.",
    "Adapters insert small trainable layers into a frozen network.",
]
TEXTS = ["Once upon a time, a little girl named Emma", "The capital of France is"]
LONG = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be "
    "in want of a wife. However little known the feelings or views of such a man may be on his first "
    "entering a neighbourhood, this truth is so well fixed in the minds of the surrounding families, that"
    " he is considered the rightful property of some one or other of their daughters."
)


def minilm(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    tensors = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "last_hidden_state": hidden.contiguous(),
        "mean_pooled": ((hidden * mask).sum(1) / mask.sum(1)).contiguous(),
    }
    save_file(tensors, HERE / "minilm_l6.safetensors", metadata={"texts": json.dumps(SENTENCES)})


def smollm2(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    begin = torch.tensor([[tokenizer.bos_token_id]])

    def encode(text):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return torch.cat([begin, ids], dim=1)

    tensors = {}
    for index, text in enumerate(TEXTS):
        ids = encode(text)
        tensors[f"{index}.input_ids"] = ids
        tensors[f"{index}.last_logits"] = model(ids).logits[0, -1, ::EVERY].contiguous()
        # Nothing ends the text: every step is compared.
        greedy = model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)
        tensors[f"{index}.greedy"] = greedy
    ids = encode(LONG)
    tensors["long.input_ids"] = ids
    tensors["long.nll"] = model(ids, labels=ids).loss.reshape(1)
    metadata = {"texts": json.dumps(TEXTS), "long": LONG, "every": str(EVERY)}
    save_file(tensors, HERE / "smollm2_135m.safetensors", metadata=metadata)


if __name__ == "__main__":
    with torch.no_grad():
        minilm(sys.argv[1])
        smollm2(sys.argv[2])
