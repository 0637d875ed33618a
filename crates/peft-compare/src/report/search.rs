//! How a method's learning rate was chosen, for the tables.

use serde::Serialize;

use crate::record::{Grid, Place, RunRecord, Trial};

/// One search for a learning rate, and the runs that went by it.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Search {
    /// Seeds of the runs.
    pub seeds: Vec<u64>,
    /// The rate that won.
    pub learning_rate: f64,
    /// The rates that were tried.
    pub tuning: Vec<Trial>,
    /// Whose rates they are, in words.
    pub grid: Option<String>,
    /// Where among them the winner lies.
    pub place: Option<Place>,
    /// The same in words.
    pub place_words: Option<&'static str>,
}

impl Search {
    /// Those of runs in the order of their seeds: neighbours that share a search share an entry.
    pub(super) fn of(runs: &[RunRecord]) -> Vec<Self> {
        let same = |a: &RunRecord, b: &RunRecord| {
            a.tuning == b.tuning && a.learning_rate.total_cmp(&b.learning_rate).is_eq()
        };
        let searches = runs.chunk_by(same);
        searches
            .map(|runs| Self {
                seeds: runs.iter().map(|run| run.seed).collect(),
                learning_rate: runs[0].learning_rate,
                tuning: runs[0].tuning.clone(),
                grid: runs[0].grid.as_ref().map(Grid::origin),
                place: runs[0].place(),
                place_words: runs[0].place().map(Place::words),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn seeds_that_share_a_search_share_an_entry() {
        let runs = [1, 2, 3].map(|seed| {
            let mut run = sample::record("lora", seed);
            run.tuning = sample::record("lora", 1 + seed / 3).tuning;
            run
        });
        let searches = Search::of(&runs);
        let seeds: Vec<_> = searches.iter().map(|search| search.seeds.clone()).collect();
        assert_eq!(seeds, [vec![1, 2], vec![3]]);
        assert_eq!(searches[0].grid.as_deref(), Some("of the task"));
        assert_eq!(searches[0].place, Some(Place::Inside));
    }
}
