//! Partial fine-tuning of the last blocks keeps nothing and computes nothing below them: counted in bytes.
//!
//! One test in a program of its own: the allocator counts what the whole process has.

use std::alloc::System;
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use cap::Cap;
use peft::core::PeftModule as _;
use peft::core::device::cpu_devices;
use peft::core::method::Method;
use peft::selective::{FullConfig, HeadOnlyConfig, PartialConfig};
use peft_models::{BertClassifier, BertConfig, Pooling};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const BLOCKS: usize = 6;
const ROWS: usize = 8;
const TOKENS: usize = 48;

fn base(device: &Device) -> BertClassifier {
    let mut config = BertConfig::tiny();
    config.hidden_size = 64;
    config.num_hidden_layers = BLOCKS;
    config.num_attention_heads = 4;
    config.intermediate_size = 256;
    config.max_position_embeddings = TOKENS;
    let bert = config.init(device);
    BertClassifier::new_head(bert, 2, Pooling::Mean, 0.0, device).unwrap()
}

/// Names of the base's parameters with a gradient.
struct WithGradient<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    blocks: Vec<usize>,
    below: usize,
}

impl ModuleVisitor for WithGradient<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.base().grad(self.gradients).is_none() {
            return;
        }
        match self.path.iter().find_map(|segment| segment.parse().ok()) {
            Some(block) => self.blocks.push(block),
            None => self.below += usize::from(self.path.contains(&"embeddings".into())),
        }
    }
}

/// What one step costs.
#[derive(Debug)]
struct Cost {
    /// Bytes that the forward pass leaves for the backward pass.
    kept: usize,
    /// Bytes that the backward pass asks for, in all.
    backward: usize,
    /// The backward pass's time, the shortest of three.
    time: Duration,
    /// Blocks with a gradient of one of their parameters, each once.
    blocks: Vec<usize>,
    /// How many parameters of the embeddings have a gradient.
    below: usize,
}

fn cost(base: &BertClassifier, method: &dyn Method, device: &Device) -> Cost {
    let model = base.attach("a", method).unwrap();
    let ids: Vec<i64> = (0..ROWS * TOKENS)
        .map(|at| (at as i64 * 7) % 60 + 1)
        .collect();
    let ids: Tensor<2, Int> = Tensor::from_data(TensorData::new(ids, [ROWS, TOKENS]), device);
    let step = || {
        let before = ALLOCATOR.allocated();
        let loss = model.forward(ids.clone(), None).square().mean();
        let kept = ALLOCATOR.allocated().saturating_sub(before);
        let (total, start) = (ALLOCATOR.total_allocated(), Instant::now());
        let gradients = loss.backward();
        let time = start.elapsed();
        let backward = ALLOCATOR.total_allocated() - total;
        (kept, backward, time, gradients)
    };
    // The first step makes what stays for good: threads, tables.
    let times = [step(), step()].map(|(_, _, time, _)| time);
    let (kept, backward, time, gradients) = step();
    let mut found = WithGradient {
        gradients: &gradients,
        path: Vec::new(),
        blocks: Vec::new(),
        below: 0,
    };
    model.visit(&mut found);
    found.blocks.dedup();
    Cost {
        kept,
        backward,
        time: times.into_iter().fold(time, Duration::min),
        blocks: found.blocks,
        below: found.below,
    }
}

#[test]
fn nothing_is_kept_or_computed_below_the_lowest_block_that_trains() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let base = base(&device);
        let head = HeadOnlyConfig::new().with_modules_to_save(["classifier"]);
        let none = cost(&base, &head, &device);
        let full = cost(&base, &FullConfig::new(), &device);
        for in_place in [false, true] {
            let last: Vec<Cost> = (1..=BLOCKS)
                .map(|count| PartialConfig::last(count).with_in_place(in_place))
                .map(|config| cost(&base, &config, &device))
                .collect();
            for (count, cost) in (1..).zip(&last) {
                let expected: Vec<usize> = (BLOCKS - count..BLOCKS).collect();
                assert_eq!(cost.blocks, expected, "{name}");
                assert_eq!(cost.below, 0, "{name}");
            }
            // A sixth, but for what the machine does besides.
            let (one, all) = (last[0].time, last[BLOCKS - 1].time);
            assert!(
                2 * one < all,
                "{name}: {one:?} for one block, {all:?} for all"
            );
            // Every block that trains costs as much as any other, and those that do not cost nothing.
            for (what, of) in [
                ("kept", (|cost| cost.kept) as fn(&Cost) -> usize),
                ("allocated by the backward pass", |cost| cost.backward),
            ] {
                let bytes: Vec<usize> = last.iter().map(of).collect();
                let of_blocks: Vec<usize> =
                    bytes.windows(2).map(|pair| pair[1] - pair[0]).collect();
                let one = (bytes[BLOCKS - 1] - bytes[0]) / (BLOCKS - 1);
                let text = format!("{name}, {what}: {bytes:?}, {none:?}, {full:?}");
                // Matrix products' threads have memory of their own.
                let close = |bytes: &usize| bytes.abs_diff(one) * 10 < one;
                assert!(of_blocks.iter().all(close), "{text}");
                assert!(of(&none) < one / 4, "{text}");
                assert!(bytes[0] < of(&none) + 5 * one / 4, "{text}");
                assert!(!in_place || bytes[BLOCKS - 1] <= of(&full), "{text}");
            }
        }
    }
}
