//! Storage formats of tensors in GGUF files.
//!
//! A row is cut into blocks, each with its scales. The layouts are those of llama.cpp's
//! `ggml-common.h`; the arithmetic is that of the `dequantize_row_*` functions in `ggml-quants.c`.

mod iq4;
mod k;
mod legacy;
mod plain;

use half::f16;

/// A type of tensors.
pub(super) struct Encoding {
    id: u32,
    /// llama.cpp's name.
    pub(super) name: &'static str,
    /// Values of a block.
    pub(super) values: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Appends the values of whole blocks.
    pub(super) decode: fn(&[u8], &mut Vec<f32>),
}

#[rustfmt::skip]
static ENCODINGS: [Encoding; 15] = [
    Encoding { id: 0, name: "F32", values: 1, bytes: 4, decode: plain::from_f32 },
    Encoding { id: 1, name: "F16", values: 1, bytes: 2, decode: plain::from_f16 },
    Encoding { id: 2, name: "Q4_0", values: 32, bytes: 18, decode: legacy::q4_0 },
    Encoding { id: 3, name: "Q4_1", values: 32, bytes: 20, decode: legacy::q4_1 },
    Encoding { id: 6, name: "Q5_0", values: 32, bytes: 22, decode: legacy::q5_0 },
    Encoding { id: 7, name: "Q5_1", values: 32, bytes: 24, decode: legacy::q5_1 },
    Encoding { id: 8, name: "Q8_0", values: 32, bytes: 34, decode: legacy::q8_0 },
    Encoding { id: 10, name: "Q2_K", values: 256, bytes: 84, decode: k::q2_k },
    Encoding { id: 11, name: "Q3_K", values: 256, bytes: 110, decode: k::q3_k },
    Encoding { id: 12, name: "Q4_K", values: 256, bytes: 144, decode: k::q4_k },
    Encoding { id: 13, name: "Q5_K", values: 256, bytes: 176, decode: k::q5_k },
    Encoding { id: 14, name: "Q6_K", values: 256, bytes: 210, decode: k::q6_k },
    Encoding { id: 20, name: "IQ4_NL", values: 32, bytes: 18, decode: iq4::iq4_nl },
    Encoding { id: 23, name: "IQ4_XS", values: 256, bytes: 136, decode: iq4::iq4_xs },
    Encoding { id: 30, name: "BF16", values: 1, bytes: 2, decode: plain::from_bf16 },
];

/// llama.cpp's names of types that are not read.
const OTHERS: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The type of llama.cpp's number `id`, if it is read.
pub(super) fn encoding(id: u32) -> Option<&'static Encoding> {
    ENCODINGS.iter().find(|encoding| encoding.id == id)
}

/// Names of the types that are read.
pub(super) fn names() -> String {
    let names: Vec<&str> = ENCODINGS.iter().map(|encoding| encoding.name).collect();
    names.join(", ")
}

/// What to call a type that is not read.
pub(super) fn name(id: u32) -> String {
    match OTHERS.iter().find(|(other, _)| *other == id) {
        Some((_, name)) => format!("{name} ({id})"),
        None => id.to_string(),
    }
}

/// The f16 at `start` of a block.
fn half(block: &[u8], start: usize) -> f32 {
    f16::from_le_bytes([block[start], block[start + 1]]).to_f32()
}
