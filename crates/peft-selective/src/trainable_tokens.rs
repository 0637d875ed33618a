//! Trainable tokens: some rows of an embedding table are trained.

use peft_core::method::{
    Common, Layer, LayerKind, Layout, Method, MethodConfig as _, Plan, TrainableTokens, Value,
    method_config,
};
use peft_core::{Error, Result, Selection, Targets};

use crate::upstream::json_without;

/// The rows' name below the table in upstream's files.
const KEY: &str = "trainable_tokens_delta";

/// The configuration of trainable tokens. Fields are called and behave as in Hugging Face PEFT's `TrainableTokensConfig`.
#[method_config(
    TRAINABLE_TOKENS, peft_type = "TRAINABLE_TOKENS", title = "Trainable tokens", family = Selective, identity_at_init,
    mergeable, new(token_indices),
    reference = "Hugging Face PEFT 0.21, TrainableTokensConfig; no paper",
    to_json = TrainableTokensConfig::json
)]
pub struct TrainableTokensConfig {
    /// The rows that train: ids of tokens, each once, and at least one.
    pub token_indices: Vec<usize>,
    /// Whether rows start as they are in the table, so that a fresh adapter changes nothing; else they are standard
    /// normal, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// Embedding tables. Default: the model's first. A head that is such a table follows it, and may be named beside it.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl TrainableTokensConfig {
    fn json(&self) -> Value {
        let others = ["exclude_modules", "layers_to_transform", "layers_pattern"];
        json_without(self, &others)
    }

    /// The tables that are selected.
    fn tables<'a>(&self, layout: &'a Layout, plan: &Plan) -> Result<Vec<&'a Layer>> {
        let title = TRAINABLE_TOKENS.title;
        let mut tables = layout
            .layers
            .iter()
            .filter(|layer| layer.kind == LayerKind::Embedding);
        let first: Vec<&str> = tables
            .next()
            .map(|table| table.name.as_str())
            .into_iter()
            .collect();
        let mut selected =
            self.targets
                .select(layout, title, &Selection::from(first), plan.is_new())?;
        let named: Vec<&str> = selected.iter().map(|layer| layer.name.as_str()).collect();
        let heads: Vec<&str> = layout
            .tied_heads()
            .filter(|(_, table)| named.contains(&table.name.as_str()))
            .map(|(head, _)| head.name.as_str())
            .collect();
        selected.retain(|layer| !heads.contains(&layer.name.as_str()));
        match selected
            .iter()
            .find(|layer| layer.kind != LayerKind::Embedding)
        {
            Some(layer) => Err(Error::UnsupportedLayer {
                method: title,
                layer: layer.name.clone(),
                kind: layer.kind.to_string(),
                supported: "Embedding, and a tied head beside its table".into(),
            }),
            None => Ok(selected),
        }
    }
}

impl Method for TrainableTokensConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let mut sorted = self.token_indices.clone();
        sorted.sort_unstable();
        if sorted.is_empty() || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            let (field, rows) = ("token_indices", &self.token_indices);
            let expected = "ids of tokens, each once, and at least one";
            return Err(Error::config(TRAINABLE_TOKENS.title, field, rows, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let rows = &self.token_indices;
        for table in self.tables(layout, plan)? {
            let Some(weight) = layout.param(table, "weight") else {
                continue;
            };
            let shape = weight.shape();
            if rows.iter().any(|row| *row >= shape[0]) {
                let expected = format!("ids below {}, the rows of `{}`", shape[0], table.name);
                let (title, field) = (TRAINABLE_TOKENS.title, "token_indices");
                return Err(Error::config(title, field, rows, expected));
            }
            if plan.is_saved(weight) {
                continue;
            }
            let values = if self.init_weights {
                plan.token_rows(weight, rows)
            } else {
                let like = (&weight.device(), weight.dtype());
                plan.init().normal([rows.len(), shape[1]], 1.0, like)
            };
            let tokens = TrainableTokens::new(values, rows, KEY);
            let mut heads = layout.tied_heads();
            plan.adapt_weight(
                weight,
                match heads.find(|(_, of)| of.name == table.name) {
                    Some((head, _)) => tokens.with_head(head),
                    None => tokens,
                },
            );
        }
        Ok(())
    }

    fn replaces(&self) -> bool {
        true
    }
}
