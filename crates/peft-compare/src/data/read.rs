//! The formats: each becomes rows of a text, a label and a line number.

use super::delimited::{Format, first_record, records};
use super::{Columns, DataError};
use serde_json::{Map, Value};
use std::collections::HashSet;
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

/// Tab-separated text, quotes are text; `skipped` lines after the header describe columns.
pub(super) fn tab_separated(
    path: &Path,
    text: &str,
    skipped: usize,
    columns: &Columns,
) -> Result<Vec<RawRow>, DataError> {
    let format = Format {
        delimiter: '\t',
        quoting: false,
    };
    table(path, text, format, skipped, columns)
}

/// Text whose fields may be quoted, separated by commas, semicolons or tabs, whichever line 1 has: the first that gives
/// column names we know, or else the first that gives two columns.
pub(super) fn quoted(path: &Path, text: &str, columns: &Columns) -> Result<Vec<RawRow>, DataError> {
    let formats = [',', ';', '\t'].map(|delimiter| Format {
        delimiter,
        quoting: true,
    });
    let names = |format: &Format| -> Vec<String> {
        let first = first_record(text, *format);
        first.map_or_else(Vec::new, |first| {
            let fields = first.fields.iter();
            fields.map(|field| field.text.trim().to_owned()).collect()
        })
    };
    let known = |format: &&Format| {
        let names = names(format);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        matches!(choose(path, &names, columns), Ok(Some(_)))
    };
    let format = formats
        .iter()
        .find(known)
        .or_else(|| formats.iter().find(|format| names(format).len() > 1))
        .unwrap_or(&formats[0]);
    table(path, text, *format, 0, columns)
}

/// The rows of delimited text.
fn table(
    path: &Path,
    text: &str,
    format: Format,
    skipped: usize,
    columns: &Columns,
) -> Result<Vec<RawRow>, DataError> {
    let records = records(path, text, format)?;
    let Some(first) = records.first() else {
        return Ok(Vec::new());
    };
    let names: Vec<&str> = first.fields.iter().map(|field| field.text.trim()).collect();
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
            .any(|record| record.get(1) == first.get(1))
    {
        return Err(unclear(
            path,
            &names,
            "line 1 looks like column names, but not ones we know",
        ));
    }
    let width = names.len();
    let rows = if header {
        records.get(1 + skipped..).unwrap_or_default()
    } else {
        &records[..]
    };
    let labels: HashSet<&str> = rows
        .iter()
        .filter_map(|record| record.get(label).map(str::trim))
        .collect();
    let wrong = |line, problem| DataError::Line {
        path: path.to_owned(),
        line,
        problem,
    };
    rows.iter()
        .map(|record| {
            if let Some(found) =
                record.swallowed(format, width, label, |text| labels.contains(text))
            {
                return Err(wrong(found.opened, found.problem));
            }
            match (record.get(text), record.get(label)) {
                (Some(text), Some(label)) if record.fields.len() == width => Ok(RawRow {
                    line: record.line(),
                    text: text.to_owned(),
                    label: label.to_owned(),
                }),
                _ => {
                    let found = record.fields.len();
                    let problem = format!("{found} fields, but line 1 has {width}");
                    Err(wrong(record.line(), problem))
                }
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
    fn a_stray_quote_is_an_error_that_names_its_line_and_no_row_is_lost() {
        let two = include_str!("../../tests/data/stray-quote-two.csv");
        let never = include_str!("../../tests/data/stray-quote.csv");
        // The quote closes behind a word, as an honest one would, and nothing follows it.
        let behind = two.replace("\"well he did\",0", "well he did\",0");
        let next = "text,label\nfine,1\n\"the chef said hello,1\nwell he did\",0\nbad,0\n";
        let label_first = "label,text\n1,fine\n0,\"the chef said hello\n1,well he did\"\n0,bad\n";
        let in_label = "text,label\nfine,1\ngood,\"1\nbad,0\"\nbad,0\n";
        for (content, line) in [
            (two, 12),
            (never, 12),
            (behind.as_str(), 12),
            (next, 3),
            (label_first, 3),
            (in_label, 3),
        ] {
            for content in [
                content.to_owned(),
                content.replace('\n', "\r\n"),
                content.replace(',', ";"),
            ] {
                let found = error("d.csv", &content);
                let named = format!("line {line}: the quote that opens here");
                assert!(found.contains(&named), "{content}: {found}");
            }
        }
        // Where quotes are text, all rows are there.
        let rows = |content: &str| {
            let data = parse("d.tsv", &content.replace(',', "\t")).unwrap();
            data.rows.len()
        };
        assert_eq!((rows(two), rows(never)), (31, 30));
    }

    #[test]
    fn texts_of_several_lines_are_read() {
        let paragraphs = "First of all, it is cheap.\n\n1, 2, 3 reasons\nand \"more\", good";
        let quoted = format!("\"{}\"", paragraphs.replace('"', "\"\""));
        for content in [
            format!(
                "text,label\n{quoted},pos\nbad,neg\n\"{quoted2}\",neg\n",
                quoted2 = "a\nb"
            ),
            format!("label,text\npos,{quoted}\nneg,bad\nneg,\"a\nb\"\n"),
            format!("id;text;label\n1;{quoted};pos\n2;bad;neg\n3;\"a\nb\";neg\n"),
        ] {
            let data = parse("d.csv", &content).unwrap();
            let texts: Vec<&str> = data.rows.iter().map(|row| row.text.as_str()).collect();
            assert_eq!(texts, [paragraphs, "bad", "a\nb"], "{content}");
        }
    }

    #[test]
    fn semicolons_and_tabs_separate_fields_where_line_1_says_so() {
        for content in [
            "text;label\nhot, fresh;1\n\"so; so\";0\n",
            "\"label\";\"text\"\n1;hot, fresh\n0;\"so; so\"\n",
            "text\tlabel\nhot, fresh\t1\nso; so\t0\n",
            "text,label\n\"hot, fresh\",1\nso; so,0\n",
        ] {
            let data = parse("d.csv", content).unwrap();
            let texts: Vec<&str> = data.rows.iter().map(|row| row.text.as_str()).collect();
            assert_eq!(texts, ["hot, fresh", "so; so"], "{content}");
        }
        let data = parse("d.csv", "hot\u{20ac};1\nso;1\nbad;0\n").unwrap();
        assert_eq!(data.rows.len(), 3, "without column names");
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
