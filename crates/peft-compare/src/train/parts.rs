//! Adapters that are trained before the method of a run is attached, because it is built from them.

use peft_core::PeftModule;
use peft_core::method::Method;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::Progress;
use super::fit::{Learnable, fit};
use crate::Result;
use crate::job::{Job, JobPart};
use crate::record::Counts;
use crate::registry::Registry;

/// An adapter to train first.
pub(super) struct Part {
    name: String,
    method: Box<dyn Method>,
    job: Job,
}

/// Those of a job.
pub(super) fn of(job: &Job, registry: &Registry) -> Result<Vec<Part>> {
    let part = |part: &JobPart| {
        let own = job.of_part(part);
        Ok(Part {
            name: part.name.clone(),
            method: own.configured(registry)?,
            job: own,
        })
    };
    job.parts.iter().map(part).collect()
}

/// What a reader should know of a method with parts.
pub(super) fn note(parts: &[Part]) -> Option<String> {
    let parts: Vec<String> = parts
        .iter()
        .map(|part| {
            format!(
                "{} ({}, learning rate {})",
                part.name, part.job.method.name, part.job.learning_rate
            )
        })
        .collect();
    (!parts.is_empty()).then(|| {
        format!(
            "built from {}; each was trained first, on a share of the training rows. Times and memory are of the last \
             training, trainable parameters are those it trains",
            parts.join(" and ")
        )
    })
}

/// Trains the parts on `model`, one after another, each on a share of the rows. The model has all of them then; the
/// last is active.
pub(super) fn train<T: Learnable>(
    parts: &[Part],
    task: &mut T,
    mut model: T::Model,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<T::Model> {
    for (index, part) in parts.iter().enumerate() {
        task.learn(Some((index, parts.len())));
        model = model.attach(&part.name, part.method.as_ref())?;
        model = fit(&part.job, task, model, progress)?.model;
    }
    if !parts.is_empty() {
        task.learn(None);
    }
    Ok(model)
}

/// What has to be kept of the parts, added to the counts of what is built from them.
pub(super) fn counted<M: PeftModule>(
    parts: &[Part],
    model: &M,
    mut counts: Counts,
) -> Result<Counts> {
    for part in parts {
        let own = model.activate(&[part.name.as_str()])?.counts();
        counts.stored += own.stored as u64;
        counts.changed += own.changed as u64;
    }
    Ok(counts)
}

/// One of `of` equal shares of `rows`, in an order that is always the same: neighbours in a file may be alike.
pub(super) fn share(rows: &[usize], index: usize, of: usize) -> Vec<usize> {
    let mut rows = rows.to_vec();
    rows.shuffle(&mut StdRng::seed_from_u64(0));
    rows[index * rows.len() / of..(index + 1) * rows.len() / of].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_rows_and_have_none_in_common() {
        let rows: Vec<usize> = (10..21).collect();
        let mut all = [share(&rows, 0, 2), share(&rows, 1, 2)].concat();
        assert_ne!(all, rows, "mixed");
        all.sort_unstable();
        assert_eq!(all, rows);
    }
}
