"""Adapters that Hugging Face PEFT saves over a model whose vocabulary has grown.

usage: generate.py OUT SEED

With torch 2.15, transformers 5.24 and peft 0.21.2. The bases are those of the tests of peft-models: `llama/base`, whose head is
its table, `relatives/llama3`, which has a head of its own, and `bert/base`, an encoder without a head. Each case holds the checkpoint
and `io.safetensors`: token ids, new ones among them, and the logits or hidden states of a fresh load.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parent.parent
NEW = 3


def grown(base):
    kind = AutoModel if base == "bert/base" else AutoModelForCausalLM
    model = kind.from_pretrained(GOLDEN / base, dtype=torch.float32)
    before = model.config.vocab_size
    model.resize_token_embeddings(before + NEW)
    with torch.no_grad():
        tables = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
        for table in {table.weight for table in tables}:
            table[before:] += 0.3 * torch.randn_like(table[before:])
    return model.eval(), before


def case(out, base, **options):
    model, before = grown(base)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    targets = ["query", "value"] if base == "bert/base" else ["q_proj", "v_proj"]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, **options)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad:
                value += 0.2 * torch.randn_like(value)
    adapted.save_pretrained(out, save_embedding_layers=True)
    (out / "README.md").unlink(missing_ok=True)
    config = out / "adapter_config.json"
    config.write_text(config.read_text().replace(f"{GOLDEN}/", ""))
    fresh, _ = grown(base)
    fresh.load_state_dict(start)
    fresh = PeftModel.from_pretrained(fresh, out).eval()
    ids = torch.randint(0, before + NEW, (2, 7))
    ids[0, 2], ids[1, 4], ids[1, 6] = before, before + 1, before + 2
    with torch.no_grad():
        logits = fresh(input_ids=ids)[0]
    save_file({"input_ids": ids, "output": logits.contiguous()}, out / "io.safetensors")


def main():
    out, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(seed)
    case(out / "tied", "llama/base")
    case(out / "tied_tokens", "llama/base", trainable_token_indices=[101, 102, 103])
    case(out / "untied", "relatives/llama3")
    case(out / "untied_saved", "relatives/llama3", modules_to_save=["embed_tokens", "lm_head"])
    torch.manual_seed(seed + 1)
    case(out / "bert", "bert/base")
    case(out / "bert_tokens", "bert/base", trainable_token_indices=[97, 98, 99])
    case(out / "bert_saved", "bert/base", modules_to_save=["word_embeddings"])


main()
