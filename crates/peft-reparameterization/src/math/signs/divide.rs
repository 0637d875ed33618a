//! Divide and conquer (Gu and Eisenstat 1995) on a matrix with two diagonals.

use faer::Mat;

use super::iterate::{EPSILON, Small};

/// Up to so many singular values are found by iteration.
const SMALL: usize = 25;

/// The decomposition of a part of the matrix.
pub(super) struct Part {
    values: Vec<f64>,
    /// Left singular vectors, by falling singular values.
    pub(super) left: Vec<Vec<f64>>,
    /// The first and the last element of each right singular vector, and behind them those of the vector that the matrix
    /// maps to zero, where it has a column more than it has rows.
    ends: Vec<[f64; 2]>,
}

impl Part {
    /// By falling singular values; what is behind these stays there.
    fn sorted(self) -> Self {
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.sort_by(|a, b| self.values[*b].total_cmp(&self.values[*a]));
        let mut ends: Vec<[f64; 2]> = order.iter().map(|at| self.ends[*at]).collect();
        ends.extend_from_slice(&self.ends[order.len()..]);
        Self {
            values: order.iter().map(|at| self.values[*at]).collect(),
            left: order.iter().map(|at| self.left[*at].clone()).collect(),
            ends,
        }
    }
}

/// `beside` holds as many elements as `diagonal` where the matrix has a column `more` than it has rows, and one less
/// otherwise.
pub(super) fn solve(diagonal: &[f64], beside: &[f64], more: bool) -> Option<Part> {
    let count = diagonal.len();
    if count <= SMALL {
        return iterated(diagonal, beside, more);
    }
    let middle = count / 2;
    let first = solve(&diagonal[..middle], &beside[..middle], true)?;
    let second = solve(&diagonal[middle + 1..], &beside[middle + 1..], more)?;
    let row = [diagonal[middle], beside[middle]];
    Some(merged(first, second, row, more))
}

fn iterated(diagonal: &[f64], beside: &[f64], more: bool) -> Option<Part> {
    let narrow = |values: &[f64]| {
        values
            .iter()
            .map(|value| *value as f32)
            .collect::<Vec<f32>>()
    };
    let count = diagonal.len();
    let columns = count + usize::from(more);
    let unit = |at: usize| {
        let mut vector = vec![0.0; count];
        vector[at] = 1.0;
        vector
    };
    let one = |is: bool| f32::from(u8::from(is));
    let small = Small {
        diagonal: narrow(diagonal),
        above: narrow(&beside[..count - 1]),
        left: (0..count).map(unit).collect(),
        right: (0..columns)
            .map(|at| vec![one(at == 0), one(at + 1 == columns)])
            .collect(),
    };
    let small = match beside.get(count - 1) {
        Some(beyond) if more => small.without_last_column(*beyond as f32),
        _ => small,
    };
    let solved = small.solved()?;
    let wide = |vector: &Vec<f32>| vector.iter().map(|value| f64::from(*value)).collect();
    // The matrix is the left vectors times the diagonal times the right ones, each as a column here.
    let part = Part {
        values: solved
            .diagonal
            .iter()
            .map(|value| f64::from(*value))
            .collect(),
        left: solved.left.iter().map(wide).collect(),
        ends: solved
            .right
            .iter()
            .map(|ends| [f64::from(ends[0]), f64::from(ends[1])])
            .collect(),
    };
    Some(part.sorted())
}

/// A singular value of the parts, with its vectors in the whole.
struct Entry {
    value: f64,
    /// How much of the row between the parts is along it.
    weight: f64,
    left: Vec<f64>,
    ends: [f64; 2],
}

impl Entry {
    /// Turns this vector and another one.
    fn turn(&mut self, other: &mut Self, (cosine, sine): (f64, f64)) {
        let turned = |one: &mut f64, two: &mut f64| {
            (*one, *two) = (cosine * *one + sine * *two, cosine * *two - sine * *one);
        };
        for (one, two) in self.left.iter_mut().zip(&mut other.left) {
            turned(one, two);
        }
        for (one, two) in self.ends.iter_mut().zip(&mut other.ends) {
            turned(one, two);
        }
    }
}

