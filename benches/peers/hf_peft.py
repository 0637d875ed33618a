"""The peer of `cargo xtask bench`: one case with Hugging Face transformers and PEFT on PyTorch, on the CPU.

    pip install torch transformers peft
    pip install bitsandbytes  # for QLoRA, which is left out without it
    PEFT_PYTHON=/path/to/python cargo xtask bench

Does the work of the Rust worker of the same name (benches/src/models): same shapes, dtype, batch, threads, optimizer. For
the language model the second argument is a folder with the weights and the batch, which `peft-bench export` writes.
Prints what it is ready to do, then runs as many iterations as each line of its input asks for and prints their times;
prints its peak memory when the input ends. One JSON object a line.
"""

import importlib.util
import json
import os
import sys
import time


def status(field):
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


import torch
from torch import nn
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel, BitsAndBytesConfig
from transformers.utils import logging

# The bar is the Rust side's.
logging.disable_progress_bar()

SHAPE, PASS, METHOD, ENGINE = sys.argv[1].split("/")
BF16 = ENGINE == "hf-bf16"
if METHOD.startswith("qlora"):
    if importlib.util.find_spec("bitsandbytes") is None:
        sys.exit("bitsandbytes is not installed: there is no QLoRA to compare with")
    import bitsandbytes  # noqa: F401 (loaded before memory is looked at, as the other libraries are)
torch.manual_seed(1)
torch.set_num_threads(len(os.sched_getaffinity(0)))
# Libraries are loaded: what comes is the model's.
BEFORE = status("VmRSS")


def lora(targets, **more):
    return LoraConfig(r=8, lora_alpha=16, target_modules=targets, **more)


def minilm():
    rows, length, dropout = {"minilm": (32, 64, 0.0), "minilm-dropout": (32, 64, 0.1), "minilm-one": (1, 128, 0.0), "minilm-rows": (8, 32, 0.0)}[SHAPE]
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    # The pooler is not used by mean pooling.
    base = BertModel(config, add_pooling_layer=False)
    names = None
    if METHOD in ("lora-qv", "lora-qv-merged"):
        encoder = get_peft_model(base, lora(["query", "value"]))
        if METHOD == "lora-qv-merged":
            encoder = encoder.merge_and_unload()
    elif METHOD == "lora-qv-rows":
        encoder = get_peft_model(base, lora(["query", "value"]), adapter_name="a0")
        for i in range(1, 8):
            encoder.add_adapter(f"a{i}", lora(["query", "value"]))
        names = [f"a{i}" for i in range(8)]
    elif METHOD == "lora-all":
        encoder = get_peft_model(base, lora(["query", "key", "value", "dense"]))
    elif METHOD == "prompt":
        encoder = get_peft_model(base, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=10))
    else:
        encoder = base
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad = METHOD == "full" or (METHOD == "bitfit" and name.endswith("bias"))

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder
            self.classifier = nn.Linear(384, 2)

        def forward(self, ids, mask):
            extra = {"adapter_names": names} if names else {}
            hidden = self.encoder(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
            hidden = hidden[:, hidden.shape[1] - mask.shape[1] :]
            weights = mask[..., None].float()
            return self.classifier((hidden * weights).sum(1) / weights.sum(1))

    model = Classifier()
    ids = torch.tensor([1000 + i * 7919 % 29000 for i in range(rows * length)]).reshape(rows, length)
    mask = torch.ones_like(ids)
    labels = torch.arange(rows) % 2
    return model, rows * length, lambda: nn.functional.cross_entropy(model(ids, mask), labels), lambda: model(ids, mask)


def smollm2():
    folder = sys.argv[2]
    with open(os.path.join(folder, "batch.json")) as file:
        batch = json.load(file)
    options = {}
    if METHOD.startswith("qlora"):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16 if BF16 else torch.float32
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **options)
    if METHOD.endswith("lora-qv"):
        model = get_peft_model(model, lora(["q_proj", "v_proj"]))
    elif METHOD.endswith("lora-all"):
        model = get_peft_model(model, lora("all-linear"))
    ids = torch.tensor(batch["ids"])[None]
    targets = torch.tensor(batch["targets"])

    def logits():
        return model(input_ids=ids, use_cache=False).logits[0]

    return model, ids.numel(), lambda: nn.functional.cross_entropy(logits(), targets), logits


def linear():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4096, 4096, bias=False)

        def forward(self, x):
            return self.linear(x)

    model = Layer()
    if METHOD == "lora-all":
        model = get_peft_model(model, lora(["linear"]))
    x = torch.rand(512, 4096)
    return model, 512, lambda: model(x.detach().requires_grad_()).square().mean(), lambda: model(x)


model, tokens, loss, infer = {"smollm2": smollm2, "linear-4096": linear}.get(SHAPE, minilm)()
trainable = [p for p in model.parameters() if p.requires_grad]
if PASS == "train":
    model.train()
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.01)

    def iterate():
        # The backward pass has the precision of each operation's forward pass.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=BF16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

else:
    model.eval()

    def iterate():
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=BF16):
            infer()


print(json.dumps({"tokens": tokens, "trainable": sum(p.numel() for p in trainable) if PASS == "train" else 0}), flush=True)
for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
        start = time.perf_counter()
        iterate()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds}), flush=True)
print(json.dumps({"peak": status("VmHWM"), "before": BEFORE}), flush=True)
