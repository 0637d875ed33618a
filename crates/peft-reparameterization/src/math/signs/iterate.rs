//! QR iteration on a small matrix with two diagonals: Golub and Kahan's, with Demmel and Kahan's shift of zero.

/// Half a unit in the last place of 1.
pub(super) const EPSILON: f32 = 1.0 / (1 << 24) as f32;

/// What is small beside 1.
const TOLERANCE: f32 = 10.0 * EPSILON;

/// The cosine and the sine that turn (`f`, `g`) to (r, 0), and r, of the sign of `f`.
pub(super) fn rotation(f: f32, g: f32) -> (f32, f32, f32) {
    if g == 0.0 {
        return (1.0, 0.0, f);
    }
    if f == 0.0 {
        return (0.0, 1.0_f32.copysign(g), g.abs());
    }
    let length = (f * f + g * g).sqrt();
    let left = length.copysign(f);
    (f.abs() / length, g / left, left)
}

/// Turns two of some vectors.
fn turn(vectors: &mut [Vec<f32>], [first, second]: [usize; 2], (cosine, sine): (f32, f32)) {
    for at in 0..vectors[first].len() {
        let (one, other) = (vectors[first][at], vectors[second][at]);
        vectors[first][at] = cosine * one + sine * other;
        vectors[second][at] = cosine * other - sine * one;
    }
}

/// The smaller singular value of `[[f, g], [0, h]]`.
fn smaller(f: f32, g: f32, h: f32) -> f32 {
    let (f, g, h) = (f.abs(), g.abs(), h.abs());
    let (least, most) = (f.min(h), f.max(h));
    if least == 0.0 {
        return 0.0;
    }
    let (sum, difference) = (1.0 + least / most, (most - least) / most);
    if g < most {
        let square = (g / most) * (g / most);
        let scale = (sum * sum + square).sqrt() + (difference * difference + square).sqrt();
        return least * (2.0 / scale);
    }
    let ratio = most / g;
    if ratio == 0.0 {
        return least * most / g;
    }
    let root = |value: f32| (1.0 + (value * ratio) * (value * ratio)).sqrt();
    2.0 * (least * (1.0 / (root(sum) + root(difference)))) * ratio
}

/// The decomposition of a 2×2 matrix.
struct Pair {
    smaller: f32,
    larger: f32,
    right: (f32, f32),
    left: (f32, f32),
}

/// Of `[[f, g], [0, h]]`, with LAPACK's signs.
fn pair(f: f32, g: f32, h: f32) -> Pair {
    let swapped = h.abs() > f.abs();
    let (first, last) = if swapped { (h, f) } else { (f, h) };
    let (most, least) = (first.abs(), last.abs());
    let mut sign_of = if swapped { 3 } else { 1 };
    let (smaller, larger, left, right);
    if g == 0.0 {
        (smaller, larger, left, right) = (least, most, (1.0, 0.0), (1.0, 0.0));
    } else {
        if g.abs() > most {
            sign_of = 2;
        }
        if g.abs() > most && most / g.abs() < EPSILON {
            larger = g.abs();
            smaller = if least > 1.0 {
                most / (g.abs() / least)
            } else {
                (most / g.abs()) * least
            };
            (left, right) = ((1.0, last / g), (first / g, 1.0));
        } else {
            let gap = most - least;
            let share = gap / most;
            let slope = g / first;
            let rest = 2.0 - share;
            let root = (rest * rest + slope * slope).sqrt();
            let other = if share == 0.0 {
                slope.abs()
            } else {
                (share * share + slope * slope).sqrt()
            };
            let mean = 0.5 * (root + other);
            (smaller, larger) = (least / mean, most * mean);
            let tangent = if slope * slope > 0.0 {
                (slope / (root + rest) + slope / (other + share)) * (1.0 + mean)
            } else if share == 0.0 {
                2.0_f32.copysign(first) * 1.0_f32.copysign(g)
            } else {
                g / gap.copysign(first) + slope / rest
            };
            let length = (tangent * tangent + 4.0).sqrt();
            right = (2.0 / length, tangent / length);
            left = (
                (right.0 + right.1 * slope) / mean,
                (last / first) * right.1 / mean,
            );
        }
    }
    let (left, right) = if swapped {
        ((right.1, right.0), (left.1, left.0))
    } else {
        (left, right)
    };
    let one = |value: f32| 1.0_f32.copysign(value);
    let sign = match sign_of {
        1 => one(right.0) * one(left.0) * one(f),
        2 => one(right.1) * one(left.0) * one(g),
        _ => one(right.1) * one(left.1) * one(h),
    };
    Pair {
        smaller: smaller.copysign(sign * one(f) * one(h)),
        larger: larger.copysign(sign),
        right,
        left,
    }
}

