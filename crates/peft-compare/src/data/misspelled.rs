//! *Was a word misspelled?* Sentences of the vendored texts; in every other one two inner letters of one word are
//! transposed.
//!
//! The rows are a function of the vendored texts alone: sentences are ordered by a hash of their words, and the same
//! hash chooses the word and the letters. A sentence is used once, as it was or misspelled, and all sentences of a
//! text are in one part, so nothing of a test text is learned from.

use super::{Dataset, Document, Row, Split, Texts};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::ops::RangeInclusive;

/// Rows of the parts. Each is balanced, and so is every even number of its first rows.
const TRAIN: usize = 1600;
const DEV: usize = 400;
const TEST: usize = 720;

/// Words of a sentence that is used.
const WORDS: RangeInclusive<usize> = 5..=10;
/// Letters that a word must have to be misspelled: two inner ones at least.
const LEAST_LETTERS: usize = 4;
/// What ends in a full stop without ending a sentence, besides single letters.
const ABBREVIATIONS: [&str; 12] = [
    "Mr.", "Mrs.", "Dr.", "St.", "Messrs.", "Esq.", "Hon.", "Rev.", "Col.", "Capt.", "Gen.", "Gov.",
];
/// Novels that are in the training part; the fifth is dev, and the one that is held out everywhere is test.
const TRAINING_NOVELS: usize = 4;
/// Of so many documents of the general text one is test and one is dev.
const GENERAL_STRIDE: usize = 5;

impl Dataset {
    /// The sentences of the vendored texts with their split. Class 0 is `intact`, class 1 `misspelled`.
    ///
    /// Train is of *Sense and Sensibility*, *Pride and Prejudice*, *Mansfield Park* and *Emma*, dev of *Northanger
    /// Abbey*, test of *Persuasion*; of five documents of the general text three are in train, one in dev, one in test.
    ///
    /// # Panics
    /// As [`Texts::vendored`].
    pub fn misspelled() -> (Self, Split) {
        let texts = Texts::vendored();
        let known = known_words(&texts);
        let (training, dev) = texts.train.split_at(TRAINING_NOVELS);
        let general = |wanted: fn(usize) -> bool| {
            let documents = texts.general.iter().enumerate();
            documents.filter_map(move |(index, document)| {
                wanted(index % GENERAL_STRIDE).then_some(document)
            })
        };
        let mut used = HashSet::new();
        let mut rows = Vec::with_capacity(TEST + DEV + TRAIN);
        let mut part = |documents: &mut dyn Iterator<Item = &Document>, count: usize| {
            let from = rows.len();
            rows.extend(chosen(documents, &known, &mut used, count));
            (from..rows.len()).collect()
        };
        let split = Split {
            test: part(
                &mut texts.held_out.iter().chain(general(|place| place == 0)),
                TEST,
            ),
            dev: part(&mut dev.iter().chain(general(|place| place == 1)), DEV),
            train: part(
                &mut training.iter().chain(general(|place| place > 1)),
                TRAIN,
            ),
        };
        let data = Self {
            name: "misspelled".to_owned(),
            rows,
            labels: vec!["intact".to_owned(), "misspelled".to_owned()],
        };
        (data, split)
    }
}

/// Every word of the texts in lower case: what is among them is no misspelling.
fn known_words(texts: &Texts) -> HashSet<String> {
    let documents = texts
        .train
        .iter()
        .chain(&texts.held_out)
        .chain(&texts.general);
    documents
        .flat_map(|document| document.text.split(|c: char| !c.is_alphabetic()))
        .map(str::to_lowercase)
        .collect()
}

/// `count` rows of the documents' sentences, in the order of their hashes, classes in turn. What is in `used` is left
/// out; the sentences that are taken are added to it.
fn chosen(
    documents: &mut dyn Iterator<Item = &Document>,
    known: &HashSet<String>,
    used: &mut HashSet<String>,
    count: usize,
) -> Vec<Row> {
    let mut candidates = Vec::new();
    for document in documents {
        for sentence in document.text.lines().flat_map(sentences) {
            candidates.push((Sha256::digest(&sentence), sentence));
        }
    }
    candidates.sort();
    let mut rows = Vec::with_capacity(count);
    for (hash, sentence) in candidates {
        if rows.len() == count {
            break;
        }
        // What cannot be misspelled is not used intact either: it would give the class away.
        let Some(misspelled) = misspell(&sentence, &hash, known) else {
            continue;
        };
        if used.insert(sentence.to_lowercase()) {
            let label = rows.len() % 2;
            let text = if label == 0 { sentence } else { misspelled };
            rows.push(Row { text, label });
        }
    }
    rows
}

/// The sentences of a paragraph that are neither too short nor too long, without quotation marks: a quotation may
/// go on over several sentences.
fn sentences(paragraph: &str) -> Vec<String> {
    let plain = paragraph.replace('"', "");
    let words: Vec<&str> = plain.split_whitespace().collect();
    let mut found = Vec::new();
    let mut from = 0;
    for (index, word) in words.iter().enumerate() {
        let ends = word
            .trim_end_matches(['\'', ')'])
            .ends_with(['.', '!', '?']);
        let next_begins = words.get(index + 1).is_none_or(|next| {
            next.starts_with(|c: char| c.is_uppercase() || c == '\'' || c == '(')
        });
        let initial = word.len() == 2 && word.ends_with('.');
        if ends && next_begins && !initial && !ABBREVIATIONS.contains(word) {
            let sentence = &words[from..=index];
            from = index + 1;
            if WORDS.contains(&sentence.len()) && sentence[0].starts_with(char::is_uppercase) {
                found.push(sentence.join(" "));
            }
        }
    }
    found
}

