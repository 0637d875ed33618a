//! What can be done with adapters on a model: the extension of Burn's `Module`.

use std::path::Path;

use burn::module::Module;

use crate::attached::composition::Composition;
use crate::attached::traversal;
use crate::error::Result;
use crate::layout::model_layout::Layout;
use crate::method::contract::{Method, MethodInfo};
use crate::model::accounting::{self, Counts, Summary};
use crate::model::training_hooks::TrainingHooks;
use crate::model::{attach, compose, load, merge, save, switch};

/// Adapters on any Burn module.
///
/// | to | call |
/// |---|---|
/// | see what there is | [`layout`](Self::layout), [`adapters`](Self::adapters), [`counts`](Self::counts), [`summary`](Self::summary) |
/// | add, replace, remove | [`attach`](Self::attach), [`load_adapter`](Self::load_adapter), [`swap_adapter`](Self::swap_adapter), [`detach`](Self::detach), [`unload`](Self::unload) |
/// | choose which act | [`activate`](Self::activate), [`disable_adapters`](Self::disable_adapters), [`set_adapter_per_row`](Self::set_adapter_per_row), [`set_composition`](Self::set_composition) |
/// | train | [`training_hooks`](Self::training_hooks) |
/// | fold into the weights | [`merge_adapters`](Self::merge_adapters), [`unmerge_adapters`](Self::unmerge_adapters), [`merge_and_unload`](Self::merge_and_unload) |
/// | write | [`save_adapter`](Self::save_adapter), [`save_model`](Self::save_model) |
///
/// States and tensors of adapters are at hand through [`AdapterState`](crate::state::AdapterState), quantized weights
/// through [`QuantizedModule`](crate::quantize::QuantizedModule).
///
/// Every operation takes the model by reference and returns a new one: tensors are shared, so a
/// copy costs nothing, and after an error the model is what it was. Drop the old model (as
/// `let model = model.attach(…)?` does at the end of its scope) before training *in place*
/// ([`Plan::train_in_place`](crate::method::Plan::train_in_place)), or its weights stay in memory beside the new ones.
pub trait PeftModule: Module {
    /// The model's layers, parameters and sites, by upstream name. Printing it lists the targets.
    #[doc(alias = "named_modules")]
    fn layout(&self) -> Layout {
        traversal::gather(self).layout
    }

    /// Puts a new adapter on the model, makes it the only active one, and freezes everything
    /// else but what the method trains.
    ///
    /// # Errors
    ///
    /// A refused configuration, name, target, site or module to save: see [`Error`](crate::Error).
    #[doc(alias("get_peft_model", "add_adapter"))]
    fn attach(&self, name: &str, method: &dyn Method) -> Result<Self> {
        attach::attach(self, name, method, None)
    }

    /// Reads an adapter that [`save_adapter`](Self::save_adapter), Hugging Face PEFT or AdapterHub
    /// wrote, and attaches it like [`attach`](Self::attach). `methods` are those that it may be of:
    /// a method crate's `METHODS`.
    ///
    /// # Errors
    ///
    /// Unreadable or damaged files, an unknown `peft_type`, tensors that are missing, unexpected,
    /// of the wrong shape or not finite; and all that `attach` refuses.
    #[doc(alias = "from_pretrained")]
    fn load_adapter(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        methods: &[&MethodInfo],
    ) -> Result<Self> {
        load::load(self, name, dir.as_ref(), methods)
    }

