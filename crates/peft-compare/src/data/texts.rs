//! Running text for language models: Jane Austen's six novels, and general English text that is not hers.
//!
//! The texts are part of the program, compressed. `data/austen/README.md` and `data/general-text/README.md` say where
//! they come from, what was changed, and that they are in the public domain.

use super::cut::cut;
use super::{DataError, read::utf8};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use std::{fmt::Write as _, fs, io::Read as _, path::Path};

/// Share of a user's text that is held out.
const HELD_OUT_SHARE: f64 = 0.1;

/// One text. A paragraph is one line, with an empty line between two; there is no line end at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is called, such as `Emma`. Not part of the text.
    pub title: String,
    /// The text, never empty.
    pub text: String,
}

/// What a language model learns from, and what it is measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// Five novels by Jane Austen in the order they were published, 3.5 million characters.
    pub train: Vec<Document>,
    /// A sixth, Persuasion, 0.46 million characters: the loss on it shows what was learned.
    pub held_out: Vec<Document>,
    /// 77 articles and speeches by others, 0.39 million characters: the loss on them shows what is forgotten.
    pub general: Vec<Document>,
}

/// A vendored file: compressed, with the digest of what it decompresses to.
struct Vendored {
    title: &'static str,
    content: &'static [u8],
    sha256: &'static str,
}

const TRAIN: [Vendored; 5] = [
    Vendored {
        title: "Sense and Sensibility",
        content: include_bytes!("../../data/austen/sense-and-sensibility.txt.gz"),
        sha256: "a013d755ab3df9d35608c21bac606f9ad918bf6cb2974894ce837ce40176b141",
    },
    Vendored {
        title: "Pride and Prejudice",
        content: include_bytes!("../../data/austen/pride-and-prejudice.txt.gz"),
        sha256: "6275269b0de5334ffb5777b3679fcb3f8dfcf8123d136a64f4d062ec79db752d",
    },
    Vendored {
        title: "Mansfield Park",
        content: include_bytes!("../../data/austen/mansfield-park.txt.gz"),
        sha256: "b3ca31c3959eec270c37a3253ebd48195c63b56a64df43f142abe3228e19e38a",
    },
    Vendored {
        title: "Emma",
        content: include_bytes!("../../data/austen/emma.txt.gz"),
        sha256: "f4bca6e5a54cf03aecee77682a89aa31beff77152ef41b65077a3576c11140f7",
    },
    Vendored {
        title: "Northanger Abbey",
        content: include_bytes!("../../data/austen/northanger-abbey.txt.gz"),
        sha256: "f7be0e10171f407e87f8de115c9893fe73bfebf698974c0b522cfc01fea7e295",
    },
];

const HELD_OUT: Vendored = Vendored {
    title: "Persuasion",
    content: include_bytes!("../../data/austen/persuasion.txt.gz"),
    sha256: "88af79104b6e8ad202f6556b3a4fc5bdba0f8746bc683bbaaf7509dbdcf6d88d",
};

const GENERAL: Vendored = Vendored {
    title: "General text",
    content: include_bytes!("../../data/general-text/general.txt.gz"),
    sha256: "ceb26b7cfe26c926f5d2bf04b33d7998268e8a5c36fb924873aee72d198a6076",
};

impl Texts {
    /// The vendored texts, decompressed and checked against their digests.
    ///
    /// # Panics
    /// When a vendored file is damaged, which a test rules out.
    pub fn vendored() -> Self {
        Self {
            train: TRAIN.iter().map(Vendored::document).collect(),
            held_out: vec![HELD_OUT.document()],
            general: titled(&GENERAL.read()),
        }
    }

