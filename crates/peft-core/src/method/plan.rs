//! What a method wants done to a model.

use std::any::Any;
use std::collections::HashMap;

use burn::module::Param;
use burn::tensor::Tensor;
use serde_json::{Map, Value};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::checkpoint_key::{CheckpointKey, Style};
use crate::adapter::contract::{
    AttentionAdapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, WeightAdapter,
};
use crate::adapter::init::Init;
use crate::adapter::role::Role;
use crate::adapter::site_type::{Attention, Hidden, KeyValue, Prompt};
use crate::layout::model_layout::{Layer, Layout, LayoutParam, LayoutSite, TypedSite};
use crate::method::module_to_save::ModuleToSave;
use crate::method::trainable_tokens::TrainableTokens;
use crate::statistics::calibration::Calibration;

/// Where an adapter goes.
#[derive(Clone, Debug)]
pub(crate) struct PlannedAdapter {
    /// Field path of a parameter or site.
    pub(crate) path: String,
    /// Which part of the method planned it.
    pub(crate) part: usize,
    pub(crate) adapter: AnyAdapter,
}

/// What a method wants done to a model. Nothing happens until the whole plan is there.
pub struct Plan {
    pub(crate) adapters: Vec<PlannedAdapter>,
    pub(crate) trained_in_place: Vec<String>,
    /// Paths of what is saved whole.
    saved: Vec<String>,
    pub(crate) notes: Map<String, Value>,
    /// Shapes of the tensors of the file that is being loaded, by key.
    pub(crate) stored: HashMap<String, Vec<usize>>,
    /// What the user gathered for the method.
    pub(crate) calibration: Option<Calibration>,
    /// Names of the adapters that are on the model, by field path of their places.
    pub(crate) others: HashMap<String, Vec<String>>,
    init: Init,
    strict: bool,
    /// The part that plans now.
    part: usize,
    /// What layers have in common, by its key.
    common: Vec<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("adapters", &self.adapters)
            .field("trained_in_place", &self.trained_in_place)
            .field("saved", &self.saved)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

impl Plan {
    pub(crate) fn new(init: Init, strict: bool) -> Self {
        Self {
            adapters: Vec::new(),
            trained_in_place: Vec::new(),
            saved: Vec::new(),
            notes: Map::new(),
            stored: HashMap::new(),
            calibration: None,
            others: HashMap::new(),
            init,
            strict,
            part: 0,
            common: Vec::new(),
        }
    }

    /// Whether a target name without a match is an error: yes for configurations of a user's, no
    /// for those of a checkpoint, whose tensors tell what it adapts.
    pub fn is_new(&self) -> bool {
        self.strict
    }

    /// The source of initial values.
    pub fn init(&mut self) -> &mut Init {
        &mut self.init
    }

    /// What layers with an equal `key` have in common: made for the first of them, and a clone for the others.
    pub fn in_common<K, V>(&mut self, key: K, make: impl FnOnce() -> V) -> V
    where
        K: PartialEq + Send + 'static,
        V: Clone + Send + 'static,
    {
        let made = self.common.iter().find_map(|made| {
            let (of, value) = made.downcast_ref::<(K, V)>()?;
            (*of == key).then_some(value)
        });
        if let Some(value) = made {
            return value.clone();
        }
        let value = make();
        self.common.push(Box::new((key, value.clone())));
        value
    }

    /// The statistics that the user gathered for the method, for initial values or masks that depend on data. `None`
    /// where there are none: the adapter was attached without them, or comes from a file.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// The adapters that are at a site already, in the order of attachment: for a method that works on what they
    /// compute ([`SiteContext::parts_of`](crate::nn::SiteContext::parts_of)).
    pub fn adapters_at(&self, site: &LayoutSite) -> &[String] {
        self.others.get(&site.path).map_or(&[], Vec::as_slice)
    }

    /// Whether the file that is being loaded has a tensor whose key begins with `prefix`.
    pub fn is_stored(&self, prefix: &str) -> bool {
        self.stored.keys().any(|key| key.starts_with(prefix))
    }

