//! The network that computes P-tuning's virtual tokens: an embedding table, LSTM layers, linear layers.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{CheckpointKey, Init};
use peft_core::ops::linear;

/// Liu et al. 2021, section 3.2: the virtual tokens are rows of a table, seen through a network. With an LSTM each of
/// them depends on those before and behind it.
#[derive(Module, Debug)]
pub struct PromptEncoder {
    /// E, `[virtual_tokens, d]`.
    pub embeddings: Param<Tensor<2>>,
    /// One after another. None with an MLP.
    pub lstm: Vec<BiLstmLayer>,
    /// Between the layers of the LSTM.
    pub dropout: Dropout,
    /// Linear layers with ReLU between them: two behind an LSTM, three without one.
    pub mlp: Vec<MlpLayer>,
}

impl PromptEncoder {
    /// The virtual tokens, `[virtual_tokens, d]`.
    pub fn forward(&self) -> Tensor<2> {
        let mut tokens = self.embeddings.val();
        for (index, layer) in self.lstm.iter().enumerate() {
            if index > 0 {
                tokens = self.dropout.forward(tokens);
            }
            tokens = layer.forward(&tokens);
        }
        for (index, layer) in self.mlp.iter().enumerate() {
            if index > 0 {
                tokens = relu(tokens);
            }
            tokens = layer.forward(tokens);
        }
        tokens
    }

    /// The tensors, under upstream's names. `field` leads to the encoder.
    pub(crate) fn tensors(&self, field: &str) -> Vec<CheckpointKey> {
        let key = |of: String, name: String| {
            CheckpointKey::root(&format!("{field}.{of}"), &format!("prompt_encoder.{name}"))
        };
        let mut tensors = vec![key("embeddings".into(), "embedding.weight".into())];
        for layer in 0..self.lstm.len() {
            for (direction, suffix) in [("forward", ""), ("reverse", "_reverse")] {
                let key = |name: &str, stored: &str| {
                    key(
                        format!("lstm.{layer}.{direction}.{name}"),
                        format!("lstm_head.{stored}_l{layer}{suffix}"),
                    )
                };
                tensors.extend([
                    key("input", "weight_ih").transposed(),
                    key("hidden", "weight_hh").transposed(),
                    key("input_bias", "bias_ih"),
                    key("hidden_bias", "bias_hh"),
                ]);
            }
        }
        for layer in 0..self.mlp.len() {
            // The ReLU between two of them has a number, too.
            let key = |name: &str| {
                key(
                    format!("mlp.{layer}.{name}"),
                    format!("mlp_head.{}.{name}", 2 * layer),
                )
            };
            tensors.extend([key("weight").transposed(), key("bias")]);
        }
        tensors
    }
}

/// A linear layer.
#[derive(Module, Debug)]
pub struct MlpLayer {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl MlpLayer {
    /// Initialised as torch initialises linear layers.
    pub(crate) fn new([d_in, out]: [usize; 2], init: &mut Init, like: (&Device, DType)) -> Self {
        Self {
            weight: init.kaiming_uniform([d_in, out], d_in, like),
            bias: init.kaiming_uniform([out], d_in, like),
        }
    }

    /// `x W + b` of rows `[tokens, in]`.
    pub(crate) fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        linear(input, self.weight.val(), Some(self.bias.val()), None)
    }
}

/// A layer of a bidirectional LSTM, h wide in each direction.
#[derive(Module, Debug)]
pub struct BiLstmLayer {
    /// From the first token to the last.
    pub forward: LstmDirection,
    /// From the last token to the first.
    pub reverse: LstmDirection,
}

impl BiLstmLayer {
    /// Initialised as torch initialises an LSTM.
    pub(crate) fn new(widths: [usize; 2], init: &mut Init, like: (&Device, DType)) -> Self {
        Self {
            forward: LstmDirection::new(widths, init, like),
            reverse: LstmDirection::new(widths, init, like),
        }
    }

    /// `input` is `[tokens, in]`; returns `[tokens, 2 · h]`.
    fn forward(&self, input: &Tensor<2>) -> Tensor<2> {
        let tokens = input.dims()[0];
        let forward = self.forward.run(input.clone(), 0..tokens);
        let mut reverse = self.reverse.run(input.clone(), (0..tokens).rev());
        reverse.reverse();
        Tensor::cat(vec![Tensor::cat(forward, 0), Tensor::cat(reverse, 0)], 1)
    }
}

