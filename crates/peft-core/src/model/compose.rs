//! Other compositions of the adapters that are on a model.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::module::Module;

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::site_type::SiteKind;
use crate::attached::composition::Composition;
use crate::attached::stack::Stack;
use crate::attached::traversal;
use crate::attached::view::Attached;
use crate::error::{Error, Result};
use crate::layout::model_layout::{LayerKind, Layout, LayoutParam};
use crate::model::states::unmerged;

/// See [`PeftModule::set_composition`](crate::PeftModule::set_composition).
pub(crate) fn compose<M: Module>(model: &M, composition: &Composition) -> Result<M> {
    let attached = unmerged(model)?;
    attached.refuse_unknown(&composition.names())?;
    composition.check()?;
    check_places(&attached, composition)?;
    let composition = Arc::new(composition.clone());
    let stacks =
        attached.changed_by_name(|stack, place| stack.set_composition(&composition, place));
    Ok(traversal::place(model, stacks))
}

/// Refuses a composition in which an adapter sits where it cannot take part.
pub(crate) fn check_places(attached: &Attached, composition: &Composition) -> Result<()> {
    let layout = &attached.layout;
    if let Composition::Stack(names) = composition {
        return check_nesting(attached, names);
    }
    for (path, stack) in attached.stacks() {
        let used = |name: &&str| stack.entry(name).is_some();
        let Some(adapter) = composition.names().into_iter().find(used) else {
            continue;
        };
        let param = layout.params.iter().find(|param| param.path == path);
        let site = layout.sites.iter().find(|site| site.path == path);
        if let (Some(_), Composition::Nested(tree)) = (param, composition) {
            let at = |name: &str| stack.entries.iter().position(|entry| entry.name == name);
            for (_, entries) in tree.of_rows(&at).0.into_iter().flatten() {
                let entries = entries.iter().map(|at| &stack.entries[*at]);
                let adapters = entries.map(|entry| (entry.name.as_str(), &entry.adapter));
                refuse_unreadable(adapters, || layout.place_name(path))?;
            }
        }
        let problem = match (param, site) {
            (Some(param), _) => of_param(layout, param, stack, composition),
            (None, Some(site)) => match site.kind {
                SiteKind::Hidden(_) => of_end(stack, composition),
                SiteKind::Attention => None,
                SiteKind::Embeddings | SiteKind::Stream | SiteKind::KeyValue => {
                    of_virtual_tokens(stack, composition)
                }
            },
            (None, None) => None,
        };
        if let Some(reason) = problem {
            return Err(Error::Composition {
                adapter: adapter.to_string(),
                reason: format!("at `{}` {reason}", layout.place_name(path)),
            });
        }
    }
    Ok(())
}

/// Refuses adapters one on the other of which one reads a matrix that the one below does not have.
fn check_nesting(attached: &Attached, active: &[String]) -> Result<()> {
    for (path, stack) in attached.stacks() {
        let entries = stack.entries.iter();
        let entries = entries.filter(|entry| active.contains(&entry.name));
        let adapters = entries.map(|entry| (entry.name.as_str(), &entry.adapter));
        refuse_unreadable(adapters, &attached.layout, path)?;
    }
    Ok(())
}

/// Refuses `adapters` of the place at a field path, the innermost first, of which one reads the matrix below it while one
/// of those below is no change of a weight.
pub(crate) fn refuse_unreadable<'a>(
    adapters: impl Iterator<Item = (&'a str, &'a AnyAdapter)>,
    layout: &Layout,
    path: &str,
) -> Result<()> {
    let mut below: Option<&str> = None;
    for (name, adapter) in adapters {
        let AnyAdapter::Weight(adapter) = adapter else {
            return Ok(());
        };
        if let Some(other) = below
            && (adapter.needs_weight() || adapter.is_mergeable() && is_kernel(layout, path))
        {
            let reason = format!(
                "at `{}` it reads the weight of what lies below, and `{other}` below it is no change of a weight: activate \
                 one of the two, or attach `{other}` after it",
                layout.place_name(path)
            );
            return Err(Error::Composition {
                adapter: name.to_string(),
                reason,
            });
        }
        if !adapter.is_mergeable() {
            below = Some(name);
        }
    }
    Ok(())
}

/// Whether the parameter at a field path is of a convolution.
fn is_kernel(layout: &Layout, path: &str) -> bool {
    let param = layout.params.iter().find(|param| param.path == path);
    let kind = param.map(|param| &layout.layer_of(param).kind);
    matches!(kind, Some(LayerKind::Conv1d | LayerKind::Conv2d))
}

/// What is wrong with the composition at a parameter.
fn of_param(
    layout: &Layout,
    param: &LayoutParam,
    stack: &Stack,
    composition: &Composition,
) -> Option<String> {
    // A head that moves with its table goes by the name of a row's adapter.
    let per_row = matches!(composition, Composition::PerRow(_));
    let weighted = match composition {
        Composition::Weighted(_) => true,
        Composition::Nested(tree) => matches!(tree.rows(), Ok(None)),
        _ => false,
    };
    if matches!(composition, Composition::Nested(tree) if tree.splits_tokens()) {
        return Some(
            "it is on a layer's parameter, and the composition splits tokens, as sites of hidden states can: split rows \
             instead, or compose adapters of hidden states"
                .to_string(),
        );
    }
    let layer = layout.layer_of(param);
    match layer.kind {
        LayerKind::Linear | LayerKind::Embedding | LayerKind::Conv1d | LayerKind::Conv2d => {}
        LayerKind::Norm if ["LayerNorm", "RmsNorm"].contains(&layer.container.as_str()) => {}
        _ if weighted => {}
        _ => {
            return Some(format!(
                "it is on a {} layer, which has no forward pass that differs from row to row (Linear, Embedding, \
                 Conv1d, Conv2d, LayerNorm and RmsNorm have): activate it for all rows, or leave the layer out",
                layer.container
            ));
        }
    }
    let is_tied = layout
        .tied_weights()
        .any(|(_, table)| table.path == param.path);
    let follows = |name: &&str| {
        let entry = stack.entry(name);
        entry.is_some_and(|entry| entry.adapter.weight_adapter().affects_tied_head())
    };
    (!per_row && is_tied && composition.names().iter().any(follows)).then(|| {
        "it changes the table that is also the model's head, which takes no weights of adapters: give each row its \
         adapter, or activate it for all rows"
            .to_string()
    })
}

