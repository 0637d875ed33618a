//! From records to token ids, with what is learned marked.

use super::chat::{self, Part, Piece};
use super::{NO_TARGET, Record, Row, Tokenize};
use crate::{Error, Result, TrainConfig};

/// Rows before cutting and packing.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    /// Whole texts, of any length.
    pub(super) texts: Vec<Row>,
    /// Instructions, at most `max_length` positions each.
    pub(super) instructions: Vec<Row>,
    /// Instructions that lost a part.
    pub(super) truncated: usize,
}

/// Tokens of one record, and whether each is learned.
#[derive(Debug, Default)]
struct Tokens {
    ids: Vec<u32>,
    learned: Vec<bool>,
    /// Tokens that begin every text.
    opening: usize,
    /// Tokens before the last completion, the opening among them.
    head: usize,
}

impl Tokens {
    /// Of `pieces`, where the learned ones begin marked; those that are given are learned too if `all`.
    fn of(pieces: &[Piece], all: bool, tokenizer: &impl Tokenize) -> Result<Self> {
        let mut tokens = Self::default();
        let mut text = String::new();
        let mut before = Vec::new();
        for piece in pieces {
            if piece.part == Part::Learned {
                tokens.head = tokens.ids.len();
            }
            text += &piece.text;
            let with = tokenizer.encode(&text, false)?;
            let ids = added(&before, &with, &piece.text, tokenizer)?;
            let learned = match piece.part {
                Part::Given => all,
                Part::Learned => true,
                Part::Excluded => false,
            };
            tokens.push(&ids, learned);
            before = with;
        }
        Ok(tokens)
    }

    fn push(&mut self, ids: &[u32], learned: bool) {
        self.ids.extend(ids);
        self.learned.resize(self.ids.len(), learned);
    }

    /// Puts the tokens that begin every text in front, unless they are there: generation does the same.
    fn open(&mut self, opening: &[u32], learned: bool) {
        self.opening = opening.len();
        if self.ids.starts_with(opening) {
            return;
        }
        self.ids.splice(0..0, opening.iter().copied());
        self.learned.splice(0..0, opening.iter().map(|_| learned));
        self.head += opening.len();
    }

    /// Leaves at most `most` tokens: the prompt loses its beginning, but not its second half as long as
    /// the completion has half of the room; past that, the completion loses its end. The opening stays.
    /// True if something is lost.
    fn truncate(&mut self, most: usize) -> bool {
        if self.ids.len() <= most {
            return false;
        }
        let completion = self.ids.len() - self.head;
        let kept = self
            .head
            .min((most / 2).max(most.saturating_sub(completion)));
        let opening = self.opening.min(kept);
        let lost = opening..opening + self.head - kept;
        self.ids.drain(lost.clone());
        self.learned.drain(lost);
        self.ids.truncate(most);
        self.learned.truncate(most);
        self.head = kept;
        true
    }

    /// Each position with the token that follows it; the last token follows only.
    fn into_row(self) -> Row {
        let positions = self.ids.len().saturating_sub(1);
        let following = self.ids.iter().zip(&self.learned).skip(1);
        let targets = following
            .map(
                |(id, learned)| {
                    if *learned { i64::from(*id) } else { NO_TARGET }
                },
            )
            .collect();
        Row {
            targets,
            segments: vec![0; positions],
            task: None,
            ids: self.ids.into_iter().take(positions).collect(),
        }
    }
}

/// The tokens that `piece` adds to a text, of which `before` are the tokens; with it they are `with`.
///
/// Tokenizers of SentencePiece's kind put a space in front of what they encode, so that a piece has other
/// tokens alone than behind a text.
fn added(before: &[u32], with: &[u32], piece: &str, tokenizer: &impl Tokenize) -> Result<Vec<u32>> {
    if let Some(added) = with.strip_prefix(before) {
        return Ok(added.to_vec());
    }
    // A token spans the cut, as that of " 2" does where the text ends in a space. What is given keeps its
    // tokens, as at inference, and the piece has those that it has behind a line's end, which joins with
    // nothing.
    let line = tokenizer.encode("\n", false)?;
    let behind = tokenizer.encode(&format!("\n{piece}"), false)?;
    match behind.strip_prefix(line.as_slice()) {
        Some(added) => Ok(added.to_vec()),
        None => Ok(tokenizer.encode(piece, false)?),
    }
}