/// One direction of an LSTM layer, in torch's layout. A matrix holds four gates one behind the other: input, forget,
/// cell, output. Burn's `Lstm` has a matrix for each gate, and so eight small products a token in place of one.
#[derive(Module, Debug)]
pub struct LstmDirection {
    /// Of the layer's input, `[in, 4 · h]`.
    pub input: Param<Tensor<2>>,
    /// Of the state behind the token before, `[h, 4 · h]`.
    pub hidden: Param<Tensor<2>>,
    /// `[4 · h]`.
    pub input_bias: Param<Tensor<1>>,
    /// `[4 · h]`; added to the other one.
    pub hidden_bias: Param<Tensor<1>>,
}

impl LstmDirection {
    fn new([d_in, hidden]: [usize; 2], init: &mut Init, like: (&Device, DType)) -> Self {
        let gates = 4 * hidden;
        Self {
            input: init.kaiming_uniform([d_in, gates], hidden, like),
            hidden: init.kaiming_uniform([hidden, gates], hidden, like),
            input_bias: init.kaiming_uniform([gates], hidden, like),
            hidden_bias: init.kaiming_uniform([gates], hidden, like),
        }
    }

    /// The state behind each token of `input` `[tokens, in]`, `[1, h]` each, in the order of `tokens`.
    fn run(&self, input: Tensor<2>, tokens: impl Iterator<Item = usize>) -> Vec<Tensor<2>> {
        let bias = self.input_bias.val() + self.hidden_bias.val();
        let of_input = linear(input, self.input.val(), Some(bias), None);
        let weight = self.hidden.val();
        let width = weight.dims()[0];
        let zeros = Tensor::zeros([1, width], (&of_input.device(), of_input.dtype()));
        let (mut cell, mut state): (Tensor<2>, Tensor<2>) = (zeros.clone(), zeros);
        let step = |token| {
            let gates = of_input.clone().narrow(0, token, 1) + state.clone().matmul(weight.clone());
            let gate = |index: usize| gates.clone().narrow(1, index * width, width);
            let [input, forget, output] = [0, 1, 3].map(|index| sigmoid(gate(index)));
            cell = forget * cell.clone() + input * gate(2).tanh();
            state = output * cell.clone().tanh();
            state.clone()
        };
        tokens.map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};
    use peft_core::device::cpu_devices;

    /// The numbers 0.8·sin(0.7·n), for n from `next` on.
    struct Waves<'a> {
        next: usize,
        device: &'a Device,
    }

    impl Waves<'_> {
        fn draw(&mut self, count: usize) -> Vec<f32> {
            let values = (self.next..self.next + count).map(|n| 0.8 * (0.7 * n as f64).sin());
            self.next += count;
            values.map(|value| value as f32).collect()
        }

        /// Of a matrix as torch stores it.
        fn weight(&mut self, [d_in, out]: [usize; 2]) -> Param<Tensor<2>> {
            let data = TensorData::new(self.draw(d_in * out), [out, d_in]);
            Param::from_tensor(Tensor::<2>::from_data(data, self.device).transpose())
        }

        fn bias(&mut self, width: usize) -> Param<Tensor<1>> {
            let data = TensorData::new(self.draw(width), [width]);
            Param::from_tensor(Tensor::from_data(data, self.device))
        }

        fn layer(&mut self, d_in: usize, hidden: usize) -> BiLstmLayer {
            let mut direction = || LstmDirection {
                input: self.weight([d_in, 4 * hidden]),
                hidden: self.weight([hidden, 4 * hidden]),
                input_bias: self.bias(4 * hidden),
                hidden_bias: self.bias(4 * hidden),
            };
            BiLstmLayer {
                forward: direction(),
                reverse: direction(),
            }
        }
    }

    // torch 2.15: `LSTM(3, 2, num_layers=2, bidirectional=True)`, whose parameters hold 0.8·sin(0.7·n) with n counted
    // through all of them, on a sequence of four that goes on counting.
    #[test]
    fn an_lstm_computes_what_torch_computes() {
        for (name, device) in cpu_devices() {
            let mut waves = Waves {
                next: 0,
                device: &device,
            };
            let layers = [waves.layer(3, 2), waves.layer(4, 2)];
            let input = TensorData::new(waves.draw(12), [4, 3]);
            let first = layers[0].forward(&Tensor::from_data(input, &device));
            let found = layers[1].forward(&first).into_data();
            let expected = TensorData::from([
                [0.072_247_0_f32, 0.109_529_6, 0.145_467_7, 0.166_325_1],
                [0.090_088_7, 0.250_437_9, 0.115_283_5, 0.222_663_7],
                [0.134_109_7, 0.186_222_6, 0.089_265_7, 0.128_745_5],
                [0.128_747_7, 0.235_646_2, 0.051_457_4, 0.089_061_2],
            ]);
            let tolerance = Tolerance::<f32>::absolute(1e-6);
            assert_eq!(found.shape(), expected.shape(), "{name}");
            found.assert_approx_eq(&expected, tolerance);
        }
    }
}