    /// A user's text: its last tenth is held out, from the start of a paragraph on where there is one nearby. What is
    /// forgotten is measured on the vendored general text. Line ends `\r\n` and `\r` become `\n`.
    ///
    /// # Errors
    /// An unreadable file, bytes that are not UTF-8, a text without two words.
    ///
    /// # Panics
    /// As [`vendored`](Self::vendored).
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let content = fs::read(path).map_err(|source| DataError::Read {
            path: path.to_owned(),
            source,
        })?;
        // Paragraphs are sought by line ends, and a model should not learn those of one system.
        let text = utf8(path, &content)?
            .replace("\r\n", "\n")
            .replace('\r', "\n");
        let (train, held_out) = cut(text.trim(), HELD_OUT_SHARE);
        if train.is_empty() || held_out.is_empty() {
            return Err(DataError::Content {
                path: path.to_owned(),
                problem: "there is no text that could be split into two parts".to_owned(),
            });
        }
        let title = path.file_stem().unwrap_or_default().to_string_lossy();
        let document = |text: &str| {
            vec![Document {
                title: title.clone().into_owned(),
                text: text.to_owned(),
            }]
        };
        Ok(Self {
            train: document(train),
            held_out: document(held_out),
            general: titled(&GENERAL.read()),
        })
    }

    /// SHA-256, in hex, of the three parts: of each its number of documents and a newline, then, of every document,
    /// `title <newline> text <newline>`. Names the content in definitions and results.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [&self.train, &self.held_out, &self.general] {
            hasher.update(format!("{}\n", part.len()));
            for document in part {
                for piece in [&document.title, "\n", &document.text, "\n"] {
                    hasher.update(piece);
                }
            }
        }
        hex(&hasher.finalize())
    }
}

impl Vendored {
    /// The decompressed file.
    fn read(&self) -> String {
        let mut text = String::new();
        GzDecoder::new(self.content)
            .read_to_string(&mut text)
            .expect("the vendored files are tested");
        let found = hex(&Sha256::digest(text.as_bytes()));
        assert_eq!(
            found, self.sha256,
            "{}: the vendored file is damaged; make it again as its README.md says",
            self.title
        );
        text
    }

    /// The whole file as one document.
    fn document(&self) -> Document {
        Document {
            title: self.title.to_owned(),
            text: self.read().trim_end().to_owned(),
        }
    }
}

/// The documents of a file in which a paragraph `= title =` begins each.
fn titled(file: &str) -> Vec<Document> {
    file.strip_prefix("= ")
        .into_iter()
        .flat_map(|rest| rest.split("\n\n= "))
        .filter_map(|document| document.split_once(" =\n\n"))
        .map(|(title, text)| Document {
            title: title.to_owned(),
            text: text.trim_end().to_owned(),
        })
        .collect()
}

