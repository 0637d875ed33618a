"""Writes the golden values of this folder with Hugging Face's libraries.

    python generate.py

model/           a tiny random Llama with a byte-level tokenizer and a chat template
greedy.json      token ids that `generate` gives for it
processors.json  which tokens the logits processors keep, and with which probabilities
tokens.json      token ids of texts, and texts of token ids
chat.json        chats as `apply_chat_template` renders them

Written with transformers 5.23.0, tokenizers 0.23.3, Jinja2 3.1.6, torch 2.15.0.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
MODEL = HERE / "model"
SPECIAL = ["<|begin|>", "<|start|>", "<|end|>"]
CORPUS = [
    "the small cat sat on the mat and the other cats sat there too",
    "we train the adapter and keep the weights of the base as they are",
    "naïve café, größer, 小さい猫, два кота",
]
CHAT = (
    "{% for message in messages %}"
    "{% set text = '<|start|>' + message['role'] + '\\n' + message['content'] | trim + '<|end|>\\n' %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
    "{{ text }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)


def write(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.save(str(MODEL / "tokenizer.json"))
    config = {
        "bos_token": "<|begin|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        "chat_template": CHAT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (MODEL / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def make_model():
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 1,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 16,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        # Four more than the tokenizer has, as published models are padded.
        "vocab_size": 324,
    }
    (MODEL / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (MODEL / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": [2], "do_sample": True, "temperature": 0.6})
        + "\n"
    )
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(MODEL))
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if "norm" in name:
            tensors[name] = 1 + 0.3 * torch.randn_like(value)
        else:
            tensors[name] = torch.randn_like(value) * (1.0 if "embed" in name else 0.5)
    save_file(tensors, MODEL / "model.safetensors", metadata={"format": "pt"})
    (MODEL / "model.safetensors").chmod(0o644)
    return LlamaForCausalLM.from_pretrained(MODEL).eval()


def greedy(model):
    cases = []
    for prompt, penalty, count in [
        ([0, 20, 35, 70], 1.0, 40),
        ([0, 20, 35, 70], 1.3, 40),
        ([5, 5, 300, 17, 92, 260, 8], 1.1, 24),
    ]:
        out = model.generate(
            torch.tensor([prompt]),
            # Said, or it is guessed from the padding token, which the prompt begins with.
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=GenerationConfig(
                max_new_tokens=count,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=323,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            ),
        )
        gaps = [float(s[0].topk(2).values.diff().abs()) for s in out.scores]
        ids = out.sequences[0, len(prompt):].tolist()
        print("greedy", penalty, "smallest gap", min(gaps), "different", len(set(ids)), ids)
        assert len(ids) == count and min(gaps) > 1e-3
        cases.append({"prompt": prompt, "repetition_penalty": penalty, "ids": ids})
    write("greedy.json", cases)


def processor_cases(model):
    torch.manual_seed(7)
    wide = (torch.randn(24) * 2).tolist()
    flat = [0.0, 0.0, 0.0, 0.0]
    ties = [1.0, 3.0, 2.0, 2.0, 2.0, -1.0, 0.5, -4.0]
    return [
        ("temperature", wide, [], {"temperature": 0.7, "top_k": 0}),
        ("top k with ties at its edge", ties, [], {"top_k": 2}),
        ("top k beyond the vocabulary", ties, [], {"top_k": 50}),
        ("top p", wide, [], {"top_k": 0, "top_p": 0.8}),
        ("top p of zero keeps one", wide, [], {"top_k": 0, "top_p": 0.0}),
        ("top p at an exact edge with ties", flat, [], {"top_k": 0, "top_p": 0.5}),
        ("min p", wide, [], {"top_k": 0, "min_p": 0.1}),
        ("min p of one keeps the best", ties, [], {"top_k": 0, "min_p": 1.0}),
        ("repetition penalty of repeated ids", ties, [1, 1, 5, 7, 2], {"top_k": 0, "repetition_penalty": 1.5}),
        ("repetition penalty below one", ties, [3, 5], {"top_k": 0, "repetition_penalty": 0.8}),
        (
            "all of them, in upstream's order",
            wide,
            [3, 3, 9, 14, 20],
            {"repetition_penalty": 1.4, "temperature": 1.6, "top_k": 12, "top_p": 0.85, "min_p": 0.12},
        ),
        ("the defaults", wide, [0, 1], {}),
    ]


def processor_values(model):
    cases = []
    for name, logits, ids, settings in processor_cases(model):
        scores = torch.tensor([logits])
        config = GenerationConfig(do_sample=True, **settings)
        config.update(**config._get_default_generation_params(), defaults_only=True)
        chain = model._get_logits_processor(config, input_ids_seq_length=max(1, len(ids)))
        scores = chain(torch.tensor([ids], dtype=torch.long), scores)
        cases.append(
            {
                "name": name,
                "logits": torch.tensor(logits).tolist(),
                "ids": ids,
                "config": {"do_sample": True, **settings},
                "kept": (scores[0] > -torch.inf).nonzero()[:, 0].tolist(),
                "probabilities": scores.softmax(-1)[0].tolist(),
            }
        )
        print(name, [type(p).__name__ for p in chain], cases[-1]["kept"])
    write("processors.json", cases)


def token_values():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    cases = []
    for text in ["", "the cat sat", " the  café\n小さい猫🙂", "<|start|>user\nwe train<|end|>"]:
        ids = tokenizer(text).input_ids
        cases.append(
            {
                "text": text,
                "ids": tokenizer(text, add_special_tokens=False).input_ids,
                "with_special": ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False),
            }
        )
    write("tokens.json", cases)


# Own templates for published formats, with the means that theirs use: ChatML with a default system
# message; headers with a leading bos_token; a multi-line template whose blocks must be trimmed, with
# namespaces, slices, the date and refusals; Python's methods of strings, loop controls and macros.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}"
        "{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": (
        "{% set loop_messages = messages %}"
        "{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{% endif %}"
    ),
    "dated": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- The system message comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{%- if tools is not none %}
    {{- "You have tools: " ~ tools | length }}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- else %}
        {{- raise_exception("No tools here!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "alternating": """{% set ns = namespace(turns=0) %}
{% macro wrap(text) %}[INST] {{ text.strip() }} [/INST]{% endmacro %}
{% for message in messages %}
    {% if message['role'] == 'system' %}
        {% continue %}
    {% endif %}
    {% if (message['role'] == 'user') != (ns.turns % 2 == 0) %}
        {{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {% endif %}
    {% if message.role == "user" %}
{{ bos_token + wrap(message.content) }}
    {% elif message.content.startswith('<think>') and '</think>' in message.content %}
        {% set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
{{ answer | upper if answer is string else none }} {{ eos_token }}
    {% else %}
{{ ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
    {% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {% if loop.last and unknown_variable is defined %}never{% endif %}
{% endfor %}
{{ pad_token }}{{ messages | map(attribute='role') | join(',') }} {{ messages[::-1][0].role }} {{ true }} {{ none }}
""",
}
CHATS = {
    "one turn": [{"role": "user", "content": "  Hi there!\n"}],
    "system and turns": [
        {"role": "system", "content": "Answer in <b>one</b> line & stop.\n"},
        {"role": "user", "content": "What is 2 < 3?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntrue, größer"},
        {"role": "user", "content": "Thanks 🙂"},
    ],
    "assistant first": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}],
    "tool": [{"role": "tool", "content": "42"}],
}


class FixedDay(chat_template_utils.datetime):
    @classmethod
    def now(cls):
        return cls(2026, 3, 7)


def chat_values():
    chat_template_utils.datetime = FixedDay
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    cases = []
    for template, source in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for prompt in (True, False):
                try:
                    expected = tokenizer.apply_chat_template(
                        messages, chat_template=source, add_generation_prompt=prompt, tokenize=False
                    )
                    outcome = {"rendered": expected}
                except Exception as error:
                    outcome = {"error": str(error)}
                case = {"name": f"{template}, {chat}", "template": template, "messages": messages}
                cases.append({**case, "prompt": prompt, **outcome})
    write("chat.json", {"date": "07 Mar 2026", "templates": TEMPLATES, "cases": cases})


if __name__ == "__main__":
    MODEL.mkdir(exist_ok=True)
    make_tokenizer()
    model = make_model()
    greedy(model)
    processor_values(model)
    token_values()
    chat_values()
