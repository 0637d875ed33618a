use peft_core::method::{Common, method_config};

#[method_config(
    TEST, peft_type = "TEST", title = "Test", family = Additive, reference = "a test"
)]
struct TestConfig {
    #[field(defualt = 8, at_least = 1)]
    r: usize,
    common: Common,
}

#[method_config(
    OTHER, peft_type = "OTHER", title = "Other", family = Additive, references = "a test"
)]
struct OtherConfig {
    common: Common,
}

#[method_config(THIRD, peft_type = "THIRD", title = "Third", family = Additive)]
struct ThirdConfig {
    common: Common,
}

#[method_config(
    FOURTH, peft_type = "FOURTH", title = "Fourth", family = Additive, reference = "a test", new(rank)
)]
struct FourthConfig {
    common: Common,
}

#[method_config(
    FIFTH, peft_type = "FIFTH", title = "Fifth", family = Additive, reference = "a test"
)]
struct FifthConfig {}

fn main() {}
