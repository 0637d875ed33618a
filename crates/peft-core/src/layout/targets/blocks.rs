//! Whole blocks of a model, selected as layers are.

use super::{OneOrMany, Selection, Targets};
use crate::adapter::site_type::{Hidden, HiddenState, SiteKind};
use crate::error::{Error, Result};
use crate::layout::model_layout::{self, Layer, LayerKind, Layout, TypedSite};

impl Targets {
    /// The whole blocks selected, by their sites' names, in the model's order; all where `target_modules` is absent.
    /// `layers_to_transform` takes blocks by their index, whatever the list of blocks is called. `strict` as for
    /// [`select`](Self::select).
    ///
    /// # Errors
    ///
    /// As `select`, and [`Error::NoSite`] where the model has no sites behind blocks.
    pub fn select_blocks<'a>(
        &self,
        layout: &'a Layout,
        method: &'static str,
        strict: bool,
    ) -> Result<Vec<TypedSite<'a, Hidden>>> {
        let sites: Vec<_> = layout.hidden_sites(HiddenState::BlockOutput).collect();
        if sites.is_empty() {
            return Err(layout.no_site(method, SiteKind::Hidden(HiddenState::BlockOutput)));
        }
        let block = |site: &TypedSite<'_, Hidden>| Layer {
            name: site.name.clone(),
            kind: LayerKind::Other("block".to_string()),
            container: String::new(),
            params: Vec::new(),
            head: false,
            groups: 1,
        };
        let blocks = Layout {
            params: Vec::new(),
            layers: sites.iter().map(block).collect(),
            sites: Vec::new(),
            model_type: None,
            model_class: None,
            decoder: None,
        };
        let targets = Self {
            layers_to_transform: None,
            layers_pattern: None,
            ..self.clone()
        };
        let all = Selection::Pattern(".*".to_string());
        let selected = targets.select(&blocks, method, &all, strict)?;
        let is_selected = |name: &str| selected.iter().any(|layer| layer.name == name);
        let index = |name: &str| Some(model_layout::block(name)?.1);
        let indices = self.layers_to_transform.as_ref().map(OneOrMany::as_slice);
        let indices = indices.filter(|indices| !indices.is_empty());
        // Upstream lets a whole name through, whatever its block.
        let named = |name: &str| match &self.target_modules {
            Some(Selection::Names(names)) => names.iter().any(|other| other == name),
            _ => false,
        };
        let wanted = |name: &str| {
            let of_index = |indices: &[usize]| index(name).is_some_and(|at| indices.contains(&at));
            is_selected(name) && (named(name) || indices.is_none_or(of_index))
        };
        let found: Vec<_> = sites.iter().filter(|site| wanted(&site.name)).collect();
        if found.is_empty() {
            let expected = format!("indices below {}", sites.len());
            return Err(Error::config(
                method,
                "layers_to_transform",
                indices,
                &expected,
            ));
        }
        Ok(found.into_iter().copied().collect())
    }
}
