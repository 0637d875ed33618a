//! Splits: by the seed, or by the rule of the peer measurements.

use super::{DataError, Dataset, read::RawRow, read::utf8};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, path::Path};

/// Indices of rows. No row, and no two rows with the same text, are in two parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// To train on. Every prefix has the classes in their proportions: `train[..n]` is a smaller training set.
    pub train: Vec<usize>,
    /// To choose settings on.
    pub dev: Vec<usize>,
    /// To report.
    pub test: Vec<usize>,
}

/// With so many rows every rule leaves some for each part.
const LEAST_ROWS: usize = 10;

impl Split {
    /// That every part has rows: nothing can be learned, chosen or reported without.
    ///
    /// # Errors
    /// [`DataError::EmptyPart`].
    pub fn check(&self, data: &Dataset) -> Result<(), DataError> {
        let parts = [
            ("training", &self.train),
            ("dev", &self.dev),
            ("test", &self.test),
        ];
        let empty: Vec<&str> = parts
            .iter()
            .filter(|(_, part)| part.is_empty())
            .map(|(name, _)| *name)
            .collect();
        if empty.is_empty() {
            return Ok(());
        }
        Err(DataError::EmptyPart {
            name: data.name.clone(),
            rows: data.rows.len(),
            parts: empty.join(" and no "),
            least: LEAST_ROWS,
        })
    }
}

