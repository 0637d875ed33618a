//! What a group measured, for people.

use std::collections::HashMap;

use crate::case::Case;
use crate::process::Done;
use crate::ratio::Ratio;

/// Prints the cases of a group, and its ratios.
pub(crate) fn print(title: &str, ratios: &[Ratio], done: &HashMap<Case, Done>) {
    println!("\n{title}\n");
    print_cases(done);
    println!(
        "\n  {:<34} {:>7}  {:<15} {:<8}",
        "ratio", "median", "(min - max)", "needed"
    );
    for ratio in ratios {
        let Some(found) = ratio.of(done) else {
            continue;
        };
        let verdict = match ratio.needed.holds(found) {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        println!(
            "  {:<34} {:>7.3}  ({:.3} - {:.3}) {:<8} {verdict}",
            ratio.name,
            found.median,
            found.min,
            found.max,
            ratio.needed.text()
        );
    }
}

fn print_cases(done: &HashMap<Case, Done>) {
    let mut rows: Vec<&Done> = done.values().collect();
    rows.sort_by_key(|done| done.case.to_string());
    println!(
        "  {:<42} {:>10} {:>10} {:>12} {:>9} {:>6} {:>9} {:>9} {:>12}",
        "case",
        "median ms",
        "tokens/s",
        "trainable",
        "weights",
        "bits",
        "peak MiB",
        "live",
        "memory model"
    );
    // What a peer does not say is 0.
    let mib = |bytes: u64| match bytes {
        0 => String::new(),
        bytes => format!("{:.0}", bytes as f64 / f64::from(1 << 20)),
    };
    for row in rows {
        let seconds = row.seconds();
        let (ready, memory) = (&row.ready, &row.memory);
        let bits = ready
            .bits
            .map_or(String::new(), |bits| format!("{bits:.3}"));
        let memory_model = memory.model.map_or(0, |model| model.peak());
        println!(
            "  {:<42} {:>10.1} {:>10.0} {:>12} {:>9} {bits:>6} {:>9} {:>9} {:>12}",
            row.case.to_string(),
            seconds * 1e3,
            ready.tokens as f64 / seconds,
            ready.trainable,
            mib(ready.weights),
            mib(memory.peak),
            mib(memory.live),
            mib(memory_model),
        );
    }
}
