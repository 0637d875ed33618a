use peft_core::method::{Common, method_config};

#[method_config(
    TEST, peft_type = "TEST", title = "Test", family = Additive, reference = "a test"
)]
struct TestConfig {
    #[field(default = 8)]
    r: usize,
    dropout: Option<f64>,
    #[field(any)]
    scale: f64,
    #[field(finite)]
    on: bool,
    common: Common,
}

fn main() {}
