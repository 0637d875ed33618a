//! Checkpoints that lack what all adapters of a model share, because upstream forgets to write it.
//!
//! AdapterHub saves tensors with `.shared_parameters.<name>.` in their name, with a dot in front, and in a model without a
//! head there is none. Its outputs are of the values that it had, and they are in no file. But they can be found: they are
//! few (64 of a Compacter), and a case has some thousand outputs. If there are values with which all outputs are upstream's,
//! then what the file does hold is read and used as upstream uses it. With a wrong forward pass there are none.

use std::path::Path;

use burn::tensor::TensorData;
use peft_core::method::MethodInfo;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, checkpoint};

use super::case::read;
use super::{Problem, Tensors};

/// In the keys of what adapters share.
const SHARED: &str = "shared_parameters.";

/// Where to look for the values first. Around 0, where they start, products of them change nothing.
const STARTS: [f64; 6] = [0.05, -0.05, 0.1, -0.1, 0.2, 0.02];

/// More values than these are not looked for: a case has not many more outputs.
const MOST: usize = 128;

/// No output is further off than this where the values are found.
const FOUND: f64 = 5e-6;

/// The adapter called `name` that is configured in `dir`, with values for what its file lacks, and how many these are; none
/// if it lacks nothing. `output` is the model's, and `expected` upstream's.
pub(super) fn found<M: PeftModule>(
    base: &M,
    (dir, name): (&Path, &str),
    methods: &[&MethodInfo],
    output: impl Fn(&M) -> TensorData,
    expected: &TensorData,
) -> Result<Option<(M, usize)>, Problem> {
    let config = checkpoint::read_config(dir)?;
    // Nothing else of upstream's shares parameters so.
    let is = |field: &str| config["config"][field] == true;
    if !(is("phm_layer") && (is("shared_phm_rule") || is("shared_W_phm"))) {
        return Ok(None);
    }
    let recognised = methods.iter().find(|info| {
        let recognises = info.recognises;
        recognises.is_some_and(|recognises| recognises(&config))
    });
    let file = dir.join(checkpoint::ADAPTERHUB_FILE);
    let Some(info) = recognised.filter(|_| file.exists()) else {
        return Ok(None);
    };
    let fresh = base.attach(name, (info.parse)(&config)?.as_ref())?;
    let lacking: Vec<String> = {
        let (stored, _) = read(&file)?;
        let keys = fresh.adapter_tensors(name)?.into_keys();
        let shared = keys.filter(|key| key.contains(SHARED));
        let is_stored = stored.keys().any(|key| key.contains(SHARED));
        shared.filter(|_| !is_stored).collect()
    };
    if lacking.is_empty() {
        return Ok(None);
    }
    // With anything in its place, the file can be read.
    let problem = Problem::new(dir);
    let whole = tempfile::tempdir().map_err(|error| problem(&error))?;
    fresh.save_adapter(name, whole.path())?;
    let path = whole.path().join(checkpoint::ADAPTERHUB_FILE);
    let (mut tensors, _) = read(&path)?;
    tensors.extend(read(&file)?.0);
    checkpoint::write_tensors(&path, &tensors)?;
    let loaded = base.load_adapter(name, whole.path(), methods)?;
    let all = loaded.adapter_tensors(name)?;
    let with = |values: &[f64]| {
        let tensors = replaced(&all, &lacking, values);
        loaded.with_adapter_tensors(name, tensors)
    };
    let count: usize = lacking.iter().map(|key| all[key].num_elements()).sum();
    if count > MOST {
        return Err(Problem::Refused(format!(
            "the file lacks {count} numbers that all adapters share, which upstream forgets to save of a model without a head"
        )));
    }
    let target: Vec<f64> = expected.iter::<f64>().collect();
    let distances = |values: &[f64]| -> Result<Vec<f64>, Problem> {
        let output = output(&with(values)?);
        Ok(output
            .iter::<f64>()
            .zip(&target)
            .map(|(a, b)| a - b)
            .collect())
    };
    let mut best: Option<(f64, Vec<f64>)> = None;
    for scale in STARTS {
        // Any values that are not alike.
        let start = (0..count)
            .map(|at| scale * (at as f64 * 2.4).sin())
            .collect();
        let (farthest, values) = least_squares(start, distances)?;
        if best.as_ref().is_none_or(|(so_far, _)| farthest < *so_far) {
            best = Some((farthest, values));
        }
        if farthest < FOUND {
            break;
        }
    }
    let (_, values) = best.expect("there is a start");
    Ok(Some((with(&values)?, count)))
}

