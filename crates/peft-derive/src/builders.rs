//! Builders of what every configuration has: its targets, and its common fields.

use proc_macro2::{Ident, TokenStream};
use quote::quote;

/// Those of a field `Targets`.
pub(crate) fn of_targets(targets: &Ident) -> TokenStream {
    quote! {
        /// Sets the layers to adapt: a list of names, or one regular expression, or `all-linear`.
        #[must_use]
        pub fn with_targets(mut self, targets: impl ::core::convert::Into<::peft_core::Selection>) -> Self {
            self.#targets.target_modules = ::core::option::Option::Some(targets.into());
            self
        }

        /// Leaves layers out that are selected otherwise.
        #[must_use]
        pub fn with_excluded(mut self, excluded: impl ::core::convert::Into<::peft_core::Selection>) -> Self {
            self.#targets.exclude_modules = ::core::option::Option::Some(excluded.into());
            self
        }

        /// Adapts layers of these blocks only, by their indices in the model's list; with a list of targets.
        #[must_use]
        pub fn with_layers_to_transform(
            mut self,
            blocks: impl ::core::convert::Into<::std::vec::Vec<usize>>,
        ) -> Self {
            let blocks = ::peft_core::method::OneOrMany::Many(blocks.into());
            self.#targets.layers_to_transform = ::core::option::Option::Some(blocks);
            self
        }

        /// Says what the list of blocks is called, as in `layers`, for a model that has several lists; with
        /// `layers_to_transform`.
        #[must_use]
        pub fn with_layers_pattern(
            mut self,
            pattern: impl ::core::convert::Into<::std::string::String>,
        ) -> Self {
            let pattern = ::peft_core::method::OneOrMany::One(pattern.into());
            self.#targets.layers_pattern = ::core::option::Option::Some(pattern);
            self
        }
    }
}

/// Those of a field `Common`.
pub(crate) fn of_common(common: &Ident) -> TokenStream {
    quote! {
        /// Trains and saves these modules whole.
        #[must_use]
        pub fn with_modules_to_save<S: ::core::convert::Into<::std::string::String>>(
            mut self,
            modules: impl ::core::iter::IntoIterator<Item = S>,
        ) -> Self {
            let modules = modules.into_iter().map(::core::convert::Into::into).collect();
            self.#common.modules_to_save = ::core::option::Option::Some(modules);
            self
        }

        /// Sets upstream's task type, as in `SEQ_CLS`.
        #[must_use]
        pub fn with_task_type(
            mut self,
            task_type: impl ::core::convert::Into<::std::string::String>,
        ) -> Self {
            self.#common.task_type = ::core::option::Option::Some(task_type.into());
            self
        }
    }
}