/// A matrix with two diagonals, the second one above, and what was done to it.
pub(super) struct Small {
    pub(super) diagonal: Vec<f32>,
    pub(super) above: Vec<f32>,
    /// A vector for each row of the matrix.
    pub(super) left: Vec<Vec<f32>>,
    /// A vector for each column.
    pub(super) right: Vec<Vec<f32>>,
}

/// What a look at the matrix says.
enum Step {
    Done,
    /// Something was split off: look again.
    Again,
    /// A sweep along these rows, with this shift.
    Sweep(Vec<usize>, f32),
}

impl Small {
    /// Rotates a matrix with a column more than it has rows to one without: the column's part is gone, and its vector is
    /// the last of `right`.
    pub(super) fn without_last_column(mut self, beyond: f32) -> Self {
        let count = self.diagonal.len();
        self.above.push(beyond);
        for sides in [true, false] {
            let vectors = if sides {
                &mut self.right
            } else {
                &mut self.left
            };
            let turns = if sides { count } else { count - 1 };
            for at in 0..turns {
                let (cosine, sine, left) = rotation(self.diagonal[at], self.above[at]);
                self.diagonal[at] = left;
                self.above[at] = 0.0;
                if let Some(next) = self.diagonal.get_mut(at + 1) {
                    self.above[at] = sine * *next;
                    *next *= cosine;
                }
                turn(vectors, [at, at + 1], (cosine, sine));
            }
        }
        self.above.truncate(count - 1);
        self
    }

    /// Singular values on the diagonal, none below 0. `None` where the iteration does not end.
    pub(super) fn solved(mut self) -> Option<Self> {
        let count = self.diagonal.len();
        let threshold = self.threshold();
        let (mut last, mut block, mut down) = (count - 1, (usize::MAX, usize::MAX), true);
        for _ in 0..60 * count * count {
            match self.look(&mut last, &mut block, &mut down, threshold) {
                Step::Done => {
                    for (value, vector) in self.diagonal.iter_mut().zip(&mut self.right) {
                        if *value < 0.0 {
                            *value = -*value;
                            for element in vector {
                                *element = -*element;
                            }
                        }
                    }
                    return Some(self);
                }
                Step::Again => {}
                Step::Sweep(path, shift) => {
                    let edge = self.sweep(&path, shift);
                    if self.above[edge].abs() <= threshold {
                        self.above[edge] = 0.0;
                    }
                }
            }
        }
        None
    }

    /// What is nothing beside the smallest singular value.
    fn threshold(&self) -> f32 {
        let count = self.diagonal.len() as f32;
        let mut least = self.diagonal[0].abs();
        let mut size = least;
        for (value, above) in self.diagonal[1..].iter().zip(&self.above) {
            if least == 0.0 {
                break;
            }
            size = value.abs() * (size / (size + above.abs()));
            least = least.min(size);
        }
        let smallest = 6.0 * count * count * f32::MIN_POSITIVE;
        (TOLERANCE * (least / count.sqrt())).max(smallest)
    }

    /// `last`: the last row that is not done; `block`: the first and last row of the sweep before, and its direction.
    fn look(
        &mut self,
        last: &mut usize,
        block: &mut (usize, usize),
        down: &mut bool,
        threshold: f32,
    ) -> Step {
        if *last == 0 || *last == usize::MAX {
            return Step::Done;
        }
        let end = *last;
        let mut most = self.diagonal[end].abs();
        let mut first = 0;
        for at in (0..end).rev() {
            if self.above[at].abs() <= threshold {
                self.above[at] = 0.0;
                first = at + 1;
                break;
            }
            most = most.max(self.diagonal[at].abs()).max(self.above[at].abs());
        }
        if first == end {
            *last -= 1;
            return Step::Again;
        }
        if first + 1 == end {
            let found = pair(self.diagonal[first], self.above[first], self.diagonal[end]);
            (self.diagonal[first], self.diagonal[end]) = (found.larger, found.smaller);
            self.above[first] = 0.0;
            turn(&mut self.right, [first, end], found.right);
            turn(&mut self.left, [first, end], found.left);
            *last = end.checked_sub(2).unwrap_or(usize::MAX);
            return Step::Again;
        }
        let is_new = block.1 == usize::MAX || first > block.1 || end < block.0;
        if is_new {
            *down = self.diagonal[first].abs() >= self.diagonal[end].abs();
        }
        let mut path: Vec<usize> = (first..=end).collect();
        if !*down {
            path.reverse();
        }
        let Some(least) = self.split(&path) else {
            return Step::Again;
        };
        *block = (first, end);
        Step::Sweep(path.clone(), self.shift(&path, least, most))
    }

