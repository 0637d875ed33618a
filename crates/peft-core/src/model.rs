//! What can be done with adapters on a model: the extension of Burn's `Module`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use serde_json::Value;

use crate::accounting::{AdapterSummary, Counts, Summary};
use crate::adapter::Adapter;
use crate::checkpoint::{self, Style};
use crate::erased::{AnyAdapter, AnyTensor, FromDyn};
use crate::init::Init;
use crate::layout::Layout;
use crate::mechanism::{self, Edits, Found};
use crate::method::{AttachedMethod, Method, MethodInfo, Plan, is_transposed};
use crate::saved;
use crate::stack::{Entry, Stack};
use crate::{Error, Result};

/// Adapters on any Burn module.
///
/// Every operation takes the model by reference and returns a new one: tensors are shared, so a
/// copy costs nothing, and after an error the model is what it was. Drop the old model (as
/// `let model = model.attach(…)?` does at the end of its scope) before training *in place*
/// ([`Plan::train_in_place`]), or its weights stay in memory beside the new ones.
pub trait PeftModule: Module {
    /// The model's layers, parameters and sites, by upstream name. Printing it lists the targets.
    fn layout(&self) -> Layout {
        Layout::new(mechanism::gather(self))
    }

    /// Puts a new adapter on the model, makes it the only active one, and freezes everything
    /// else but what the method trains.
    ///
    /// # Errors
    ///
    /// A refused configuration, name, target, site or module to save: see [`Error`].
    fn attach(&self, name: &str, method: &dyn Method) -> Result<Self> {
        method.validate()?;
        let (found, layout) = survey(self, name)?;
        let device = found
            .params
            .first()
            .map(|param| param.base.device())
            .unwrap_or_default();
        let mut plan = Plan::new(Init::from_device(&device), true);
        method.plan(&layout, &mut plan)?;
        plan.save_modules(method, &layout)?;
        Ok(install(self, found, name, method, plan))
    }

    /// Reads an adapter that [`save_adapter`](Self::save_adapter), Hugging Face PEFT or AdapterHub
    /// wrote, and attaches it like [`attach`](Self::attach). `methods` are those that it may be of:
    /// a method crate's `METHODS`.
    ///
    /// # Errors
    ///
    /// Unreadable or damaged files, an unknown `peft_type`, tensors that are missing, unexpected,
    /// of the wrong shape or not finite; and all that `attach` refuses.
    fn load_adapter(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        methods: &[&MethodInfo],
    ) -> Result<Self> {
        let dir = dir.as_ref();
        let config = checkpoint::read_config(dir)?;
        let config_path = dir.join(checkpoint::CONFIG_FILE);
        let info = recognised(&config, &config_path, methods)?;
        let method = (info.parse)(&config).map_err(|error| match error {
            Error::Checkpoint { reason, .. } => Error::Checkpoint {
                path: config_path.clone(),
                reason,
            },
            other => other,
        })?;
        let style = Style::of(&config);
        let path = dir.join(style.file());
        let mut tensors = checkpoint::read_tensors(&path)?;
        let (found, layout) = survey(self, name)?;
        let mut plan = Plan::new(Init::blank(), false);
        method.plan(&layout, &mut plan)?;
        plan.save_modules(method.as_ref(), &layout)?;

        let stored_name = config["name"].as_str().unwrap_or(name).to_string();
        let wrong = |reason| Error::Checkpoint {
            path: path.clone(),
            reason,
        };
        let mut used = Vec::new();
        for planned in &mut plan.adapters {
            let place = place_name(&layout, &planned.path);
            let adapter = &mut planned.adapter;
            checkpoint::fill(
                adapter,
                style,
                &place,
                &stored_name,
                &mut tensors,
                &mut used,
            )
            .map_err(wrong)?;
        }
        let used: BTreeSet<_> = used.into_iter().collect();
        let extra: Vec<_> = tensors
            .keys()
            .filter(|key| !used.contains(*key))
            .take(5)
            .collect();
        if !extra.is_empty() {
            return Err(wrong(format!(
                "the configuration has no place for tensor {extra:?}"
            )));
        }
        Ok(install(self, found, name, method.as_ref(), plan))
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, as Hugging Face
    /// PEFT does (or AdapterHub, for methods that come from there). Only the adapter is in them.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`]; [`Error::Io`]. Both files are complete on the disk before either
    /// gets its name, so a full disk leaves what was there.
    fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        let layout = self.layout();
        let origin = origins(&layout)
            .remove(name)
            .ok_or_else(|| unknown(name, &layout))?;
        let mut config = origin.to_json();
        let style = Style::of(&config);
        if style == Style::AdapterHub
            && let Some(fields) = config.as_object_mut()
        {
            fields.insert("name".into(), name.into());
        }
        checkpoint::write(
            dir.as_ref(),
            style,
            &config,
            &exported(&layout, name, style),
        )
    }

