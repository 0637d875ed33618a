use peft_core::method::{Adapter, Param, Tensor};

#[derive(Adapter, Debug)]
struct State {
    #[tensor("a", transpose)]
    a: Param<Tensor<2>>,
    #[tensor(transposed)]
    b: Param<Tensor<2>>,
    #[tensor("c")]
    #[unsaved]
    c: Param<Tensor<2>>,
}

fn main() {}
