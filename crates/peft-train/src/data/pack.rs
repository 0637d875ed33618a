//! Cutting long texts into rows, and packing short ones together.

use std::collections::{BTreeMap, BTreeSet};

use super::Row;

/// Rows of `length` positions from texts of any length; only the last may be shorter. With `packing` the
/// texts follow one another without gaps, otherwise each begins a row.
pub(super) fn cut(texts: Vec<Row>, length: usize, packing: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for text in texts {
        let mut open = packing;
        let mut start = 0;
        while start < text.len() {
            let room = rows
                .last()
                .filter(|_| open)
                .map_or(0, |row| length - row.len());
            open = true;
            if room == 0 {
                rows.push(Row {
                    task: text.task,
                    ..Row::default()
                });
            }
            let room = if room == 0 { length } else { room };
            let end = text.len().min(start + room);
            if let Some(row) = rows.last_mut() {
                append(row, &text, start..end);
            }
            start = end;
        }
    }
    rows
}

/// Rows of at most `length` positions, of whole rows: longest first, each into the fullest row that has
/// room for it (best-fit decreasing). Longer ones stay alone.
pub(super) fn pack(mut rows: Vec<Row>, length: usize) -> Vec<Row> {
    // A stable sort: equal lengths stay in order, so the result is the same every time.
    rows.sort_by_key(|row| std::cmp::Reverse(row.len()));
    let mut packed: Vec<Row> = Vec::new();
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for row in rows {
        let fullest = open.range((row.len(), 0)..).next().copied();
        let at = if let Some((room, at)) = fullest {
            open.remove(&(room, at));
            at
        } else {
            packed.push(Row::default());
            packed.len() - 1
        };
        append(&mut packed[at], &row, 0..row.len());
        let room = length.saturating_sub(packed[at].len());
        if room > 0 {
            open.insert((room, at));
        }
    }
    packed
}

/// The rows that `pack` makes of the texts of each task.
pub(super) fn by_task(texts: Vec<Row>, pack: impl Fn(Vec<Row>) -> Vec<Row>) -> Vec<Row> {
    let mut tasks: BTreeMap<Option<usize>, Vec<Row>> = BTreeMap::new();
    for text in texts {
        tasks.entry(text.task).or_default().push(text);
    }
    let packed = tasks.into_iter().flat_map(|(task, texts)| {
        let of_task = move |row: Row| Row { task, ..row };
        pack(texts).into_iter().map(of_task)
    });
    packed.collect()
}

/// Puts a part of `text`, which is one segment, behind what `row` has.
fn append(row: &mut Row, text: &Row, part: std::ops::Range<usize>) {
    let segment = row.segments.last().map_or(0, |last| last + 1);
    row.segments.extend(part.clone().map(|_| segment));
    row.ids.extend(&text.ids[part.clone()]);
    row.targets.extend(&text.targets[part]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text `first`, `first + 1`, …: each predicts its successor.
    fn text(first: u32, tokens: u32) -> Row {
        let ids = first..first + tokens;
        Row {
            ids: ids.clone().collect(),
            targets: ids.clone().map(|id| i64::from(id) + 1).collect(),
            segments: ids.map(|_| 0).collect(),
            task: None,
        }
    }

    fn ids(rows: &[Row]) -> Vec<Vec<u32>> {
        rows.iter().map(|row| row.ids.clone()).collect()
    }

    #[test]
    fn texts_are_cut_without_losing_a_target() {
        let rows = cut(vec![text(0, 7), text(10, 2)], 3, false);
        let expected: [Vec<u32>; 4] = [vec![0, 1, 2], vec![3, 4, 5], vec![6], vec![10, 11]];
        assert_eq!(ids(&rows), expected);
        assert_eq!(
            rows[0].targets,
            [1, 2, 3],
            "the last one looks over the edge"
        );
        assert!(rows.iter().all(|row| row.segments.iter().all(|s| *s == 0)));
    }

    #[test]
    fn packed_texts_follow_without_gaps() {
        let rows = cut(vec![text(0, 4), text(10, 1), text(20, 4)], 3, true);
        let expected: [Vec<u32>; 3] = [vec![0, 1, 2], vec![3, 10, 20], vec![21, 22, 23]];
        assert_eq!(ids(&rows), expected);
        assert_eq!(rows[1].segments, [0, 1, 2]);
        assert_eq!(rows[1].targets, [4, 11, 21]);
        assert_eq!(rows[2].segments, [0, 0, 0]);
    }

    #[test]
    fn short_rows_share_and_stay_whole() {
        let lengths = [3, 6, 2, 5, 4, 1];
        let texts: Vec<Row> = (0..)
            .zip(lengths)
            .map(|(number, length)| text(100 * number, length))
            .collect();
        let packed = pack(texts.clone(), 7);
        assert_eq!(packed.len(), 3, "21 tokens fit into three rows of 7");
        let mut seen = 0;
        for row in &packed {
            assert!(row.len() <= 7);
            for segment in 0..=*row.segments.last().unwrap() {
                let part: Vec<u32> = row
                    .ids
                    .iter()
                    .zip(&row.segments)
                    .filter(|(_, found)| **found == segment)
                    .map(|(id, _)| *id)
                    .collect();
                assert!(texts.iter().any(|text| text.ids == part), "{part:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, 6);
        assert_eq!(pack(texts.clone(), 7), packed);
    }
}