    /// Splits the matrix where an element is nothing beside its neighbours. Otherwise about the smallest singular value.
    fn split(&mut self, path: &[usize]) -> Option<f32> {
        let [.., before, end] = path else { return None };
        let edge = *before.min(end);
        if self.above[edge].abs() <= TOLERANCE * self.diagonal[*end].abs() {
            self.above[edge] = 0.0;
            return None;
        }
        let mut size = self.diagonal[path[0]].abs();
        let mut least = size;
        for step in path.windows(2) {
            let above = &mut self.above[step[0].min(step[1])];
            if above.abs() <= TOLERANCE * size {
                *above = 0.0;
                return None;
            }
            size = self.diagonal[step[1]].abs() * (size / (size + above.abs()));
            least = least.min(size);
        }
        Some(least)
    }

    fn shift(&self, path: &[usize], least: f32, most: f32) -> f32 {
        let count = self.diagonal.len() as f32;
        if count * TOLERANCE * (least / most) <= EPSILON.max(0.01 * TOLERANCE) {
            return 0.0;
        }
        let (before, end) = (path[path.len() - 2], path[path.len() - 1]);
        let edge = self.above[before.min(end)];
        let shift = smaller(self.diagonal[before], edge, self.diagonal[end]);
        let first = self.diagonal[path[0]].abs();
        let ratio = shift / first;
        if first > 0.0 && ratio * ratio < EPSILON {
            0.0
        } else {
            shift
        }
    }

    /// A sweep along a path. Returns the last element beside the diagonal.
    fn sweep(&mut self, path: &[usize], shift: f32) -> usize {
        let is_down = path[0] < path[1];
        let (d, e) = (&mut self.diagonal, &mut self.above);
        let (one, other) = if is_down {
            (&mut self.right, &mut self.left)
        } else {
            (&mut self.left, &mut self.right)
        };
        let edges: Vec<usize> = path.windows(2).map(|step| step[0].min(step[1])).collect();
        let last = edges[edges.len() - 1];
        if shift == 0.0 {
            let (mut cosine, mut before) = (1.0, (1.0, 0.0));
            for (index, step) in path.windows(2).enumerate() {
                let (at, next) = (step[0], step[1]);
                let (now, sine, left) = rotation(d[at] * cosine, e[edges[index]]);
                if index > 0 {
                    e[edges[index - 1]] = before.1 * left;
                }
                let second = rotation(before.0 * left, d[next] * sine);
                d[at] = second.2;
                (cosine, before) = (now, (second.0, second.1));
                turn(one, [at, next], (now, sine));
                turn(other, [at, next], before);
            }
            let end = path[path.len() - 1];
            let rest = d[end] * cosine;
            d[end] = rest * before.0;
            e[last] = rest * before.1;
            return last;
        }
        let first = d[path[0]];
        let mut f = (first.abs() - shift) * (1.0_f32.copysign(first) + shift / first);
        let mut g = e[edges[0]];
        for (index, step) in path.windows(2).enumerate() {
            let (at, next, edge) = (step[0], step[1], edges[index]);
            let (cosine, sine, left) = rotation(f, g);
            if index > 0 {
                e[edges[index - 1]] = left;
            }
            turn(one, [at, next], (cosine, sine));
            f = cosine * d[at] + sine * e[edge];
            e[edge] = cosine * e[edge] - sine * d[at];
            g = sine * d[next];
            d[next] *= cosine;
            let (cosine, sine, left) = rotation(f, g);
            d[at] = left;
            turn(other, [at, next], (cosine, sine));
            f = cosine * e[edge] + sine * d[next];
            d[next] = cosine * d[next] - sine * e[edge];
            if let Some(edge) = edges.get(index + 1) {
                g = sine * e[*edge];
                e[*edge] *= cosine;
            }
        }
        e[last] = f;
        last
    }
}
