//! Training data: long texts and instructions, as rows of token ids.
//!
//! Two kinds of records make rows of [`TrainConfig::max_length`](crate::TrainConfig::max_length) tokens at
//! most:
//!
//! - a **text** is learned whole and cut where a row is full. With `packing` the next text follows in the
//!   same row;
//! - an **instruction** (a prompt with its completion, or a conversation) is one row, whole: too long a
//!   prompt loses its beginning. With `packing` several instructions share a row.
//!
//! Texts that share a row have segments of their own, so that the model keeps them apart. Every position
//! predicts the token that follows it, also across the end of a row, so no token of a text is left out
//! but its first.

mod chat;
mod encode;
mod line;
mod pack;
mod read;

use std::collections::BTreeSet;
use std::path::Path;

use peft_core::nn::TaskIds;
use peft_core::state::AdapterState as _;
use peft_models::{LmBatch, LoadError, Message, Moment};
use sha2::{Digest as _, Sha256};

pub use peft_models::ChatTemplate;
pub use read::read;

use crate::digest::hex;
use crate::model::{CausalLm, Limits};
use crate::{Error, Result, TrainConfig};

/// The target of positions that predict nothing.
pub const NO_TARGET: i64 = -100;

/// What data need of a tokenizer.
pub trait Tokenize {
    /// Token ids of `text`. With `special`, the tokens that begin every text are in front, as Llama's
    /// `<s>`; tokens that are spelled out in the text, as `<|im_end|>`, are recognised either way.
    ///
    /// # Errors
    ///
    /// What the tokenizer refuses.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, LoadError>;

    /// The token that ends a text, if there is one.
    fn eos(&self) -> Option<u32>;

    /// A conversation written out as the model knows it; with `reply`, the beginning of the assistant's next
    /// turn behind. The tokens that begin a text are put in front where they are not written out. `now` is the
    /// present time for templates that write one.
    ///
    /// # Errors
    ///
    /// That there is no template, or what it refuses.
    fn chat(&self, messages: &[Message], reply: bool, now: Moment) -> Result<String, LoadError>;
}

/// One text or instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A text, learned whole.
    Text(String),
    /// A prompt and what shall follow it, taken as they are: no template, no space between. They are
    /// tokenized as one text. The token that ends a text is put behind.
    Completion {
        /// What is given; may be empty.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// A conversation, written out by the tokenizer's chat template or by
    /// [`TrainConfig::chat`](crate::TrainConfig::chat); what the assistant says is learned.
    Chat {
        /// Who says what.
        messages: Vec<Message>,
        /// Which of the messages, counted from 0, are never learned, though the assistant says them.
        excluded: Vec<usize>,
    },
    /// A record of one of several tasks, for adapters that have parameters for each.
    OfTask {
        /// The task, counted from 0.
        task: usize,
        /// What is learned of it.
        record: Box<Record>,
    },
}

impl Record {
    /// The record as one of this task, counted from 0.
    #[must_use]
    pub fn with_task(self, task: usize) -> Self {
        let record = match self {
            Self::OfTask { record, .. } => record,
            other => Box::new(other),
        };
        Self::OfTask { task, record }
    }

    /// A conversation of which all that the assistant says is learned.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::Chat {
            messages,
            excluded: Vec::new(),
        }
    }
}

/// One row: a position's id, the token that follows it, and which text of the row it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) ids: Vec<u32>,
    pub(crate) targets: Vec<i64>,
    /// Counted from 0 in each row.
    pub(crate) segments: Vec<u32>,
    /// Of all of its texts, if the data have tasks.
    pub(crate) task: Option<usize>,
}

impl Row {
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn learned(&self) -> usize {
        let learned = self.targets.iter().filter(|target| **target != NO_TARGET);
        learned.count()
    }
}

/// Rows of token ids, ready for training.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    rows: Vec<Row>,
    targets: usize,
    truncated: usize,
}

