//! What is measured: a shape, a pass, a method, an engine.

use std::fmt;
use std::str::FromStr;

/// Makes an enum with a name for each variant, written and read.
macro_rules! named {
    ($(#[$doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum $kind { $($(#[$variant_doc])* $variant),* }

        impl $kind {
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }

        impl FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(format!("`{text}` is none of {}", [$($name),*].join(", "))),
                }
            }
        }
    };
}

named! {
    /// The model and its input.
    Shape {
        /// MiniLM-L6 (6 layers of 384, 12 heads, 1536 inside, 30522 tokens), mean pooling, two
        /// classes; 32 rows of 64 tokens. No dropout.
        MiniLm = "minilm",
        /// The same with the dropout of its published configuration: 0.1 of embeddings, sublayer
        /// outputs and attention weights.
        MiniLmDropout = "minilm-dropout",
        /// The same model, one row of 128 tokens.
        MiniLmOne = "minilm-one",
        /// The same model, 8 rows of 32 tokens.
        MiniLmRows = "minilm-rows",
        /// SmolLM2-135M-Instruct as it was published (30 layers of 576, 9 heads of which 3 of keys,
        /// 1536 inside, 49152 tokens); one row of 256 tokens of a novel.
        SmolLm2 = "smollm2",
        /// One linear layer, 4096 to 4096 without bias; 512 tokens, whose gradient is needed too.
        Linear = "linear-4096",
    }
}

named! {
    /// What is timed.
    Pass {
        /// Forward, backward and an AdamW step.
        Train = "train",
        /// Forward without autodiff.
        Infer = "infer",
    }
}

named! {
    /// What is trained, or what is on the model.
    Method {
        /// Every parameter.
        Full = "full",
        /// The classification head.
        Head = "head",
        /// LoRA, r 8, on queries and values.
        LoraQv = "lora-qv",
        /// The same merged into the weights.
        LoraQvMerged = "lora-qv-merged",
        /// Eight adapters of that kind, each row of the batch with another.
        LoraQvRows = "lora-qv-rows",
        /// LoRA, r 8, on every linear layer but the head.
        LoraAll = "lora-all",
        /// The same with gradient checkpointing.
        LoraAllCheckpointed = "lora-all-checkpointed",
        /// LoRA, r 8, on queries and values of a base in NF4 with double quantization, blocks of 64,
        /// tables in bfloat16.
        QloraQv = "qlora-qv",
        /// The same on every linear layer.
        QloraAll = "qlora-all",
        /// The same with gradient checkpointing.
        QloraAllCheckpointed = "qlora-all-checkpointed",
        /// As `qlora-all`, with FP4 in the place of NF4.
        QloraAllFp4 = "qlora-all-fp4",
        /// `lora-all` on a base that is in bfloat16, tables too.
        LoraAllHalves = "lora-all-halves",
        /// Bottleneck adapters after both sublayers.
        Houlsby = "houlsby",
        /// Ladder side-tuning, reduction 8.
        Lst = "lst",
        /// Biases.
        BitFit = "bitfit",
        /// The largest 0.5 % of the elements of every linear layer but the head.
        Sparse = "sparse",
        /// The 0.5 % of all elements but the head's with the largest Fisher information.
        FishMask = "fishmask",
        /// Differences and gates of all elements, before the mask is fixed.
        DiffPruning = "diff-pruning",
        /// `lora-all` that keeps 64 numbers of each input for the gradient of A.
        VeloraAll = "velora-all",
        /// The last block, in place.
        Last1 = "last-1",
        /// The last two.
        Last2 = "last-2",
        /// The last four.
        Last4 = "last-4",
        /// All six blocks of MiniLM-L6, without the embeddings.
        Last6 = "last-6",
        /// Ten virtual tokens.
        Prompt = "prompt",
        /// Nothing: the model as it is.
        Base = "base",
    }
}

named! {
    /// Whose code runs.
    Engine {
        /// This project's.
        Ours = "ours",
        /// The same in mixed precision: products with weights in bfloat16.
        OursBf16 = "ours-bf16",
        /// This project's models with its fused operations turned off: Burn's operations, and
        /// this project's activation side.
        Unfused = "unfused",
        /// The same with Burn's own `apply_lora`.
        Burn = "burn",
        /// Hugging Face transformers and PEFT on PyTorch, in `PEFT_PYTHON`.
        Hf = "hf",
        /// The same under autocast to bfloat16.
        HfBf16 = "hf-bf16",
    }
}

impl Engine {
    /// Whether it is Hugging Face's.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Hf | Self::HfBf16)
    }

    /// Whether it is this project's as it is meant to be used.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursBf16)
    }
}

/// Rank of every LoRA here.
pub(crate) const RANK: usize = 8;

impl Method {
    /// Whether it is LoRA on every linear layer.
    pub(crate) fn all_linear(self) -> bool {
        matches!(
            self,
            Self::LoraAll
                | Self::LoraAllHalves
                | Self::VeloraAll
                | Self::LoraAllCheckpointed
                | Self::QloraAll
                | Self::QloraAllCheckpointed
                | Self::QloraAllFp4
        )
    }

    /// Whether the base is in 4 bits.
    pub(crate) fn packed(self) -> bool {
        matches!(
            self,
            Self::QloraQv | Self::QloraAll | Self::QloraAllCheckpointed | Self::QloraAllFp4
        )
    }

    /// How many of the last blocks train, where these are what trains.
    pub(crate) fn last_blocks(self) -> Option<usize> {
        match self {
            Self::Last1 => Some(1),
            Self::Last2 => Some(2),
            Self::Last4 => Some(4),
            Self::Last6 => Some(6),
            _ => None,
        }
    }

    /// Whether activations are computed again in the backward pass.
    pub(crate) fn checkpointed(self) -> bool {
        matches!(self, Self::LoraAllCheckpointed | Self::QloraAllCheckpointed)
    }
}

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) pass: Pass,
    pub(crate) method: Method,
    pub(crate) engine: Engine,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shape,
            pass,
            method,
            engine,
        } = self;
        let parts = [shape.name(), pass.name(), method.name(), engine.name()];
        f.write_str(&parts.join("/"))
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [shape, pass, method, engine] = parts[..] else {
            return Err(format!("`{text}` is not shape/pass/method/engine"));
        };
        Ok(Self {
            shape: shape.parse()?,
            pass: pass.parse()?,
            method: method.parse()?,
            engine: engine.parse()?,
        })
    }
}

/// A case, briefly.
pub(crate) const fn case(shape: Shape, pass: Pass, method: Method, engine: Engine) -> Case {
    Case {
        shape,
        pass,
        method,
        engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_is_written() {
        let written = case(Shape::Linear, Pass::Train, Method::LoraQv, Engine::Hf);
        assert_eq!(written.to_string(), "linear-4096/train/lora-qv/hf");
        assert_eq!(written.to_string().parse(), Ok(written));
        let error = "linear-4096/train/lora/hf".parse::<Case>().unwrap_err();
        assert!(error.contains("`lora` is none of full, head"), "{error}");
    }
}