    /// Shape of the tensor `key` below `layer` in the file that is being loaded: for what upstream decided
    /// without writing it into its configuration. `None` where there is no file, or no such tensor in it.
    pub fn stored_shape(&self, layer: &Layer, key: &str) -> Option<&[usize]> {
        let key = CheckpointKey::layer("", key).key(Style::HuggingFace, &layer.name, "");
        let key = key?;
        self.stored.get(&key).map(Vec::as_slice)
    }

    /// Records what only the model tells (its width, say) in `adapter_config.json`.
    pub fn set_config_field(&mut self, field: &str, value: impl Into<Value>) {
        self.notes.insert(field.to_string(), value.into());
    }

    /// Whether a parameter is saved whole, for `modules_to_save` or as a task's head: it gets no adapter
    /// besides, as upstream has it. What is planned for it all the same is dropped.
    pub fn is_saved(&self, param: &LayoutParam) -> bool {
        self.saved.contains(&param.path)
    }

    /// Says that what is planned from now on is of this part of the method, which is several in one:
    /// [`States::of_part`](crate::method::States::of_part) has the states of one alone. A plan begins with part 0.
    pub fn begin_part(&mut self, part: usize) {
        self.part = part;
    }

    /// Puts `adapter` on a parameter; on none that is a running statistic ([`LayoutParam::is_buffer`]).
    pub fn adapt_weight(&mut self, param: &LayoutParam, adapter: impl WeightAdapter) {
        if param.is_buffer() {
            return;
        }
        self.push(&param.path, AnyAdapter::weight(adapter, Role::Method));
    }

    /// Puts `adapter` at a site of a hidden state.
    pub fn adapt_hidden(&mut self, site: TypedSite<'_, Hidden>, adapter: impl HiddenAdapter) {
        self.push(&site.path, AnyAdapter::hidden(adapter));
    }

    /// Puts virtual tokens at a site of embeddings.
    pub fn add_prompt(&mut self, site: TypedSite<'_, Prompt>, adapter: impl PromptAdapter) {
        self.push(&site.path, AnyAdapter::prompt(adapter));
    }

    /// Puts virtual tokens' keys and values at a site of such.
    pub fn add_prefix(&mut self, site: TypedSite<'_, KeyValue>, adapter: impl KeyValueAdapter) {
        self.push(&site.path, AnyAdapter::key_value(adapter));
    }

    /// Puts `adapter` at a site of attention's heads.
    pub fn adapt_attention(
        &mut self,
        site: TypedSite<'_, Attention>,
        adapter: impl AttentionAdapter,
    ) {
        self.push(&site.path, AnyAdapter::attention(adapter));
    }

    /// Trains a copy of a parameter in its place, as `modules_to_save` does; the base keeps its
    /// value. Counted as a saved module. A running statistic ([`LayoutParam::is_buffer`]) is left alone: the copy of
    /// its layer's parameters holds a copy of it in files, as upstream's do. Other adapters planned there are dropped; nothing happens
    /// where the parameter itself trains.
    pub fn save_param(&mut self, layout: &Layout, param: &LayoutParam) {
        self.save_copy(layout, param, None);
    }

    /// As [`save_param`](Self::save_param), of a table whose tied head follows the copy, if `param` is such a table or
    /// the weight of its head.
    pub(crate) fn save_tied(&mut self, layout: &Layout, param: &LayoutParam) {
        let Some((head, table)) = layout.tied_pair(param) else {
            return self.save_param(layout, param);
        };
        self.save_copy(layout, table, Some(head));
        self.saved.push(head.path.clone());
    }

    fn save_copy(&mut self, layout: &Layout, param: &LayoutParam, head: Option<&LayoutParam>) {
        if param.is_buffer() || self.trained_in_place.contains(&param.path) || self.is_saved(param)
        {
            return;
        }
        self.adapters.retain(|planned| planned.path != param.path);
        let copy = ModuleToSave::of_module(param, layout.is_transposed(param), head);
        self.push(&param.path, copy);
        self.saved.push(param.path.clone());
    }