/// Every byte as two digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const DIGEST: &str = "08a402a49eecfc89a1b74843409d3ac68e30c644ed384b8735f61250f607d664";

    fn words(documents: &[Document]) -> Vec<&str> {
        documents
            .iter()
            .flat_map(|document| document.text.split_whitespace())
            .collect()
    }

    /// Whether some `length` words in a row stand in both.
    fn share(left: &[Document], right: &[Document], length: usize) -> bool {
        let (left, right) = (words(left), words(right));
        let known: HashSet<&[&str]> = left.windows(length).collect();
        right.windows(length).any(|window| known.contains(window))
    }

    #[test]
    fn the_novels_are_what_their_readme_says() {
        let texts = Texts::vendored();
        let found: Vec<_> = texts
            .train
            .iter()
            .chain(&texts.held_out)
            .map(|novel| {
                let headings = novel.text.lines().filter(|line| {
                    line.to_lowercase().starts_with("chapter ") && line.split(' ').count() == 2
                });
                (
                    novel.title.as_str(),
                    // The file has a line end more.
                    novel.text.chars().count() + 1,
                    novel.text.split_whitespace().count(),
                    headings.count(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("Sense and Sensibility", 669_729, 118_533, 50),
                ("Pride and Prejudice", 683_517, 121_531, 61),
                ("Mansfield Park", 881_563, 159_513, 48),
                ("Emma", 881_658, 157_437, 55),
                ("Northanger Abbey", 432_758, 77_064, 31),
                ("Persuasion", 464_291, 83_274, 24),
            ]
        );
    }

    #[test]
    fn each_text_begins_and_ends_as_it_should() {
        let texts = Texts::vendored();
        let begins = |document: &Document, words: &str| {
            assert!(document.text.starts_with(words), "{}", document.title);
        };
        begins(
            &texts.train[0],
            "CHAPTER 1\n\nThe family of Dashwood had long been",
        );
        begins(
            &texts.train[1],
            "Chapter 1\n\nIt is a truth universally acknowledged,",
        );
        begins(
            &texts.train[2],
            "CHAPTER I\n\nAbout thirty years ago Miss Maria Ward,",
        );
        begins(
            &texts.train[3],
            "VOLUME I\n\nCHAPTER I\n\nEmma Woodhouse, handsome, clever,",
        );
        begins(&texts.train[4], "ADVERTISEMENT BY THE AUTHORESS,");
        begins(
            &texts.held_out[0],
            "Chapter 1\n\nSir Walter Elliot, of Kellynch Hall,",
        );
        assert!(texts.held_out[0].text.ends_with("\n\nFinis"));
        assert!(
            texts.train[4].text.ends_with("No. 97, Vol. II, Rambler."),
            "the editor's note is not the author's"
        );
    }

    #[test]
    fn the_general_text_is_what_its_readme_says() {
        let general = Texts::vendored().general;
        assert_eq!(general.len(), 77);
        assert_eq!(general[0].title, "Bolivarian Republic of Venezuela");
        assert!(
            general[0]
                .text
                .starts_with("Venezuela was one of three countries that emerged")
        );
        assert_eq!(general[76].title, "State of the Union, 1976");
        assert!(
            general
                .iter()
                .all(|document| document.text.len() > 1_300 && !document.text.contains("= "))
        );
        assert!(
            general
                .iter()
                .all(|document| !document.text.contains("Austen")),
        );
    }

    #[test]
    fn the_texts_are_clean() {
        let texts = Texts::vendored();
        let all = texts.train.iter().chain(&texts.held_out);
        for document in all.chain(&texts.general) {
            let title = &document.title;
            // A wrongly decoded character leaves one of these: a control, a replacement, or the first byte of UTF-8
            // that was read as Latin-1.
            let strange = document.text.chars().find(|character| {
                character.is_control() && *character != '\n' || "\u{fffd}ÂÃâ_".contains(*character)
            });
            assert_eq!(strange, None, "{title}");
            assert!(!document.text.contains("  "), "{title}");
            for (number, line) in document.text.lines().enumerate() {
                assert_eq!(line.is_empty(), number % 2 == 1, "{title}: `{line}`");
                assert_eq!(line.trim(), line, "{title}");
            }
        }
    }

    #[test]
    fn what_is_measured_on_is_not_learned_from() {
        let texts = Texts::vendored();
        // Phrases of eight words do occur in both, so the comparison is not blind.
        assert!(share(&texts.train, &texts.held_out, 8));
        assert!(!share(&texts.train, &texts.held_out, 10));
        assert!(!share(&texts.train, &texts.general, 10));
    }

    #[test]
    fn the_digest_names_the_content() {
        let mut texts = Texts::vendored();
        assert_eq!(texts.digest(), DIGEST);
        let last = texts.train.pop().expect("five novels");
        texts.held_out.insert(0, last);
        assert_ne!(texts.digest(), DIGEST);
    }

    #[test]
    fn the_last_tenth_of_a_users_text_is_held_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.txt");
        let paragraphs: Vec<String> = (0..100).map(|n| format!("Paragraph {n:02}.")).collect();
        fs::write(&path, format!("\u{feff}{}\n", paragraphs.join("\n\n"))).unwrap();
        let texts = Texts::load(&path).unwrap();
        assert_eq!(texts.train[0].title, "mine");
        assert!(texts.train[0].text.starts_with("Paragraph 00."));
        assert!(texts.train[0].text.ends_with("Paragraph 89."));
        assert!(texts.held_out[0].text.starts_with("Paragraph 90."));
        assert_eq!(texts.general.len(), 77);
        // As another system writes it, it is the same text.
        for line_end in ["\r\n", "\r"] {
            let content = format!("\u{feff}{}\n", paragraphs.join("\n\n"));
            fs::write(&path, content.replace('\n', line_end)).unwrap();
            assert_eq!(Texts::load(&path).unwrap(), texts);
        }
        fs::write(&path, " \n").unwrap();
        let error = Texts::load(&path).unwrap_err().to_string();
        assert!(error.contains("mine.txt"), "{error}");
        assert!(Texts::load(&dir.path().join("none.txt")).is_err());
    }

    #[test]
    fn paragraphs_are_found_whatever_the_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crlf.txt");
        let content = include_str!("../../tests/data/crlf.txt");
        fs::write(&path, content.repeat(20)).unwrap();
        let texts = Texts::load(&path).unwrap();
        let held_out = &texts.held_out[0].text;
        assert!(held_out.starts_with("A new paragraph."), "{held_out:?}");
        let all = [&texts.train[0].text, held_out];
        assert!(all.iter().all(|text| !text.contains('\r')));
    }

    #[test]
    fn a_damaged_file_is_noticed() {
        let damaged = Vendored {
            sha256: TRAIN[1].sha256,
            ..TRAIN[0]
        };
        assert!(std::panic::catch_unwind(|| damaged.read()).is_err());
    }
}
