use peft_core::method::{Common, Method, method_config};

#[method_config(
    TEST, peft_type = "TEST", title = "Test", family = Additive, reference = "a test"
)]
pub struct TestConfig {
    #[field(default = 8.0, at_least = 1)]
    pub r: usize,
    pub common: Common,
}

impl Method for TestConfig {}

fn main() {}
