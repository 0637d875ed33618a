//! Decoding of tokens to text while they are generated.

use crate::{LlamaTokenizer, LoadError};

/// What the decoder writes for bytes that are no UTF-8, such as half a character.
const REPLACEMENT: char = '\u{FFFD}';

/// Text that may be given out, and whether a stop string was found behind it.
pub(super) type Released = (String, bool);

/// Turns tokens into text, a piece at a time.
///
/// Tokens of byte-level vocabularies can hold a part of a character, and decoders treat the first
/// token of a text in their own way. So each token is decoded together with the ones before it, and
/// text is given out once it ends in whole characters. Text in which a stop string may have begun
/// is held back until it is known.
pub(super) struct TextStream<'a> {
    tokenizer: &'a LlamaTokenizer,
    stop_strings: &'a [String],
    /// The tokens of the last text that was complete, and all tokens since.
    ids: Vec<u32>,
    /// How many of `ids` the last complete text has.
    complete: usize,
    /// Complete text that may be the beginning of a stop string.
    held: String,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a LlamaTokenizer, stop_strings: &'a [String]) -> Self {
        Self {
            tokenizer,
            stop_strings,
            ids: Vec::new(),
            complete: 0,
            held: String::new(),
        }
    }

    /// Adds a token.
    pub(super) fn push(&mut self, id: u32) -> Result<Released, LoadError> {
        self.ids.push(id);
        let text = self.new_text()?;
        if text.is_empty() || text.ends_with(REPLACEMENT) {
            return Ok((String::new(), false));
        }
        self.ids.drain(..self.complete);
        self.complete = self.ids.len();
        Ok(self.release(&text))
    }

    /// The rest, when no token follows: characters that stay incomplete become U+FFFD.
    pub(super) fn finish(&mut self) -> Result<Released, LoadError> {
        let text = self.new_text()?;
        self.ids.clear();
        self.complete = 0;
        let (mut text, stopped) = self.release(&text);
        text.push_str(&std::mem::take(&mut self.held));
        Ok((text, stopped))
    }

    /// Text of the tokens behind the last complete text.
    fn new_text(&self) -> Result<String, LoadError> {
        let before = self.tokenizer.decode(&self.ids[..self.complete], true)?;
        let with = self.tokenizer.decode(&self.ids, true)?;
        match with.strip_prefix(&before) {
            Some(text) => Ok(text.to_string()),
            // Vocabularies with single bytes as tokens: bytes that will never be a character spoil
            // the whole ones next to them.
            None => self.tokenizer.decode(&self.ids[self.complete..], true),
        }
    }

    /// What of the text held back and `text` is certain.
    fn release(&mut self, text: &str) -> Released {
        self.held.push_str(text);
        let stops = self.stop_strings.iter();
        let first = stops.filter_map(|stop| self.held.find(stop)).min();
        if let Some(at) = first {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return (text, true);
        }
        let begun = self.held.char_indices().map(|(at, _)| at).find(|&at| {
            let end = &self.held[at..];
            self.stop_strings.iter().any(|stop| stop.starts_with(end))
        });
        let held = self.held.split_off(begun.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, held), false)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> LlamaTokenizer {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate/model");
        LlamaTokenizer::load(dir).unwrap()
    }

    /// The pieces that are given out, empty ones left out, and whether a stop string was found.
    fn pieces(ids: &[u32], stop_strings: &[&str]) -> (Vec<String>, bool) {
        let tokenizer = tokenizer();
        let stop_strings: Vec<String> = stop_strings.iter().map(|&text| text.into()).collect();
        let mut stream = TextStream::new(&tokenizer, &stop_strings);
        let mut pieces = Vec::new();
        for &id in ids {
            let (text, stopped) = stream.push(id).unwrap();
            pieces.push(text);
            if stopped {
                pieces.retain(|piece| !piece.is_empty());
                return (pieces, true);
            }
        }
        let (text, stopped) = stream.finish().unwrap();
        pieces.push(text);
        pieces.retain(|piece| !piece.is_empty());
        (pieces, stopped)
    }

    fn encode(text: &str) -> Vec<u32> {
        tokenizer().encode(text, false).unwrap()
    }

    #[test]
    fn characters_are_given_out_whole() {
        let text = " the  café\n小さい猫🙂!";
        let ids = encode(text);
        let (found, _) = pieces(&ids, &[]);
        assert_eq!(found.concat(), text);
        // As soon as they can be, too: several tokens have a piece of their own.
        assert!(found.len() > 5 && found.len() < ids.len(), "{found:?}");
        assert!(found.iter().all(|piece| !piece.contains(REPLACEMENT)));
        assert!(found.contains(&"🙂".to_string()), "{found:?}");
    }

    #[test]
    fn a_character_that_stays_incomplete_comes_last() {
        let whole = encode("cat🙂");
        let (found, _) = pieces(&whole[..whole.len() - 1], &[]);
        assert_eq!(found.concat(), format!("cat{REPLACEMENT}"));
        // Behind it, text goes on.
        let ids = [&whole[..whole.len() - 1], &encode(" sat")].concat();
        assert_eq!(
            pieces(&ids, &[]).0.concat(),
            format!("cat{REPLACEMENT} sat")
        );
    }

    #[test]
    fn any_tokens_give_what_decoding_them_at_once_gives() {
        let tokenizer = tokenizer();
        let mut state = 1_u32;
        for length in 0..120 {
            let ids: Vec<u32> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) % 324
                })
                .collect();
            let whole = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(pieces(&ids, &[]).0.concat(), whole, "{ids:?}");
        }
    }

    #[test]
    fn special_tokens_have_no_text() {
        let ids = encode("the<|end|> cat<|start|>");
        assert_eq!(pieces(&ids, &[]).0, ["the", " cat"]);
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        let ids = encode("the cat sat on the mat");
        for (stops, expected) in [
            (&["on"][..], "the cat sat "),
            (&["t on the", "mat"], "the cat sa"),
            (&["mat", "sat"], "the cat "),
            (&["t"], ""),
        ] {
            let (found, stopped) = pieces(&ids, stops);
            assert_eq!(found.concat(), expected);
            assert!(stopped, "{stops:?}");
        }
    }

    #[test]
    fn text_that_may_begin_a_stop_string_is_held_back() {
        let tokenizer = tokenizer();
        let stops = ["sat on a".to_string()];
        let mut stream = TextStream::new(&tokenizer, &stops);
        let mut given = String::new();
        for id in encode("the cat sat on") {
            let (text, stopped) = stream.push(id).unwrap();
            given.push_str(&text);
            assert!(!stopped);
        }
        assert_eq!(given, "the cat ");
        // It was none.
        for id in encode(" the mat") {
            given.push_str(&stream.push(id).unwrap().0);
        }
        assert_eq!(given, "the cat sat on the mat");
        let (rest, stopped) = stream.finish().unwrap();
        assert!(rest.is_empty() && !stopped);
        // And what is held back when tokens end is text.
        let (found, stopped) = pieces(&encode("the cat sat on"), &["sat on a"]);
        assert_eq!(
            (found.concat().as_str(), stopped),
            ("the cat sat on", false)
        );
    }
}