impl Dataset {
    /// Reads files and makes rows of them: `.jsonl` files hold one record a line, all others are one text
    /// each (see [`read()`]).
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Line`] and [`Error::Data`] for what is no record; and as [`new`](Self::new).
    pub fn load<P: AsRef<Path>>(
        files: &[P],
        tokenizer: &impl Tokenize,
        config: &TrainConfig,
    ) -> Result<Self> {
        let mut records = Vec::new();
        for file in files {
            records.extend(read(file.as_ref())?);
        }
        let data = Self::new(&records, tokenizer, config)?;
        if data.is_empty() {
            return Err(match files.first() {
                Some(file) => Error::Data {
                    path: file.as_ref().into(),
                    reason: "no token to predict in it; give a text of two tokens at least".into(),
                },
                None => Error::NoTargets { what: "given" },
            });
        }
        Ok(data)
    }

    /// Makes rows of records, texts first. Records without a token to predict make none. A row is of one task: where
    /// records have tasks, `packing` puts those of one task together.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for settings out of range; [`Error::Load`] if the tokenizer fails;
    /// [`Error::Chat`] for a conversation that cannot be written out; [`Error::Task`] for a record without a task where
    /// others have one.
    pub fn new(
        records: &[Record],
        tokenizer: &impl Tokenize,
        config: &TrainConfig,
    ) -> Result<Self> {
        config.validate()?;
        let encoded = encode::encode(records, tokenizer, config)?;
        let length = config.max_length;
        let mut rows;
        if config.packing {
            rows = pack::by_task(encoded.texts, |texts| pack::cut(texts, length, true));
            rows.extend(pack::by_task(encoded.instructions, |texts| {
                pack::pack(texts, length)
            }));
        } else {
            rows = pack::cut(encoded.texts, length, false);
            rows.extend(encoded.instructions);
        }
        rows.retain(|row| row.learned() > 0);
        Ok(Self {
            targets: rows.iter().map(Row::learned).sum(),
            rows,
            truncated: encoded.truncated,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is nothing to learn.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of tokens that are read.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(Row::len).sum()
    }

    /// Number of tokens that are predicted.
    pub fn targets(&self) -> usize {
        self.targets
    }

    /// Number of instructions that were too long for a row and lost a part.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// Tokens that the rows read and predict.
    pub(crate) fn sizes(&self, rows: &[usize]) -> (usize, usize) {
        let rows = rows.iter().map(|row| &self.rows[*row]);
        rows.fold((0, 0), |(tokens, targets), row| {
            (tokens + row.len(), targets + row.learned())
        })
    }

    /// The rows of those numbers as one batch, filled up to the longest. Padding has id 0 and predicts
    /// nothing.
    ///
    /// # Panics
    ///
    /// If a number is not below [`len`](Self::len).
    pub fn batch(&self, rows: &[usize]) -> LmBatch {
        let rows: Vec<&Row> = rows.iter().map(|row| &self.rows[*row]).collect();
        let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let size = rows.len() * length;
        let mut ids = Vec::with_capacity(size);
        let mut targets = Vec::with_capacity(size);
        let mut segments = Vec::with_capacity(size);
        let mut padding = Vec::with_capacity(size);
        for row in &rows {
            let end = ids.len() + length;
            ids.extend(&row.ids);
            ids.resize(end, 0);
            targets.extend(&row.targets);
            targets.resize(end, NO_TARGET);
            segments.extend(&row.segments);
            // A segment of its own: nothing sees it.
            segments.resize(end, row.segments.last().map_or(0, |last| last + 1));
            padding.resize(end - length + row.len(), false);
            padding.resize(end, true);
        }
        let tasks: Option<Vec<usize>> = rows.iter().map(|row| row.task).collect();
        let shared = rows.iter().any(|row| row.segments.last() > Some(&0));
        LmBatch {
            ids,
            targets,
            segments: shared.then_some(segments),
            tasks: tasks.filter(|tasks| !tasks.is_empty()).map(TaskIds::new),
            padding,
            rows: rows.len(),
            length,
        }
    }

    /// SHA-256 of all rows, in hex: whether a run goes on with the data that it began with.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for row in &self.rows {
            hasher.update((row.len() as u64).to_le_bytes());
            for ((id, target), segment) in row.ids.iter().zip(&row.targets).zip(&row.segments) {
                hasher.update(id.to_le_bytes());
                hasher.update(target.to_le_bytes());
                hasher.update(segment.to_le_bytes());
            }
            if let Some(task) = row.task {
                hasher.update(b"task");
                hasher.update((task as u64).to_le_bytes());
            }
        }
        hex(hasher)
    }

    /// Refuses data that a model cannot read; `what` data they are.
    pub(crate) fn fits<M: CausalLm>(&self, model: &M, what: &'static str) -> Result<()> {
        self.fit_tasks(&model.num_tasks(), what)?;
        self.fit_limits(model.limits(), what)
    }

    /// Refuses rows whose task is not said or unknown, where adapters have so many tasks.
    fn fit_tasks(&self, counts: &BTreeSet<usize>, what: &'static str) -> Result<()> {
        let (Some(&fewest), Some(&most)) = (counts.first(), counts.last()) else {
            return Ok(());
        };
        let fits = |row: &&Row| row.task.map_or(most == 1, |task| task < fewest);
        match self.rows.iter().find(|row| !fits(row)) {
            None => Ok(()),
            Some(row) => Err(Error::Tasks {
                what,
                found: row
                    .task
                    .map_or("no task".into(), |task| format!("task {task}")),
                tasks: if row.task.is_none() { most } else { fewest },
            }),
        }
    }

    fn fit_limits(&self, limits: Option<Limits>, what: &'static str) -> Result<()> {
        let Some(limits) = limits else {
            return Ok(());
        };
        let longest = self.rows.iter().map(Row::len).max().unwrap_or(0);
        if longest > limits.positions {
            return Err(Error::TooLong {
                what,
                tokens: longest,
                positions: limits.positions,
            });
        }
        let ids = self.rows.iter().flat_map(|row| {
            let targets = row.targets.iter();
            let targets = targets.filter_map(|target| u32::try_from(*target).ok());
            row.ids.iter().copied().chain(targets)
        });
        match ids.max() {
            Some(token) if token as usize >= limits.vocabulary => Err(Error::UnknownToken {
                what,
                token,
                vocabulary: limits.vocabulary,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every byte is a token, but for `<e>`, the end of a text, 256, and `<b>`, its beginning, 257.
    pub(crate) struct Bytes;

    impl Tokenize for Bytes {
        fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, LoadError> {
            let mut ids = if special { vec![257] } else { Vec::new() };
            let mut rest = text.as_bytes();
            while let Some((byte, behind)) = rest.split_first() {
                let (id, behind) = match rest {
                    [b'<', b'e', b'>', behind @ ..] => (256, behind),
                    [b'<', b'b', b'>', behind @ ..] => (257, behind),
                    _ => (u32::from(*byte), behind),
                };
                ids.push(id);
                rest = behind;
            }
            Ok(ids)
        }

        fn eos(&self) -> Option<u32> {
            Some(256)
        }

        fn chat(
            &self,
            messages: &[Message],
            reply: bool,
            _now: Moment,
        ) -> Result<String, LoadError> {
            Ok(ChatTemplate::new("{role}:", "<e>").render(messages, reply))
        }
    }

    fn text(text: &str) -> Record {
        Record::Text(text.into())
    }

    #[test]
    fn batches_are_filled_up_and_padding_predicts_nothing() {
        let config = TrainConfig::new();
        let data = Dataset::new(&[text("abc"), text("d")], &Bytes, &config).unwrap();
        let batch = data.batch(&[1, 0]);
        assert_eq!((batch.rows, batch.length), (2, 4));
        assert_eq!(batch.ids, [257, 100, 0, 0, 257, 97, 98, 99]);
        assert_eq!(batch.targets, [100, 256, -100, -100, 97, 98, 99, 256]);
        let padded = [false, false, true, true, false, false, false, false];
        assert_eq!(batch.padding, padded);
        assert!(batch.segments.is_none());
        assert_eq!((data.tokens(), data.targets()), (6, 6));
        assert_eq!(data.sizes(&[1]), (2, 2));
    }

    #[test]
    fn texts_that_share_a_row_have_segments() {
        let config = TrainConfig::new().with_packing(true);
        let data = Dataset::new(&[text("abc"), text("d")], &Bytes, &config).unwrap();
        let batch = data.batch(&[0]);
        assert_eq!(batch.ids, [257, 97, 98, 99, 257, 100]);
        assert_eq!(batch.targets, [97, 98, 99, 256, 100, 256]);
        assert_eq!(batch.segments, Some(vec![0, 0, 0, 0, 1, 1]));
    }

    #[test]
    fn a_row_has_the_task_of_its_records() {
        let config = TrainConfig::new();
        let records = [text("abc").with_task(2), text("d").with_task(0)];
        let data = Dataset::new(&records, &Bytes, &config).unwrap();
        assert_eq!(data.batch(&[1, 0]).tasks, Some(TaskIds::new([0, 2])));
        let plain = Dataset::new(&[text("abc"), text("d")], &Bytes, &config).unwrap();
        assert_eq!(plain.batch(&[1, 0]).tasks, None);
        assert_ne!(data.digest(), plain.digest());
        let mixed = [text("abc").with_task(2), text("d")];
        let error = Dataset::new(&mixed, &Bytes, &config).unwrap_err();
        assert!(matches!(error, Error::Task { number: 2 }), "{error}");
    }

    #[test]
    fn texts_of_two_tasks_share_no_row() {
        let config = TrainConfig::new().with_packing(true);
        let completion = |letter: &str| Record::Completion {
            prompt: letter.into(),
            completion: "z".into(),
        };
        let records = [("a", 1), ("b", 0), ("c", 1)];
        for make in [text as fn(&str) -> Record, completion] {
            let records = records.map(|(letter, task)| make(letter).with_task(task));
            let data = Dataset::new(&records, &Bytes, &config).unwrap();
            assert_eq!(data.len(), 2);
            let batch = data.batch(&[0, 1]);
            assert_eq!(batch.tasks, Some(TaskIds::new([0, 1])));
            let (first, second) = batch.ids.split_at(batch.length);
            assert!(first.contains(&98) && !first.contains(&97));
            assert!([97, 99].iter().all(|letter| second.contains(letter)));
        }
    }

    #[test]
    fn data_say_the_tasks_that_adapters_have() {
        let config = TrainConfig::new();
        let of = |records: &[Record]| Dataset::new(records, &Bytes, &config).unwrap();
        let (none, third) = (of(&[text("abc")]), of(&[text("abc").with_task(2)]));
        let fits = |data: &Dataset, counts: &[usize]| {
            let counts = counts.iter().copied().collect();
            data.fit_tasks(&counts, "training")
                .map_err(|error| error.to_string())
        };
        assert_eq!(fits(&none, &[]), Ok(()));
        assert_eq!(fits(&third, &[]), Ok(()));
        assert_eq!(fits(&none, &[1]), Ok(()));
        assert_eq!(fits(&third, &[3, 4]), Ok(()));
        let refused = fits(&none, &[1, 3]).unwrap_err();
        assert!(refused.contains("has no task") && refused.contains("3 tasks"));
        let refused = fits(&third, &[2, 3]).unwrap_err();
        assert!(refused.contains("has task 2") && refused.contains("2 tasks"));
    }

    #[test]
    fn the_digest_tells_data_apart() {
        let config = TrainConfig::new();
        let digest = |texts: &[Record]| Dataset::new(texts, &Bytes, &config).unwrap().digest();
        let first = digest(&[text("abc")]);
        assert_eq!(first.len(), 64);
        assert_eq!(first, digest(&[text("abc")]));
        assert_ne!(first, digest(&[text("abd")]));
        assert_ne!(first, digest(&[text("ab"), text("c")]));
    }

    #[test]
    fn files_are_read_and_empty_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let novel = dir.path().join("novel.txt");
        std::fs::write(&novel, "abc").unwrap();
        let config = TrainConfig::new();
        let data = Dataset::load(std::slice::from_ref(&novel), &Bytes, &config).unwrap();
        assert_eq!(data.targets(), 4);
        std::fs::write(&novel, "").unwrap();
        let error = Dataset::load(&[novel], &Bytes, &config).unwrap_err();
        assert!(error.to_string().contains("novel.txt"), "{error}");
    }
}
