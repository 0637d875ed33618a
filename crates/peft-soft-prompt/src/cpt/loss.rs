//! CPT's loss: labels of the context and of the input, weighted.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use peft_core::Result;

use super::config::{CptConfig, WeightedLoss, refuse};
use super::kinds;

impl CptConfig {
    /// The loss that CPT trains with (Blau et al. 2024, section 3.3), in nats: `[1]`.
    ///
    /// `logits` are the model's with this adapter active, `[batch, virtual_tokens + seq, vocabulary]`. `labels` are the
    /// tokens of the text, row after row, `batch · seq` of them, negative (upstream's -100) where nothing is to be
    /// learnt; they are not shifted. `types` says what each of those tokens is, in the numbers of
    /// [`cpt_tokens_type_mask`](Self::cpt_tokens_type_mask), counted from 1 again; `None` takes all of them for labels.
    ///
    /// Only labels count, those in the context too. The loss is the mean over them of their negative log likelihoods,
    /// each times its weight. With [`WeightedLoss::Decay`] the labels with the largest number weigh 1, those with the
    /// next smaller number [`opt_loss_decay_factor`](Self::opt_loss_decay_factor), and so on; otherwise all weigh 1.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](peft_core::Error::Config) if the parts do not fit each other, if a label is beyond the vocabulary, or if nothing is a label.
    pub fn loss(
        &self,
        logits: Tensor<3>,
        labels: &[i64],
        types: Option<&[u32]>,
    ) -> Result<Tensor<1>> {
        let [rows, positions, vocabulary] = logits.dims();
        let context = self.types();
        let length = positions.saturating_sub(context.len());
        let expected = format!("{rows} rows of {length}, as the logits have behind the context");
        if positions < context.len() || labels.len() != rows * length {
            return Err(refuse("labels", labels.len(), &expected));
        }
        if let Some(types) = types
            && types.len() != labels.len()
        {
            return Err(refuse("types", types.len(), &expected));
        }
        let text_types = |row: usize| match types {
            Some(types) => types[row * length..(row + 1) * length].to_vec(),
            None => vec![kinds::COUNT; length],
        };
        let mut learnt = Learnt::default();
        for row in 0..rows {
            let targets = &labels[row * length..(row + 1) * length];
            self.learn(
                row * positions,
                &context,
                targets,
                &text_types(row),
                &mut learnt,
            );
        }
        if learnt.places.is_empty() {
            let expected =
                "at least one token that is a label: a number that is a multiple of four";
            return Err(refuse("types", types, expected));
        }
        let beyond = |target: &&i64| **target as usize >= vocabulary;
        if let Some(target) = learnt.targets.iter().find(beyond) {
            let expected = format!("below {vocabulary}, the model's vocabulary");
            return Err(refuse("labels", target, &expected));
        }
        Ok(learnt.loss(logits))
    }

    /// Adds what is learnt of one row, whose logits begin at `first`.
    fn learn(
        &self,
        first: usize,
        context: &[u32],
        targets: &[i64],
        types: &[u32],
        learnt: &mut Learnt,
    ) {
        // Numbers of the text follow those of the context. Upstream adds the largest as it is, which makes labels of the
        // text something else where the context does not end with a label.
        let largest = u64::from(context.iter().copied().max().unwrap_or(0));
        let offset = largest.next_multiple_of(u64::from(kinds::COUNT));
        let text = types.iter().map(|number| match number {
            0 => 0,
            number => u64::from(*number) + offset,
        });
        let context = context.iter().map(|number| u64::from(*number));
        let numbers: Vec<u64> = context.chain(text).collect();
        let ids = self.cpt_token_ids.iter().map(|id| i64::from(*id));
        let tokens: Vec<i64> = ids.chain(targets.iter().copied()).collect();
        let mut labels: Vec<u64> = numbers.iter().skip(1).copied().collect();
        labels.retain(|number| kinds::is_label(*number));
        labels.sort_unstable();
        labels.dedup();
        // The first token follows nothing.
        for (place, (token, number)) in tokens.iter().zip(&numbers).enumerate().skip(1) {
            if *token < 0 || !kinds::is_label(*number) {
                continue;
            }
            let later = labels.iter().filter(|label| *label > number).count();
            learnt.places.push((first + place - 1) as i64);
            learnt.targets.push(*token);
            learnt.weights.push(match self.opt_weighted_loss_type {
                WeightedLoss::None => 1.0,
                WeightedLoss::Decay => self.opt_loss_decay_factor.powi(later as i32) as f32,
            });
        }
    }
}

/// The tokens that are to be learnt.
#[derive(Default)]
struct Learnt {
    /// Where the logits of each are, over all rows.
    places: Vec<i64>,
    targets: Vec<i64>,
    weights: Vec<f32>,
}

impl Learnt {
    fn loss(self, logits: Tensor<3>) -> Tensor<1> {
        let [rows, positions, vocabulary] = logits.dims();
        let device = logits.device();
        let count = self.places.len();
        let places = Tensor::<1, Int>::from_data(TensorData::new(self.places, [count]), &device);
        let targets =
            Tensor::<2, Int>::from_data(TensorData::new(self.targets, [count, 1]), &device);
        let weights = TensorData::new(self.weights, [count, 1]);
        let weights = Tensor::<2>::from_data(weights, (&device, DType::F32));
        let logits = logits.reshape([rows * positions, vocabulary]);
        let logits = logits.select(0, places).cast(DType::F32);
        (log_softmax(logits, 1).gather(1, targets) * weights)
            .mean()
            .neg()
    }
}
