//! Rates of matrix products at the shapes that steps are made of, beside PyTorch's.
//!
//! Both sides take turns shape by shape, and a ratio is that of the medians of one shape.

use std::env;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use peft::core::ops::linear;
use serde::Serialize;
use serde_json::json;

use crate::bench::write;
use crate::process::median;

type Failure = Box<dyn std::error::Error>;

/// Turns of both sides.
const TURNS: usize = 5;
/// Seconds of a turn.
const SECONDS: f64 = 0.1;

/// `[rows, inner] · [inner, columns]`, of which the second is a transposed view or not.
#[derive(Clone, Copy, Serialize)]
struct Shape {
    what: &'static str,
    rows: usize,
    inner: usize,
    columns: usize,
    transposed: bool,
}

const fn shape(what: &'static str, [rows, inner, columns]: [usize; 3], transposed: bool) -> Shape {
    Shape {
        what,
        rows,
        inner,
        columns,
        transposed,
    }
}

const SHAPES: &[Shape] = &[
    shape("MiniLM, attention", [2048, 384, 384], false),
    shape("MiniLM, attention, backward", [2048, 384, 384], true),
    shape("MiniLM, feed-forward up", [2048, 384, 1536], false),
    shape("MiniLM, feed-forward down", [2048, 1536, 384], false),
    shape("SmolLM2, queries", [256, 576, 576], false),
    shape("SmolLM2, keys", [256, 576, 192], false),
    shape("SmolLM2, feed-forward up", [256, 576, 1536], false),
    shape("SmolLM2, feed-forward down", [256, 1536, 576], false),
    shape("a wide layer", [512, 4096, 4096], false),
    shape("rank 8, down", [2048, 384, 8], false),
    shape("rank 8, up", [2048, 8, 384], false),
    shape("rank 8, up, 1536 wide", [2048, 8, 1536], false),
    shape("a head of 32, scores", [64, 32, 64], true),
    shape("a head of 32, sums", [64, 64, 32], false),
    shape("vocabulary", [256, 576, 49152], false),
    shape("vocabulary, tied", [256, 576, 49152], true),
    shape("one row", [1, 576, 1536], false),
    shape("one row, tied vocabulary", [1, 576, 49152], true),
    shape("8 rows", [8, 384, 1536], false),
    shape("8 rows, transposed", [8, 384, 1536], true),
    shape("8 rows, 16384 wide", [8, 384, 16384], false),
    shape("8 rows, 16384 wide, transposed", [8, 384, 16384], true),
    shape("8 rows, 4096 wide", [8, 4096, 4096], false),
    shape("16 rows", [16, 384, 1536], false),
    shape("16 rows, 16384 wide", [16, 384, 16384], false),
    shape("64 rows, 16384 wide", [64, 384, 16384], false),
    shape("128 rows, 16384 wide", [128, 384, 16384], false),
];

impl Shape {
    /// Arithmetic operations of a product, in thousands of millions.
    fn work(self) -> f64 {
        2.0 * (self.rows * self.inner) as f64 * self.columns as f64 / 1e9
    }
}

/// What was found of one shape.
#[derive(Serialize)]
struct Rate {
    shape: Shape,
    /// GFLOP/s.
    ours: f64,
    /// PyTorch's, if there is one.
    peer: Option<f64>,
}

/// PyTorch, which times a product for each line that it reads.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str) -> Result<Self, Failure> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/products.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err("PyTorch's process has no pipes".into());
        };
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Seconds of a product.
    fn seconds(&mut self, shape: Shape) -> Result<f64, Failure> {
        writeln!(self.input, "{}", serde_json::to_string(&shape)?)?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }

    fn finish(mut self) -> Result<(), Failure> {
        drop(self.input);
        self.child.wait()?;
        Ok(())
    }
}

/// Median seconds of our products in one turn.
fn seconds(input: &Tensor<2>, weight: &Tensor<2>) -> f64 {
    let mut all = Vec::new();
    let begin = Instant::now();
    while all.len() < 3 || begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        black_box(linear(input.clone(), weight.clone(), None, None));
        all.push(start.elapsed().as_secs_f64());
    }
    median(&mut all)
}

pub(crate) fn run(only: &str, device: &str, json: Option<&Path>) -> Result<(), Failure> {
    let device = peft::core::device::device(device)?;
    let python = env::var("PEFT_PYTHON").ok().filter(|path| !path.is_empty());
    let mut peer = python.as_deref().map(Peer::start).transpose()?;
    println!(
        "  {:<32} {:>20} {:>9} {:>9} {:>6}",
        "product", "", "GFLOP/s", "PyTorch", "ratio"
    );
    let mut rates = Vec::new();
    for shape in SHAPES.iter().filter(|shape| shape.what.contains(only)) {
        let (input, weight) = matrices(*shape, &device);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            ours.push(seconds(&input, &weight));
            if let Some(peer) = &mut peer {
                theirs.push(peer.seconds(*shape)?);
            }
        }
        let rate = Rate {
            shape: *shape,
            ours: shape.work() / median(&mut ours),
            peer: peer.is_some().then(|| shape.work() / median(&mut theirs)),
        };
        print_line(&rate);
        rates.push(rate);
    }
    if let Some(peer) = peer {
        peer.finish()?;
    }
    if let Some(path) = json {
        write(path, &json!({ "products": rates }))?;
    }
    Ok(())
}

fn matrices(shape: Shape, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let random = |sides: [usize; 2]| Tensor::random(sides, Distribution::Default, device);
    let input = random([shape.rows, shape.inner]);
    let weight = if shape.transposed {
        random([shape.columns, shape.inner]).transpose()
    } else {
        random([shape.inner, shape.columns])
    };
    (input, weight)
}

fn print_line(rate: &Rate) {
    let Shape {
        what,
        rows,
        inner,
        columns,
        ..
    } = rate.shape;
    let sides = format!("{rows} x {inner} x {columns}");
    let peer = rate.peer.map(|peer| {
        let ratio = rate.ours / peer;
        format!("{peer:>9.1} {ratio:>6.2}")
    });
    println!(
        "  {what:<32} {sides:>20} {:>9.1} {}",
        rate.ours,
        peer.unwrap_or_default()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_timed_and_counted() {
        let (_, device) = &peft::core::device::cpu_devices()[0];
        let small = shape("small", [2, 3, 5], true);
        let (input, weight) = matrices(small, device);
        assert_eq!(weight.dims(), [3, 5]);
        assert!(seconds(&input, &weight) > 0.0);
        assert!((small.work() - 6e-8).abs() < 1e-20);
    }
}