/// The tokens that begin every text: those in front of a letter's.
fn opening(tokenizer: &impl Tokenize) -> Result<Vec<u32>> {
    const LETTER: &str = "a";
    let letter = tokenizer.encode(LETTER, false).unwrap_or_default();
    if !letter.is_empty() {
        let mut whole = tokenizer.encode(LETTER, true)?;
        let mut parts = whole.windows(letter.len());
        if let Some(front) = parts.position(|part| part == letter) {
            whole.truncate(front);
            return Ok(whole);
        }
    }
    // No token for that letter: of an empty text, without the one that ends it.
    let mut opening = tokenizer.encode("", true)?;
    if tokenizer.eos().is_some() && opening.last().copied() == tokenizer.eos() {
        opening.pop();
    }
    Ok(opening)
}

/// The record's parts; `number` is the record's, counted from 1.
fn pieces(
    number: usize,
    record: &Record,
    tokenizer: &impl Tokenize,
    config: &TrainConfig,
) -> Result<Vec<Piece>> {
    let piece = |text: &String, part| Piece {
        text: text.clone(),
        part,
    };
    let pieces = match record {
        Record::OfTask { record, .. } => return pieces(number, record, tokenizer, config),
        Record::Text(text) => Ok(vec![piece(text, Part::Learned)]),
        Record::Completion { prompt, completion } => Ok(vec![
            piece(prompt, Part::Given),
            piece(completion, Part::Learned),
        ]),
        Record::Chat { messages, excluded } => match &config.chat {
            None => chat::pieces(messages, excluded, |messages, reply| {
                tokenizer.chat(messages, reply, config.time)
            }),
            Some(template) => chat::pieces(messages, excluded, |messages, reply| {
                Ok::<_, Error>(template.render(messages, reply))
            }),
        },
    };
    pieces.map_err(|reason| Error::Chat { number, reason })
}

/// A record's task, and the record itself.
fn of_task(record: &Record) -> (Option<usize>, &Record) {
    match record {
        Record::OfTask { task, record } => (Some(*task), of_task(record).1),
        other => (None, other),
    }
}