/// What became of a file that could not be loaded: refused, as its page says, where it lacks what all layers share.
pub(super) fn refused(error: peft_core::Error) -> Problem {
    let text = error.to_string();
    if text.contains(SHARED) {
        return Problem::Refused(format!(
            "what all layers share upstream forgets to save of a model without a head: {text}"
        ));
    }
    error.into()
}

/// `all` with these values in the tensors `keys`, one behind the other.
fn replaced(all: &Tensors, keys: &[String], values: &[f64]) -> Tensors {
    let mut tensors = all.clone();
    let mut rest = values;
    for key in keys {
        let (own, others) = rest.split_at(all[key].num_elements());
        let own: Vec<f32> = own.iter().map(|value| *value as f32).collect();
        tensors.insert(key.clone(), TensorData::new(own, all[key].shape()));
        rest = others;
    }
    tensors
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

fn squares(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// Values with which the distances are least, and the largest of these: Levenberg and Marquardt's method.
fn least_squares(
    mut values: Vec<f64>,
    distances: impl Fn(&[f64]) -> Result<Vec<f64>, Problem>,
) -> Result<(f64, Vec<f64>), Problem> {
    // Outputs are of single precision.
    const STEP: f64 = 3e-3;
    let count = values.len();
    let mut now = distances(&values)?;
    let mut damping = 1e-3;
    for _ in 0..40 {
        if largest(&now) < FOUND / 2.0 || damping > 1e6 {
            break;
        }
        let mut slopes = Vec::with_capacity(count);
        for at in 0..count {
            let beside = |step: f64| {
                let mut moved = values.clone();
                moved[at] += step;
                distances(&moved)
            };
            let (above, below) = (beside(STEP)?, beside(-STEP)?);
            let slope = above
                .iter()
                .zip(&below)
                .map(|(a, b)| (a - b) / (2.0 * STEP));
            slopes.push(slope.collect::<Vec<f64>>());
        }
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let right: Vec<f64> = slopes.iter().map(|slope| product(slope, &now)).collect();
        let matrix: Vec<Vec<f64>> = slopes
            .iter()
            .map(|a| slopes.iter().map(|b| product(a, b)).collect())
            .collect();
        // With more damping a step is shorter, until one is better.
        while damping <= 1e6 {
            let mut damped = matrix.clone();
            for (at, row) in damped.iter_mut().enumerate() {
                row[at] += damping * row[at].max(1e-9);
            }
            let step = solved(damped, right.clone());
            let next: Vec<f64> = values.iter().zip(&step).map(|(a, b)| a - b).collect();
            let there = distances(&next)?;
            if squares(&there) < squares(&now) {
                (values, now) = (next, there);
                damping /= 10.0;
                break;
            }
            damping *= 10.0;
        }
    }
    Ok((largest(&now), values))
}

/// x of `matrix` x = `right`: Gauss's elimination, for a matrix that is symmetric and positive definite.
fn solved(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let count = right.len();
    for pivot in 0..count {
        let (above, below) = matrix.split_at_mut(pivot + 1);
        let row = &above[pivot];
        for (offset, other) in below.iter_mut().enumerate() {
            let factor = other[pivot] / row[pivot];
            for (value, of_pivot) in other[pivot..].iter_mut().zip(&row[pivot..]) {
                *value -= factor * of_pivot;
            }
            right[pivot + 1 + offset] -= factor * right[pivot];
        }
    }
    for at in (0..count).rev() {
        let known: f64 = (at + 1..count)
            .map(|other| matrix[at][other] * right[other])
            .sum();
        right[at] = (right[at] - known) / matrix[at][at];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_what_they_compute() {
        let wanted = [0.3, -0.2, 0.05];
        let computed = |x: &[f64]| -> Vec<f64> {
            let at = |point: f64| {
                x[0] * point + (x[1] * (point - 1.0)).tanh() + x[0] * x[2] * point * point
            };
            (0..20).map(|point| at(f64::from(point) / 10.0)).collect()
        };
        let target = computed(&wanted);
        let distances = |x: &[f64]| {
            let found = computed(x);
            Ok(found.iter().zip(&target).map(|(a, b)| a - b).collect())
        };
        let (farthest, found) = least_squares(vec![0.1, 0.1, 0.1], distances).unwrap();
        assert!(farthest < FOUND, "{farthest}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-4, "{found}, {wanted}");
        }
    }

    #[test]
    fn what_nothing_computes_is_not_found() {
        let distances = |x: &[f64]| Ok(vec![x[0] - 1.0, x[0] + 1.0]);
        let (farthest, _) = least_squares(vec![0.1], distances).unwrap();
        assert!((farthest - 1.0).abs() < 1e-3, "{farthest}");
    }
}