/// The sentence with two neighbouring inner letters of one word transposed; the hash says which. Words that begin with
/// a capital are left alone, most are names. `None` if no word can be misspelled.
fn misspell(sentence: &str, hash: &[u8], known: &HashSet<String>) -> Option<String> {
    let choices: Vec<(usize, Vec<String>)> = sentence
        .split(' ')
        .enumerate()
        .map(|(index, word)| (index, misspellings(word, known)))
        .filter(|(_, misspellings)| !misspellings.is_empty())
        .collect();
    let (place, misspellings) = choices.get(usize::from(hash[0]) % choices.len().max(1))?;
    let misspelled = &misspellings[usize::from(hash[1]) % misspellings.len()];
    let mut words: Vec<&str> = sentence.split(' ').collect();
    words[*place] = misspelled;
    Some(words.join(" "))
}

/// Every way to transpose two neighbouring inner letters of a word that gives none of the known ones.
fn misspellings(word: &str, known: &HashSet<String>) -> Vec<String> {
    let letters = word.trim_end_matches(|c: char| c.is_ascii_punctuation());
    if letters.len() < LEAST_LETTERS || !letters.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Vec::new();
    }
    let swapped = |at: usize| {
        let mut bytes = letters.as_bytes().to_vec();
        bytes.swap(at, at + 1);
        String::from_utf8(bytes).expect("letters are ASCII")
    };
    (1..letters.len() - 2)
        .map(swapped)
        .filter(|other| other != letters && !known.contains(other))
        .map(|other| other + &word[letters.len()..])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(words: &[&str]) -> HashSet<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn inner_letters_are_transposed_and_known_words_are_no_misspelling() {
        let none = HashSet::new();
        assert_eq!(misspellings("house,", &none), ["huose,", "hosue,"]);
        assert_eq!(misspellings("that", &none), ["taht"]);
        assert_eq!(misspellings("form", &known(&["from"])), [""; 0]);
        for left_alone in ["the", "noon", "Emma", "well-bred", "don't", "1958", "café"] {
            assert_eq!(misspellings(left_alone, &none), [""; 0], "{left_alone}");
        }
    }

    #[test]
    fn sentences_end_where_one_would_say_so() {
        let paragraph = "\"My dear Mr. Bennet, have you heard?\" said his lady. \
                         Mr. J. Bennet replied that he had not. Short one. This one goes on for more than \
                         the ten words that may be in it.";
        let words = sentences(paragraph);
        assert_eq!(
            words,
            [
                "My dear Mr. Bennet, have you heard? said his lady.",
                "Mr. J. Bennet replied that he had not.",
            ]
        );
    }

    #[test]
    fn the_rows_are_balanced_and_no_sentence_is_used_twice() {
        let (data, split) = Dataset::misspelled();
        assert_eq!(data.rows.len(), TRAIN + DEV + TEST);
        for (part, count) in [
            (&split.train, TRAIN),
            (&split.dev, DEV),
            (&split.test, TEST),
        ] {
            assert_eq!(part.len(), count);
            for (place, row) in part.iter().enumerate() {
                assert_eq!(data.rows[*row].label, place % 2);
            }
        }
        // With its letters in order a misspelled sentence is the one that it was made of.
        let original = |text: &str| {
            let words = text.to_lowercase();
            let sorted = words.split(' ').map(|word| {
                let mut letters: Vec<char> = word.chars().collect();
                letters.sort_unstable();
                letters.into_iter().collect::<String>()
            });
            sorted.collect::<Vec<_>>().join(" ")
        };
        let originals: HashSet<String> = data.rows.iter().map(|row| original(&row.text)).collect();
        assert_eq!(originals.len(), data.rows.len());
    }

    #[test]
    fn only_misspelled_rows_hold_a_word_that_no_text_has_and_each_part_has_texts_of_its_own() {
        let (data, split) = Dataset::misspelled();
        let texts = Texts::vendored();
        let all = known_words(&texts);
        for row in &data.rows {
            let words = row.text.split(|c: char| !c.is_alphabetic());
            let unknown = words
                .filter(|word| !all.contains(&word.to_lowercase()))
                .count();
            assert_eq!(unknown, row.label, "{}", row.text);
        }
        let plain = |documents: &[Document]| {
            let text: String = documents
                .iter()
                .map(|document| document.text.as_str())
                .collect();
            text.replace('"', "")
        };
        let (test, general) = (plain(&texts.held_out), plain(&texts.general));
        let intact = split.test.iter().filter(|row| data.rows[**row].label == 0);
        for row in intact {
            let text = &data.rows[*row].text;
            assert!(test.contains(text) || general.contains(text), "{text}");
        }
    }
}