impl Dataset {
    /// Movie review snippets, `id <tab> mean rating <tab> text` a line without a header, with the split that the peer
    /// measurements use (`benches`): rows rated within ±0.5 are left out, the label is the rating's sign; of the rest,
    /// counted from 0, `index % 10` in {0, 1} is test, 2 is dev, the others are train. Two texts occur twice.
    ///
    /// # Errors
    /// An unreadable file, bytes that are not UTF-8, a line that is not of this form, fewer than two classes.
    pub fn movie_reviews(path: &Path) -> Result<(Self, Split), DataError> {
        let content = fs::read(path).map_err(|source| DataError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut rows = Vec::new();
        for (line, text) in (1..).zip(utf8(path, &content)?.lines()) {
            let problem = |problem: &str| DataError::Line {
                path: path.to_owned(),
                line,
                problem: problem.to_owned(),
            };
            let mut fields = text.split('\t');
            let (Some(_), Some(rating), Some(text), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                return Err(problem("expected three fields: id, mean rating, text"));
            };
            let rating = rating
                .trim()
                .parse::<f64>()
                .ok()
                .filter(|rating| rating.is_finite());
            let rating = rating.ok_or_else(|| problem("the mean rating is not a number"))?;
            if rating.abs() >= 0.5 {
                let label = if rating > 0.0 { "positive" } else { "negative" };
                rows.push(RawRow {
                    line,
                    text: text.to_owned(),
                    label: label.to_owned(),
                });
            }
        }
        let data = Self::from_raw("movie-reviews", path, rows)?;
        let mut split = Split::default();
        for index in 0..data.rows.len() {
            match index % 10 {
                0 | 1 => split.test.push(index),
                2 => split.dev.push(index),
                _ => split.train.push(index),
            }
        }
        Ok((data, split))
    }

    /// Sizes (train, dev, test) for data that says none: a fifth for test, a tenth for dev, at most 2,000 and 1,000 rows.
    pub fn default_sizes(&self) -> (usize, usize, usize) {
        let rows = self.rows.len();
        let (test, dev) = ((rows / 5).min(2000), (rows / 10).min(1000));
        (rows - test - dev, dev, test)
    }

    /// Splits by the seed: `test` rows, `dev` rows and `train` rows, each with the classes in their proportions.
    ///
    /// Rows whose texts are equal up to case and white space stay together. The test rows do not depend on the other
    /// sizes, nor the dev rows on `train`.
    ///
    /// # Errors
    /// [`DataError::TooFewRows`].
    pub fn split(
        &self,
        seed: u64,
        train: usize,
        dev: usize,
        test: usize,
    ) -> Result<Split, DataError> {
        let mut groups = self.shuffled_groups(seed);
        let mut take = |quota: usize| {
            let mut taken = Vec::with_capacity(quota);
            // A group of duplicates that no longer fits is left for the next part.
            groups.retain(|group| {
                let fits = taken.len() + group.len() <= quota;
                if fits {
                    taken.extend(group);
                }
                !fits
            });
            (taken.len() == quota).then_some(taken)
        };
        match (take(test), take(dev), take(train)) {
            (Some(test), Some(dev), Some(train)) => Ok(Split { train, dev, test }),
            _ => Err(DataError::TooFewRows {
                name: self.name.clone(),
                rows: self.rows.len(),
                train,
                dev,
                test,
            }),
        }
    }

    /// Groups of equal texts, shuffled by the seed within each class, the classes interleaved by their proportions.
    fn shuffled_groups(&self, seed: u64) -> Vec<Vec<usize>> {
        let mut groups = BTreeMap::<String, Vec<usize>>::new();
        for (index, row) in self.rows.iter().enumerate() {
            let key = row
                .text
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .to_lowercase();
            groups.entry(key).or_default().push(index);
        }
        let mut classes = vec![Vec::new(); self.labels.len()];
        for (key, group) in groups {
            let rank = Sha256::new()
                .chain_update(seed.to_le_bytes())
                .chain_update(key)
                .finalize();
            classes[self.rows[group[0]].label].push((rank, group));
        }
        let mut order = Vec::new();
        for (label, mut class) in classes.into_iter().enumerate() {
            class.sort();
            let total: usize = class.iter().map(|(_, group)| group.len()).sum();
            let mut before = 0;
            for (_, group) in class {
                let middle = (before as f64 + group.len() as f64 / 2.0) / total as f64;
                before += group.len();
                order.push((middle, label, group));
            }
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        order.into_iter().map(|(_, _, group)| group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use std::{collections::BTreeSet, fmt::Write as _};

    #[test]
    fn a_split_is_exact_stratified_repeatable_and_keeps_duplicates_together() {
        let mut content = "text\tlabel\n".to_owned();
        for index in 0..300 {
            // A quarter of the rows is positive; every tenth text comes again in other letters.
            let label = u8::from(index % 4 == 0);
            let _ = writeln!(content, "row {index}\t{label}");
            if index % 10 == 0 {
                let _ = writeln!(content, "ROW  {index}\t{label}");
            }
        }
        let data =
            Dataset::parse(Path::new("d.tsv"), content.as_bytes(), &Columns::default()).unwrap();
        let split = data.split(7, 200, 50, 60).unwrap();
        assert_eq!(split, data.split(7, 200, 50, 60).unwrap());
        assert_ne!(split, data.split(8, 200, 50, 60).unwrap());
        assert_eq!(split.test, data.split(7, 10, 5, 60).unwrap().test);
        assert_eq!(
            (split.train.len(), split.dev.len(), split.test.len()),
            (200, 50, 60)
        );
        let (_, share) = data.majority();
        for part in [
            &split.train[..],
            &split.train[..40],
            &split.dev,
            &split.test,
        ] {
            let negative = part
                .iter()
                .filter(|index| data.rows[**index].label == 0)
                .count() as f64;
            assert!(
                (negative - share * part.len() as f64).abs() <= 2.5,
                "{negative} of {}",
                part.len()
            );
        }
        let texts = |part: &[usize]| -> BTreeSet<String> {
            part.iter()
                .map(|index| data.rows[*index].text.to_lowercase().replace("  ", " "))
                .collect()
        };
        let (train, dev, test) = (texts(&split.train), texts(&split.dev), texts(&split.test));
        assert!(train.is_disjoint(&dev) && train.is_disjoint(&test) && dev.is_disjoint(&test));
        assert!(
            data.split(7, 300, 50, 60)
                .unwrap_err()
                .to_string()
                .contains("330 rows")
        );
        let (train, dev, test) = data.default_sizes();
        assert!(data.split(1, train, dev, test).is_ok());
    }

    #[test]
    fn a_handful_of_rows_is_refused_and_ten_are_enough() {
        let checked = |rows: usize| {
            let mut content = "text\tlabel\n".to_owned();
            for index in 0..rows {
                let _ = writeln!(content, "row {index}\t{}", index % 2);
            }
            let path = Path::new("few.tsv");
            let data = Dataset::parse(path, content.as_bytes(), &Columns::default()).unwrap();
            let (train, dev, test) = data.default_sizes();
            data.split(0, train, dev, test).unwrap().check(&data)
        };
        let said = |rows: usize| checked(rows).unwrap_err().to_string();
        assert_eq!(said(8), "few: 8 rows leave no dev rows; give at least 10");
        assert_eq!(
            said(4),
            "few: 4 rows leave no dev and no test rows; give at least 10"
        );
        assert!(checked(9).is_err());
        assert!(checked(10).is_ok());
    }

    #[test]
    fn movie_reviews_follow_the_peers_rule() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.txt");
        let mut content = "0\t0.4\tleft out\r\n".to_owned();
        for index in 0..20 {
            let _ = write!(
                content,
                "{index}\t{}\ttext {index}\r\n",
                if index % 2 == 0 { "0.5" } else { "-3.1" }
            );
        }
        fs::write(&path, &content).unwrap();
        let (data, split) = Dataset::movie_reviews(&path).unwrap();
        assert_eq!(
            (
                data.rows.len(),
                data.rows[0].text.as_str(),
                data.rows[0].label
            ),
            (20, "text 0", 1)
        );
        assert_eq!((split.test, split.dev), (vec![0, 1, 10, 11], vec![2, 12]));
        assert_eq!(split.train.len(), 14);
        fs::write(&path, content + "9\tgood\ttext\n").unwrap();
        let error = Dataset::movie_reviews(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 22: the mean rating is not a number"),
            "{error}"
        );
    }
}
