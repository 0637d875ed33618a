//! The table as text.

use std::collections::BTreeSet;

use super::evidence::{Checked, Evidence, Upstream, VendoredCase};
use super::rows::{Row, Rows};

/// Stands in front of the table.
pub const BEGIN: &str =
    "<!-- `cargo xtask methods` writes this table. Its rows are in docs/methods/table.toml. -->";
/// Stands behind the table.
pub const END: &str = "<!-- The end of the table of methods. -->";

const HEAD: &str = "| method | family | crate | trains on MiniLM-L6 | merges | verified against |
|---|---|---|---|---|---|
";

/// The table.
pub fn table(rows: &Rows, evidence: &Evidence) -> String {
    let rows = rows.rows.iter().map(|row| line(row, evidence));
    HEAD.to_string() + &rows.collect::<String>()
}

/// `readme` with `table` between the markers.
///
/// # Errors
///
/// Says that the markers are missing.
pub fn with_table(readme: &str, table: &str) -> Result<String, String> {
    let parts = readme.split_once(BEGIN);
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = parts else {
        return Err(format!("it has no two lines `{BEGIN}` and `{END}`"));
    };
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn line(row: &Row, evidence: &Evidence) -> String {
    let infos: Vec<_> = row.infos().collect();
    let titles: Vec<&str> = infos.iter().map(|(_, info)| info.title).collect();
    let title = row.title.clone().unwrap_or_else(|| titles.join(", "));
    let first = infos.first();
    let family = first.map(|(_, info)| info.family.to_string());
    let family = row.family.clone().or(family).unwrap_or_default();
    let package = first.map(|(package, _)| (*package).to_string());
    let package = row.package.clone().or(package).unwrap_or_default();
    let merges = row.merges.clone().unwrap_or_else(|| {
        let all = infos.iter().all(|(_, info)| info.mergeable);
        if all { "yes" } else { "no" }.to_string()
    });
    let (page, after, trains) = (&row.page, &row.after, &row.trains);
    let verified = verified(row, evidence);
    format!(
        "| [{title}](docs/methods/{page}){after} | {family} | `{package}` | {trains} | {merges} | {verified} |\n"
    )
}

/// What a row was verified against.
fn verified(row: &Row, evidence: &Evidence) -> String {
    let is_ours = |name: &str| row.methods.iter().any(|method| method == name);
    let mut parts = Vec::new();
    for upstream in [Upstream::HuggingFace, Upstream::AdapterHub] {
        let of_row = |case: &&VendoredCase| {
            let known = case.method.is_some_and(is_ours) || row.cases.contains(&case.name);
            known && case.upstream == upstream
        };
        let cases: Vec<&VendoredCase> = evidence.cases.iter().filter(of_row).collect();
        if cases.is_empty() {
            continue;
        }
        let models: BTreeSet<&str> = cases.iter().map(|case| title_of(&case.model)).collect();
        let checked: BTreeSet<Checked> = cases
            .iter()
            .flat_map(|case| case.checked.iter().copied())
            .collect();
        let mut checked: Vec<&str> = checked.into_iter().map(Checked::text).collect();
        let reads =
            |read: &super::evidence::Read| is_ours(read.method) && read.upstream == upstream;
        if evidence.reads.iter().any(reads) {
            checked.push("files that it reads");
        }
        parts.push(format!(
            "{} on {}: {}",
            upstream.title(),
            listed(&models.into_iter().collect::<Vec<_>>()),
            checked.join(", ")
        ));
    }
    parts.extend(row.also.clone());
    if parts.is_empty() {
        return "conformance suite".to_string();
    }
    parts.join("; ")
}

/// `a`, `a and b`, `a, b and c`.
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_string(),
        [words @ .., last] => format!("{} and {last}", words.join(", ")),
    }
}

/// A kind of model as it is written.
fn title_of(model: &str) -> &str {
    match model {
        "bert" => "BERT",
        "llama" => "Llama",
        "cnn" => "a CNN",
        "gpt2" => "GPT-2",
        "t5" => "T5",
        "roberta" => "RoBERTa",
        "distilbert" => "DistilBERT",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_the_table_stays() {
        let readme = format!("one\n{BEGIN}\nold\n{END}\ntwo\n");
        let new = with_table(&readme, "| new |\n").unwrap();
        assert_eq!(new, format!("one\n{BEGIN}\n| new |\n{END}\ntwo\n"));
        assert_eq!(with_table(&new, "| new |\n").unwrap(), new);
        assert!(with_table("one", "").unwrap_err().contains("no two lines"));
        assert_eq!(listed(&["a", "b", "c"]), "a, b and c");
    }
}
