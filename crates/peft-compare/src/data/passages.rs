//! The parts of a language-model task: running text to learn, to choose settings on, to report, and that of others.

use super::{Document, Texts};

/// Share of each training text, at its end, that settings are chosen on.
const DEV_SHARE: f64 = 0.05;

/// Running text in four parts, each a list of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passages {
    /// To learn from.
    pub train: Vec<String>,
    /// To choose settings on: the end of each training text, a twentieth of it.
    pub dev: Vec<String>,
    /// To report: the held-out texts.
    pub test: Vec<String>,
    /// To measure what is forgotten.
    pub general: Vec<String>,
}

impl Passages {
    /// Takes the end of each training text for dev, from the start of a paragraph on where there is one nearby.
    pub fn of(texts: Texts) -> Self {
        let whole = |documents: Vec<Document>| -> Vec<String> {
            let texts = documents.into_iter().map(|document| document.text);
            texts.filter(|text| !text.is_empty()).collect()
        };
        let (mut train, mut dev) = (Vec::new(), Vec::new());
        for document in &texts.train {
            let (learned, end) = cut(&document.text, DEV_SHARE);
            for (part, text) in [(&mut train, learned), (&mut dev, end)] {
                if !text.is_empty() {
                    part.push(text.to_owned());
                }
            }
        }
        Self {
            train,
            dev,
            test: whole(texts.held_out),
            general: whole(texts.general),
        }
    }
}

/// Cuts about `share` off the end of a text: at the next paragraph, else the next line, else the next word, else where
/// it falls. At least half of that share is cut off. Neither part has white space where it was cut.
pub(super) fn cut(text: &str, share: f64) -> (&str, &str) {
    let boundary = |at: usize| {
        (0..=at)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0)
    };
    let at = boundary((text.len() as f64 * (1.0 - share)) as usize);
    let near = &text[at..boundary(at + (text.len() - at) / 2)];
    let breaks = ["\n\n", "\n", " "];
    let found = breaks.into_iter().find_map(|space| near.find(space));
    let (before, after) = text.split_at(at + found.unwrap_or(0));
    (before.trim_end(), after.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_paragraphs_lines_or_words() {
        let paragraphs = "abcdefgh\n\nijkl mnop\nqrst\n\nuvwxyz abc defghi\n\njkl";
        assert_eq!(cut(paragraphs, 0.9), ("abcdefgh", &paragraphs[10..]));
        let words = "one two three four five six";
        assert_eq!(cut(words, 0.5), ("one two three", "four five six"));
        assert_eq!(cut("abcdefghij", 0.5), ("abcde", "fghij"));
        assert_eq!(cut("one two\nthree four", 0.9).1, "three four");
        assert_eq!(cut("äöüäöü", 0.5), ("äöü", "äöü"));
        assert_eq!(cut("", 0.5), ("", ""));
    }

    #[test]
    fn the_parts_of_the_novels_do_not_overlap() {
        let texts = Texts::vendored();
        let novels: Vec<String> = texts.train.iter().map(|novel| novel.text.clone()).collect();
        let parts = Passages::of(texts);
        assert_eq!((parts.train.len(), parts.dev.len()), (5, 5));
        assert_eq!((parts.test.len(), parts.general.len()), (1, 77));
        for ((novel, train), dev) in novels.iter().zip(&parts.train).zip(&parts.dev) {
            assert_eq!(*novel, format!("{train}\n\n{dev}"), "cut at a paragraph");
            let share = dev.len() as f64 / novel.len() as f64;
            assert!((0.045..=0.05).contains(&share), "{share}");
        }
    }
}
