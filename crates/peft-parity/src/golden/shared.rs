//! LoRA that a table and its tied head share (`ensure_weight_tying`).
//!
//! Upstream has a parameter at each, in one memory: both count as trained, and each has its own gradient. Here it is one
//! parameter, whose gradient is their sum. An adapter that does not share has no such pairs: a table's own factors
//! and a head's own are of other values, or one of them is missing.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

type Tensors = BTreeMap<String, TensorData>;

/// Ends of the keys of one factor: of the table, and of the head, transposed.
const PAIRS: [(&str, &str); 2] = [
    (".lora_embedding_A", ".lora_B.weight"),
    (".lora_embedding_B", ".lora_A.weight"),
];

/// Keys of the table's factor and of the head's, of both factors.
fn pairs(tensors: &Tensors) -> Vec<(String, String)> {
    let ending = |end: &str| tensors.keys().find(|key| key.ends_with(end)).cloned();
    let pairs = PAIRS.iter().filter_map(|(table, head)| {
        let head = format!("lm_head{head}");
        Some((ending(table)?, ending(&head)?))
    });
    pairs.collect()
}

/// A matrix's values, transposed.
fn transposed(matrix: &TensorData) -> Vec<f32> {
    let [rows, columns] = [matrix.shape()[0], matrix.shape()[1]];
    let values: Vec<f32> = matrix.iter::<f32>().collect();
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| row * columns + column))
        .map(|at| values[at])
        .collect()
}

/// The pairs that an adapter with these tensors shares.
fn shared(adapter: &Tensors) -> Vec<(String, String)> {
    let mut pairs = pairs(adapter);
    pairs.retain(|(table, head)| {
        transposed(&adapter[table]) == adapter[head].iter::<f32>().collect::<Vec<_>>()
    });
    pairs
}

/// Elements that upstream counts twice, of an adapter with these tensors.
pub(crate) fn counted_twice(adapter: &Tensors) -> usize {
    let shared = shared(adapter);
    shared
        .iter()
        .map(|(table, _)| adapter[table].num_elements())
        .sum()
}

/// Upstream's gradients for an adapter, with the sum of both at each shared pair.
pub(crate) fn summed(mut gradients: Tensors, adapter: &Tensors) -> Tensors {
    for (table, head) in shared(adapter) {
        let (Some(of_table), Some(of_head)) = (gradients.get(&table), gradients.get(&head)) else {
            continue;
        };
        let of_head_here = transposed(of_head);
        let values = of_table
            .iter::<f32>()
            .zip(&of_head_here)
            .map(|(a, b)| a + b);
        let sum = TensorData::new(values.collect::<Vec<f32>>(), of_table.shape());
        let turned = TensorData::new(transposed(&sum), of_head.shape());
        gradients.insert(table, sum);
        gradients.insert(head, turned);
    }
    gradients
}