    /// Writes the model's own parameters to one safetensors file, named and laid out as upstream
    /// does. Adapters are not in it: save after [`merge_and_unload`](Self::merge_and_unload) to
    /// have them folded in.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn save_model(&self, file: impl AsRef<Path>) -> Result<()> {
        let layout = self.layout();
        let tensors = layout
            .params
            .iter()
            .map(|param| {
                let data = param.base.to_data();
                let transposed = is_transposed(&layout, param);
                (
                    param.name.clone(),
                    if transposed {
                        checkpoint::transpose(data)
                    } else {
                        data
                    },
                )
            })
            .collect();
        checkpoint::write_tensors(file.as_ref(), &tensors)
    }

    /// Names of the attached adapters, in the order of attachment as far as one place shows it.
    fn adapters(&self) -> Vec<String> {
        names(&self.layout())
    }

    /// Makes exactly these adapters active; several add up, in the order of attachment.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`].
    fn activate(&self, names: &[&str]) -> Result<Self> {
        let layout = unmerged(self)?;
        let attached = origins(&layout);
        if let Some(name) = names.iter().find(|name| !attached.contains_key(**name)) {
            return Err(unknown(name, &layout));
        }
        Ok(edit(self, &layout, |entry| {
            entry.active = names.contains(&entry.name.as_str());
        }))
    }

    /// Makes no adapter active: outputs are the base model's, bit for bit.
    ///
    /// # Errors
    ///
    /// [`Error::Merged`].
    fn disable_adapters(&self) -> Result<Self> {
        self.activate(&[])
    }

    /// Removes an adapter; nothing of it is left.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`].
    fn detach(&self, name: &str) -> Result<Self> {
        let layout = unmerged(self)?;
        if !origins(&layout).contains_key(name) {
            return Err(unknown(name, &layout));
        }
        let keep = |stack: &Stack| Stack {
            entries: stack
                .entries
                .iter()
                .filter(|entry| entry.name != name)
                .cloned()
                .collect(),
            merged: None,
        };
        let kept = stacks(&layout)
            .map(|(path, stack)| (path.to_string(), keep(stack)))
            .filter(|(_, stack)| !stack.entries.is_empty())
            .collect();
        let bare = self.unload()?;
        Ok(mechanism::place(
            &bare,
            Edits {
                stacks: kept,
                ..Edits::default()
            },
        ))
    }

    /// Computes the effective weights once: outputs stay the same, and the active adapters cost
    /// no time any more, but the memory of a second copy of the weights they act on.
    ///
    /// The merged values stand until [`unmerge_adapters`](Self::unmerge_adapters): training a merged
    /// model trains nothing, and a record loaded into it shows only once it is unmerged.
    ///
    /// # Errors
    ///
    /// [`Error::Unmergeable`] if an active adapter is no change of a weight;
    /// [`Error::NotFinite`]; [`Error::Merged`].
    fn merge_adapters(&self) -> Result<Self> {
        let layout = unmerged(self)?;
        Ok(mechanism::place(
            self,
            Edits {
                stacks: merged(&layout)?,
                ..Edits::default()
            },
        ))
    }

    /// Undoes [`merge_adapters`](Self::merge_adapters), exactly: the base weights were kept.
    #[must_use]
    fn unmerge_adapters(&self) -> Self {
        let layout = self.layout();
        let edited = stacks(&layout)
            .filter(|(_, stack)| stack.merged.is_some())
            .map(|(path, stack)| {
                (
                    path.to_string(),
                    Stack {
                        merged: None,
                        ..stack.clone()
                    },
                )
            })
            .collect();
        mechanism::place(
            self,
            Edits {
                stacks: edited,
                ..Edits::default()
            },
        )
    }

    /// Folds the active adapters into the weights and removes all adapters: a plain Burn model
    /// with no latency added. Its parameters stay frozen, as in upstream.
    ///
    /// # Errors
    ///
    /// As [`merge_adapters`](Self::merge_adapters), but for a merged model: that is unloaded.
    fn merge_and_unload(&self) -> Result<Self> {
        let merged = if is_merged(&self.layout()) {
            self.clone()
        } else {
            self.merge_adapters()?
        };
        strip(&merged, |stack| Stack {
            entries: Vec::new(),
            merged: stack.merged.clone(),
        })
    }

    /// Removes all adapters: the base model, bit for bit. Its parameters stay frozen.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignReparameterization`] if Burn's own sits beside ours.
    fn unload(&self) -> Result<Self> {
        strip(self, |_| Stack::default())
    }

    /// Counts over the model and its active adapters.
    fn counts(&self) -> Counts {
        count(&self.layout())
    }

    /// What is on the model, for people.
    fn summary(&self) -> Summary {
        let layout = self.layout();
        let mut adapters: Vec<AdapterSummary> = Vec::new();
        for (_, stack) in stacks(&layout) {
            for entry in &stack.entries {
                let elements = tally(&entry.adapter).elements;
                match adapters
                    .iter_mut()
                    .find(|adapter| adapter.name == entry.name)
                {
                    Some(adapter) => {
                        adapter.places += 1;
                        adapter.elements += elements;
                    }
                    None => adapters.push(AdapterSummary {
                        name: entry.name.clone(),
                        method: entry.origin.method.info().title,
                        active: entry.active,
                        places: 1,
                        elements,
                    }),
                }
            }
        }
        Summary {
            counts: count(&layout),
            adapters,
            merged: is_merged(&layout),
        }
    }

    /// The states of type `A` of an adapter, with the upstream names of their places.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`].
    fn adapter_states<A: Adapter>(&self, name: &str) -> Result<Vec<(String, A)>> {
        let layout = self.layout();
        if !origins(&layout).contains_key(name) {
            return Err(unknown(name, &layout));
        }
        let states = stacks(&layout).filter_map(|(path, stack)| {
            let state = stack
                .entry(name)?
                .adapter
                .module()
                .as_any()
                .downcast_ref::<A>()?;
            Some((place_name(&layout, path), state.clone()))
        });
        Ok(states.collect())
    }

    /// Changes the states of type `A` of an adapter, as a schedule of ranks does between steps.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`].
    fn edit_adapter<A: Adapter>(
        &self,
        name: &str,
        mut change: impl FnMut(&str, &mut A),
    ) -> Result<Self> {
        let layout = unmerged(self)?;
        if !origins(&layout).contains_key(name) {
            return Err(unknown(name, &layout));
        }
        let edited = stacks(&layout)
            .map(|(path, stack)| {
                let mut stack = stack.clone();
                for entry in stack.entries.iter_mut().filter(|entry| entry.name == name) {
                    if let Some(state) = entry.adapter.module_mut().as_any_mut().downcast_mut() {
                        change(&place_name(&layout, path), state);
                    }
                }
                (path.to_string(), stack)
            })
            .collect();
        Ok(mechanism::place(
            self,
            Edits {
                stacks: edited,
                ..Edits::default()
            },
        ))
    }
}

