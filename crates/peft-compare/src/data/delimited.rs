//! Delimited text, read strictly.
//!
//! The `csv` crate reads any file without an error: a quote that nothing closes swallows the rest, by design. Here no
//! row may get lost, so a quoted field must be as RFC 4180 has it: a quote inside it is written twice, and what
//! follows its end is a delimiter or a line end. That leaves a stray quote that closes by chance lines later, before a
//! delimiter; [`Record::swallowed`] finds it.

use super::DataError;
use std::borrow::Cow;
use std::path::Path;

/// What a writer of the file can do about a quote.
const REMEDY: &str =
    "inside a quoted field a quote is written twice; where quotes are text, save the file as .tsv";

/// How fields are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Between two fields.
    pub(super) delimiter: char,
    /// Whether a field that begins with a quote goes on to the next one. If not, quotes are text.
    pub(super) quoting: bool,
}

/// A field, unquoted.
pub(super) struct Field<'a> {
    pub(super) text: Cow<'a, str>,
    /// The line it begins on.
    first: u64,
    /// The line it ends on; another one for quoted fields alone.
    last: u64,
}

/// One record; it may be of several lines.
pub(super) struct Record<'a> {
    pub(super) fields: Vec<Field<'a>>,
    /// The record as it stands in the file.
    raw: &'a str,
}

/// A line inside a quoted field that is a row itself.
pub(super) struct Swallowed {
    /// The line of the quote that opens the field.
    pub(super) opened: u64,
    /// What is wrong with it.
    pub(super) problem: String,
}

impl Record<'_> {
    /// The line it begins on.
    pub(super) fn line(&self) -> u64 {
        self.fields[0].first
    }

    /// A field's text.
    pub(super) fn get(&self, column: usize) -> Option<&str> {
        self.fields.get(column).map(|field| field.text.as_ref())
    }

    /// A line of this record, other than the one with its label, that is a whole row if quotes are text: as many fields
    /// as `width`, and a label that `is_label` knows. An honest text of several lines has none, or its rows are
    /// ambiguous; behind a stray quote the line that it stands on is one, or the line where it closes.
    pub(super) fn swallowed(
        &self,
        format: Format,
        width: usize,
        label: usize,
        is_label: impl Fn(&str) -> bool,
    ) -> Option<Swallowed> {
        let own = self.fields.get(label)?.first;
        for (line, text) in (self.line()..).zip(lines(self.raw)) {
            let within = |field: &&Field<'_>| {
                field.first < field.last && (field.first..=field.last).contains(&line)
            };
            let Some(field) = self.fields.iter().find(within) else {
                continue;
            };
            let cells: Vec<&str> = text.split(format.delimiter).collect();
            let is_row =
                cells.len() == width && is_label(cells[label].trim().trim_matches('"').trim());
            if is_row && line != own {
                return Some(Swallowed {
                    opened: field.first,
                    problem: format!(
                        "the quote that opens here closes on line {}, and line {line} would be a row of its own; {REMEDY}",
                        field.last
                    ),
                });
            }
        }
        None
    }
}

/// All records; lines with nothing on them are none.
pub(super) fn records<'a>(
    path: &Path,
    text: &'a str,
    format: Format,
) -> Result<Vec<Record<'a>>, DataError> {
    let mut reader = Reader {
        rest: text,
        line: 1,
        format,
    };
    let mut records = Vec::new();
    while let Some(record) = reader.record().map_err(|(line, problem)| DataError::Line {
        path: path.to_owned(),
        line,
        problem,
    })? {
        records.push(record);
    }
    Ok(records)
}

/// The first record, if it can be read.
pub(super) fn first_record(text: &str, format: Format) -> Option<Record<'_>> {
    let mut reader = Reader {
        rest: text,
        line: 1,
        format,
    };
    reader.record().ok().flatten()
}

/// The lines of a text. They end with `\n`, `\r\n` or `\r`.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.find(['\n', '\r']).unwrap_or(text.len());
        let line_end = line_end(&text[end..]);
        rest = (line_end > 0).then(|| &text[end + line_end..]);
        Some(&text[..end])
    })
}

