//! The names of peft-core that the macros write, so that tests of their errors need no Burn.

pub type Result<T> = std::result::Result<T, String>;

/// As `peft_core::method`, and two of Burn's names.
pub mod method {
    use crate::Result;
    pub use peft_derive::{Adapter, method_config};
    pub use serde;
    pub use serde_json::Value;

    #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    pub struct Common {
        pub task_type: Option<String>,
        pub modules_to_save: Option<Vec<String>>,
        #[serde(flatten)]
        pub unknown: serde_json::Map<String, Value>,
    }

    #[derive(Debug)]
    pub struct MethodInfo {
        pub name: &'static str,
        pub peft_type: &'static str,
        pub title: &'static str,
        pub family: Family,
        pub reference: &'static str,
        pub identity_at_init: bool,
        pub mergeable: bool,
        pub parse: fn(&Value) -> Result<Box<dyn Method>>,
        pub recognises: Option<fn(&Value) -> bool>,
    }

    #[derive(Debug)]
    pub enum Family {
        Additive,
    }

    pub trait MethodConfig {
        fn info(&self) -> &'static MethodInfo;
        fn common(&self) -> &Common;
        fn common_mut(&mut self) -> &mut Common;
        fn check_fields(&self) -> Result<()>;
        fn to_json(&self) -> Value;
        fn boxed(&self) -> Box<dyn Method>;
    }

    pub trait Method: MethodConfig {}

    pub fn check_field<T: Copy>(
        _: &MethodInfo,
        _: &'static str,
        _: T,
        _: &str,
        _: impl Fn(T) -> bool,
    ) -> Result<()> {
        Ok(())
    }

    pub fn config_from_json<C: Method + serde::de::DeserializeOwned + 'static>(
        json: &Value,
    ) -> Result<Box<dyn Method>> {
        let config: C = serde_json::from_value(json.clone()).map_err(|error| error.to_string())?;
        Ok(Box::new(config))
    }

    pub fn upstream_json<C: serde::Serialize>(config: &C) -> Value {
        serde_json::to_value(config).unwrap_or_default()
    }

    #[derive(Debug)]
    pub struct Param<T>(pub T);

    #[derive(Debug)]
    pub struct Tensor<const D: usize>;
}
