//! Trainable parameters on MiniLM-L6 (d 384, feed-forward 1536, 6 layers, with pooler), heads
//! excluded.

use peft::additive::{AdapterFusionConfig, BottleneckConfig, Ia3Config};
use peft::core::method::Method;
use peft::core::{PeftModule, device::cpu_devices};
use peft::reparameterization::{
    AdaLoraConfig, BoftConfig, C3aConfig, FourierFtConfig, HiraConfig, HraConfig, LilyConfig,
    LohaConfig, LokrConfig, LoraConfig, MissConfig, MtlLoraConfig, OftConfig, PolyConfig,
    RandLoraConfig, SaidConfig, VbLoraConfig, VeraConfig,
};
use peft::selective::BitFitConfig;
use peft::soft_prompt::{PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig};
use peft_models::{Bert, BertClassifier, BertConfig, Pooling};

fn minilm_l6() -> BertClassifier {
    let (_, device) = &cpu_devices()[0];
    let mut config = BertConfig::tiny();
    config.vocab_size = 30522;
    config.hidden_size = 384;
    config.num_hidden_layers = 6;
    config.num_attention_heads = 12;
    config.intermediate_size = 1536;
    config.max_position_embeddings = 512;
    let bert: Bert = config.init(device);
    BertClassifier::new_head(bert, 2, Pooling::Mean, 0.0, device).unwrap()
}

#[test]
fn counts_are_those_of_the_literature() {
    let model = minilm_l6();
    let head = 384 * 2 + 2;
    assert_eq!(model.counts().total, 22_713_216 + head);
    let ia3 = Ia3Config::new()
        .with_targets(["key", "value", "output.dense"])
        .with_feedforward_modules(["output.dense"]);
    let lstm = PromptEncoderConfig::new(20).with_lstm(2);
    let cases: [(&dyn Method, usize); 11] = [
        (&ia3, 16_128),
        (&LoraConfig::new(8).with_targets(["query", "value"]), 73_728),
        (&LoraConfig::new(8).with_excluded(["pooler.dense"]), 331_776),
        (&BottleneckConfig::houlsby(), 226_080),
        (&BottleneckConfig::pfeiffer(), 113_040),
        (&BitFitConfig::new(), 26_112),
        (&PromptTuningConfig::new(10), 3_840),
        (&PromptEncoderConfig::new(20), 451_200),
        (&lstm.with_encoder_hidden_size(128), 1_093_760),
        (&PrefixTuningConfig::new(30), 138_240),
        (&PrefixTuningConfig::new(30).with_projection(512), 2_572_544),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
        assert_eq!(counts.total, 22_713_216 + head + expected, "{method:?}");
    }
}

#[test]
fn counts_of_the_reparameterizations_are_those_of_their_pages() {
    let model = minilm_l6();
    let qv = ["query", "value"];
    let cases: [(&dyn Method, usize); 18] = [
        (
            &LoraConfig::new(8).with_use_dora(true).with_targets(qv),
            78_336,
        ),
        (
            &LoraConfig::new(8).with_freeze_a(true).with_targets(qv),
            36_864,
        ),
        (
            &LoraConfig::new(8)
                .with_init_lora_weights("pissa")
                .with_targets(qv),
            73_728,
        ),
        (&AdaLoraConfig::new(12, 8).with_targets(qv), 110_736),
        (&LohaConfig::new(8).with_targets(qv), 147_456),
        (&LokrConfig::new(8).with_targets(qv), 7_680),
        (&LokrConfig::krona(2.0).with_targets(qv), 9_216),
        (&VeraConfig::new(256).with_targets(qv), 7_680),
        (&RandLoraConfig::new(32).with_targets(qv), 59_904),
        (&VbLoraConfig::new(4, 90, 128).with_targets(qv), 37_440),
        (&HiraConfig::new(8).with_targets(qv), 73_728),
        (&MissConfig::new(8).with_targets(qv), 36_864),
        (&OftConfig::new(32).with_targets(qv), 71_424),
        (
            &BoftConfig::new(8)
                .with_boft_n_butterfly_factor(2)
                .with_targets(qv),
            78_336,
        ),
        (&HraConfig::new(8).with_targets(qv), 36_864),
        (&C3aConfig::new(32).with_targets(qv), 55_296),
        (&FourierFtConfig::new(1000).with_targets(qv), 12_000),
        (
            &SaidConfig::new(1000).with_excluded(["pooler.dense"]),
            1_036,
        ),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
}

#[test]
fn counts_of_mixtures_are_those_of_their_pages() {
    let model = minilm_l6();
    let qv = ["query", "value"];
    let lily = LilyConfig::new(8).with_stride_a(2).with_targets(qv);
    let poly = PolyConfig::new(8, 3).with_n_splits(2).with_targets(qv);
    let mtl = MtlLoraConfig::new(8, 3)
        .with_n_up_projection(3)
        .with_targets(qv);
    let cases: [(&dyn Method, usize); 3] = [(&lily, 30_912), (&poly, 295_200), (&mtl, 147_852)];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
    let pfeiffer = BottleneckConfig::pfeiffer();
    let model = model.attach("one", &pfeiffer).unwrap();
    let model = model.attach("two", &pfeiffer).unwrap();
    let fusion = AdapterFusionConfig::dynamic(["one", "two"]);
    let counts = model.attach("fusion", &fusion).unwrap().counts();
    assert_eq!(counts.adapter_trainable(), 6 * (3 * 384 * 384 + 2 * 384));
}
