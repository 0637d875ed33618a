//! LoRA on a model whose output head is the embedding table: who follows whom, and trained rows.

use peft_core::method::{Layer, LayerKind, Layout, LayoutParam, Plan};
use peft_core::{Error, Result};

use crate::lora::config::{LORA, LoraConfig, TrainableTokenIndices};
use crate::lora::values::Size;

/// A layer with the weight that is to be adapted.
type Target<'a> = (&'a Layer, &'a LayoutParam);

/// A head that is a table, and that table.
pub(crate) type Tied<'a> = (&'a Layer, &'a Layer);

fn is_target(targets: &[Target<'_>], layer: &Layer) -> bool {
    targets.iter().any(|(target, _)| target.name == layer.name)
}

impl LoraConfig {
    /// With `ensure_weight_tying`: the targets with the table in the place of its head, and the heads that follow.
    pub(crate) fn tied_targets<'a>(
        &self,
        layout: &'a Layout,
        mut targets: Vec<Target<'a>>,
        plan: &Plan,
        size: impl Fn(&Layer) -> Result<Size>,
    ) -> Result<(Vec<Target<'a>>, Vec<Tied<'a>>)> {
        let mut followed = Vec::new();
        if !self.ensure_weight_tying {
            return Ok((targets, followed));
        }
        let refuse = |expected: String| {
            let field = "ensure_weight_tying";
            Err(Error::config(LORA.title, field, true, expected))
        };
        if plan.is_new() && layout.tied_heads().next().is_none() {
            return refuse(
                "false: this model has no tied head, its head has a matrix of its own".into(),
            );
        }
        for (head, table) in layout.tied_heads() {
            if !is_target(&targets, head) && !is_target(&targets, table) {
                continue;
            }
            let both = format!(
                "with `{}` or its tied head `{}` among the targets",
                table.name, head.name
            );
            if self.use_dora {
                return refuse(format!(
                    "false {both} and use_dora: lengths of a table and of a head differ"
                ));
            }
            if self.lora_bias {
                return refuse(format!("false {both} and lora_bias: a table has no bias"));
            }
            if size(head)? != size(table)? {
                return refuse(format!(
                    "false {both} and other ranks or alphas for the one than for the other"
                ));
            }
            let weight = layout.param(table, "weight").expect("a table has a weight");
            targets.retain(|(target, _)| target.name != head.name && target.name != table.name);
            targets.insert(0, (table, weight));
            followed.push((head, table));
        }
        Ok((targets, followed))
    }

    /// Rows of embedding tables, trained whole.
    pub(crate) fn train_token_rows(
        &self,
        layout: &Layout,
        adapted: &[Target<'_>],
        plan: &mut Plan,
    ) -> Result<()> {
        const KEY: &str = "token_adapter.trainable_tokens_delta";
        let wanted = self.token_tables(layout)?;
        for (index, (table, rows)) in wanted.iter().copied().enumerate() {
            let twice = wanted[..index]
                .iter()
                .any(|(other, _)| other.name == table.name);
            if twice {
                let expected = format!("one list for `{}`", table.name);
                return refuse_rows(&rows, expected);
            }
            let Some(weight) = layout.param(table, "weight") else {
                continue;
            };
            let most = weight.shape()[0];
            let mut sorted = rows.to_vec();
            sorted.sort_unstable();
            if sorted.last().is_none_or(|last| *last >= most)
                || sorted.windows(2).any(|pair| pair[0] == pair[1])
            {
                let expected = format!(
                    "different numbers below {most}, the rows of `{}`, and at least one",
                    table.name
                );
                return refuse_rows(&rows, expected);
            }
            if is_target(adapted, table) {
                let expected = format!("none of `{}`, which is a target itself", table.name);
                return refuse_rows(&rows, expected);
            }
            if plan.is_saved(weight) {
                let expected = format!("none of `{}`, which is in modules_to_save", table.name);
                return refuse_rows(&rows, expected);
            }
            let mut heads = layout.tied_heads().filter(|(_, of)| of.name == table.name);
            if let Some((head, _)) = heads.find(|(head, _)| is_target(adapted, head)) {
                let expected = format!(
                    "none of `{}`: its tied head `{}` follows the rows, and is a target itself",
                    table.name, head.name
                );
                return refuse_rows(&rows, expected);
            }
            plan.train_tokens(weight, rows, KEY);
        }
        Ok(())
    }

    /// The tables of which rows are trained, and which.
    fn token_tables<'a>(&'a self, layout: &'a Layout) -> Result<Vec<(&'a Layer, &'a [usize])>> {
        let is_table = |layer: &&Layer| layer.kind == LayerKind::Embedding;
        let lists = match &self.trainable_token_indices {
            None => return Ok(Vec::new()),
            Some(TrainableTokenIndices::OfTokens(rows)) => {
                return match layout.layers.iter().find(is_table) {
                    Some(table) => Ok(vec![(table, rows)]),
                    None => refuse_rows(rows, "none: this model has no embedding table".into()),
                };
            }
            Some(TrainableTokenIndices::ByTable(lists)) => lists,
        };
        let mut wanted: Vec<(&Layer, &[usize])> = Vec::new();
        let mut of_heads = Vec::new();
        for (name, rows) in lists {
            let named =
                |layer: &Layer| layer.name == *name || layer.name.ends_with(&format!(".{name}"));
            let mut tables = layout.layers.iter().filter(is_table);
            if let Some(table) = tables.find(|table| named(table)) {
                wanted.push((table, rows));
            } else if let Some(tied) = layout.tied_heads().find(|(head, _)| named(head)) {
                of_heads.push((tied, rows));
            } else {
                return refuse_rows(name, "the name of an embedding table of this model".into());
            }
        }
        for ((head, table), rows) in of_heads {
            let same = |(of, list): &(&Layer, &[usize])| of.name == table.name && list == rows;
            if !wanted.iter().any(same) {
                let expected = format!(
                    "the same rows for the tied head `{}` as for its table `{}`, which it follows",
                    head.name, table.name
                );
                return refuse_rows(rows, expected);
            }
        }
        Ok(wanted)
    }
}

fn refuse_rows<T>(value: &dyn std::fmt::Debug, expected: String) -> Result<T> {
    let field = "trainable_token_indices";
    Err(Error::config(LORA.title, field, value, expected))
}
