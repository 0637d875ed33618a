//! What can be done with adapters on a model: the extension of Burn's `Module`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::TensorData;
use peft_ops::quantized::QuantizedWeight;
use serde_json::{Map, Value};

use crate::adapter::checkpoint_key::Style;
use crate::adapter::contract::Adapter;
use crate::adapter::init::Init;
use crate::adapter::quantized_base::{self, QuantizedBase, WeightQuantizer};
use crate::attached::composition::{Composition, Mixture};
use crate::attached::stack::{Entry, Stack};
use crate::attached::traversal::{self, Edits};
use crate::checkpoint::read;
use crate::checkpoint::respelled;
use crate::checkpoint::write::{TensorSource, write_file, write_folder};
use crate::files;
use crate::layout::model_layout::Layout;
use crate::method::contract::{Method, MethodInfo, Plan, is_transposed};
use crate::method::hooks::States;
use crate::model::accounting::{AdapterSummary, Counts, Summary, count, tally};
use crate::model::attached::{
    adapted_layers, exported, in_memory, install, is_merged, merged, names, origins, place_name,
    recognised, stacks, strip, survey, unknown, unmerged, with_tensors,
};
use crate::model::compose::{check_places, compose, composition_of};
use crate::model::training_hooks::TrainingHooks;
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
        Layout::new(traversal::gather(self))
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
        plan.save_modules(method, &layout)?;
        method.plan(&layout, &mut plan)?;
        read::refuse_unlisted(&layout, &plan.adapters)?;
        quantized_base::refuse_trained(&layout, &plan)?;
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
        let config = read::read_config(dir)?;
        let config_path = dir.join(read::CONFIG_FILE);
        let info = recognised(&config, &config_path, methods)?;
        let method = (info.parse)(&config).map_err(|error| match error {
            Error::Checkpoint { reason, .. } => Error::Checkpoint {
                path: config_path.clone(),
                reason,
            },
            other => other,
        })?;
        let style = Style::of(&config, method.as_ref());
        read::refuse_pickled(dir, style)?;
        let path = files::readable(dir, read::CONFIG_FILE, style.file());
        let wrong = |reason| Error::Checkpoint {
            path: path.clone(),
            reason,
        };
        let tensors = read::read_tensors(&path)?;
        let mut tensors = respelled::of_compiled(tensors).map_err(wrong)?;
        let (found, layout) = survey(self, name)?;
        let planned = |tensors: &BTreeMap<String, TensorData>| -> Result<Plan> {
            let mut plan = Plan::new(Init::deferred(), false);
            let shapes = tensors
                .iter()
                .map(|(key, data)| (key.clone(), data.shape().to_vec()));
            plan.stored = shapes.collect();
            plan.save_modules(method.as_ref(), &layout)?;
            method.plan(&layout, &mut plan)?;
            read::refuse_unlisted(&layout, &plan.adapters)?;
            quantized_base::refuse_trained(&layout, &plan)?;
            Ok(plan)
        };
        let stored_name = config["name"].as_str().unwrap_or(name).to_string();
        let mut plan = planned(&tensors)?;
        let renames = respelled::renames(&tensors, &plan.adapters, &layout, style, &stored_name);
        let renames = renames.map_err(wrong)?;
        if !renames.is_empty() {
            for (key, expected) in renames {
                let data = tensors.remove(&key);
                tensors.extend(data.map(|data| (expected, data)));
            }
            // A method may go by the shapes that the file has.
            plan = planned(&tensors)?;
        }
        let mut used = Vec::new();
        for planned in &mut plan.adapters {
            let place = place_name(&layout, &planned.path);
            let adapter = &mut planned.adapter;
            read::fill(
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
        let mut extra = Vec::new();
        for (key, data) in tensors.iter().filter(|(key, _)| !used.contains(*key)) {
            if !read::is_base_table(&layout, key, data).map_err(wrong)? {
                extra.push(key);
            }
        }
        extra.truncate(5);
        if !extra.is_empty() {
            return Err(wrong(format!(
                "the configuration has no place for tensor {extra:?}"
            )));
        }
        Ok(install(self, found, name, method.as_ref(), plan))
    }

    /// What the active adapters' methods do in a training loop of `steps` steps of the optimizer, besides
    /// being trained: penalties, schedules of ranks. A loop that drives it is right for every method.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a method cannot be trained for so many steps; [`Error::Merged`].
    fn training_hooks(&self, steps: usize) -> Result<TrainingHooks> {
        TrainingHooks::new(self, steps)
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, as Hugging Face
    /// PEFT does (or AdapterHub, for methods that come from there). Only the adapter is in them, as
    /// its method has it saved: without the ranks that a schedule took, say.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`]; [`Error::Io`]. The two files change together ([`files`]): a full disk or a
    /// kill leaves what was there.
    fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        self.save_adapter_with(name, dir, Map::new())
    }

    /// As [`save_adapter`](Self::save_adapter), with `fields` in place of the configuration's own.
    ///
    /// # Errors
    ///
    /// As `save_adapter`.
    fn save_adapter_with(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        fields: Map<String, Value>,
    ) -> Result<()> {
        let mut layout = self.layout();
        let origin = origins(&layout)
            .remove(name)
            .ok_or_else(|| unknown(name, &layout))?;
        let mut states = States::new(&layout, name)?;
        let decided = origin.method.finalize(&mut states)?;
        if states.is_changed() {
            layout = states.put(self).layout();
        }
        let mut config = origin.to_json();
        if let Some(config) = config.as_object_mut() {
            config.extend(decided);
            config.extend(fields);
            // Upstream takes no targets to mean those that it knows for this kind of model, and leaves the
            // other layers' tensors out without a word.
            let layers = adapted_layers(&layout, name);
            if config.get("target_modules") == Some(&Value::Null) && !layers.is_empty() {
                config.insert("target_modules".into(), layers.into());
            }
        }
        let style = Style::of(&config, origin.method.as_ref());
        if style == Style::AdapterHub
            && let Some(fields) = config.as_object_mut()
        {
            fields.insert("name".into(), name.into());
        }
        write_folder(
            dir.as_ref(),
            style,
            &config,
            &exported(&layout, name, style, false),
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
        let written = |param| TensorSource::of(param, is_transposed(&layout, param));
        let tensors = layout
            .params
            .iter()
            .filter(|param| !param.is_tied())
            .map(|param| (param.name.clone(), written(param)))
            .collect();
        write_file(file.as_ref(), tensors)
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
        let names = names.iter().map(ToString::to_string).collect();
        self.set_composition(&Composition::Stack(names))
    }

    /// Gives row i of the following batches the adapter `rows[i]`, or none: requests for many adapters
    /// in one forward pass. [`activate`](Self::activate) goes back to the same adapters for all rows.
    ///
    /// The layers run once for all rows; low-rank adapters of any rank add two batched products, others
    /// run once for each adapter. Heads, biases, normalisations and sites differ from row to row, too; of virtual
    /// tokens all rows must have as many. The model has to call its layers through
    /// [`AdaptedForward`](crate::nn::AdaptedForward).
    ///
    /// # Panics
    ///
    /// The model's forward pass does, if a batch has another number of rows, or if it uses an adapted
    /// weight otherwise than through `AdaptedForward`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Composition`], [`Error::Merged`].
    fn set_adapter_per_row(&self, rows: &[Option<&str>]) -> Result<Self> {
        let rows = rows.iter().map(|row| row.map(str::to_string)).collect();
        self.set_composition(&Composition::PerRow(rows))
    }

    /// Composes the attached adapters: which act, and how together. [`activate`](Self::activate) and
    /// [`set_adapter_per_row`](Self::set_adapter_per_row) are short forms of it.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`]; [`Error::Composition`] if an adapter sits where it cannot take part.
    fn set_composition(&self, composition: &Composition) -> Result<Self> {
        compose(self, &unmerged(self)?, composition)
    }

    /// How the attached adapters are composed.
    fn composition(&self) -> Composition {
        composition_of(&self.layout())
    }

    /// Puts the adapter in `dir` in the place of `name`: it is active where that was, and where it lay among
    /// others on the same weights. The base is not touched.
    ///
    /// # Errors
    ///
    /// As [`detach`](Self::detach) and [`load_adapter`](Self::load_adapter); [`Error::PerRowAdapter`] if rows of the
    /// batch have `name`, and the new adapter cannot differ from row to row. The model keeps the old one then.
    fn swap_adapter(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        methods: &[&MethodInfo],
    ) -> Result<Self> {
        let before = unmerged(self)?;
        let composition = composition_of(&before);
        let new = self.activate(&[])?.detach(name)?;
        let new = new.load_adapter(name, dir, methods)?;
        let mut layout = new.layout();
        check_places(&layout, &composition)?;
        let mut edited = HashMap::new();
        for (path, stack) in stacks(&layout) {
            let old = stacks(&before).find(|(old, _)| *old == path);
            let place = |entry: &Entry| {
                let entries = &old?.1.entries;
                entries.iter().position(|known| known.name == entry.name)
            };
            let mut stack = stack.clone();
            // Where the adapter is new, it stays outermost.
            stack
                .entries
                .sort_by_key(|entry| place(entry).unwrap_or(usize::MAX));
            edited.insert(path.to_string(), stack);
        }
        let edits = Edits {
            stacks: edited,
            ..Edits::default()
        };
        let new = traversal::place(&new, edits);
        layout = new.layout();
        compose(&new, &layout, &composition)
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
        // Rows that had this adapter have none.
        let composition = composition_of(&layout).without(name);
        check_places(&layout, &composition)?;
        let composition = Arc::new(composition);
        let keep = |stack: &Stack| {
            let entries = stack.entries.iter().filter(|entry| entry.name != name);
            let entries: Vec<Entry> = entries.cloned().collect();
            Stack {
                mixture: Mixture::new(&composition, &entries),
                entries,
                merged: None,
                quantized: stack.quantized.clone(),
                norms: stack.norms.clone(),
            }
        };
        let kept = stacks(&layout)
            .map(|(path, stack)| (path.to_string(), keep(stack)))
            .filter(|(_, stack)| !stack.entries.is_empty())
            .collect();
        let bare = self.unload()?;
        Ok(traversal::place(
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
        Ok(traversal::place(
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
        traversal::place(
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
            merged: stack.merged.clone(),
            ..Stack::default()
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

    /// Stores weights of linear layers and tables in fewer bits, as `quantizer` says (QLoRA: Dettmers et al.
    /// 2023); they cannot be trained themselves from then on, adapters on them can. Adapters that are on the
    /// model stay. Layers compute with the values that the quantized form has.
    ///
    /// Loading a model with a quantizer takes less memory than packing it here.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`]; [`Error::Merged`].
    fn pack_weights(&self, quantizer: &dyn WeightQuantizer) -> Result<Self> {
        quantized_base::pack(self, &unmerged(self)?, quantizer)
    }

    /// Stores quantized weights as dense tensors again, of the values that they have.
    ///
    /// # Errors
    ///
    /// [`Error::Merged`].
    fn unpack_weights(&self) -> Result<Self> {
        Ok(quantized_base::dequantize(self, &unmerged(self)?))
    }

    /// The quantized weights, by upstream name of the layer.
    fn quantized_weights(&self) -> Vec<(String, QuantizedWeight)> {
        let layout = self.layout();
        let quantized = layout.params.iter().filter_map(|param| {
            let base = param.stack.as_ref()?.quantized.as_ref()?;
            Some((layout.layer_of(param).name.clone(), base.rows.clone()))
        });
        quantized.collect()
    }

    /// The model with quantized weights in the place of those at these field paths, which were never read: for
    /// loaders. Rows of a linear layer are its outputs.
    ///
    /// # Panics
    ///
    /// If there is no such matrix, or one of another shape.
    #[must_use]
    fn with_quantized_weights(&self, weights: Vec<(String, QuantizedWeight)>) -> Self {
        let layout = self.layout();
        let quantized = weights.into_iter().map(|(path, rows)| {
            let param = layout.params.iter().find(|param| param.path == path);
            let param = param.unwrap_or_else(|| panic!("no parameter at `{path}`"));
            let transposed = is_transposed(&layout, param);
            let [first, second] = rows.shape();
            let shape = if transposed {
                [second, first]
            } else {
                [first, second]
            };
            assert_eq!(param.shape(), shape, "the shape of `{path}`");
            (path, QuantizedBase { rows, transposed })
        });
        quantized_base::place(self.clone(), quantized.collect())
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

    /// The configuration of an adapter, as its `adapter_config.json` says it.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`].
    fn adapter_config(&self, name: &str) -> Result<Value> {
        let layout = self.layout();
        let origin = origins(&layout).remove(name);
        origin
            .map(|origin| origin.to_json())
            .ok_or_else(|| unknown(name, &layout))
    }

    /// The states of type `A` of an adapter, with the upstream names of their places.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`].
    fn adapter_states<A: Adapter>(&self, name: &str) -> Result<Vec<(String, A)>> {
        let states = States::new(&self.layout(), name)?;
        let states = states
            .of::<A>()
            .map(|(place, state)| (place.to_string(), state.clone()));
        Ok(states.collect())
    }

    /// The tensors of an adapter under the keys of its checkpoint, as they are trained: its state dict. A file has
    /// others where the method stores something else than it trains: what a prompt's encoder computes, say.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`].
    fn adapter_tensors(&self, name: &str) -> Result<BTreeMap<String, TensorData>> {
        let layout = self.layout();
        if !origins(&layout).contains_key(name) {
            return Err(unknown(name, &layout));
        }
        let style = in_memory(&layout, name);
        Ok(exported(&layout, name, style, true))
    }

    /// Puts tensors into an adapter, all of those that [`adapter_tensors`](Self::adapter_tensors) gives: from another
    /// process, or averaged over several.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`]; [`Error::Tensors`] where one is missing, of the wrong
    /// shape, not finite or without a place.
    fn with_adapter_tensors(
        &self,
        name: &str,
        tensors: BTreeMap<String, TensorData>,
    ) -> Result<Self> {
        let layout = unmerged(self)?;
        if !origins(&layout).contains_key(name) {
            return Err(unknown(name, &layout));
        }
        let stacks = with_tensors(&layout, name, tensors).map_err(|reason| Error::Tensors {
            adapter: name.to_string(),
            reason,
        })?;
        Ok(traversal::place(
            self,
            Edits {
                stacks,
                ..Edits::default()
            },
        ))
    }

    /// Changes the states of type `A` of an adapter.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`].
    fn edit_adapter<A: Adapter>(
        &self,
        name: &str,
        change: impl FnMut(&str, &mut A),
    ) -> Result<Self> {
        let mut states = States::of_model(self, name)?;
        states.edit::<A>(change);
        Ok(states.put(self))
    }
}

impl<M: Module> PeftModule for M {}
