//! What a configuration makes of LoRA: which variant, which promises, and what goes with what.

use peft_core::method::{Bias, MethodHooks, Promises, States, Value};
use peft_core::{Error, Result};

use crate::lora::adapterhub::Begin;
use crate::lora::config::{LORA, LoraConfig};
use crate::lora::init::Start;
use crate::lora::kasa::KasaConfig;
use crate::lora::{monteclora, riemannian, velora};

impl LoraConfig {
    /// What variants keep to. KaSA and LoftQ begin with another base, and AdapterHub's initial values may be a B that is not
    /// zero. aLoRA acts on some tokens, gates on some texts more than on others, AdapterHub's DoRA on biases.
    pub(crate) fn variant_promises(&self) -> Promises {
        let loftq = matches!(self.init_lora_weights.start(), Ok(Start::Loftq));
        let fields = self.adapterhub.as_ref();
        let begins = fields.is_some_and(|fields| fields.begin(&LORA).is_ok_and(Begin::changes));
        let magnitudes = fields.is_some() && self.use_dora;
        Promises {
            identity_at_init: !(begins || self.kasa_config.is_some() || loftq),
            mergeable: !(magnitudes || self.use_gating || self.alora_invocation_tokens.is_some()),
        }
    }

    /// The fields of the variants that are set.
    fn variants(&self) -> Vec<&'static str> {
        let all = [
            ("use_dora", self.use_dora),
            ("use_gating", self.use_gating),
            ("use_bdlora", self.use_bdlora.is_some()),
            ("kasa_config", self.kasa_config.is_some()),
            (
                "alora_invocation_tokens",
                self.alora_invocation_tokens.is_some(),
            ),
            ("velora_config", self.velora_config.is_some()),
            ("monteclora_config", self.monteclora_config.is_some()),
        ];
        all.into_iter()
            .filter_map(|(field, set)| set.then_some(field))
            .collect()
    }

    /// The field of the variant that takes linear layers only; DoRA and gates have rules of their own.
    pub(crate) fn linear_only(&self) -> Option<&'static str> {
        let variants = self.variants().into_iter();
        let mut variants = variants.filter(|field| !["use_dora", "use_gating"].contains(field));
        variants.next()
    }

    /// The field by which states are others than plain LoRA's, DoRA's or gates'.
    pub(crate) fn not_plain(&self) -> Option<&'static str> {
        let loftq = matches!(self.init_lora_weights.start(), Ok(Start::Loftq));
        self.linear_only().or(loftq.then_some("init_lora_weights"))
    }

    /// Checks the variants' fields, and refuses what does not go together.
    pub(crate) fn check_variant(&self, start: Start) -> Result<()> {
        if let Some(config) = &self.use_bdlora {
            config.check()?;
        }
        if let Some(config) = &self.kasa_config {
            config.check()?;
        }
        if let Some(config) = &self.velora_config {
            config.check()?;
        }
        if let Some(config) = &self.monteclora_config {
            config.check()?;
        }
        if let Some(config) = &self.loftq_config {
            config.check()?;
        }
        if let Some(config) = &self.lora_ga_config {
            config.check()?;
        }
        let refuse = |field, value: &dyn std::fmt::Debug, expected: String| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        if let Some(tokens) = &self.alora_invocation_tokens
            && tokens.is_empty()
        {
            let expected = "at least one token".to_string();
            return refuse("alora_invocation_tokens", tokens, expected);
        }
        let variants = self.variants();
        // AdapterHub's gates and magnitudes go together.
        if let ([first, second, ..], None) = (variants.as_slice(), &self.adapterhub) {
            return refuse(second, &"set", format!("left out with `{first}`"));
        }
        if self.riemannian.is_some() && variants.iter().any(|field| *field != "use_dora") {
            let expected = format!("none with `{}`", variants[0]);
            return refuse("riemannian", &self.riemannian, expected);
        }
        let by_data = matches!(start, Start::Corda | Start::LoraGa);
        if let Some(field) = self.linear_only() {
            if !matches!(start, Start::Kaiming { .. } | Start::Gaussian) {
                let expected = format!("true, false or \"gaussian\" with `{field}`");
                return refuse("init_lora_weights", &self.init_lora_weights, expected);
            }
            if self.lora_bias {
                return refuse("lora_bias", &true, format!("false with `{field}`"));
            }
        } else if by_data || start == Start::Loftq {
            let name = &self.init_lora_weights;
            for (field, set) in [
                ("use_dora", self.use_dora),
                ("use_gating", self.use_gating),
                ("lora_bias", self.lora_bias),
            ] {
                if set {
                    return refuse(
                        field,
                        &true,
                        format!("false with init_lora_weights {name:?}"),
                    );
                }
            }
            if by_data && self.bias != Bias::None {
                let expected = format!("\"none\" with init_lora_weights {name:?}");
                return refuse("bias", &self.bias, expected);
            }
        }
        let fixed = if start == Start::Mica {
            Some("B is frozen with \"mica\", and A has to be trained")
        } else if by_data || start == Start::Loftq {
            Some("both factors are trained with this init_lora_weights")
        } else {
            None
        };
        if let (true, Some(reason)) = (self.freeze_a, fixed) {
            return refuse("freeze_a", &true, format!("false: {reason}"));
        }
        Ok(())
    }

    /// Refuses a file whose model has more blocks than it says.
    pub(crate) fn refuse_replication(&self) -> Result<()> {
        const FIELD: &str = "layer_replication";
        let value = self.common.unknown.get(FIELD);
        let off = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        match value.filter(|value| !off(value)) {
            None => Ok(()),
            Some(value) => Err(Error::config(
                LORA.title,
                FIELD,
                format_args!("{value}"),
                "none: the adapter is of a model whose blocks are repeated. Repeat them in the model, each with weights \
                 of its own, and leave the field out",
            )),
        }
    }

    /// What the variant does in a training of `steps` steps besides being trained.
    pub(crate) fn training_hooks(
        &self,
        steps: usize,
        states: &States,
    ) -> Option<Box<dyn MethodHooks>> {
        let mut all = Vec::new();
        all.extend(self.kasa_config.as_ref().and_then(KasaConfig::hooks));
        if self.velora_config.is_some() {
            all.push(velora::hooks(states));
        }
        if let Some(config) = &self.monteclora_config {
            all.push(monteclora::hooks(config, steps, states));
        }
        all.extend(self.riemannian.map(riemannian::hooks));
        // Variants exclude one another, and the preconditioner excludes those that have hooks.
        all.pop()
    }
}
