//! The formats: each becomes rows of a text, a label and a line number.

use super::{Columns, DataError};
use serde_json::{Map, Value};
use std::path::Path;

/// Names that a text column may have, the first found wins.
const TEXT_COLUMNS: [&str; 4] = ["text", "sentence", "review", "content"];
/// Names that a label column may have, the first found wins.
const LABEL_COLUMNS: [&str; 5] = ["label", "class", "target", "sentiment", "category"];

/// A text and its label as read, with its line.
pub(super) struct RawRow {
    pub(super) line: u64,
    pub(super) text: String,
    pub(super) label: String,
}

/// The content as text, without a byte order mark.
pub(super) fn utf8<'a>(path: &Path, content: &'a [u8]) -> Result<&'a str, DataError> {
    let text = std::str::from_utf8(content).map_err(|error| DataError::Line {
        path: path.to_owned(),
        line: content[..error.valid_up_to()]
            .split(|byte| *byte == b'\n')
            .count() as u64,
        problem: "not UTF-8; save the file as UTF-8 and try again".to_owned(),
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Delimited text; `skipped` lines after the header describe columns.
pub(super) fn table(
    path: &Path,
    text: &str,
    delimiter: u8,
    skipped: usize,
    columns: &Columns,
) -> Result<Vec<RawRow>, DataError> {
    let mut records = Vec::new();
    let quoting = delimiter == b',';
    let mut reader = csv::ReaderBuilder::new();
    reader
        .delimiter(delimiter)
        .quoting(quoting)
        .has_headers(false)
        .flexible(true);
    for record in reader.from_reader(text.as_bytes()).records() {
        let record = record.map_err(|error| DataError::Content {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        records.push((record.position().map_or(0, csv::Position::line), record));
    }
    let Some((_, first)) = records.first() else {
        return Ok(Vec::new());
    };
    let names: Vec<&str> = first.iter().map(str::trim).collect();
    let found = choose(path, &names, columns)?;
    let Some((text, label)) = found.or((names.len() == 2).then_some((0, 1))) else {
        return Err(unclear(
            path,
            &names,
            "no line of column names, and not two columns",
        ));
    };
    let header = found.is_some();
    if !header
        && records.len() > 2
        && !records[1..]
            .iter()
            .any(|(_, record)| record.get(1) == first.get(1))
    {
        return Err(unclear(
            path,
            &names,
            "line 1 looks like column names, but not ones we know",
        ));
    }
    let width = names.len();
    records
        .iter()
        .enumerate()
        .filter(|(index, _)| !header || *index > skipped)
        .map(|(_, (line, record))| {
            match (record.get(text), record.get(label), record.len() == width) {
                (Some(text), Some(label), true) => Ok(RawRow {
                    line: *line,
                    text: text.to_owned(),
                    label: label.to_owned(),
                }),
                _ => Err(DataError::Line {
                    path: path.to_owned(),
                    line: *line,
                    problem: format!("{} fields, but line 1 has {width}", record.len()),
                }),
            }
        })
        .collect()
}

/// One JSON object a line.
pub(super) fn json_lines(
    path: &Path,
    text: &str,
    columns: &Columns,
) -> Result<Vec<RawRow>, DataError> {
    let mut rows = Vec::new();
    let mut keys: Option<(String, String)> = None;
    for (line, content) in (1..)
        .zip(text.lines())
        .filter(|(_, content)| !content.trim().is_empty())
    {
        let problem = |problem: String| DataError::Line {
            path: path.to_owned(),
            line,
            problem,
        };
        let object: Map<String, Value> = serde_json::from_str(content)
            .map_err(|error| problem(format!("not a JSON object: {error}")))?;
        if keys.is_none() {
            let names: Vec<&str> = object.keys().map(String::as_str).collect();
            let Some((text, label)) = choose(path, &names, columns)? else {
                return Err(unclear(
                    path,
                    &names,
                    "no usual name for the text and the label",
                ));
            };
            keys = Some((names[text].to_owned(), names[label].to_owned()));
        }
        let Some((text_key, label_key)) = &keys else {
            continue;
        };
        let field = |key: &str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            _ => Err(problem(format!(
                "`{key}` is missing, or neither text nor a number"
            ))),
        };
        rows.push(RawRow {
            line,
            text: field(text_key)?,
            label: field(label_key)?,
        });
    }
    Ok(rows)
}

/// The positions of the text and the label column; `None` when no name is known and none was given.
fn choose(
    path: &Path,
    names: &[&str],
    columns: &Columns,
) -> Result<Option<(usize, usize)>, DataError> {
    let find = |wanted: &Option<String>, usual: &[&str]| {
        let position = |name: &str| {
            names
                .iter()
                .position(|found| found.eq_ignore_ascii_case(name))
        };
        match wanted {
            Some(name) => position(name)
                .map(Some)
                .ok_or_else(|| unclear(path, names, &format!("no column `{name}`"))),
            None => Ok(usual.iter().find_map(|name| position(name))),
        }
    };
    let text = find(&columns.text_column, &TEXT_COLUMNS)?;
    let label = find(&columns.label_column, &LABEL_COLUMNS)?;
    match (text, label, names.len()) {
        (Some(text), Some(label), _) if text == label => {
            Err(unclear(path, names, "text and label are the same column"))
        }
        (Some(text), Some(label), _) => Ok(Some((text, label))),
        (None, None, _) => Ok(None),
        (Some(one), None, 2) => Ok(Some((one, 1 - one))),
        (None, Some(one), 2) => Ok(Some((1 - one, one))),
        (Some(_), None, _) => Err(unclear(path, names, "no usual name for the label")),
        (None, Some(_), _) => Err(unclear(path, names, "no usual name for the text")),
    }
}

fn unclear(path: &Path, names: &[&str], problem: &str) -> DataError {
    DataError::Columns {
        path: path.to_owned(),
        problem: problem.to_owned(),
        found: names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::*;

    fn parse(file: &str, content: &str) -> Result<Dataset, DataError> {
        Dataset::parse(Path::new(file), content.as_bytes(), &Columns::default())
    }

    fn error(file: &str, content: &str) -> String {
        parse(file, content).unwrap_err().to_string()
    }

    #[test]
    fn every_format_gives_the_same_rows() {
        let files = [
            (
                "d.tsv",
                "id\tlabel\tsentence\n1\tpos\tsaid \"yes, please\"\n2\tneg\tno\n",
            ),
            (
                "d.csv",
                "Sentence,Label\n\"said \"\"yes, please\"\"\",pos\nno,neg\n",
            ),
            ("d.tsv", "said \"yes, please\"\tpos\nno\tneg\r\n"),
            (
                "d.csv",
                "\u{feff}review,stars\n\"said \"\"yes, please\"\"\",pos\n no ,neg\n",
            ),
            (
                "d.jsonl",
                "{\"content\":\"said \\\"yes, please\\\"\",\"target\":\"pos\"}\n\n{\"target\":\"neg\",\"content\":\"no\"}\n",
            ),
            (
                "d.tab",
                "Category\tText\nd\tstring\nclass\t\n\npos\tsaid \"yes, please\"\nneg\tno\n",
            ),
        ];
        for (file, content) in files {
            let data = parse(file, content).unwrap();
            assert_eq!(data.labels, ["neg", "pos"], "{content}");
            let rows: Vec<_> = data
                .rows
                .iter()
                .map(|row| (row.text.as_str(), row.label))
                .collect();
            assert_eq!(rows, [("said \"yes, please\"", 1), ("no", 0)], "{content}");
        }
    }

    #[test]
    fn integer_labels_are_sorted_as_numbers_and_columns_can_be_named() {
        let columns = Columns {
            text_column: Some("u".into()),
            label_column: Some("INTENT".into()),
        };
        let content = "{\"u\":\"a\",\"intent\":10,\"text\":\"\"}\n{\"u\":\"b\",\"intent\":9}\n{\"u\":\"c\",\"intent\":9}";
        let data = Dataset::parse(Path::new("d.jsonl"), content.as_bytes(), &columns).unwrap();
        assert_eq!(data.labels, ["9", "10"]);
        assert_eq!(data.majority(), (0, 2.0 / 3.0));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cases = [
            ("d.txt", "", "extension"),
            ("d.tsv", "", "no rows"),
            ("d.tsv", "text\tlabel\n", "no rows"),
            (
                "d.tsv",
                "text\tlabel\na\t1\nb\t1\n",
                "all rows have the label `1`",
            ),
            (
                "d.tsv",
                "text\tlabel\na\t1\n \t0\n",
                "line 3: the text is empty",
            ),
            (
                "d.tsv",
                "text\tlabel\na\t1\nb\t\n",
                "line 3: the label is empty",
            ),
            (
                "d.tsv",
                "text\tlabel\na\t1\nb\n",
                "line 3: 1 fields, but line 1 has 2",
            ),
            ("d.csv", "a,b,c\n1,2,3\n", "found the columns: a, b, c"),
            ("d.csv", "text,b,c\n1,2,3\n", "no usual name for the label"),
            (
                "d.csv",
                "utterance,intent\nx,1\ny,0\nz,1\n",
                "line 1 looks like column names",
            ),
            (
                "d.csv",
                "text,label\na,1\nb,2\nc,3\n",
                "every row has its own label",
            ),
            (
                "d.jsonl",
                "{\"text\":\"a\",\"label\":1}\n[1]",
                "line 2: not a JSON object",
            ),
            (
                "d.jsonl",
                "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\"}",
                "line 2: `label` is missing",
            ),
        ];
        for (file, content, expected) in cases {
            let found = error(file, content);
            assert!(found.contains(expected), "{content:?}: {found}");
        }
        let latin1 = Dataset::parse(
            Path::new("d.tsv"),
            b"text\tlabel\ncaf\xe9\t1\n",
            &Columns::default(),
        );
        assert!(
            latin1
                .unwrap_err()
                .to_string()
                .contains("line 2: not UTF-8")
        );
        assert!(Dataset::load(Path::new("/no/such.tsv"), &Columns::default()).is_err());
    }
}
