//! Which adapters go where.

use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device};
use peft_core::method::{
    HiddenState, Init, Layout, LayoutSite, Method, MethodConfig as _, MethodHooks, Plan, Promises,
    SiteKind, States, model_root,
};
use peft_core::{Error, Result};

use super::adapter_drop::AdapterDropSchedule;
use super::block::block;
use super::config::BottleneckConfig;
use super::experts::Expert;
use super::fields::{BottleneckInit, Pruning, ResidualBeforeLn, Scaling};
use super::hooks::Several;
use super::invertible::Invertible;
use super::phm::PhmSource;
use super::projection::{Dense, Projection};
use super::skip::Skip;
use super::sparse::{SnipSchedule, is_pruned, prune_fresh};
use super::state::{Bottleneck, Norm, Placement, Residual, Seen};

impl BottleneckConfig {
    fn states(&self) -> Vec<HiddenState> {
        let mut states = Vec::new();
        if self.mh_adapter {
            states.push(HiddenState::AttentionOutput);
        }
        if self.output_adapter {
            states.push(HiddenState::FeedForwardOutput);
        }
        states
    }

    fn has_adapter(&self, site: &LayoutSite) -> bool {
        !block(&site.name).is_some_and(|block| self.leave_out.contains(&block))
    }

    fn placement(&self) -> Placement {
        Placement {
            seen: match (self.is_parallel, self.original_ln_before) {
                (true, _) => Seen::Input,
                (false, true) => Seen::BehindNorm,
                (false, false) => Seen::Hidden,
            },
            residual: match self.residual_before_ln {
                ResidualBeforeLn::Yes => Residual::Hidden,
                ResidualBeforeLn::No => Residual::Seen,
                ResidualBeforeLn::PostAdd => Residual::Added,
            },
            residual_before_norm: self.adapter_residual_before_ln,
            is_end: !self.original_ln_after,
        }
    }

    /// The adapter of a site, with its projections.
    fn adapter(
        &self,
        width: usize,
        ([down, up], experts): ([Projection; 2], Vec<Expert>),
        init: &mut Init,
        like: (&Device, DType),
    ) -> Bottleneck {
        let gate = self.use_gating.then(|| match self.init_weights {
            // Upstream leaves it as torch makes it.
            BottleneckInit::Houlsby => Dense {
                weight: init.kaiming_uniform([width, 1], width, like),
                bias: init.kaiming_uniform([1], width, like),
            },
            BottleneckInit::Bert | BottleneckInit::MamAdapter => {
                Dense::normal([width, 1], init, like)
            }
        });
        Bottleneck {
            norm_before: self.ln_before.then(|| Norm::new(width, init, like)),
            down,
            up,
            experts,
            scales: match self.scaling {
                Scaling::Fixed(_) => None,
                Scaling::Learned => Some(init.ones([1], like)),
                Scaling::Channel => Some(init.ones([width], like)),
            },
            gate,
            norm_after: self.ln_after.then(|| Norm::new(width, init, like)),
            dropout: DropoutConfig::new(self.dropout).init(),
            stochastic_depth: DropoutConfig::new(self.stochastic_depth).init(),
            scaling: match self.scaling {
                Scaling::Fixed(factor) => factor,
                Scaling::Learned | Scaling::Channel => 1.0,
            },
            activation: self.non_linearity,
            placement: self.placement(),
            sparse: self.sparsity.is_some(),
            skip: Skip::default(),
        }
    }

    /// Refuses what a site cannot have.
    fn check_site(&self, site: &LayoutSite, inner: usize) -> Result<()> {
        let title = self.info().title;
        if !self.original_ln_after && !site.optional_end {
            let expected = format!(
                "true: at `{}` the model always adds its residual (`HiddenSite::with_optional_end` says otherwise)",
                site.name
            );
            return Err(Error::config(title, "original_ln_after", false, expected));
        }
        let divides = |width: usize| width.is_multiple_of(self.phm_dim);
        if self.phm_layer && !(divides(site.width) && divides(inner)) {
            let expected = format!(
                "a divisor of both widths at `{}`, {} and {inner}",
                site.name, site.width
            );
            return Err(Error::config(title, "phm_dim", self.phm_dim, expected));
        }
        Ok(())
    }