    /// What the active adapters' methods do in a training loop of `steps` steps of the optimizer, besides
    /// being trained: penalties, schedules of ranks. A loop that drives it is right for every method.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config) if a method cannot be trained for so many steps; [`Error::Merged`](crate::Error::Merged).
    fn training_hooks(&self, steps: usize) -> Result<TrainingHooks> {
        TrainingHooks::new(self, steps)
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, as Hugging Face
    /// PEFT does (or AdapterHub, for methods that come from there). Only the adapter is in them, as
    /// its method has it saved: without the ranks that a schedule took, say.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter); [`Error::Io`](crate::Error::Io). The two files change together ([`files`](crate::files)): a full disk or a
    /// kill leaves what was there.
    #[doc(alias = "save_pretrained")]
    fn save_adapter(&self, name: &str, dir: impl AsRef<Path>) -> Result<()> {
        save::save_adapter(self, name, dir.as_ref())
    }

    /// Writes the model's own parameters to one safetensors file, named and laid out as upstream
    /// does. Adapters are not in it: save after [`merge_and_unload`](Self::merge_and_unload) to
    /// have them folded in.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io).
    fn save_model(&self, file: impl AsRef<Path>) -> Result<()> {
        save::save_model(self, file.as_ref())
    }

    /// Names of the attached adapters, in the order of attachment as far as one place shows it.
    fn adapters(&self) -> Vec<String> {
        traversal::gather(self).names()
    }

    /// Makes exactly these adapters active; several add up, in the order of attachment.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged).
    #[doc(alias = "set_adapter")]
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
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Composition`](crate::Error::Composition), [`Error::Merged`](crate::Error::Merged).
    #[doc(alias = "adapter_names")]
    fn set_adapter_per_row(&self, rows: &[Option<&str>]) -> Result<Self> {
        let rows = rows.iter().map(|row| row.map(str::to_string)).collect();
        self.set_composition(&Composition::PerRow(rows))
    }

    /// Composes the attached adapters: which act, and how together. [`activate`](Self::activate) and
    /// [`set_adapter_per_row`](Self::set_adapter_per_row) are short forms of it.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged); [`Error::Composition`](crate::Error::Composition) if an adapter sits where it cannot take part.
    fn set_composition(&self, composition: &Composition) -> Result<Self> {
        compose::compose(self, composition)
    }

    /// How the attached adapters are composed.
    fn composition(&self) -> Composition {
        traversal::gather(self).composition()
    }

    /// Puts the adapter in `dir` in the place of `name`: it is active where that was, and where it lay among
    /// others on the same weights. The base is not touched.
    ///
    /// # Errors
    ///
    /// As [`detach`](Self::detach) and [`load_adapter`](Self::load_adapter); [`Error::Composition`](crate::Error::Composition) if the
    /// new adapter cannot take the place of `name` in the composition. The model keeps the old one then.
    #[doc(alias = "hotswap_adapter")]
    fn swap_adapter(
        &self,
        name: &str,
        dir: impl AsRef<Path>,
        methods: &[&MethodInfo],
    ) -> Result<Self> {
        switch::swap_adapter(self, name, dir.as_ref(), methods)
    }

    /// Makes no adapter active: outputs are the base model's, bit for bit.
    ///
    /// # Errors
    ///
    /// [`Error::Merged`](crate::Error::Merged).
    #[doc(alias = "disable_adapter")]
    fn disable_adapters(&self) -> Result<Self> {
        self.activate(&[])
    }

    /// Removes an adapter; nothing of it is left.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged).
    #[doc(alias = "delete_adapter")]
    fn detach(&self, name: &str) -> Result<Self> {
        switch::detach(self, name)
    }

    /// Computes the effective weights once: outputs stay the same, and the active adapters cost
    /// no time any more, but the memory of a second copy of the weights they act on.
    ///
    /// The merged values stand until [`unmerge_adapters`](Self::unmerge_adapters): training a merged
    /// model trains nothing, and a record loaded into it shows only once it is unmerged.
    ///
    /// # Errors
    ///
    /// [`Error::Unmergeable`](crate::Error::Unmergeable) if an active adapter is no change of a weight;
    /// [`Error::NotFinite`](crate::Error::NotFinite); [`Error::Merged`](crate::Error::Merged).
    #[doc(alias = "merge_adapter")]
    fn merge_adapters(&self) -> Result<Self> {
        merge::merge(self)
    }

    /// Undoes [`merge_adapters`](Self::merge_adapters), exactly: the base weights were kept.
    #[doc(alias = "unmerge_adapter")]
    #[must_use]
    fn unmerge_adapters(&self) -> Self {
        merge::unmerge(self)
    }

    /// Folds the active adapters into the weights and removes all adapters: a plain Burn model
    /// with no latency added. Its parameters stay frozen, as in upstream.
    ///
    /// # Errors
    ///
    /// As [`merge_adapters`](Self::merge_adapters), but for a merged model: that is unloaded.
    fn merge_and_unload(&self) -> Result<Self> {
        merge::merge_and_unload(self)
    }

    /// Removes all adapters: the base model, bit for bit. Its parameters stay frozen.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignReparameterization`](crate::Error::ForeignReparameterization) if Burn's own sits beside ours.
    fn unload(&self) -> Result<Self> {
        merge::unload(self)
    }

    /// Counts over the model and its active adapters.
    #[doc(alias = "get_nb_trainable_parameters")]
    fn counts(&self) -> Counts {
        accounting::count(&traversal::gather(self))
    }

    /// What is on the model, for people.
    #[doc(alias = "print_trainable_parameters")]
    fn summary(&self) -> Summary {
        accounting::summary(&traversal::gather(self))
    }
}

impl<M: Module> PeftModule for M {}
