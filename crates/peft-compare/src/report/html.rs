//! `report.html`: one file with its data, style and script; it needs no network and no server.

use super::{Report, ReportError};

const TEMPLATE: &str = include_str!("html/template.html");
const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/script.js");

/// The file's content.
pub(super) fn render(report: &Report) -> Result<String, ReportError> {
    // The data come last: nothing is replaced in them.
    let page = TEMPLATE
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT);
    let data = embeddable(&serde_json::to_string(report)?);
    Ok(page.replacen("{{data}}", &data, 1))
}

/// JSON that can stand in a `<script>` element.
///
/// `<` only occurs in strings, where its escape means the same; without it nothing ends the element or opens a comment.
fn embeddable(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn text_of_a_record_cannot_end_the_script() {
        let attack = "</script><script>alert(1)</script><!-- {{data}}";
        let mut record = sample::record("lora", 1);
        record.method.title = attack.into();
        record.notes = vec![attack.into()];
        let html = render(&Report::new(&[record])).unwrap();
        assert_eq!(
            html.matches("</script").count(),
            TEMPLATE.matches("</script").count()
        );
        assert!(!html.contains("<!--"));

        let start = html.find(r#"id="data">"#).unwrap() + r#"id="data">"#.len();
        let json = &html[start..start + html[start..].find("</script>").unwrap()];
        let data: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(data["groups"][0]["methods"][0]["method"]["title"], attack);
    }

    #[test]
    fn the_page_reaches_for_nothing() {
        for forbidden in [
            "src=",
            "@import",
            "url(",
            "fetch(",
            "innerHTML",
            "XMLHttpRequest",
        ] {
            for part in [TEMPLATE, STYLE, SCRIPT] {
                assert!(!part.contains(forbidden), "{forbidden}");
            }
        }
        assert!(TEMPLATE.contains("default-src 'none'"));
    }
}