impl<M: Module> PeftModule for M {}

/// The model's content, if an adapter called `name` can be put on it.
fn survey<M: Module>(model: &M, name: &str) -> Result<(Found, Layout)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Error::AdapterName {
            name: name.to_string(),
        });
    }
    let found = mechanism::gather(model);
    refuse_foreign(&found)?;
    let layout = Layout::new(found.clone());
    if is_merged(&layout) {
        return Err(Error::Merged);
    }
    if origins(&layout).contains_key(name) {
        return Err(Error::AlreadyAttached {
            name: name.to_string(),
        });
    }
    Ok((found, layout))
}

fn refuse_foreign(found: &Found) -> Result<()> {
    match found.params.iter().find(|param| param.foreign.is_some()) {
        None => Ok(()),
        Some(param) => Err(Error::ForeignReparameterization {
            parameter: param.path.join("."),
            found: param.foreign.clone().unwrap_or_default(),
        }),
    }
}

/// The method that wrote a configuration.
fn recognised<'a>(
    config: &Value,
    path: &Path,
    methods: &[&'a MethodInfo],
) -> Result<&'a MethodInfo> {
    let found = config["peft_type"].as_str();
    let fits = |info: &&&MethodInfo| match found {
        Some(found) => info.peft_type == found,
        None => (info.recognises)(config),
    };
    methods
        .iter()
        .find(fits)
        .copied()
        .ok_or_else(|| Error::UnknownMethod {
            path: path.into(),
            found: found.unwrap_or("missing").to_string(),
            known: methods
                .iter()
                .map(|info| info.peft_type)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Carries out a plan.
fn install<M: Module>(model: &M, found: Found, name: &str, method: &dyn Method, plan: Plan) -> M {
    let origin = Arc::new(AttachedMethod {
        method: method.boxed(),
        notes: plan.notes,
    });
    let mut edits = Edits::default();
    for param in &found.params {
        let path = param.path.join(".");
        let trainable = plan.trained_in_place.contains(&path);
        edits.trainable.insert(path.clone(), trainable);
        if let Some(stack) = &param.stack {
            edits.stacks.insert(path, stack.clone());
        }
    }
    for site in &found.sites {
        if !site.stack.entries.is_empty() {
            edits.stacks.insert(site.path.join("."), site.stack.clone());
        }
    }
    for stack in edits.stacks.values_mut() {
        for entry in &mut stack.entries {
            entry.active = false;
        }
    }
    for planned in plan.adapters {
        edits
            .stacks
            .entry(planned.path)
            .or_default()
            .entries
            .push(Entry {
                name: name.to_string(),
                active: true,
                adapter: planned.adapter,
                origin: origin.clone(),
            });
    }
    mechanism::place(model, edits)
}

/// Every stack with the field path of its place.
fn stacks(layout: &Layout) -> impl Iterator<Item = (&str, &Stack)> {
    let params = layout
        .params
        .iter()
        .filter_map(|param| Some((param.path.as_str(), param.stack.as_ref()?)));
    let sites = layout
        .sites
        .iter()
        .map(|site| (site.path.as_str(), &site.stack));
    params.chain(sites)
}

/// The upstream name of the layer or site at a field path.
fn place_name(layout: &Layout, path: &str) -> String {
    let param = layout.params.iter().find(|param| param.path == path);
    match param {
        Some(param) => layout.layer_of(param).name.clone(),
        None => layout
            .sites
            .iter()
            .find(|site| site.path == path)
            .map(|site| site.name.clone())
            .unwrap_or_default(),
    }
}

fn names(layout: &Layout) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in stacks(layout).flat_map(|(_, stack)| &stack.entries) {
        if !names.contains(&entry.name) {
            names.push(entry.name.clone());
        }
    }
    names
}

fn origins(layout: &Layout) -> HashMap<&str, Arc<AttachedMethod>> {
    stacks(layout)
        .flat_map(|(_, stack)| &stack.entries)
        .map(|entry| (entry.name.as_str(), entry.origin.clone()))
        .collect()
}

fn unknown(name: &str, layout: &Layout) -> Error {
    let attached = names(layout);
    Error::UnknownAdapter {
        name: name.to_string(),
        attached: if attached.is_empty() {
            "none".into()
        } else {
            attached.join(", ")
        },
    }
}

fn is_merged(layout: &Layout) -> bool {
    stacks(layout).any(|(_, stack)| stack.merged.is_some())
}

fn unmerged<M: Module>(model: &M) -> Result<Layout> {
    let layout = model.layout();
    if is_merged(&layout) {
        Err(Error::Merged)
    } else {
        Ok(layout)
    }
}

/// A copy of the model with every entry changed.
fn edit<M: Module>(model: &M, layout: &Layout, change: impl Fn(&mut Entry)) -> M {
    let edited = stacks(layout)
        .map(|(path, stack)| {
            let mut stack = stack.clone();
            stack.entries.iter_mut().for_each(&change);
            (path.to_string(), stack)
        })
        .collect();
    mechanism::place(
        model,
        Edits {
            stacks: edited,
            ..Edits::default()
        },
    )
}

/// Replaces every stack and lets Burn fold what is left into the parameters.
fn strip<M: Module>(model: &M, rest: impl Fn(&Stack) -> Stack) -> Result<M> {
    let found = mechanism::gather(model);
    refuse_foreign(&found)?;
    let layout = Layout::new(found);
    let edited = stacks(&layout)
        .map(|(path, stack)| (path.to_string(), rest(stack)))
        .collect();
    let edits = Edits {
        stacks: edited,
        ..Edits::default()
    };
    Ok(mechanism::place(model, edits).materialize())
}

/// The stacks with their effective weight computed, checked to be finite.
fn merged(layout: &Layout) -> Result<HashMap<String, Stack>> {
    for site in &layout.sites {
        if let Some(entry) = site.stack.active().next() {
            return Err(Error::Unmergeable {
                adapter: entry.name.clone(),
                method: entry.origin.method.info().title,
                place: site.name.clone(),
            });
        }
    }
    let mut merged = HashMap::new();
    for param in &layout.params {
        let Some(stack) = &param.stack else { continue };
        if stack.active().next().is_none() {
            continue;
        }
        let value = stack.compose(param.base.clone()).detach();
        if !is_finite(&value) {
            return Err(Error::NotFinite {
                parameter: param.name.clone(),
                adapters: stack
                    .active()
                    .map(|e| e.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        }
        merged.insert(
            param.path.clone(),
            Stack {
                merged: Some(value),
                ..stack.clone()
            },
        );
    }
    Ok(merged)
}

fn is_finite(value: &AnyTensor) -> bool {
    value.to_data().iter::<f64>().all(f64::is_finite)
}

/// The adapter's tensors by checkpoint key.
fn exported(
    layout: &Layout,
    name: &str,
    style: Style,
) -> BTreeMap<String, burn::tensor::TensorData> {
    let mut tensors = BTreeMap::new();
    for (path, stack) in stacks(layout) {
        for entry in stack.entries.iter().filter(|entry| entry.name == name) {
            let place = place_name(layout, path);
            checkpoint::export(&entry.adapter, style, &place, name, &mut tensors);
        }
    }
    tensors
}

/// Elements and bytes of one adapter's parameters.
#[derive(Default)]
struct Tally {
    elements: usize,
    trainable: usize,
    bytes: usize,
}

impl ModuleVisitor for Tally {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let elements = param.dims().iter().product::<usize>();
        self.elements += elements;
        self.bytes += elements * param.dtype().size();
        if mechanism::is_trainable(param) {
            self.trainable += elements;
        }
    }
}

fn tally(adapter: &AnyAdapter) -> Tally {
    let mut tally = Tally::default();
    adapter.module().visit(&mut FromDyn(&mut tally));
    tally
}

fn count(layout: &Layout) -> Counts {
    let mut counts = Counts::default();
    for param in &layout.params {
        let base = param.elements();
        counts.total += base;
        if param.trainable {
            counts.trainable += base;
            if layout.layer_of(param).head {
                counts.saved_modules += base;
            } else {
                counts.changed += base;
                counts.stored += base;
                counts.stored_bytes += base * param.dtype().size();
            }
        }
        let mut changed = 0;
        for entry in param.stack.iter().flat_map(Stack::active) {
            count_entry(entry, &mut counts);
            if let AnyAdapter::Weight(adapter) = &entry.adapter
                && adapter.method() != saved::MODULE
            {
                changed = base.min(changed + adapter.changed(base));
            }
        }
        counts.changed += changed;
    }
    for entry in layout.sites.iter().flat_map(|site| site.stack.active()) {
        count_entry(entry, &mut counts);
        counts.changed += tally(&entry.adapter).elements;
    }
    counts
}

fn count_entry(entry: &Entry, counts: &mut Counts) {
    let tally = tally(&entry.adapter);
    counts.total += tally.elements;
    counts.trainable += tally.trainable;
    if entry.adapter.module().method() == saved::MODULE {
        counts.saved_modules += tally.trainable;
    } else {
        counts.stored += tally.elements;
        counts.stored_bytes += tally.bytes;
    }
}
