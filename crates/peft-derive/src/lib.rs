#![doc = include_str!("../README.md")]

mod builders;
mod config;
mod documentation;
mod field;
mod range;
mod state;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemStruct, parse_macro_input};

/// Makes a struct a method's configuration.
///
/// ```ignore
/// #[method_config(
///     LORA, peft_type = "LORA", title = "LoRA", family = Reparameterization,
///     reference = "Hu et al. 2021, section 4.1", identity_at_init, mergeable, new(r)
/// )]
/// pub struct LoraConfig {
///     /// Rank of the factors.
///     #[field(default = 8, at_least = 1)]
///     pub r: usize,
///     /// Dropout on A's input.
///     #[field(probability)]
///     pub lora_dropout: f64,
///     pub targets: Targets,
///     pub common: Common,
/// }
/// ```
///
/// The struct stays as it is written, but for its documentation: a field that does not state its default there gets it
/// from `default` and the range, and `targets`, `common` and `bias` need no documentation at all. These come besides: the derives of `Clone`, `Debug`, `PartialEq`, `Serialize` and
/// `Deserialize`, a default for every field that a file lacks, `Default`, `new` for the fields in `new(…)`, a builder
/// `with_<field>` for each field, the registration (`static LORA: MethodInfo`), and `MethodConfig`.
///
/// Of the struct:
///
/// | argument | meaning |
/// |---|---|
/// | `LORA` | name of the registration; without it there is none, and `info = …` says which it is |
/// | `name = "…"` | short name. Default: the type in lower case, `-` for `_` |
/// | `peft_type = "…"`, `title = "…"`, `family = …`, `reference = "…"` | as in `MethodInfo` |
/// | `identity_at_init`, `mergeable` | the promises, where they are given |
/// | `new(a, b)` | `new` takes these fields |
/// | `unsupported("a", "b")` | fields of upstream's that are refused unless they are off |
/// | `parse = f`, `recognises = f` | a function of `&Value` in place of what is generated, as in `MethodInfo`: for another library's layout |
/// | `info = f`, `to_json = f` | a function of `&Self` in place of what is generated |
///
/// Of a field, in `#[field(…)]`:
///
/// | argument | meaning |
/// |---|---|
/// | `default = …` | its default, else `Default::default()` |
/// | `any`, `finite`, `positive`, `probability`, `at_least = …`, `at_most = …`, `above = …`, `below = …` | the range. Every number needs one. Where a number is bounded, it must be finite, too |
/// | `rename = "…"` | its key in JSON, if that is another |
/// | `flatten` | its fields are keys of the outer object. `Targets` and `Common` always are, and have builders |
/// | `skip` | not in JSON |
/// | `skip_false` | not written while it is false |
/// | `deserialize_with = "…"` | as serde's |
/// | `no_builder` | the builder is written by hand |
#[proc_macro_attribute]
pub fn method_config(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemStruct);
    let plain = config::plain(item.clone());
    config::expand(arguments.into(), item)
        .unwrap_or_else(|error| {
            // With the struct, so that nothing else is wrong because it is missing.
            let error = error.to_compile_error();
            quote::quote!(#plain #error)
        })
        .into()
}

/// Lists the tensors of an adapter's state.
///
/// ```ignore
/// #[derive(Module, Adapter, Debug)]
/// pub struct LoraLinear {
///     #[tensor("lora_A.weight", transposed)]
///     pub lora_a: Param<Tensor<2>>,
///     #[tensor("lora_B.weight", transposed)]
///     pub lora_b: Param<Tensor<2>>,
///     pub scale: f64,
/// }
/// ```
///
/// | attribute | meaning |
/// |---|---|
/// | `#[tensor("key")]` | the key below the adapted layer |
/// | `#[tensor(named = "name")]` | the name of a parameter within the model |
/// | `#[tensor(root = "key")]` | the whole key |
/// | `transposed` | stored transposed, as torch's linear weights are |
/// | `sparse` | the weight changes in no more elements than these |
/// | `also = "key"` | upstream writes an equal copy under this key, too |
/// | `adapterhub = "key"` | the key in AdapterHub's layout, of the same kind, with `{adapter}` for the adapter's name |
/// | `saved_if = field` | only where that `bool` of the state is true; not in the file otherwise |
/// | `#[unsaved]` | not in the file: the configuration says all about it |
/// | `#[nested]` | a state itself (`Option` is fine), whose keys are as it says |
/// | `#[no_tensor]` | a module without parameters |
///
/// A field that may hold parameters and has none of these does not compile. What depends on values otherwise
/// (columns, twins, keys from fields) is said by a `tensors` that is written by hand.
#[proc_macro_derive(Adapter, attributes(tensor, unsaved, nested, no_tensor))]
pub fn adapter(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as DeriveInput);
    state::expand(&item)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}
