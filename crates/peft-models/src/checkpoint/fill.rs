//! Putting a checkpoint's tensors into a module.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::Names;

use super::Checkpoint;
use crate::LoadError;

/// Where a traversal is.
struct Path<'a> {
    names: &'a Names,
    /// Upstream's segments, and the structs that hold them.
    segments: Vec<(String, String)>,
}

impl Path<'_> {
    fn enter(&mut self, name: &str, container: &str) {
        let container = container.rsplit(':').next().unwrap_or(container);
        let name = match (container, name) {
            ("LayerNorm", "gamma") => "weight",
            ("LayerNorm", "beta") => "bias",
            _ => self.names.rename(name),
        };
        self.segments
            .push((name.to_string(), container.to_string()));
    }

    fn exit(&mut self) {
        self.segments.pop();
    }

    fn name(&self) -> String {
        let names: Vec<&str> = self
            .segments
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        names.join(".")
    }

    /// Whether the parameter is a linear layer's matrix: `[in, out]` here, `[out, in]` upstream.
    fn is_linear_weight(&self) -> bool {
        matches!(self.segments.last(), Some((name, holder)) if name == "weight" && holder == "Linear")
    }
}

struct Wanted<'a> {
    path: Path<'a>,
    found: Vec<(String, Vec<usize>)>,
}

impl ModuleVisitor for Wanted<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let mut shape = param.lazy_shape().to_vec();
        if self.path.is_linear_weight() {
            shape.reverse();
        }
        self.found.push((self.path.name(), shape));
    }
}

/// The tensors that `module` is made of: upstream's names and layouts.
///
/// Initialises nothing: parameters that are lazy stay so.
pub(crate) fn wanted<M: Module>(module: &M, names: &Names) -> Vec<(String, Vec<usize>)> {
    let path = Path {
        names,
        segments: Vec::new(),
    };
    let mut visitor = Wanted {
        path,
        found: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

struct Fill<'a> {
    path: Path<'a>,
    checkpoint: &'a mut Checkpoint,
    rename: &'a dyn Fn(&str) -> String,
    /// A mapper cannot fail: the first error is kept, and nothing is read after it.
    error: Option<LoadError>,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let mut values = match self.checkpoint.read(&(self.rename)(&self.path.name())) {
            Ok(values) => values,
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let shape = param.lazy_shape();
        if self.path.is_linear_weight() {
            values = transposed(&values, shape[1], shape[0]);
        }
        let device = param.lazy_device();
        let data = TensorData::new(values, shape);
        let tensor =
            device.memory_persistent_allocations(data, |data| Tensor::from_data(data, &device));
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

/// `module` with the checkpoint's values. `rename` is what [`Checkpoint::open`] was given.
///
/// # Errors
///
/// What [`Checkpoint::read`] finds wrong with a tensor.
pub(crate) fn fill<M: Module>(
    module: M,
    names: &Names,
    checkpoint: &mut Checkpoint,
    rename: &dyn Fn(&str) -> String,
) -> Result<M, LoadError> {
    let path = Path {
        names,
        segments: Vec::new(),
    };
    let mut mapper = Fill {
        path,
        checkpoint,
        rename,
        error: None,
    };
    let module = module.map(&mut mapper);
    match mapper.error {
        None => Ok(module),
        Some(error) => Err(error),
    }
}

/// A `[rows, columns]` matrix as `[columns, rows]`, both row-major.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    /// Side of the squares that are turned one after another, so that both matrices' lines stay
    /// in the first cache.
    const TILE: usize = 32;
    let mut turned = vec![0.0; values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for column in left..columns.min(left + TILE) {
                for row in top..rows.min(top + TILE) {
                    turned[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::transposed;

    #[test]
    fn a_matrix_larger_than_a_tile_is_turned() {
        let (rows, columns) = (33, 70);
        let values: Vec<f32> = (0..rows * columns).map(|value| value as f32).collect();
        let turned = transposed(&values, rows, columns);
        for row in 0..rows {
            for column in 0..columns {
                let (here, there) = (turned[column * rows + row], values[row * columns + column]);
                assert!((here - there).abs() < f32::EPSILON);
            }
        }
    }
}
