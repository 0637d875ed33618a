//! GGUF files in parts, so that each can be another one while the others stay in their places.

use peft_models::LlamaConfig;

/// GGUF's numbers of types of values.
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const FLOAT: u32 = 6;
pub(crate) const TEXT: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

/// GGUF's numbers of types of tensors.
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const Q8_0: u32 = 8;

/// What tensors are aligned to.
const ALIGNMENT: usize = 32;

/// A file.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) values: Vec<Entry>,
    pub(crate) tensors: Vec<Tensor>,
    /// How many tensors and values the header says there are, if not as many as there are.
    pub(crate) counts: Option<[u64; 2]>,
}

/// A key and its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// A tensor.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Innermost first.
    pub(crate) axes: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
    /// Where the header says it is, if not where it is.
    pub(crate) offset: Option<u64>,
}

impl File {
    /// A model of the shape of [`LlamaConfig::tiny`], its tensors of several types, with a tokenizer of
    /// the kind `gpt2` or `llama`.
    pub(crate) fn tiny(tokenizer: &str) -> Self {
        let config = LlamaConfig::tiny();
        let mut file = Self {
            values: Vec::new(),
            tensors: Vec::new(),
            counts: None,
        };
        file.value("general.architecture", TEXT, text("llama"));
        for (field, number) in [
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("block_count", config.num_hidden_layers),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("rope.dimension_count", config.head_dim),
            ("context_length", config.max_position_embeddings),
        ] {
            let number = (number as u32).to_le_bytes();
            file.value(&format!("llama.{field}"), U32, number.to_vec());
        }
        for (field, number) in [
            ("attention.layer_norm_rms_epsilon", 1e-6_f32),
            ("rope.freq_base", 10_000.0),
        ] {
            let number = number.to_le_bytes();
            file.value(&format!("llama.{field}"), FLOAT, number.to_vec());
        }
        file.tokenizer(tokenizer);
        file.weights(&config);
        file
    }

    /// As many tokens as [`LlamaConfig::tiny`] has.
    fn tokenizer(&mut self, kind: &str) {
        let space = if kind == "gpt2" { "Ġ" } else { "▁" };
        let special = ["<unk>", "<s>", "</s>"].map(String::from);
        let letters = ('!'..='~').map(String::from);
        let joined = [space, "th", "the"].map(String::from);
        let tokens = special.into_iter().chain(letters).chain(joined);
        let tokens: Vec<String> = tokens.chain([format!("{space}t")]).collect();
        // Unknown, control and normal ones.
        let kinds = [2, 3, 3_i32].into_iter().chain(std::iter::repeat(1));
        let kinds = kinds.take(tokens.len()).map(i32::to_le_bytes);
        let texts = tokens.iter().map(|token| text(token));
        self.value("tokenizer.ggml.model", TEXT, text(kind));
        self.value("tokenizer.ggml.tokens", ARRAY, array(TEXT, texts));
        let kinds = kinds.map(|kind| kind.to_vec());
        self.value("tokenizer.ggml.token_type", ARRAY, array(I32, kinds));
        if kind == "gpt2" {
            let merges = ["t h".to_string(), "th e".to_string(), format!("{space} t")];
            let merges = merges.iter().map(|merge| text(merge));
            self.value("tokenizer.ggml.merges", ARRAY, array(TEXT, merges));
            self.value("tokenizer.ggml.pre", TEXT, text("gpt-2"));
        } else {
            let scores = (0..tokens.len()).map(|id| (-(id as f32)).to_le_bytes().to_vec());
            self.value("tokenizer.ggml.scores", ARRAY, array(FLOAT, scores));
        }
        for (name, id) in [("bos", 1_u32), ("eos", 2)] {
            let key = format!("tokenizer.ggml.{name}_token_id");
            self.value(&key, U32, id.to_le_bytes().to_vec());
        }
        let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
        self.value("tokenizer.chat_template", TEXT, text(template));
    }

    fn weights(&mut self, config: &LlamaConfig) {
        let (width, inside) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        self.tensor("token_embd", &[width, config.vocab_size], Q8_0);
        self.tensor("output_norm", &[width], F32);
        self.tensor("rope_freqs", &[config.head_dim / 2], F32);
        for layer in 0..config.num_hidden_layers {
            for (name, axes, kind) in [
                ("attn_norm", vec![width], F32),
                ("attn_q", vec![width, queries], Q4_0),
                ("attn_k", vec![width, keys], Q8_0),
                ("attn_v", vec![width, keys], F16),
                ("attn_output", vec![queries, width], Q8_0),
                ("ffn_norm", vec![width], F32),
                ("ffn_gate", vec![width, inside], Q4_0),
                ("ffn_up", vec![width, inside], F32),
                ("ffn_down", vec![inside, width], F16),
            ] {
                self.tensor(&format!("blk.{layer}.{name}"), &axes, kind);
            }
        }
    }

    fn value(&mut self, key: &str, kind: u32, bytes: Vec<u8>) {
        let key = key.to_string();
        self.values.push(Entry { key, kind, bytes });
    }

    /// Values up to 2 in magnitude; those in F32 are above 0.
    fn tensor(&mut self, name: &str, axes: &[usize], kind: u32) {
        let count: usize = axes.iter().product();
        let mut state = self.tensors.len() as u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut data: Vec<u8> = Vec::new();
        match kind {
            F32 => {
                for _ in 0..count {
                    data.extend((1.0 + f32::from(noise()) / 1024.0).to_le_bytes());
                }
            }
            F16 => {
                for _ in 0..count {
                    data.extend([noise(), 0x20 | (noise() & 0x83)]);
                }
            }
            _ => {
                let codes = if kind == Q4_0 { 16 } else { 32 };
                for _ in 0..count / 32 {
                    // The scale: 1/128, in f16.
                    data.extend([0x00, 0x20]);
                    data.extend((0..codes).map(|_| noise()));
                }
            }
        }
        self.tensors.push(Tensor {
            name: format!("{name}.weight"),
            axes: axes.iter().map(|axis| *axis as u64).collect(),
            kind,
            data,
            offset: None,
        });
    }

    /// The file as it is written, in version 3.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.values.len() as u64];
        let counts = self.counts.unwrap_or(counts);
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        for entry in &self.values {
            bytes.extend(text(&entry.key));
            bytes.extend(entry.kind.to_le_bytes());
            bytes.extend(&entry.bytes);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            let offset = tensor.offset.unwrap_or(data.len() as u64);
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.axes.len() as u32).to_le_bytes());
            bytes.extend(tensor.axes.iter().flat_map(|axis| axis.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(data);
        bytes
    }
}

/// A text, its length in front.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let length = (text.len() as u64).to_le_bytes();
    [length.as_slice(), text.as_bytes()].concat()
}

/// An array, the type and number of its items in front.
pub(crate) fn array(kind: u32, items: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let items: Vec<Vec<u8>> = items.collect();
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((items.len() as u64).to_le_bytes());
    bytes.extend(items.concat());
    bytes
}