    /// An invertible adapter behind the embeddings.
    fn plan_invertible(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let (Some(kind), Some(factor)) = (self.inv_adapter, self.inv_adapter_reduction_factor)
        else {
            return Ok(());
        };
        let state = HiddenState::EmbeddingOutput;
        let mut sites = layout.hidden_sites(state).peekable();
        if sites.peek().is_none() {
            return Err(layout.no_site(self.info().title, SiteKind::Hidden(state)));
        }
        let (device, dtype) = layout.like();
        for site in sites {
            let root = site.name.clone();
            let how = (kind, self.non_linearity);
            let widths = (site.width, factor);
            let init = plan.init();
            let adapter = Invertible::new(how, widths, root, init, (&device, dtype));
            plan.set_config_field("hidden_size", site.width);
            plan.adapt_hidden(site, adapter);
        }
        Ok(())
    }
}

impl Method for BottleneckConfig {
    fn promises(&self) -> Promises {
        let info = self.info();
        Promises {
            // Up begins at zero, and what is beside the sublayer has no residual of its own.
            identity_at_init: info.identity_at_init
                && self.init_weights == BottleneckInit::MamAdapter,
            mergeable: info.mergeable,
        }
    }

    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let info = self.info();
        if plan.is_new() {
            self.reduction_factor.check_keys(info)?;
        }
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        self.plan_invertible(layout, plan)?;
        let mut sites = Vec::new();
        for state in self.states() {
            let before = sites.len();
            sites.extend(layout.hidden_sites(state));
            if sites.len() == before {
                return Err(layout.no_site(info.title, SiteKind::Hidden(state)));
            }
        }
        sites.retain(|site| self.has_adapter(site));
        let mut inner = Vec::new();
        for site in &sites {
            let width = self
                .reduction_factor
                .inner(block(&site.name), site.width, info)?;
            self.check_site(site, width)?;
            inner.push(width);
        }
        let Some(first) = sites.first() else {
            if !plan.is_empty() {
                return Ok(());
            }
            let expected = "some block must keep its adapter";
            return Err(Error::config(
                info.title,
                "leave_out",
                &self.leave_out,
                expected,
            ));
        };
        let mut in_order: Vec<usize> = (0..sites.len()).collect();
        let position = |site: &LayoutSite| layout.sites.iter().position(|s| s.path == site.path);
        in_order.sort_by_key(|index| position(&sites[*index]));
        let place = |index| in_order.iter().position(|at| *at == index).unwrap_or(0);
        let phm = self.phm_layer.then(|| {
            let widths = [first.width, inner[0]];
            PhmSource::new(self, model_root(layout), sites.len(), widths, plan, like)
        });
        let is_new = plan.is_new();
        let mut planned = Vec::new();
        for (index, (site, inner)) in sites.into_iter().zip(inner).enumerate() {
            let mut own = self.init_weights_seed.filter(|_| is_new).map(Init::new);
            let init = match &mut own {
                Some(own) => own,
                None => plan.init(),
            };
            let shapes = [[site.width, inner], [inner, site.width]];
            let mut is_up = [false, true].into_iter();
            let projections = shapes.map(|shape| {
                let is_up = is_up.next() == Some(true);
                if let Some(phm) = &phm {
                    let at = (place(index), is_up);
                    return Projection::Phm(phm.projection(at, shape, init, like));
                }
                let how = self.init_weights;
                Projection::Dense(Dense::of_bottleneck(shape, how, is_up, init, like))
            });
            // A file has their average.
            let others = self
                .num_experts
                .filter(|_| is_new)
                .map_or(0, |count| count - 1);
            let experts = (0..others)
                .map(|_| Expert::new(shapes, self.expert_sharing, self.init_weights, init, like));
            let parts = (projections, experts.collect());
            let adapter = self.adapter(site.width, parts, init, like);
            planned.push((site, adapter));
        }
        if let (Some(sparsity), true) = (self.sparsity, is_new)
            && self.pruning != Pruning::Snip
        {
            let mut states: Vec<_> = planned.iter_mut().map(|(_, adapter)| adapter).collect();
            prune_fresh(&mut states, self.pruning, sparsity, plan.init());
        }
        for (site, adapter) in planned {
            plan.set_config_field("hidden_size", site.width);
            plan.adapt_hidden(site, adapter);
        }
        Ok(())
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let seed = self.init_weights_seed.unwrap_or(0);
        let mut all: Vec<Box<dyn MethodHooks>> = Vec::new();
        if let Some(most) = self.adapter_drop {
            all.push(Box::new(AdapterDropSchedule::new(
                self.info(),
                most,
                (steps, seed),
                states,
            )?));
        }
        if let (Some(sparsity), Pruning::Snip) = (self.sparsity, self.pruning)
            && !is_pruned(states)
        {
            all.push(Box::new(SnipSchedule::new(sparsity)));
        }
        Ok(match all.len() {
            0 => None,
            1 => all.pop(),
            _ => Some(Box::new(Several(all))),
        })
    }
}
