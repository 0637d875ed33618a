//! Invertible adapters behind the embeddings.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Activation, Adapter, CheckpointKey, HiddenAdapter, Init, SiteContext, listed,
};

use super::fields::InvertibleKind;
use super::projection::Dense;
use super::width::inner_width;

/// The list of invertible adapters, in AdapterHub's models.
const LIST: &str = "invertible_adapters";

/// e^this is about the most by which a feature is scaled.
const CLAMP: f64 = 5.0;

/// A network of two layers that changes one half of the features by what it sees in the other.
#[derive(Module, Debug)]
pub struct Coupling {
    /// From the half that it sees.
    pub inner: Dense,
    /// To the change of the other half; with GLOW to the scales and the shifts of it.
    pub outer: Dense,
}

impl Coupling {
    fn forward(&self, seen: Tensor<3>, activation: Activation) -> Tensor<3> {
        self.outer
            .forward(activation.apply(self.inner.forward(seen)))
    }
}

/// Pfeiffer et al. 2020 (MAD-X), section 3.2.3: both halves of the features change by the other, one after the other, so
/// that it can be undone.
#[derive(Module, Debug)]
pub struct Invertible {
    /// Changes the first half, from the second: upstream's `F` with NICE and `s2` with GLOW.
    pub first: Coupling,
    /// Changes the second half, from the first as it then is: upstream's `G` with NICE and `s1` with GLOW.
    pub second: Coupling,
    /// Shifts, or scales and shifts.
    #[module(skip)]
    pub kind: InvertibleKind,
    /// Between the two layers.
    #[module(skip)]
    pub activation: Activation,
    /// The name of the model without its head.
    #[module(skip)]
    pub(crate) root: String,
}

impl Invertible {
    pub(crate) fn new(
        (kind, activation): (InvertibleKind, Activation),
        (width, factor): (usize, f64),
        root: String,
        init: &mut Init,
        like: (&Device, DType),
    ) -> Self {
        let halves = [width / 2, width - width / 2];
        let numbers = match kind {
            InvertibleKind::Nice => 1,
            InvertibleKind::Glow => 2,
        };
        let mut coupling = |seen: usize, changed: usize| {
            let inner = inner_width(seen, factor);
            Coupling {
                inner: Dense::normal([seen, inner], init, like),
                outer: Dense::normal([inner, numbers * changed], init, like),
            }
        };
        Self {
            first: coupling(halves[1], halves[0]),
            second: coupling(halves[0], halves[1]),
            kind,
            activation,
            root,
        }
    }

    /// The factor, if there is one, and the shift of a half of `width` features.
    fn change(
        &self,
        coupling: &Coupling,
        seen: Tensor<3>,
        width: usize,
    ) -> (Option<Tensor<3>>, Tensor<3>) {
        let computed = coupling.forward(seen, self.activation);
        match self.kind {
            InvertibleKind::Nice => (None, computed),
            InvertibleKind::Glow => {
                let scale = computed.clone().narrow(2, 0, width);
                // Softly clamped: 0.636 is 2 / π.
                let exponent = (scale / CLAMP).atan() * (CLAMP * 0.636);
                (Some(exponent.exp()), computed.narrow(2, width, width))
            }
        }
    }

    fn changed(&self, coupling: &Coupling, half: Tensor<3>, seen: Tensor<3>) -> Tensor<3> {
        let width = half.dims()[2];
        match self.change(coupling, seen, width) {
            (Some(factor), shift) => half * factor + shift,
            (None, shift) => half + shift,
        }
    }

    fn undone(&self, coupling: &Coupling, half: Tensor<3>, seen: Tensor<3>) -> Tensor<3> {
        let width = half.dims()[2];
        match self.change(coupling, seen, width) {
            (Some(factor), shift) => (half - shift) / factor,
            (None, shift) => half - shift,
        }
    }
}

/// The first half of the features, which is the smaller one, and the second.
fn halves(hidden: Tensor<3>) -> [Tensor<3>; 2] {
    let width = hidden.dims()[2];
    let first = width / 2;
    [
        hidden.clone().narrow(2, 0, first),
        hidden.narrow(2, first, width - first),
    ]
}

impl HiddenAdapter for Invertible {
    fn forward(&self, hidden: Tensor<3>, _context: &SiteContext<'_>) -> Tensor<3> {
        let [first, second] = halves(hidden);
        let first = self.changed(&self.first, first, second.clone());
        let second = self.changed(&self.second, second, first.clone());
        Tensor::cat(vec![first, second], 2)
    }

    fn inverse(&self, hidden: Tensor<3>, _context: &SiteContext<'_>) -> Tensor<3> {
        let [first, second] = halves(hidden);
        let second = self.undone(&self.second, second, first.clone());
        let first = self.undone(&self.first, first, second.clone());
        Tensor::cat(vec![first, second], 2)
    }
}

