//! BD-LoRA: a factor of blocks on the diagonal, as tensor-parallel servers like it.

use burn::nn::Dropout;
use peft_core::method::Layer;
use peft_core::method::prelude::*;
use peft_core::nn::dropout_rate;
use serde::{Deserialize, Serialize};

use crate::lora::values::{Size, refuse};

/// Which factors of which layers are block-diagonal (BD-LoRA). Upstream's `BdLoraConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BdLoraConfig {
    /// Layers whose A is block-diagonal: those whose names contain one of these. For layers that a server splits by
    /// their inputs: attention's output, the last of feed-forward. Default: none.
    pub target_modules_bd_a: Option<Vec<String>>,
    /// Layers whose B is block-diagonal: those whose names contain one of these. For layers that a server splits by
    /// their outputs: query, key, value, the first of feed-forward. Default: none.
    pub target_modules_bd_b: Option<Vec<String>>,
    /// Number of blocks. It divides the rank and the layer's inputs, or outputs. Default: 1.
    pub nblocks: usize,
    /// Refuses targets that are in neither list; otherwise they get a plain LoRA. Default: true.
    pub match_strict: bool,
}

impl Default for BdLoraConfig {
    fn default() -> Self {
        Self {
            target_modules_bd_a: None,
            target_modules_bd_b: None,
            nblocks: 1,
            match_strict: true,
        }
    }
}

impl BdLoraConfig {
    /// Of so many blocks, with A block-diagonal in the layers `a` and B in the layers `b`.
    pub fn new<S: Into<String>>(
        nblocks: usize,
        a: impl IntoIterator<Item = S>,
        b: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            target_modules_bd_a: Some(a.into_iter().map(Into::into).collect()),
            target_modules_bd_b: Some(b.into_iter().map(Into::into).collect()),
            nblocks,
            match_strict: true,
        }
    }

    /// Checks what no layer tells.
    pub(crate) fn check(&self) -> Result<()> {
        if self.nblocks == 0 {
            let expected = "`nblocks` of at least 1";
            return refuse("use_bdlora", self, expected);
        }
        let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let a = of(&self.target_modules_bd_a);
        let both = of(&self.target_modules_bd_b);
        if let Some(name) = both.iter().find(|name| a.contains(name)) {
            let expected = format!("{name:?} in one of the two lists only");
            return refuse("use_bdlora", self, expected);
        }
        Ok(())
    }

    /// Which factor of a layer is block-diagonal; none for a plain LoRA.
    fn side(&self, layer: &str) -> Result<Option<Side>> {
        let within = |list: &Option<Vec<String>>| {
            let names = list.iter().flatten();
            names.into_iter().any(|name| layer.contains(name.as_str()))
        };
        let refuse = |expected: String| refuse("use_bdlora", self, expected);
        match (
            within(&self.target_modules_bd_a),
            within(&self.target_modules_bd_b),
        ) {
            (true, false) => Ok(Some(Side::A)),
            (false, true) => Ok(Some(Side::B)),
            (true, true) => refuse(format!("lists of which one only fits `{layer}`")),
            (false, false) if self.match_strict => refuse(format!(
                "`{layer}` in one of the lists, or `match_strict` false"
            )),
            (false, false) => Ok(None),
        }
    }

    /// The state for a layer of these inputs and outputs; none where it gets a plain LoRA.
    pub(crate) fn state(
        &self,
        layer: &Layer,
        (d_in, d_out): (usize, usize),
        Size { rank, scale }: Size,
        dropout: Dropout,
        like: (&Device, DType),
        init: &mut Init,
    ) -> Result<Option<BdLoraLinear>> {
        let Some(side) = self.side(&layer.name)? else {
            return Ok(None);
        };
        let blocks = self.nblocks;
        let wide = match side {
            Side::A => d_in,
            Side::B => d_out,
        };
        if !rank.is_multiple_of(blocks) || !wide.is_multiple_of(blocks) {
            let expected = format!(
                "a number of blocks that divides the rank {rank} and {wide}, the {} of `{}`",
                if side == Side::A { "inputs" } else { "outputs" },
                layer.name
            );
            return refuse("use_bdlora", self, expected);
        }
        let (a, b) = match side {
            // As wide as upstream draws it.
            Side::A => (
                init.uniform(
                    [d_in / blocks, rank],
                    (6.0 * blocks as f64 / d_in as f64).sqrt(),
                    like,
                ),
                init.zeros([rank, d_out], like),
            ),
            Side::B => (
                init.kaiming_uniform([d_in, rank], d_in, like),
                init.zeros([rank / blocks, d_out], like),
            ),
        };
        Ok(Some(BdLoraLinear {
            lora_a: a,
            lora_b: b,
            blocks,
            a_is_blocks: side == Side::A,
            scale,
            dropout,
        }))
    }
}

