"""Makes types.gguf, spm.gguf, expected.safetensors and tokens.json beside this file.

Values are what llama.cpp's Python package dequantizes; ids are what a plain reading of the
definitions gives (byte-level BPE below) and what SentencePiece itself gives (spm.gguf). Nothing
here uses the tokenizers that the library uses.

Needs gguf 0.19, numpy, regex, safetensors and sentencepiece.
"""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import regex
import sentencepiece
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

HERE = Path(__file__).parent
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

TEXT = """The end of the road is where the river meets the sea. Nobody there had seen 1234 boats
on one day, nor 12 in a week; it's said they'd never come back, and they're right.

In the winter of 1987 the keeper counted 123 birds, 45 seals and 6 ships. "We've time," she said,
"and we'll need it: the light won't wait." THE END. IT'S 123 or 12345: helloWorld, helloWorld!
"""

CASES = [
    "the end",
    "They're here, aren't they? IT'S 12345 o'clock!",
    "  two  spaces,\ttabs\n\n\nand lines \n",
    "wonderful road, a wonderful road",
    "for (i = 0; i < 10; i++) { x[i] += 3.14; } // done",
    "naïve café — Größe, 東京 ½ ٣٤ 🙂",
    "helloWorld HTTPServer's $100 <a|b>",
]

# Where the f16 scales of a block lie.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Patterns, and whether a word that is a token stays whole.
KINDS = {
    "smollm": ([r"\p{N}", GPT2], False),
    "gpt-2": ([GPT2], False),
    "llama-bpe": ([LLAMA3], True),
    "qwen2": ([QWEN2], False),
    "tekken": ([TEKKEN], True),
    "default": ([r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], False),
}


def split(pieces, pattern):
    """Pieces cut at what matches and between."""
    parts = []
    for piece in pieces:
        end = 0
        for match in regex.finditer(pattern, piece):
            parts += [piece[end : match.start()], match.group()]
            end = match.end()
        parts.append(piece[end:])
    return [part for part in parts if part]


def byte_characters():
    """The visible character that GPT-2 writes for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + place) for place, byte in enumerate(hidden)
    }


BYTES = byte_characters()


def spell(word):
    return [BYTES[byte] for byte in word.encode()]


def join(symbols, pair):
    """Symbols with each occurrence of the pair made one."""
    joined, place = [], 0
    while place < len(symbols):
        if tuple(symbols[place : place + 2]) == pair:
            joined.append(symbols[place] + symbols[place + 1])
            place += 2
        else:
            joined.append(symbols[place])
            place += 1
    return joined


def learn(text):
    """The most frequent pairs, one after the other, until each word is a token."""
    words = [spell(word) for word in split([text], LLAMA3)]
    merges = []
    while pairs := Counter(pair for word in words for pair in zip(word, word[1:])):
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = [join(word, pair) for word in words]
        merges.append(pair)
    return merges


def encode(text, kind, ids, merges):
    patterns, whole = KINDS[kind]
    pieces = [text]
    for pattern in patterns:
        pieces = split(pieces, pattern)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    found = []
    for piece in pieces:
        symbols = spell(piece)
        if whole and "".join(symbols) in ids:
            symbols = ["".join(symbols)]
        while pairs := [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]:
            symbols = join(symbols, min(pairs, key=ranks.get))
        found += [ids[symbol] for symbol in symbols]
    return found


def blocks(random, kind, rows, columns):
    """Random bytes of a quantized tensor, with scales that are numbers."""
    values, size = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    for start in SCALES[kind]:
        scales = random.normal(0, 0.01, len(data)).astype(np.float16)
        data[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, -1)


def types(random, cases):
    merges = learn(TEXT)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
    kinds = [CONTROL] * 3 + [USER_DEFINED]
    tokens += [BYTES[byte] for byte in range(256)]
    tokens += ["".join(pair) for pair in merges]
    # Tokens that no merges make.
    tokens += ["".join(spell(" wonderful"))]
    kinds += [NORMAL] * (len(tokens) - len(kinds))
    assert len(set(tokens)) == len(tokens)
    ids = {token: id for id, token in enumerate(tokens)}
    for kind in KINDS:
        cases[kind] = [
            {"text": text, "ids": encode(text, kind, ids, merges)} for text in CASES
        ]
    assert len({json.dumps(cases[kind]) for kind in KINDS}) == len(KINDS)

    writer = GGUFWriter(HERE / "types.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(4)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_uint64("test.u64", 2**64 - 1)
    writer.add_int64("test.i64", 7)
    writer.add_float32("test.f32", 0.1)
    writer.add_float64("test.f64", -0.25)
    writer.add_bool("test.bool", True)
    writer.add_array("test.ints", [-1, 2, 3])
    writer.add_array("test.floats", [0.5, -1.5])

    expected = {}

    def add(name, data, kind):
        writer.add_tensor(name, data, raw_dtype=None if kind in (Type.F32, Type.F16) else kind)
        values = dequantize(data, kind)
        assert np.isfinite(values).all()
        expected[name] = np.ascontiguousarray(values, dtype=np.float32)

    embeddings = random.normal(0, 1, (len(tokens), 8)).astype(np.float16)
    add("token_embd.weight", embeddings, Type.F16)
    add("rope_freqs.weight", np.array([1.0, 8.1], dtype=np.float32), Type.F32)
    brain = random.normal(0, 1, (5, 6)).astype(np.float32).view(np.uint32) >> 16
    add("bf16.weight", brain.astype(np.uint16).view(np.uint8).reshape(5, -1), Type.BF16)
    for kind in SCALES:
        columns = 256 if kind.name.endswith("_K") else 64
        add(f"{kind.name.lower()}.weight", blocks(random, kind, 3, columns), kind)
    # The last one fills its 64 bytes, so that a file that is cut anywhere lacks something.
    add("f32.weight", random.normal(0, 1, (2, 2, 4)).astype(np.float32), Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, HERE / "expected.safetensors")


def sentence_piece(cases):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    piece = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = [text for text in CASES if not text.startswith(" ")]
    cases["llama"] = [{"text": text, "ids": piece.encode(text)} for text in texts]
    kinds = []
    for id in range(len(piece)):
        if piece.is_unknown(id):
            kinds.append(2)
        elif piece.is_control(id):
            kinds.append(CONTROL)
        elif piece.is_byte(id):
            kinds.append(6)
        else:
            kinds.append(NORMAL)
    writer = GGUFWriter(HERE / "spm.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.id_to_piece(id) for id in range(len(piece))])
    writer.add_token_scores([piece.get_score(id) for id in range(len(piece))])
    writer.add_token_types(kinds)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    cases = {}
    types(np.random.default_rng(0), cases)
    sentence_piece(cases)
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":"))
    (HERE / "tokens.json").write_text(text.replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