/// What is wrong with the composition where some adapters take the place of the sublayer's end, and others do not.
fn of_end(stack: &Stack, composition: &Composition) -> Option<String> {
    let ends = |name: &str| {
        let entry = stack.entry(name);
        entry.is_some_and(|entry| entry.adapter.hidden_adapter().is_end())
    };
    let mut ends: Vec<bool> = match composition {
        Composition::PerRow(rows) => {
            let rows = rows.iter();
            rows.map(|row| row.as_deref().is_some_and(ends)).collect()
        }
        Composition::PerRowStack(rows) => {
            let rows = rows.iter();
            rows.map(|row| row.iter().any(|name| ends(name))).collect()
        }
        // What is in the place of an end is a mean of such where the weights add up to 1.
        Composition::Nested(tree) => {
            let here = |name: &&str| stack.entry(name).is_some();
            let all = tree.names().into_iter().filter(here).map(ends);
            let all: Vec<bool> = all.collect();
            if all.contains(&true) && !tree.keeps_sums() {
                vec![true, false]
            } else {
                all
            }
        }
        other => other.names().into_iter().map(ends).collect(),
    };
    // Weights are of differences from the model without adapters, which has its end.
    if matches!(
        composition,
        Composition::Weighted(_) | Composition::Routed(_)
    ) {
        ends.push(false);
    }
    let differ = ends.iter().any(|end| *end) && !ends.iter().all(|end| *end);
    differ.then(|| {
        "it takes the place of the model's residual and norm, and not every part of the composition does: activate it \
         for all rows, or compose it with adapters that do the same, row by row"
            .to_string()
    })
}

fn is_one(factor: f64) -> bool {
    (factor - 1.0).abs() < f64::EPSILON
}

/// What is wrong with the composition where adapters put virtual tokens in front.
fn of_virtual_tokens(stack: &Stack, composition: &Composition) -> Option<String> {
    let tokens = |name: &str| -> usize {
        let entry = stack.entry(name);
        entry.map_or(0, |entry| entry.adapter.virtual_tokens())
    };
    let at = |name: &str| stack.entries.iter().position(|entry| entry.name == name);
    let rows: Vec<Option<&str>> = match composition {
        Composition::Nested(tree) if !tree.splits_tokens() => {
            let (of_rows, differ) = tree.of_rows(&at);
            let mut found = Vec::new();
            for branches in of_rows {
                match branches.as_slice() {
                    // All rows have the same.
                    [(factor, _)] if !differ && is_one(*factor) => return None,
                    [(factor, entries)] if is_one(*factor) && entries.len() < 2 => {
                        let entry = entries.first().map(|at| stack.entries[*at].name.as_str());
                        found.push(entry);
                    }
                    _ => {
                        return Some(
                            "it puts virtual tokens in front, which are there or not, without a weight, and of a row's \
                             adapters one may put them where rows differ"
                                .to_string(),
                        );
                    }
                }
            }
            found
        }
        Composition::PerRow(rows) => rows.iter().map(Option::as_deref).collect(),
        Composition::PerRowStack(rows) => {
            let here = |row: &[String]| {
                let names: BTreeSet<&String> = row.iter().collect();
                names
                    .into_iter()
                    .filter(|name| stack.entry(name).is_some())
                    .count()
            };
            if rows.iter().any(|row| here(row) > 1) {
                return Some(
                    "it puts virtual tokens in front, and another adapter of the same row does, too: one of a row's \
                     adapters may"
                        .to_string(),
                );
            }
            let first = rows.iter().map(|row| {
                let mut names = row.iter().map(String::as_str);
                names.find(|name| stack.entry(name).is_some())
            });
            first.collect()
        }
        _ => {
            return Some(
            "it puts virtual tokens in front, which are there or not, without a weight: activate it for all rows, or \
             give each row its adapter"
                .to_string(),
            );
        }
    };
    let counts = rows.iter().map(|row| row.map_or(0, tokens));
    let (least, most) = (counts.clone().min()?, counts.clone().max()?);
    let positions = |name: &str| {
        let entry = stack.entry(name);
        entry.map_or(0, |entry| entry.adapter.positions())
    };
    let mut taken = rows.iter().map(|row| row.map_or(0, positions));
    let first = taken.next()?;
    if least == most && taken.any(|other| other != first) {
        return Some(
            "it puts virtual tokens in front, and all rows of a batch begin at one position: virtual tokens of some of \
             these rows take positions of the model, and those of others take none"
                .to_string(),
        );
    }
    (least != most).then(|| {
        let counts: Vec<usize> = counts.collect();
        format!(
            "it puts virtual tokens in front, and all rows of a batch are of one length: these rows have {counts:?} \
             virtual tokens. Rows with adapters of as many virtual tokens can be in one batch"
        )
    })
}