impl Adapter for Invertible {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let [first, second] = match self.kind {
            InvertibleKind::Nice => ["F", "G"],
            InvertibleKind::Glow => ["s2", "s1"],
        };
        let mut tensors = Vec::new();
        for (field, network) in [("first", first), ("second", second)] {
            for (layer, number) in [("inner", 0), ("outer", 2)] {
                let key = |of: &str| {
                    let field = format!("{field}.{layer}.{of}");
                    let key = format!("{network}.{number}.{of}");
                    listed(&field, (&self.root, LIST), &key, of == "weight")
                };
                tensors.extend([key("weight"), key("bias")]);
            }
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::{Distribution, Tolerance};
    use peft_core::nn::ForwardContext;

    fn adapter(kind: InvertibleKind, width: usize, device: &Device) -> Invertible {
        let mut init = Init::new(11);
        let like = (device, DType::F64);
        let how = (kind, Activation::Tanh);
        let mut adapter = Invertible::new(how, (width, 2.0), String::new(), &mut init, like);
        for coupling in [&mut adapter.first, &mut adapter.second] {
            for layer in [&mut coupling.inner, &mut coupling.outer] {
                layer.weight = init.normal(layer.weight.dims(), 0.7, like);
                layer.bias = init.normal(layer.bias.dims(), 0.7, like);
            }
        }
        adapter
    }

    #[test]
    fn the_inverse_undoes_it_also_with_an_odd_width() {
        let context = ForwardContext::new();
        let context = SiteContext::new(&context);
        for (_, device) in peft_core::device::cpu_devices() {
            for kind in [InvertibleKind::Nice, InvertibleKind::Glow] {
                for width in [8, 7] {
                    let adapter = adapter(kind, width, &device);
                    let like = (&device, DType::F64);
                    let x = Tensor::<3>::random([2, 3, width], Distribution::Default, like);
                    let there = adapter.forward(x.clone(), &context);
                    let moved = (there.clone() - x.clone()).abs().max().into_scalar::<f64>();
                    assert!(moved > 0.1, "{kind:?} moved by {moved}");
                    let back = adapter.inverse(there, &context);
                    let tolerance = Tolerance::<f64>::absolute(1e-10);
                    back.into_data().assert_approx_eq(&x.into_data(), tolerance);
                }
            }
        }
    }

    /// Upstream's GLOW mixes up features and tokens, so nothing of its can be held against this one.
    #[test]
    fn gradients_are_those_of_finite_differences() {
        let context = ForwardContext::new();
        let context = SiteContext::new(&context);
        for (_, device) in peft_core::device::cpu_devices() {
            let device = device.autodiff();
            for kind in [InvertibleKind::Nice, InvertibleKind::Glow] {
                let adapter = adapter(kind, 6, &device);
                let like = (&device, DType::F64);
                let x = Tensor::<3>::random([2, 3, 6], Distribution::Default, like);
                // Forward and, of something else, back: both have to be differentiated.
                let loss = |adapter: &Invertible| {
                    let there = adapter.forward(x.clone(), &context);
                    let back = adapter.inverse(x.clone() * 2.0, &context);
                    there.powi_scalar(2).mean() + back.powi_scalar(2).mean()
                };
                let gradients = loss(&adapter).backward();
                let weights = |adapter: &Invertible| {
                    [
                        adapter.first.inner.weight.clone(),
                        adapter.first.outer.weight.clone(),
                        adapter.second.inner.weight.clone(),
                        adapter.second.outer.weight.clone(),
                    ]
                };
                let with = |weights: [Param<Tensor<2>>; 4]| {
                    let mut changed = adapter.clone();
                    let [a, b, c, d] = weights;
                    changed.first.inner.weight = a;
                    changed.first.outer.weight = b;
                    changed.second.inner.weight = c;
                    changed.second.outer.weight = d;
                    changed
                };
                let h = 1e-5;
                for index in 0..4 {
                    let weight = weights(&adapter)[index].clone();
                    let direction = Tensor::<2>::random(weight.dims(), Distribution::Default, like);
                    let at = |step: f64| {
                        let mut moved = weights(&adapter);
                        moved[index] =
                            Param::from_tensor((weight.val() + direction.clone() * step).detach());
                        loss(&with(moved)).into_scalar::<f64>()
                    };
                    let expected = (at(h) - at(-h)) / (2.0 * h);
                    let gradient = weight.val().grad(&gradients).expect("a gradient");
                    let slope = gradient * direction.clone().inner();
                    let found = slope.sum().into_scalar::<f64>();
                    let distance = (found - expected).abs();
                    assert!(
                        distance < 1e-6 * expected.abs().max(1e-2),
                        "{kind:?}, matrix {index}: {found}, and {expected} by differences"
                    );
                }
            }
        }
    }
}
