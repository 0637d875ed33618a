//! Which tokens of the vocabulary a prompt's virtual tokens are near to.

use std::fmt;

use burn::tensor::{DType, Int, Tensor, TensorData};
use peft_core::{Error, PeftModule, Result};

use crate::prompt_tuning::PROMPT_TUNING;
use crate::trained_prompt::TrainedPrompt;
use crate::vocabulary::{only_site, table};

/// How near two embeddings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nearness {
    /// The cosine of the angle between them: the larger, the nearer.
    Cosine,
    /// The distance between them: the smaller, the nearer.
    Euclidean,
}

/// A token of the vocabulary near a virtual token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearToken {
    /// The token's id: a row of the model's embedding table.
    pub id: u32,
    /// The cosine, or the distance.
    pub value: f64,
}

/// The tokens of the vocabulary that each virtual token is near to, the nearest first. Printing it lists their ids;
/// [`with_names`](Self::with_names) gives words.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLookup {
    /// How near was measured.
    pub nearness: Nearness,
    /// One list for each virtual token.
    pub tokens: Vec<Vec<NearToken>>,
}

/// How many virtual tokens are compared with the whole table at once: this many times the vocabulary are in memory.
const AT_ONCE: usize = 32;

/// How many more tokens than asked for have their distances computed again: those first ones are rounded.
const MORE: usize = 32;

impl TrainedPrompt {
    /// The `count` tokens of the model's vocabulary that each virtual token is nearest to.
    ///
    /// The table is the one that the model's site for prompts names, without adapters. Trained tokens need not be near
    /// any word: the cosine of the nearest one says how much such a reading is worth.
    ///
    /// ```
    /// use peft_conformance::TinyTransformer;
    /// use peft_core::{PeftModule as _, Result};
    /// use peft_soft_prompt::{Nearness, PromptTuningConfig, TrainedPrompt};
    ///
    /// fn main() -> Result<()> {
    ///     let device = peft_core::device::cpu_devices().remove(0).1;
    ///     let base = TinyTransformer::new(&device);
    ///     // A prompt that was not trained yet: it starts from the words of a text.
    ///     let model = base.attach("mine", &PromptTuningConfig::new(2).with_text("good film", [17, 60]))?;
    ///
    ///     let prompt = TrainedPrompt::of(&model, "mine")?;
    ///     let near = prompt.nearest_tokens(&base, 3, Nearness::Cosine)?;
    ///     assert_eq!((near.tokens[0][0].id, near.tokens[1][0].id), (17, 60));
    ///     assert!(near.tokens[0][0].value > 0.999);
    ///     // A tokenizer gives the names: `tokenizer.id_to_token(id)` of the crate `tokenizers`, say.
    ///     print!("{}", near.with_names(|id| Some(format!("word {id}"))));
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoSite`] of a model without a site for prompts; [`Error::Config`] if the site names no table, or if the
    /// table's width is not the prompt's.
    pub fn nearest_tokens<M: PeftModule>(
        &self,
        model: &M,
        count: usize,
        nearness: Nearness,
    ) -> Result<PromptLookup> {
        let [tokens, width] = self.dims();
        let layout = model.layout();
        let site = only_site(&layout, &PROMPT_TUNING, tokens)?;
        let table = table(&site, &layout, &PROMPT_TUNING, "source", "a prompt")?;
        let found = table.shape()[1];
        if found != width {
            let expected = format!("{found}, the width of the model's embeddings");
            return Err(Error::config(
                PROMPT_TUNING.title,
                "token_dim",
                width,
                expected,
            ));
        }
        let device = table.device().without_autodiff();
        let rows = table.value::<2>().without_autodiff().cast(DType::F32);
        let prompt = self.tensor((&device, DType::F32));
        let count = count.min(table.shape()[0]);
        let mut lists = Vec::with_capacity(tokens);
        for from in (0..tokens).step_by(AT_ONCE) {
            let some = prompt.clone().narrow(0, from, AT_ONCE.min(tokens - from));
            lists.extend(nearest(&some, &rows, count, nearness));
        }
        Ok(PromptLookup {
            nearness,
            tokens: lists,
        })
    }
}

/// The distances of some rows of the table `[vocabulary, d]` from a token `[1, d]`: from differences, which keep their
/// digits where vectors are long and near each other.
fn distances(token: &Tensor<2>, table: &Tensor<2>, ids: &[u32]) -> Vec<f64> {
    let rows: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let rows = TensorData::new(rows, [ids.len()]);
    let rows = Tensor::<1, Int>::from_data(rows, &table.device());
    let differences = table.clone().select(0, rows) - token.clone();
    let distances = differences.square().sum_dim(1).sqrt();
    distances.into_data().iter().collect()
}

/// The nearest `count` rows of the table `[vocabulary, d]` for each of `tokens` `[tokens, d]`.
fn nearest(
    tokens: &Tensor<2>,
    table: &Tensor<2>,
    count: usize,
    nearness: Nearness,
) -> Vec<Vec<NearToken>> {
    let products = tokens.clone().matmul(table.clone().transpose());
    let squares = |rows: &Tensor<2>| rows.clone().square().sum_dim(1);
    let (ours, theirs) = (squares(tokens), squares(table).transpose());
    let values = match nearness {
        // A vector of zeros is near nothing.
        Nearness::Cosine => products / (ours * theirs).sqrt().clamp_min(f32::MIN_POSITIVE),
        // Squares, and rounded as the long vectors are: good enough to leave out the far ones.
        Nearness::Euclidean => ours + theirs - products * 2.0,
    };
    let vocabulary = values.dims()[1];
    let values: Vec<f64> = values.into_data().iter().collect();
    let order = |near: &mut Vec<NearToken>, count: usize| {
        near.sort_by(|a, b| match nearness {
            Nearness::Cosine => b.value.total_cmp(&a.value),
            Nearness::Euclidean => a.value.total_cmp(&b.value),
        });
        near.truncate(count);
    };
    let list = |(at, values): (usize, &[f64])| {
        let all = (0_u32..).zip(values);
        let mut near: Vec<NearToken> = all.map(|(id, &value)| NearToken { id, value }).collect();
        if nearness == Nearness::Euclidean {
            order(&mut near, count + MORE);
            let ids: Vec<u32> = near.iter().map(|token| token.id).collect();
            let token = tokens.clone().narrow(0, at, 1);
            let found = distances(&token, table, &ids);
            for (token, value) in near.iter_mut().zip(found) {
                token.value = value;
            }
        }
        order(&mut near, count);
        near
    };
    values.chunks(vocabulary).enumerate().map(list).collect()
}

impl PromptLookup {
    /// The same as a text for people: a line for each virtual token, with the names that `name` gives for ids, and the
    /// id where it gives none.
    pub fn with_names(&self, name: impl Fn(u32) -> Option<String>) -> String {
        let line = |(at, near): (usize, &Vec<NearToken>)| {
            let near = near.iter().map(|token| {
                let name =
                    name(token.id).map_or(format!("#{}", token.id), |name| format!("{name:?}"));
                format!("{name} {:.3}", token.value)
            });
            format!("{at}: {}\n", near.collect::<Vec<_>>().join(", "))
        };
        self.tokens.iter().enumerate().map(line).collect()
    }
}

impl fmt::Display for PromptLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_names(|_| None))
    }
}
