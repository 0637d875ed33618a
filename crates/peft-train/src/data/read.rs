//! Reading records from files.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{Record, line};
use crate::error::io;
use crate::{Error, Result};

/// Bytes that a compressed file may hold: a few kilobytes can hold more than memory does.
const MOST_UNPACKED: u64 = 1 << 30;

/// Kinds of files that hold records, but not one a line.
const NOT_READ: [&str; 4] = ["json", "csv", "tsv", "parquet"];

/// Reads a file: `.jsonl` has one record a line (empty lines are skipped), anything else is one text, but for
/// tables and other kinds of JSON, which are refused. With `.gz` behind its name it is compressed, and
/// may hold 1 GiB. The lines of a text end with `\n`: `\r\n` and `\r` become that.
///
/// A line is a JSON object with the fields of one of these:
///
/// | fields | record |
/// |---|---|
/// | `text` | a text |
/// | `prompt`, `completion` | an instruction, taken as it is |
/// | `instruction`, `output`, optionally `input`, `system`, `history` | a conversation: the user says `instruction`, an empty line and `input`, the assistant `output`. `system` comes before, then the pairs of `history`, a question and an answer each, which is learned as well |
/// | `messages`, a list of `{"role", "content"}`, optionally `system` | a conversation; roles are `system`, `user` and `assistant`, who has the last word |
///
/// Any of them may have `task`, a whole number from 0 on: the task of the record, for adapters that have parameters of
/// several. A name as `task` is not read.
///
/// A message with `"weight": 0` is not learned; 1 is as if it were not there, other weights are refused.
/// `train`, `training` and `loss` (true or false, 1 or 0) are read alike. Refused is what cannot be learned so:
/// `tools`, `functions` and `images` of a conversation, `tool_calls`, `function_call`, `reasoning_content`,
/// `thinking`, `images` and `audio` of a message, and `system` or `history` beside fields that they do not go with.
/// Fields without a value, and all others, are ignored.
///
/// # Errors
///
/// [`Error::Io`]; [`Error::Line`] with the number of the line that is no record; [`Error::Data`] for a
/// file that is not UTF-8, or named as one that holds records in a way that is not read.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let mut bytes = fs::read(path).map_err(io(path))?;
    let mut name = PathBuf::from(path.file_name().unwrap_or_default());
    if has_extension(&name, "gz") {
        bytes = unpacked(path, &bytes, MOST_UNPACKED)?;
        name.set_extension("");
    }
    let wrong = |reason: String| Error::Data {
        path: path.into(),
        reason,
    };
    // Their marks would be learned as prose.
    if let Some(kind) = NOT_READ.iter().find(|kind| has_extension(&name, kind)) {
        return Err(wrong(format!(
            "`.{kind}` files are not read: write one record a line into a `.jsonl` file"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| wrong(format!("not UTF-8: {error}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if !has_extension(&name, "jsonl") {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        return Ok(vec![Record::Text(text)]);
    }
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, text)| !text.trim().is_empty())
        .map(|(number, text)| {
            line::parse(text).map_err(|reason| Error::Line {
                path: path.into(),
                line: number,
                reason,
            })
        })
        .collect()
}

fn has_extension(name: &Path, expected: &str) -> bool {
    let extension = name.extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case(expected))
}

/// What a gzip file holds, which may be `most` bytes.
fn unpacked(path: &Path, bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    let mut decoder = MultiGzDecoder::new(bytes).take(most + 1);
    decoder.read_to_end(&mut whole).map_err(io(path))?;
    if whole.len() as u64 > most {
        return Err(Error::Data {
            path: path.into(),
            reason: format!(
                "it unpacks to more than {most} bytes; unpack it and split it into files"
            ),
        });
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use peft_models::Message;

    use super::*;

    fn written(name: &str, content: &[u8]) -> Result<Vec<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        read(&path)
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let lines = concat!(
            "\u{feff}{\"text\": \"A novel.\", \"id\": 3}\r\n",
            "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n\n",
            "{\"instruction\": \"Add.\", \"input\": \"1 1\", \"output\": \"2\"}\n",
            "{\"instruction\": \"Sing.\", \"input\": \"\", \"output\": \"La\"}\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, ",
            "{\"role\": \"assistant\", \"content\": \"Ho\"}]}",
        );
        let records = written("rows.jsonl", lines.as_bytes()).unwrap();
        assert_eq!(records.len(), 5);
        assert_eq!(records[0], Record::Text("A novel.".into()));
        let (prompt, completion) = ("1 + 1 =".into(), " 2".into());
        assert_eq!(records[1], Record::Completion { prompt, completion });
        let chat = |asked: &str, answer: &str| {
            Record::chat(vec![Message::user(asked), Message::assistant(answer)])
        };
        assert_eq!(records[2], chat("Add.\n\n1 1", "2"));
        assert_eq!(records[3], chat("Sing.", "La"));
        assert_eq!(records[4], chat("Hi", "Ho"));
    }

    #[test]
    fn other_files_are_one_text() {
        let records = written("emma.txt", b"One.\n\nTwo.\n").unwrap();
        assert_eq!(records, [Record::Text("One.\n\nTwo.\n".into())]);
        // Windows' and old ends of lines.
        for other in [&b"One.\r\n\r\nTwo.\r\n"[..], b"One.\r\rTwo.\r"] {
            assert_eq!(written("emma.txt", other).unwrap(), records);
        }
        let error = written("emma.txt", &[b'a', 0xff]).unwrap_err().to_string();
        assert!(error.contains("emma.txt: not UTF-8"), "{error}");
    }

    #[test]
    fn tables_are_not_taken_for_prose() {
        for name in ["rows.json", "rows.JSON", "rows.csv", "rows.tsv"] {
            let error = written(name, b"{}").unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(".jsonl"), "{error}");
        }
    }

    #[test]
    fn compressed_files_are_what_they_compress() {
        let packed = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let emma = Record::Text("Emma".into());
        assert_eq!(
            written("emma.txt.gz", &packed("Emma")).unwrap(),
            std::slice::from_ref(&emma)
        );
        let rows = packed("{\"text\": \"Emma\"}");
        assert_eq!(written("rows.jsonl.gz", &rows).unwrap(), [emma]);
        let error = written("emma.txt.gz", b"Emma").unwrap_err().to_string();
        assert!(error.contains("emma.txt.gz"), "{error}");
    }

    #[test]
    fn a_compressed_file_may_not_hold_more_than_it_should() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&[b' '; 10_000]).unwrap();
        let packed = encoder.finish().unwrap();
        let path = Path::new("spaces.txt.gz");
        assert_eq!(unpacked(path, &packed, 10_000).unwrap().len(), 10_000);
        let error = unpacked(path, &packed, 9_999).unwrap_err().to_string();
        assert!(
            error.contains("spaces.txt.gz") && error.contains("9999"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_record_is_told_with_its_line() {
        for line in ["nonsense", "{\"messages\": []}", "{\"prompt\": \"a\"}"] {
            let content = format!("{{\"text\": \"fine\"}}\n{line}\n");
            let error = written("rows.jsonl", content.as_bytes()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("rows.jsonl, line 2"), "{line}: {error}");
        }
    }
}