/// Bytes of the line end that a text begins with; 0 if it begins with none.
fn line_end(text: &str) -> usize {
    if text.starts_with("\r\n") {
        2
    } else {
        usize::from(text.starts_with(['\n', '\r']))
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: u64,
    format: Format,
}

impl<'a> Reader<'a> {
    /// The next record, or the line and what is wrong with it.
    fn record(&mut self) -> Result<Option<Record<'a>>, (u64, String)> {
        while self.end_line() {}
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = self.rest;
        let mut fields = Vec::new();
        loop {
            fields.push(self.field()?);
            match self.rest.strip_prefix(self.format.delimiter) {
                Some(rest) => self.rest = rest,
                None => break,
            }
        }
        let raw = &start[..start.len() - self.rest.len()];
        self.end_line();
        Ok(Some(Record { fields, raw }))
    }

    fn field(&mut self) -> Result<Field<'a>, (u64, String)> {
        let first = self.line;
        let text = match self.rest.strip_prefix('"') {
            Some(inside) if self.format.quoting => self.quoted(inside)?,
            _ => {
                let end = self.rest.find([self.format.delimiter, '\n', '\r']);
                Cow::Borrowed(self.take(end.unwrap_or(self.rest.len())))
            }
        };
        Ok(Field {
            text,
            first,
            last: self.line,
        })
    }

    /// The rest of a field behind its first quote.
    fn quoted(&mut self, inside: &'a str) -> Result<Cow<'a, str>, (u64, String)> {
        let opened = self.line;
        let mut from = 0;
        let end = loop {
            let Some(quote) = inside[from..].find('"').map(|at| from + at) else {
                let problem = format!("the quote that opens here is never closed; {REMEDY}");
                return Err((opened, problem));
            };
            if !inside[quote + 1..].starts_with('"') {
                break quote;
            }
            from = quote + 2;
        };
        let content = &inside[..end];
        self.line += lines(content).count() as u64 - 1;
        self.rest = &inside[end + 1..];
        let ends = self.rest.is_empty() || line_end(self.rest) > 0;
        if !ends && !self.rest.starts_with(self.format.delimiter) {
            let where_it_closes = if self.line == opened {
                "on the same line".to_owned()
            } else {
                format!("on line {}", self.line)
            };
            let problem = format!(
                "the quote that opens here closes {where_it_closes}, and text follows it; {REMEDY}"
            );
            return Err((opened, problem));
        }
        Ok(if content.contains('"') {
            content.replace("\"\"", "\"").into()
        } else {
            content.into()
        })
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    /// Goes past a line end, if there is one.
    fn end_line(&mut self) -> bool {
        let bytes = line_end(self.rest);
        self.take(bytes);
        self.line += u64::from(bytes > 0);
        bytes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: Format = Format {
        delimiter: ',',
        quoting: true,
    };

    fn read(text: &str) -> Vec<(u64, Vec<String>)> {
        let records = records(Path::new("d.csv"), text, CSV).unwrap();
        let plain = |record: &Record<'_>| {
            let fields = record.fields.iter();
            (
                record.line(),
                fields.map(|field| field.text.to_string()).collect(),
            )
        };
        records.iter().map(plain).collect()
    }

    fn record(line: u64, fields: &[&str]) -> (u64, Vec<String>) {
        (line, fields.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn records_have_the_line_that_they_begin_on() {
        let text =
            "a,b\r\n\r\n\"two\r\nlines\",\"say \"\"yes\"\", so\"\r\nc,\"\"\n\n,d\r\"e\",f \"g\"";
        assert_eq!(
            read(text),
            [
                record(1, &["a", "b"]),
                record(3, &["two\r\nlines", "say \"yes\", so"]),
                record(5, &["c", ""]),
                record(7, &["", "d"]),
                record(8, &["e", "f \"g\""]),
            ]
        );
        assert!(read("\n\n").is_empty());
    }

    #[test]
    fn a_quote_that_is_not_closed_as_it_should_be_is_named_with_the_line_where_it_opens() {
        let said = |text: &str| match records(Path::new("d.csv"), text, CSV) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text:?} was read"),
        };
        let found = said("a,1\nb,\"2\nc,3\n");
        assert!(
            found.contains("line 2: the quote that opens here is never closed"),
            "{found}"
        );
        let found = said("a,1\n\"b,2\nc,3\n\"d\",4\n");
        assert!(
            found.contains("line 2: the quote that opens here closes on line 4"),
            "{found}"
        );
        let found = said("a,1\n\"b\" he said,2\n");
        assert!(
            found.contains("line 2") && found.contains("on the same line"),
            "{found}"
        );
    }

    #[test]
    fn without_quoting_quotes_are_text() {
        let format = Format {
            delimiter: '\t',
            quoting: false,
        };
        let records = records(Path::new("d.tsv"), "\"a\tb\"\n\"c\td\n", format).unwrap();
        assert_eq!(records[0].get(0), Some("\"a"));
        assert_eq!(records[1].get(1), Some("d"));
    }
}