/// The parts above and below a row with the elements `row`.
fn merged(first: Part, second: Part, row: [f64; 2], more: bool) -> Part {
    let (above, below) = (first.values.len(), second.values.len());
    let count = above + below + 1;
    let largest = first.values.iter().chain(&second.values);
    let scale = largest.fold(row[0].abs().max(row[1].abs()), |most, value| {
        most.max(*value)
    });
    let tolerance = 8.0 * f64::from(EPSILON) * scale;
    let mut middle = vec![0.0; count];
    middle[above] = 1.0;
    let [start, end] = first.ends[above];
    let mut center = Entry {
        value: 0.0,
        weight: row[0] * end,
        left: middle,
        ends: [start, 0.0],
    };
    // The vector that the whole maps to zero.
    let mut rest = None;
    if more {
        let ends = second.ends[below];
        let beyond = row[1] * ends[0];
        let length = center.weight.hypot(beyond);
        let (cosine, sine) = if length <= tolerance {
            (1.0, 0.0)
        } else {
            (center.weight / length, beyond / length)
        };
        rest = Some([-sine * start, cosine * ends[1]]);
        center.ends = [cosine * start, sine * ends[1]];
        center.weight = length.max(tolerance);
    } else if center.weight.abs() <= tolerance {
        center.weight = tolerance;
    }
    let within = |vector: Vec<f64>, from: usize| {
        let mut whole = vec![0.0; count];
        whole[from..from + vector.len()].copy_from_slice(&vector);
        whole
    };
    let upper = first.values.into_iter().zip(first.left).zip(first.ends);
    let mut entries: Vec<Entry> = upper
        .map(|((value, left), ends)| Entry {
            value,
            weight: row[0] * ends[1],
            left: within(left, 0),
            ends: [ends[0], 0.0],
        })
        .collect();
    let lower = second.values.into_iter().zip(second.left).zip(second.ends);
    entries.extend(lower.map(|((value, left), ends)| Entry {
        value,
        weight: row[1] * ends[0],
        left: within(left, above + 1),
        ends: [0.0, ends[1]],
    }));
    entries.sort_by(|a, b| a.value.total_cmp(&b.value));
    let (mut kept, mut done) = (vec![center], Vec::new());
    let mut waiting: Option<Entry> = None;
    for mut entry in entries {
        if entry.weight.abs() <= tolerance {
            done.push(entry);
            continue;
        }
        if let Some(mut before) = waiting.take() {
            if (entry.value - before.value).abs() <= tolerance {
                // Two that are one: all of the weight goes to the second.
                let length = entry.weight.hypot(before.weight);
                let turned = (entry.weight / length, -before.weight / length);
                before.turn(&mut entry, turned);
                entry.weight = length;
                done.push(before);
            } else {
                kept.push(before);
            }
        }
        waiting = Some(entry);
    }
    kept.extend(waiting);
    if let Some(second) = kept.get_mut(1) {
        second.value = second.value.max(tolerance / 2.0);
    }
    let mut part = combined(&kept, count);
    for entry in done {
        part.values.push(entry.value);
        part.left.push(entry.left);
        part.ends.push(entry.ends);
    }
    let mut part = part.sorted();
    part.ends.extend(rest);
    part
}

/// Singular values and vectors of what is the weights in its first row, and the values on its diagonal.
fn combined(kept: &[Entry], count: usize) -> Part {
    let size = kept.len();
    let mut values = Vec::with_capacity(size);
    let mut ends = Vec::with_capacity(size);
    let mut inner = Mat::<f64>::zeros(size, size);
    for at in 0..size {
        let beyond = root(kept, at);
        let from = kept[at].value;
        values.push(from + beyond);
        let right: Vec<f64> = kept
            .iter()
            .map(|entry| {
                let apart = (entry.value - from) - beyond;
                entry.weight / apart / (entry.value + from + beyond)
            })
            .collect();
        let mut left: Vec<f64> = right
            .iter()
            .zip(kept)
            .map(|(value, entry)| value * entry.value)
            .collect();
        left[0] = -1.0;
        let length = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (of_left, of_right) = (length(&left), length(&right));
        for (row, value) in left.iter().enumerate() {
            inner[(row, at)] = value / of_left;
        }
        let mut sum = [0.0; 2];
        for (value, entry) in right.iter().zip(kept) {
            sum[0] += value * entry.ends[0] / of_right;
            sum[1] += value * entry.ends[1] / of_right;
        }
        ends.push(sum);
    }
    let outer = Mat::from_fn(count, size, |row, at| kept[at].left[row]);
    let product = outer * inner;
    let left = (0..size).map(|at| (0..count).map(|row| product[(row, at)]).collect());
    Part {
        values,
        left: left.collect(),
        ends,
    }
}

/// How far beyond the value `at` the singular value is that lies between it and the next one, by halves.
fn root(kept: &[Entry], at: usize) -> f64 {
    let from = kept[at].value;
    let all: f64 = kept.iter().map(|entry| entry.weight * entry.weight).sum();
    let mut above = match kept.get(at + 1) {
        Some(next) => next.value - from,
        None => all.sqrt(),
    };
    let mut below = 0.0;
    for _ in 0..100 {
        let middle = 0.5 * (below + above);
        let sum: f64 = kept
            .iter()
            .map(|entry| {
                let apart = (entry.value - from) - middle;
                entry.weight * entry.weight / apart / (entry.value + from + middle)
            })
            .sum();
        if 1.0 + sum < 0.0 {
            below = middle;
        } else {
            above = middle;
        }
    }
    0.5 * (below + above)
}
