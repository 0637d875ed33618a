//! GLoRA: a scale and a change for every weight of a layer, and a new bias that may be made of the weight.

use peft_core::method::prelude::*;
use peft_core::method::train_biases;
use peft_core::ops::{add_product, linear, scale_by_product};
use serde::{Deserialize, Serialize};

/// The form of one of GLoRA's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GloraForm {
    /// A product of two factors of rank r.
    Lora,
    /// One number for each output; for C one for each input.
    Vector,
    /// One number.
    Constant,
    /// Nothing.
    None,
}

/// A, B, C, D or E, in one of its forms. Without any of the fields it is zero.
#[derive(Module, Debug)]
pub struct GloraPart {
    /// Of the factors, the one that upstream calls `Xu`: `[columns, r]`.
    pub xu: Option<Param<Tensor<2>>>,
    /// The one that upstream calls `Xd`: `[r, rows]`.
    pub xd: Option<Param<Tensor<2>>>,
    /// A vector, or one number.
    pub x: Option<Param<Tensor<1>>>,
    /// Whether upstream stores the vector as a column.
    column: bool,
}

impl GloraPart {
    /// `[rows, columns]` of upstream's matrix; `column`: whether a vector is stored as one.
    fn new(
        form: GloraForm,
        ([rows, columns], column): ([usize; 2], bool),
        config: &GloraConfig,
        init: &mut Init,
        like: (&Device, DType),
    ) -> Self {
        let (r, zero) = (config.r, config.init_weights);
        let mut part = Self {
            xu: None,
            xd: None,
            x: None,
            column: false,
        };
        match form {
            GloraForm::None => {}
            GloraForm::Lora => {
                // torch takes a matrix's columns for its inputs.
                part.xu = Some(init.kaiming_uniform([columns, r], columns, like));
                part.xd = Some(if zero {
                    init.zeros([r, rows], like)
                } else {
                    init.kaiming_uniform([r, rows], r, like)
                });
            }
            GloraForm::Vector => {
                part.column = column;
                part.x = Some(if zero {
                    init.zeros([rows], like)
                } else {
                    init.kaiming_uniform([rows], if column { 1 } else { rows }, like)
                });
            }
            GloraForm::Constant => {
                part.x = Some(if zero {
                    init.zeros([1], like)
                } else {
                    init.normal([1], 0.02, like)
                });
            }
        }
        part
    }

    /// The keys below `key`, of the field `field` of a state.
    fn keys(&self, field: &str, key: &str) -> Vec<CheckpointKey> {
        let tensor = |own: &str, upstream: &str| {
            CheckpointKey::layer(&format!("{field}.{own}"), &format!("{key}.{upstream}"))
        };
        let x = tensor("x", "X");
        vec![
            tensor("xu", "Xu").transposed(),
            tensor("xd", "Xd").transposed(),
            if self.column { x.upright() } else { x },
        ]
    }

    /// The part, `[columns, rows]`, or what can be spread over that; `None` where it is zero.
    fn value(&self) -> Option<Tensor<2>> {
        match (&self.xu, &self.xd, &self.x) {
            (Some(xu), Some(xd), _) => Some(xu.val().matmul(xd.val())),
            (_, _, Some(x)) => Some(x.val().unsqueeze()),
            _ => None,
        }
    }
}

/// Where upstream's files hold zeros for a part that a layer does not have.
fn zeros() -> impl Iterator<Item = CheckpointKey> {
    let keys = ["A", "B", "C", "D", "E"].into_iter();
    keys.map(|part| CheckpointKey::zeros(&format!("glora_{part}.zeros")))
}

/// `value`, a matrix as it is, in the rank of the parameter that it belongs to.
fn spread<const D: usize>(value: Tensor<2>) -> Tensor<D> {
    match D {
        1 => value.reshape([-1]).unsqueeze(),
        _ => value.unsqueeze(),
    }
}

/// GLoRA on a linear layer's weight: W' = W ∘ (1 + A) + B.
#[derive(Module, Debug)]
pub struct GloraLinear {
    /// A.
    pub a: GloraPart,
    /// B, of A's form.
    pub b: GloraPart,
}

impl Adapter for GloraLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut keys = self.a.keys("a", "glora_A");
        keys.extend(self.b.keys("b", "glora_B"));
        keys.extend(zeros());
        keys
    }
}

impl WeightAdapter for GloraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, matrix) = (weight.shape(), matrix_of(weight));
        let scaled = match (&self.a.xu, &self.a.xd) {
            (Some(xu), Some(xd)) => scale_by_product(matrix, xu.val(), xd.val()),
            _ => match self.a.value() {
                Some(a) => matrix * (a + 1.0),
                None => matrix,
            },
        };
        let changed = match (&self.b.xu, &self.b.xd) {
            (Some(xu), Some(xd)) => add_product(scaled, LowRank::new(xu.val(), xd.val(), 1.0)),
            _ => match self.b.value() {
                Some(b) => scaled + b,
                None => scaled,
            },
        };
        from_matrix(changed, shape)
    }

    fn needs_weight(&self) -> bool {
        self.a.x.is_none() || self.b.x.is_none()
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let (Some(a), Some(b)) = (&self.a.x, &self.b.x) else {
            // W ∘ A has full rank, so W' is needed.
            return linear(input, self.compose(base.weight()), base.bias(), None);
        };
        // Every input meets the same number of B.
        let sums = input.clone().sum_dim(1);
        let product = base.product(input) * (a.val() + 1.0).unsqueeze();
        base.with_bias(product + sums * b.val().unsqueeze())
    }

    fn keeps_weight(&self) -> bool {
        self.a.xu.is_some()
    }
}

