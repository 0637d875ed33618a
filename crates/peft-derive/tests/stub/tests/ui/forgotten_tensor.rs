use peft_core::method::{Adapter, Param, Tensor};

#[derive(Adapter, Debug)]
struct State {
    #[tensor("a", transposed)]
    a: Param<Tensor<2>>,
    b: Param<Tensor<2>>,
    bank: Option<Param<Tensor<1>>>,
    scale: f64,
}

fn main() {}