pub(super) fn encode(
    records: &[Record],
    tokenizer: &impl Tokenize,
    config: &TrainConfig,
) -> Result<Encoded> {
    let opening = opening(tokenizer)?;
    let end: Vec<u32> = tokenizer.eos().into_iter().collect();
    let mut encoded = Encoded::default();
    let has_tasks = records
        .iter()
        .any(|record| matches!(record, Record::OfTask { .. }));
    for (number, record) in (1..).zip(records) {
        let (task, record) = of_task(record);
        if has_tasks && task.is_none() {
            return Err(Error::Task { number });
        }
        let pieces = pieces(number, record, tokenizer, config)?;
        let text = matches!(record, Record::Text(_));
        let all = text || !config.completion_only;
        let mut tokens = Tokens::of(&pieces, all, tokenizer)?;
        if text && tokens.ids.is_empty() {
            continue;
        }
        tokens.open(&opening, all);
        // A conversation's template ends its turns itself.
        if !matches!(record, Record::Chat { .. }) {
            tokens.push(&end, true);
        }
        let row = |tokens: Tokens| Row {
            task,
            ..tokens.into_row()
        };
        if text {
            encoded.texts.push(row(tokens));
        } else {
            // One more than positions: the last token only follows.
            encoded.truncated += usize::from(tokens.truncate(config.max_length + 1));
            encoded.instructions.push(row(tokens));
        }
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use peft_models::{LoadError, Message, Moment};

    use super::super::ChatTemplate;
    use super::super::tests::Bytes;
    use super::*;

    fn completion(prompt: &str, completion: &str) -> Record {
        Record::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        }
    }

    fn one(record: Record, config: &TrainConfig) -> (Row, usize) {
        let mut encoded = encode(&[record], &Bytes, config).unwrap();
        assert_eq!(encoded.instructions.len(), 1);
        (encoded.instructions.remove(0), encoded.truncated)
    }

    fn letters(row: &Row) -> String {
        let letter = |id: u32| match id {
            256 => '$',
            257 => '^',
            id => char::from(id as u8),
        };
        row.ids.iter().copied().map(letter).collect()
    }

    fn learned(row: &Row) -> String {
        let letter = |target: i64| match target {
            NO_TARGET => '.',
            256 => '$',
            id => char::from(id as u8),
        };
        row.targets.iter().copied().map(letter).collect()
    }

    #[test]
    fn completions_and_their_end_are_learned() {
        let config = TrainConfig::new();
        let (row, truncated) = one(completion("ab", "cd"), &config);
        assert_eq!(
            (letters(&row), learned(&row)),
            ("^abcd".into(), "..cd$".into())
        );
        assert_eq!(truncated, 0);
        let (row, _) = one(completion("ab", "cd"), &config.with_completion_only(false));
        assert_eq!(learned(&row), "abcd$");
        let (row, _) = one(completion("", "cd"), &TrainConfig::new());
        assert_eq!((letters(&row), learned(&row)), ("^cd".into(), "cd$".into()));
    }

    #[test]
    fn of_a_conversation_all_answers_are_learned() {
        let chat = || {
            Record::chat(vec![
                Message::user("a"),
                Message::assistant("b"),
                Message::user("c"),
                Message::assistant("d"),
            ])
        };
        let template = ChatTemplate::new("/", "<e>");
        let (row, _) = one(chat(), &TrainConfig::new().with_chat(template));
        assert_eq!(letters(&row), "^/a$/b$/c$/d");
        assert_eq!(learned(&row), "....b$....d$");
        // The tokenizer's own template does not write out what begins a text.
        let (row, _) = one(chat(), &TrainConfig::new());
        assert_eq!(letters(&row), "^user:a$assistant:b$user:c$assistant:d");
    }

    #[test]
    fn excluded_answers_are_learned_in_no_case() {
        let mut chat = Record::chat(vec![
            Message::user("a"),
            Message::assistant("b"),
            Message::user("c"),
            Message::assistant("d"),
        ]);
        if let Record::Chat { excluded, .. } = &mut chat {
            excluded.push(1);
        }
        let config = TrainConfig::new().with_chat(ChatTemplate::new("/", "<e>"));
        let (row, _) = one(chat.clone(), &config);
        assert_eq!(letters(&row), "^/a$/b$/c$/d");
        assert_eq!(learned(&row), "..........d$");
        let (row, _) = one(chat, &config.with_completion_only(false));
        assert_eq!(learned(&row), "/a$/../c$/d$");
    }

    #[test]
    fn what_begins_a_text_is_there_once() {
        let template = ChatTemplate::new("<b>/", "<e>");
        let chat = Record::chat(vec![Message::assistant("b")]);
        let (row, _) = one(chat, &TrainConfig::new().with_chat(template));
        assert_eq!((letters(&row), learned(&row)), ("^/b".into(), ".b$".into()));
        let (row, _) = one(completion("<b>ab", "cd"), &TrainConfig::new());
        assert_eq!(letters(&row), "^abcd");
        // It stays, written out or not.
        let config = TrainConfig::new().with_max_length(8);
        let (row, _) = one(completion("<b>abcdefghijk", "xyz"), &config);
        assert_eq!(letters(&row), "^hijkxyz");
    }

    /// Texts begin and end with the same token, 0.
    struct Fences;

    impl Tokenize for Fences {
        fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, LoadError> {
            let fence = special.then_some(0);
            let bytes = text.bytes().map(u32::from);
            Ok(fence.into_iter().chain(bytes).chain(fence).collect())
        }

        fn eos(&self) -> Option<u32> {
            Some(0)
        }

        fn chat(
            &self,
            messages: &[Message],
            reply: bool,
            now: Moment,
        ) -> Result<String, LoadError> {
            Bytes.chat(messages, reply, now)
        }
    }

    #[test]
    fn a_token_that_begins_and_ends_texts_does_both() {
        let records = [completion("a", "b")];
        let encoded = encode(&records, &Fences, &TrainConfig::new()).unwrap();
        let row = &encoded.instructions[0];
        assert_eq!(row.ids, [0, 97, 98]);
        assert_eq!(row.targets, [NO_TARGET, 98, 0]);
    }

    #[test]
    fn long_prompts_lose_their_beginning() {
        let config = TrainConfig::new().with_max_length(8);
        let (row, truncated) = one(completion("abcdefghijk", "xyz"), &config);
        assert_eq!(
            (letters(&row), learned(&row)),
            ("^hijkxyz".into(), "....xyz$".into())
        );
        assert_eq!(truncated, 1);
    }

    #[test]
    fn long_completions_lose_their_end_and_never_all() {
        let config = TrainConfig::new().with_max_length(8);
        let (row, truncated) = one(completion("ab", "qrstuvwxyz"), &config);
        assert_eq!(
            (letters(&row), learned(&row)),
            ("^abqrstu".into(), "..qrstuv".into())
        );
        assert_eq!(truncated, 1);
        let (row, _) = one(completion("abcdefghij", "qrstuvwxyz"), &config);
        assert_eq!(
            (letters(&row), learned(&row)),
            ("^hijqrst".into(), "...qrstu".into())
        );
    }

    #[test]
    fn texts_are_learned_whole() {
        let records = [Record::Text("abc".into()), Record::Text(String::new())];
        let encoded = encode(&records, &Bytes, &TrainConfig::new()).unwrap();
        assert_eq!(encoded.texts.len(), 1, "an empty text makes no row");
        let row = &encoded.texts[0];
        assert_eq!((letters(row), learned(row)), ("^abc".into(), "abc$".into()));
    }
}