/// The factor that is block-diagonal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}

/// LoRA of which one factor holds blocks on its diagonal and nothing else: `y = xW + s·(drop(x) A) B`.
///
/// The factor is kept as its blocks side by side, one for each share of the rank.
#[derive(Module, Adapter, Debug)]
pub struct BdLoraLinear {
    /// Down-projection A, `[in, r]`; of blocks, `[in / blocks, r]`.
    #[tensor("lora_A.weight", transposed)]
    pub lora_a: Param<Tensor<2>>,
    /// Up-projection B, `[r, out]`; of blocks, `[r / blocks, out]`.
    #[tensor("lora_B.weight", transposed)]
    pub lora_b: Param<Tensor<2>>,
    /// Number of blocks.
    pub blocks: usize,
    /// Whether A is the factor of blocks; B is it otherwise.
    pub a_is_blocks: bool,
    /// s: alpha / r, or alpha / sqrt(r).
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
}

impl WeightAdapter for BdLoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let change = self.factors().cast(weight.dtype());
        weight + change.product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        Some(self.factors())
    }
}

impl BdLoraLinear {
    /// With another A.
    pub(crate) fn with_a(self, a: impl FnOnce(Param<Tensor<2>>) -> Param<Tensor<2>>) -> Self {
        Self {
            lora_a: a(self.lora_a),
            ..self
        }
    }

    /// A, B and s, zeros and all.
    fn factors(&self) -> LowRank {
        let (a, b) = (self.lora_a.val(), self.lora_b.val());
        let (down, up) = if self.a_is_blocks {
            (on_diagonal(a, self.blocks), b)
        } else {
            (a, on_diagonal(b, self.blocks))
        };
        LowRank {
            dropout: dropout_rate(&self.dropout),
            ..LowRank::new(down, up, self.scale)
        }
    }
}

/// The matrix that has these blocks, which lie side by side, on its diagonal, and zeros otherwise.
fn on_diagonal(side_by_side: Tensor<2>, blocks: usize) -> Tensor<2> {
    let [rows, columns] = side_by_side.dims();
    let diagonal = Tensor::<2>::eye(blocks, &side_by_side.device()).cast(side_by_side.dtype());
    let diagonal = diagonal.reshape([blocks, 1, blocks, 1]);
    let all = side_by_side.reshape([1, rows, blocks, columns / blocks]) * diagonal;
    all.reshape([blocks * rows, columns])
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::device::cpu_devices;

    #[test]
    fn blocks_lie_on_the_diagonal() {
        let (_, device) = &cpu_devices()[0];
        let blocks = Tensor::<2>::from_data([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]], device);
        let expected = [
            [1.0, 2.0, 0.0, 0.0],
            [3.0, 4.0, 0.0, 0.0],
            [0.0, 0.0, 5.0, 6.0],
            [0.0, 0.0, 7.0, 8.0],
        ];
        let expected = Tensor::<2>::from_data(expected, device).into_data();
        assert_eq!(on_diagonal(blocks, 2).into_data(), expected);
    }

    #[test]
    fn lists_say_which_factor() {
        let config = BdLoraConfig::new(2, ["dense"], ["query"]);
        assert_eq!(config.side("a.dense").unwrap(), Some(Side::A));
        assert_eq!(config.side("a.query").unwrap(), Some(Side::B));
        let refused = config.side("a.key").unwrap_err().to_string();
        assert!(refused.contains("match_strict"), "{refused}");
        let loose = BdLoraConfig {
            match_strict: false,
            ..config
        };
        assert_eq!(loose.side("a.key").unwrap(), None);
        let both = BdLoraConfig::new(2, ["dense"], ["output"]);
        let refused = both.side("output.dense").unwrap_err().to_string();
        assert!(refused.contains("one only"), "{refused}");
        let twice = BdLoraConfig::new(2, ["dense"], ["dense"]);
        assert!(twice.check().is_err());
        assert!(BdLoraConfig::new(0, ["a"], ["b"]).check().is_err());
    }
}
