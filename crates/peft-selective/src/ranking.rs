//! Which of many numbers are the largest.

/// The places of the `count` largest of `scores`, the largest first. Of equal ones the first are taken.
pub(crate) fn ranked(scores: &[f32], count: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    let mut places: Vec<usize> = (0..scores.len()).collect();
    if count < places.len() {
        places.select_nth_unstable_by(count, order);
        places.truncate(count);
    }
    places.sort_unstable_by(order);
    places
}

/// The places of the `count` largest numbers of several lists, by list and in order. Of equal ones the first are taken.
pub(crate) fn largest_of_all(scores: &[Vec<f32>], count: usize) -> Vec<Vec<usize>> {
    let mut keys: Vec<u32> = scores.iter().flatten().map(|score| key(*score)).collect();
    if count == 0 || keys.is_empty() {
        return vec![Vec::new(); scores.len()];
    }
    let last = count.min(keys.len()) - 1;
    let (above, least, _) = keys.select_nth_unstable_by(last, |a, b| b.cmp(a));
    let least = *least;
    // Of those that are as large as the least there is room for so many.
    let mut room = count - above.iter().filter(|key| **key > least).count();
    drop(keys);
    let chosen = |scores: &Vec<f32>| {
        let places = scores.iter().enumerate().filter(|(_, score)| {
            let key = key(**score);
            let fits = key > least || key == least && room > 0;
            room -= usize::from(fits && key == least);
            fits
        });
        places.map(|(place, _)| place).collect()
    };
    scores.iter().map(chosen).collect()
}

/// An integer that is ordered as the number is, NaN above all.
fn key(number: f32) -> u32 {
    let bits = number.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_of_equal_ones_the_first() {
        let scores = [1.0, 3.0, -2.0, 3.0, 0.0, 1.0];
        assert_eq!(ranked(&scores, 3), [1, 3, 0]);
        assert_eq!(ranked(&scores, 9), [1, 3, 0, 5, 4, 2]);
        assert!(ranked(&scores, 0).is_empty());
    }

    #[test]
    fn the_largest_of_several_lists_are_those_of_one() {
        let lists = [
            vec![0.5, -1.0, 2.0, 2.0],
            Vec::new(),
            vec![2.0, 7.0, -0.0, 0.0, 2.0],
        ];
        let whole: Vec<f32> = lists.iter().flatten().copied().collect();
        for count in 0..=10 {
            let mut expected = ranked(&whole, count);
            expected.sort_unstable();
            let [first, second, third] = &largest_of_all(&lists, count)[..] else {
                panic!("a list for each")
            };
            assert!(second.is_empty());
            let found = first.iter().copied().chain(third.iter().map(|at| at + 4));
            assert_eq!(found.collect::<Vec<_>>(), expected, "{count}");
        }
    }
}
