//! Loss and gradients, with or without gradient checkpointing.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};

use super::{Llama, LmBatch};

impl Llama {
    /// The [`loss`](Self::loss), and the gradients of `scale` times it.
    ///
    /// With `checkpointing` (Chen et al. 2016) one hidden state a layer is kept in the forward pass, and each
    /// layer runs again in the backward pass: about a third more time, for the memory of one layer's
    /// activations in the place of all layers'. Dropout throws the same coins both times; they are others than without
    /// `checkpointing`.
    ///
    /// # Panics
    ///
    /// If the batch does not fit the model, or the model is not on an autodiff device.
    pub fn loss_and_gradients(
        &self,
        batch: &LmBatch,
        checkpointing: bool,
        scale: f64,
    ) -> (f64, GradientsParams) {
        if checkpointing {
            return self.layer_by_layer(batch, scale);
        }
        let loss = self.loss(batch);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let gradients = (loss * scale).backward();
        (value, GradientsParams::from_grads(gradients, self))
    }

    fn layer_by_layer(&self, batch: &LmBatch, scale: f64) -> (f64, GradientsParams) {
        let device = self.device();
        let seeds = Seeds::new(&device, self.model.layers.len());
        // Below the lowest layer that is trained, nobody asks for a gradient, and nothing is kept.
        let model = &self.model;
        let embeds = trains(&model.embed_tokens) || trains(&model.prompt) || trains(&model.site);
        let lowest = self.model.layers.iter().position(trains);
        let lowest = if embeds { Some(0) } else { lowest };
        let lowest = lowest.unwrap_or(self.model.layers.len());
        // The same layers, of which nothing is tracked: dropout acts, and nothing is kept.
        let still = self.clone().map(&mut Untracked);
        seeds.set(0);
        let (mut x, mut positions) = still.enter(batch);
        let mut kept = Vec::new();
        for (index, layer) in still.model.layers.iter().enumerate() {
            if index >= lowest {
                kept.push((x.clone(), positions.clone()));
            }
            seeds.set(index + 1);
            (x, positions) = still.before(layer, x, positions);
            x = layer.forward(x, &positions, None);
        }
        let mut sum = GradientsAccumulator::new();
        let x = x.detach().require_grad();
        let loss = self.head_loss(x.clone(), batch, &positions.context);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let mut gradients = (loss * scale).backward();
        let mut behind = x.grad_remove(&mut gradients);
        sum.accumulate(self, GradientsParams::from_grads(gradients, self));
        for (index, layer) in self.model.layers.iter().enumerate().skip(lowest).rev() {
            let (Some((before, positions)), Some(g)) = (kept.pop(), behind.take()) else {
                break;
            };
            let x = before.detach().require_grad();
            seeds.set(index + 1);
            let (entered, positions) = self.before(layer, x.clone(), positions);
            let output = layer.forward(entered, &positions, None);
            let mut gradients = (output * Tensor::from_inner(g)).sum().backward();
            behind = x.grad_remove(&mut gradients);
            sum.accumulate(self, GradientsParams::from_grads(gradients, self));
        }
        if let (Some(g), true) = (behind, embeds) {
            seeds.set(0);
            let product = (self.enter(batch).0 * Tensor::from_inner(g)).sum();
            // What is trained there may belong to an adapter that is not active.
            if product.is_tracked() {
                let gradients = product.backward();
                sum.accumulate(self, GradientsParams::from_grads(gradients, self));
            }
        }
        (value, sum.grads())
    }
}

/// Seeds of dropout's coins: the same when a layer runs again.
struct Seeds<'a> {
    device: &'a Device,
    seeds: Vec<u64>,
}

impl<'a> Seeds<'a> {
    fn new(device: &'a Device, layers: usize) -> Self {
        let plain = device.clone().without_autodiff();
        let drawn = Tensor::<1>::random([2 * (layers + 1)], Distribution::Default, &plain);
        let drawn: Vec<f32> = drawn.into_data().iter::<f32>().collect();
        // 24 bits each.
        let bits = |uniform: f32| u64::from((uniform * 16_777_216.0) as u32);
        let seeds = drawn
            .chunks_exact(2)
            .map(|pair| bits(pair[0]) << 24 | bits(pair[1]));
        Self {
            device,
            seeds: seeds.collect(),
        }
    }

    fn set(&self, segment: usize) {
        self.device.seed(self.seeds[segment]);
    }
}

/// Takes every parameter off the graph; flags, as dropout's, stay.
struct Untracked;

impl ModuleMapper for Untracked {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(false)
    }
}

/// Whether something in a module is trained.
fn trains<M: Module>(module: &M) -> bool {
    struct Look(bool);
    impl ModuleVisitor for Look {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.is_require_grad();
        }
    }
    let mut look = Look(false);
    module.visit(&mut look);
    look.0
}