    /// Trains a copy of a parameter of any rank in its place; the base keeps its value. Counted as the adapter's own. The
    /// copy of a table whose head is that table serves the head, too, and so does that of such a head.
    ///
    /// Nothing happens where the parameter is trained already, as a copy or in place, and to running statistics.
    pub fn train_param(&mut self, layout: &Layout, param: &LayoutParam) {
        let (param, head) = match layout.tied_pair(param) {
            Some((head, table)) => (table, Some(head)),
            None => (param, None),
        };
        let planned = |plan: &Self| plan.places().any(|place| place == param.path);
        if param.is_buffer() || self.trained_in_place.contains(&param.path) || planned(self) {
            return;
        }
        let copy = ModuleToSave::of_param(param, layout.is_transposed(param), head);
        self.push(&param.path, copy);
    }

    /// Trains a copy of a bias in its place; the base keeps its value. `key` is its name in the
    /// checkpoint where that is not upstream's name of the parameter; `start` is what it is trained from, of the
    /// bias's shape, where that is not the base's value.
    ///
    /// # Panics
    ///
    /// If the parameter is not of rank 1.
    pub fn train_bias(
        &mut self,
        param: &LayoutParam,
        key: Option<String>,
        start: Option<Tensor<1>>,
    ) {
        if param.is_buffer() {
            return;
        }
        let copy = ModuleToSave::of_bias(param, key);
        self.adapt_weight(
            param,
            match start {
                Some(value) => copy.with_value(value),
                None => copy,
            },
        );
    }

    /// Trains copies of some rows of an embedding table `[rows, d]` in their place; the table keeps its own.
    /// `key` is their name below the layer in the checkpoint.
    ///
    /// # Panics
    ///
    /// If the parameter is not of rank 2, or has no such row.
    pub fn train_tokens(&mut self, param: &LayoutParam, rows: &[usize], key: &str) {
        let values = self.token_rows(param, rows);
        let tokens = TrainableTokens::new(values, rows, key);
        let tokens = AnyAdapter::weight(tokens, Role::TrainedTokens);
        self.push(&param.path, tokens);
    }

    /// Copies of some rows of an embedding table `[rows, d]`, to be trained: `[count, d]`. While a file is loaded they have
    /// a shape and no values.
    ///
    /// # Panics
    ///
    /// As [`train_tokens`](Self::train_tokens).
    pub fn token_rows(&mut self, param: &LayoutParam, rows: &[usize]) -> Param<Tensor<2>> {
        let shape = param.shape();
        assert!(
            shape.len() == 2 && rows.iter().all(|row| *row < shape[0]),
            "{} has {shape:?}, and no row of {rows:?}",
            param.name
        );
        if self.strict {
            TrainableTokens::of(param, rows)
        } else {
            let like = (&param.device(), param.dtype());
            self.init.zeros([rows.len(), shape[1]], like)
        }
    }

    /// Field paths of the parameters and sites that something is planned at so far, one for each state.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().map(|planned| planned.path.as_str())
    }

    /// Whether nothing is planned so far.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty() && self.trained_in_place.is_empty()
    }

    /// Trains a parameter itself. Its base value is lost, so it cannot be disabled, detached or
    /// saved as an adapter: for full fine-tuning.
    ///
    /// A tied head is trained with its table.
    pub fn train_in_place(&mut self, param: &LayoutParam) {
        if param.is_tied() || param.is_buffer() {
            return;
        }
        self.adapters.retain(|planned| planned.path != param.path);
        self.trained_in_place.push(param.path.clone());
    }

    /// Brings the adapters into the order of the model, in which a [`Shared`](crate::method::Shared) parameter goes from
    /// handle to handle, whatever order the method planned them in.
    pub(crate) fn sort(&mut self, layout: &Layout) {
        let params = layout.params.iter().map(|param| param.path.as_str());
        let sites = layout.sites.iter().map(|site| site.path.as_str());
        let order: HashMap<&str, usize> = params.chain(sites).zip(0..).collect();
        self.adapters
            .sort_by_key(|planned| order.get(planned.path.as_str()).copied());
    }

    fn push(&mut self, path: &str, adapter: AnyAdapter) {
        if self.saved.iter().any(|saved| saved == path) {
            return;
        }
        self.adapters.push(PlannedAdapter {
            path: path.to_string(),
            part: self.part,
            adapter,
        });
    }
}