/// GLoRA on a linear layer's bias: b' = b ∘ (1 + D) + E + Cᵀ W₀, W₀ being the model's own weight.
#[derive(Module, Debug)]
pub struct GloraBias {
    /// C, which makes a bias of the weight.
    pub c: GloraPart,
    /// D.
    pub d: GloraPart,
    /// E, of D's form.
    pub e: GloraPart,
    /// W₀, `[in, out]`, frozen: the model's own tensor, and no copy of it where the model is dense. Only with C.
    pub weight: Option<Param<Tensor<2>>>,
}

impl Adapter for GloraBias {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut keys = self.c.keys("c", "glora_C");
        keys.extend(self.d.keys("d", "glora_D"));
        keys.extend(self.e.keys("e", "glora_E"));
        keys.push(CheckpointKey::unsaved("weight"));
        keys.extend(zeros());
        keys
    }
}

impl WeightAdapter for GloraBias {
    fn compose<const D: usize>(&self, bias: Tensor<D>) -> Tensor<D> {
        let mut composed = match self.d.value() {
            Some(d) => bias.clone() * (spread(d) + 1.0),
            None => bias,
        };
        if let Some(e) = self.e.value() {
            composed = composed + spread(e);
        }
        if let (Some(c), Some(weight)) = (self.c.value(), &self.weight) {
            composed = composed + spread(c.matmul(weight.val()));
        }
        composed
    }
}

/// GLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `GloraConfig`.
#[method_config(
    GLORA, peft_type = "GLORA", title = "GLoRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Chavan et al. 2023, One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning, section 2.3"
)]
pub struct GloraConfig {
    /// Rank of the parts that have the form `lora`.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Form of A, which scales weights, and of B, which is added to them.
    #[field(default = GloraForm::Lora, rename = "config_A_B")]
    pub config_a_b: GloraForm,
    /// Form of C, which makes a change of the bias of the weight: not `constant`. Layers without a bias have none.
    #[field(default = GloraForm::Lora, rename = "config_C")]
    pub config_c: GloraForm,
    /// Form of D, which scales the bias, and of E, which is added to it: not `lora`. Layers without a bias have none.
    #[field(default = GloraForm::Constant, rename = "config_D_E")]
    pub config_d_e: GloraForm,
    pub bias: Bias,
    /// Whether a fresh adapter changes nothing; else all of it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl GloraConfig {
    fn on_weight(&self, target: &TargetLayer<'_>, init: &mut Init) -> GloraLinear {
        let (form, shape) = (self.config_a_b, ([target.d_out, target.d_in], true));
        GloraLinear {
            a: GloraPart::new(form, shape, self, init, target.like()),
            b: GloraPart::new(form, shape, self, init, target.like()),
        }
    }

    fn on_bias(&self, target: &TargetLayer<'_>, init: &mut Init) -> GloraBias {
        let (form, shape) = (self.config_d_e, ([target.d_out, 1], false));
        let of_weight = (self.config_c, ([target.d_in, 1], true));
        let weight = (self.config_c != GloraForm::None).then(|| {
            let own = target.weight.value::<2>().detach();
            Param::from_tensor(own).set_require_grad(false)
        });
        GloraBias {
            c: GloraPart::new(of_weight.0, of_weight.1, self, init, target.like()),
            d: GloraPart::new(form, shape, self, init, target.like()),
            e: GloraPart::new(form, shape, self, init, target.like()),
            weight,
        }
    }
}

impl Method for GloraConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let refuse = |field, value: GloraForm, expected: &str| {
            Err(Error::config(GLORA.title, field, value, expected))
        };
        if self.config_c == GloraForm::Constant {
            let expected = "`lora`, `vector` or `none`";
            return refuse("config_C", self.config_c, expected);
        }
        if self.config_d_e == GloraForm::Lora {
            let expected = "`vector`, `constant` or `none`: a bias is no matrix";
            return refuse("config_D_E", self.config_d_e, expected);
        }
        let forms = [self.config_a_b, self.config_c, self.config_d_e];
        if forms.iter().all(|form| *form == GloraForm::None) {
            let field = "config_A_B, config_C, config_D_E";
            return refuse(field, GloraForm::None, "one of them that is not `none`");
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let adapted: Vec<_> = targets
            .iter()
            .map(|target| (target.layer, target.weight))
            .collect();
        // A trained bias is what D scales, so it comes first.
        train_biases(self.bias, layout, &adapted, plan);
        let of_bias = [self.config_c, self.config_d_e];
        let changes_bias = of_bias.iter().any(|form| *form != GloraForm::None);
        for target in &targets {
            if self.config_a_b != GloraForm::None {
                let state = self.on_weight(target, plan.init());
                plan.adapt_weight(target.weight, state);
            } else if target.bias.is_none() {
                let expected = format!(
                    "another form: `{}` has no bias, so nothing of it would train",
                    target.name()
                );
                let value = self.config_a_b;
                return Err(Error::config(GLORA.title, "config_A_B", value, expected));
            }
            if let Some(bias) = target.bias.filter(|_| changes_bias) {
                let state = self.on_bias(target, plan.init());
                plan.adapt_weight(bias, state);
            }
        }
        Ok(())
    }
}
