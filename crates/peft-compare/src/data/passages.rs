//! The parts of a language-model task: running text to learn, to choose settings on, to report, and that of others.

use super::cut::cut;
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

#[cfg(test)]
mod tests {
    use super::*;

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
