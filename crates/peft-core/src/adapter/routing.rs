//! How much of which adapter each row or token gets.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::Tensor;

/// Weights of adapters, by row or by token of a batch: what a router decides (X-LoRA, Buehler and Buehler 2024; Arrow,
/// Ostapenko et al. 2024; mixtures of LoRA experts).
///
/// It acts on a model whose composition is [`Composition::Routed`](crate::Composition::Routed). Gradients flow into the
/// weights.
#[derive(Clone, Debug)]
pub struct Routing {
    names: Arc<[String]>,
    weights: Weights,
    /// The pass goes on with so many of its last tokens.
    last: Option<usize>,
}

#[derive(Clone, Debug)]
enum Weights {
    /// `[batch, 1 or seq, adapters]`, at all places.
    Given(Box<Tensor<3>>),
    Computed(Arc<dyn Router>),
}

/// Computes weights at each layer and site: what [`Routing::computed`] takes.
pub trait Router: Debug + Send + Sync {
    /// The weights at a place, `[batch, 1 or seq, adapters]`, in the order of the routing's names.
    fn weights(&self, place: &RoutedPlace<'_>) -> Tensor<3>;

    /// How many rows of a batch the weights are for, where the router was made for one batch. Default: any number.
    fn rows(&self) -> Option<usize> {
        None
    }
}

/// A place where adapters are routed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RoutedPlace<'a> {
    /// Upstream's name of the layer or site.
    pub name: &'a str,
    /// What goes in, `[batch, seq, features]`; a layer that sees one vector a row has `seq` 1. `None` at tables,
    /// convolutions, biases and normalisations.
    pub input: Option<Tensor<3>>,
}

impl<'a> RoutedPlace<'a> {
    /// The place called `name`, with what goes in.
    pub fn new(name: &'a str, input: Option<Tensor<3>>) -> Self {
        Self { name, input }
    }
}

impl Routing {
    /// `weights` `[batch, adapters]`, for all tokens of a row.
    ///
    /// # Panics
    ///
    /// If there is not one weight for each name.
    pub fn per_row<S: Into<String>>(
        names: impl IntoIterator<Item = S>,
        weights: Tensor<2>,
    ) -> Self {
        Self::per_token(names, weights.unsqueeze_dim(1))
    }

    /// `weights` `[batch, seq, adapters]`. Virtual tokens in front of a row count.
    ///
    /// Layers that see one vector a row and no tokens, as a pooler or a head on a pooled state does, cannot use them: leave
    /// such layers out of the adapters' targets, or give weights [per row](Self::per_row).
    ///
    /// # Panics
    ///
    /// If there is not one weight for each name.
    pub fn per_token<S: Into<String>>(
        names: impl IntoIterator<Item = S>,
        weights: Tensor<3>,
    ) -> Self {
        let names: Arc<[String]> = names.into_iter().map(Into::into).collect();
        let [_, _, count] = weights.dims();
        assert_eq!(
            names.len(),
            count,
            "weights of shape {:?} for the adapters {names:?}",
            weights.dims()
        );
        Self {
            names,
            weights: Weights::Given(Box::new(weights)),
            last: None,
        }
    }

    /// Weights that `router` computes at each layer and site.
    pub fn computed<S: Into<String>>(
        names: impl IntoIterator<Item = S>,
        router: impl Router + 'static,
    ) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            weights: Weights::Computed(Arc::new(router)),
            last: None,
        }
    }

    /// The names of the adapters, in the order of the weights.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The weights at a place, `[batch, 1 or seq, adapters]`.
    ///
    /// # Panics
    ///
    /// If the router does not give one weight for each name.
    pub fn weights(&self, place: &RoutedPlace<'_>) -> Tensor<3> {
        let router = match &self.weights {
            Weights::Given(weights) => return self.of_last(weights.as_ref().clone()),
            Weights::Computed(router) => router,
        };
        let weights = self.of_last(router.weights(place));
        let (found, expected) = (weights.dims()[2], self.names.len());
        assert_eq!(
            found, expected,
            "at `{}` the router gave {found} weights for {expected} adapters",
            place.name
        );
        weights
    }

    /// Whether the weights can be used for these adapters in a pass over `rows` rows of `tokens` tokens, as far as that is
    /// known before the pass.
    ///
    /// # Errors
    ///
    /// What does not fit, in words.
    pub fn check(&self, adapters: &[String], rows: usize, tokens: usize) -> Result<(), String> {
        let names = &self.names;
        if let Some(adapter) = adapters.iter().find(|adapter| !names.contains(adapter)) {
            return Err(format!(
                "it has weights for {names:?}, and none for the adapter `{adapter}`"
            ));
        }
        if let Some(found) = self.rows().filter(|found| ![1, rows].contains(found)) {
            return Err(format!("it has weights for {found} rows, not for {rows}"));
        }
        match &self.weights {
            Weights::Given(weights) if ![1, tokens].contains(&weights.dims()[1]) => {
                let found = weights.dims()[1];
                Err(format!(
                    "it has weights for {found} tokens, not for {tokens}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// The routing of a pass that goes on with the last `count` tokens of each row.
    pub(crate) fn of_last_tokens(mut self, count: usize) -> Self {
        self.last = Some(count);
        self
    }

    /// Weights `[batch, seq, adapters]` of the tokens that the pass goes on with.
    fn of_last(&self, weights: Tensor<3>) -> Tensor<3> {
        let seq = weights.dims()[1];
        match self.last {
            Some(last) if last < seq && seq > 1 => weights.narrow(1, seq - last, last),
            _ => weights,
        }
    }

    /// How many rows of a batch the weights are for, where that is said.
    pub(crate) fn rows(&self) -> Option<usize> {
        match &self.weights {
            Weights::Given(weights) => Some(weights.dims()[0]),
            Weights::Computed(router) => router.rows(),
        }
    }
}
