//! Trainable parameters on MiniLM-L6 (d 384, feed-forward 1536, 6 layers, with pooler), heads
//! excluded.

use burn::module::Module as _;
use burn::tensor::{Int, Tensor};
use peft::additive::{
    AdapterFusionConfig, AdapterHubIa3, BeftConfig, BottleneckConfig, Ia3Config, InvertibleKind,
    LstConfig, ReftConfig, RoadConfig, RoadVariant, ShadowConfig,
};
use peft::core::calibration::Calibrate as _;
use peft::core::method::Method;
use peft::core::{PeftModule, device::cpu_devices};
use peft::hybrid::{mam, unipelt};
use peft::reparameterization::{
    AdaLoraConfig, AdamssConfig, AdapterHubLora, AdapterHubMtl, AdapterHubVera, BdLoraConfig,
    BoftConfig, C3aConfig, DeLoraConfig, DeftConfig, FourierFtConfig, FrodConfig, GloraConfig,
    GloraForm, GraLoraConfig, HiraConfig, HraConfig, KasaConfig, KronaBlockConfig, LilyConfig,
    LohaConfig, LokrConfig, LoraConfig, MissConfig, MontecloraConfig, MtlLoraConfig, OftConfig,
    OsfConfig, PeanutConfig, PolyConfig, PsoftConfig, PveraConfig, RandLoraConfig, SaidConfig,
    TinyLoraConfig, UniLoraConfig, VbLoraConfig, VeloraConfig, VeraConfig, WaveFtConfig,
};
use peft::selective::{
    BitFitConfig, DiffPruningConfig, FarConfig, FishMaskConfig, LnTuningConfig, LtSftConfig,
    PartialConfig, ShiraConfig, SptConfig, SuperTuningConfig, TrainableTokensConfig,
};
use peft::soft_prompt::{
    AdapterHubPrefixConfig, AdaptionPromptConfig, CartridgeConfig, CptConfig,
    IntrinsicPromptConfig, LatePromptConfig, MultitaskPromptTuningConfig, PrefixTuningConfig,
    PromptEncoderConfig, PromptGeneratorType, PromptTuningConfig,
};
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
fn counts_of_loras_variants() {
    let model = minilm_l6();
    let lora = || LoraConfig::new(8).with_targets(["query", "value"]);
    let blocks = BdLoraConfig::new(2, Vec::new(), vec!["query", "value"]);
    let cases = [
        (lora().with_use_dora(true), 78_336),
        (lora().with_use_bdlora(blocks), 55_296),
        (lora().with_kasa_config(KasaConfig::default()), 73_824),
        (lora().with_init_lora_weights("mica"), 36_864),
        (lora().with_init_lora_weights("loftq"), 73_728),
        (lora().with_alora_invocation_tokens([1, 2]), 73_728),
        (lora().with_velora_config(VeloraConfig::default()), 73_728),
        (
            lora().with_monteclora_config(MontecloraConfig::default()),
            73_920,
        ),
    ];
    for (config, expected) in cases {
        let counts = model.attach("a", &config).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{config:?}");
    }
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
    let gated = LoraConfig::new(8).with_adapterhub(AdapterHubLora::default());
    let gated = gated.with_use_gating(true);
    let cases: [(&dyn Method, usize); 22] = [
        (&ia3, 16_128),
        (&LoraConfig::new(8).with_targets(["query", "value"]), 73_728),
        (&LoraConfig::new(8).with_excluded(["pooler.dense"]), 331_776),
        (&BottleneckConfig::houlsby(), 226_080),
        (&BottleneckConfig::pfeiffer(), 113_040),
        (&BottleneckConfig::parallel(), 888_192),
        (&BottleneckConfig::scaled_parallel(), 888_198),
        (&BottleneckConfig::adapter_plus(), 23_064),
        (&BottleneckConfig::compacter(), 14_320),
        (&BottleneckConfig::compacter_plus_plus(), 7_192),
        (
            &BottleneckConfig::pfeiffer().with_invertible(InvertibleKind::Nice),
            113_040 + 2 * (2 * 192 * 96 + 96 + 192),
        ),
        (&BottleneckConfig::sparse(0.8), 226_080),
        (&BottleneckConfig::adamix(4), 904_320),
        (&BitFitConfig::new(), 26_112),
        (&PromptTuningConfig::new(10), 3_840),
        (&PromptEncoderConfig::new(20), 451_200),
        (&lstm.with_encoder_hidden_size(128), 1_093_760),
        (&PrefixTuningConfig::new(30), 138_240),
        (&PrefixTuningConfig::new(30).with_projection(512), 2_572_544),
        (&mam(), 4_898_720),
        (&unipelt(), 2_760_872),
        (&gated, 73_728 + 12 * 385),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
        assert_eq!(counts.total, 22_713_216 + head + expected, "{method:?}");
    }
}

#[test]
fn counts_of_parts_of_a_spectrum_are_those_of_their_pages() {
    let model = minilm_l6();
    let both = ["query", "value"];
    let glora = || GloraConfig::new(8).with_targets(both);
    let vectors = glora()
        .with_config_a_b(GloraForm::Vector)
        .with_config_c(GloraForm::Vector)
        .with_config_d_e(GloraForm::Vector);
    let free = PsoftConfig::new(32).with_psoft_orth(false);
    let cases: [(&dyn Method, usize); 5] = [
        (&glora(), 184_440),
        (&vectors, 12 * 5 * 384),
        (&PsoftConfig::new(32).with_targets(both), 6_720),
        (&free.with_targets(both), 12 * (1_024 + 64)),
        (&OsfConfig::new().with_targets(both), 1_771_776),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
        assert_eq!(counts.stored, expected, "{method:?}");
    }
    // The subspace of each layer's inputs, with the bias, is in the file, too. One block of six: weights are decomposed.
    let block = r".*layer\.0\.attention\.self\.(query|value)";
    let adamss = |most, groups, rank| AdamssConfig::new(most, groups, rank).with_targets(block);
    for (method, expected) in [
        (adamss(100, 5, 1), 10_608 / 6),
        (adamss(12, 3, 2), 2 * 2 * (3 * 12 + 384)),
    ] {
        let counts = model.attach("a", &method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
        assert_eq!(counts.stored, expected + 2 * method.r * 385, "{method:?}");
    }
    // Two bases, and where two matrices have elements, with their shapes, are in the file, too.
    let counts = model.attach("a", &FrodConfig::new(0.01).with_targets(both));
    let counts = counts.unwrap().counts();
    assert_eq!(counts.adapter_trainable(), 22_296);
    let shared = 2 * (384 * 384 + 2 * 1_474 + 2);
    assert_eq!(counts.stored, 22_296 + shared);
}

/// Methods with parameters that are not trained.
#[test]
fn counts_of_prompts_are_those_of_their_pages() {
    let model = minilm_l6();
    let base = model.counts().total;
    let context = CptConfig::new((0..10).collect::<Vec<u32>>());
    let cases: [(&dyn Method, usize, usize, usize); 4] = [
        (&context, 3_840, 7_680, 3_840),
        (
            &MultitaskPromptTuningConfig::new(10, 1),
            4_234,
            4_234,
            4_234,
        ),
        (
            &MultitaskPromptTuningConfig::new(10, 5),
            5_810,
            5_810,
            5_810,
        ),
        (&IntrinsicPromptConfig::new(10, 5), 5, 1_480_709, 1_480_709),
    ];
    for (method, trained, held, stored) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), trained, "{method:?}");
        assert_eq!(counts.total, base + held, "{method:?}");
        assert_eq!(counts.stored, stored, "{method:?}");
    }
}

#[test]
fn counts_of_prompts_inside_the_model_are_those_of_their_pages() {
    let model = minilm_l6();
    let prefix = AdapterHubPrefixConfig::new;
    let late = LatePromptConfig::new;
    let pooled = late().with_generator_type(PromptGeneratorType::Appg);
    let fixed = late().with_generator_type(PromptGeneratorType::Fixed);
    let cases: [(&dyn Method, usize); 8] = [
        (&prefix(), 2_572_544),
        (&prefix().with_flat(true), 138_240),
        (&prefix().with_flat(true).with_use_gating(true), 140_550),
        (&AdaptionPromptConfig::new(10, 5), 19_205),
        (&CartridgeConfig::new(30), 133_632),
        (&late(), 296_960),
        (&pooled, 98_816),
        (&fixed, 1_920),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
}

#[test]
fn counts_of_scales_rotations_and_added_biases_are_those_of_their_pages() {
    let model = minilm_l6();
    let road = || RoadConfig::new().with_targets(["query", "value"]);
    let hub = Ia3Config::new().with_adapterhub(AdapterHubIa3::default());
    let cases: [(&dyn Method, usize); 6] = [
        (&hub, 13_824),
        (&Ia3Config::new(), 16_128),
        (&road(), 4_608),
        (&road().with_variant(RoadVariant::Road2), 9_216),
        (&road().with_variant(RoadVariant::Road4), 18_432),
        (&BeftConfig::new(), 2_304),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
}

#[test]
fn counts_of_edits_of_the_stream_are_those_of_their_page() {
    let model = minilm_l6();
    let tied = |config: ReftConfig| config.with_tied_weights(true);
    let cases: [(&dyn Method, usize); 4] = [
        (&tied(ReftConfig::loreft()), 4_614),
        (&ReftConfig::loreft(), 9_228),
        (&tied(ReftConfig::noreft().with_r(4)), 18_456),
        (&ReftConfig::direft().with_layers([2, 5]), 3_076),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
}

#[test]
fn counts_of_side_networks_are_those_of_their_page() {
    let model = minilm_l6();
    let cases: [(&dyn Method, usize); 5] = [
        (&ShadowConfig::new(), 1_876_304),
        (
            &ShadowConfig::new()
                .with_shadow_intermediate_size(96)
                .with_r(4),
            719_752,
        ),
        (&LstConfig::new(), 314_694),
        (&LstConfig::new().with_reduction_factor(16), 116_070),
        (&LstConfig::new().with_leave_out([0, 2, 4]), 176_019),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
}

#[test]
fn counts_in_adapterhubs_layout_are_those_of_their_pages() {
    let model = minilm_l6();
    let lora = LoraConfig::new(8).with_adapterhub(AdapterHubLora::default());
    let vera = VeraConfig::new(8).with_adapterhub(AdapterHubVera::default());
    let mtl = MtlLoraConfig::new(8, 1).with_adapterhub(AdapterHubMtl::default());
    let mut gated = AdapterHubIa3::default();
    gated.rest.insert("use_gating".into(), true.into());
    let cases: [(&dyn Method, usize); 5] = [
        (&lora, 73_728),
        (&lora.clone().with_use_dora(true), 78_336),
        (&vera, 1_770_240),
        (&mtl, 73_836),
        (&Ia3Config::new().with_adapterhub(gated), 13_824 + 18 * 385),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
}

#[test]
fn counts_of_the_reparameterizations_are_those_of_their_pages() {
    let model = minilm_l6();
    let qv = ["query", "value"];
    let cases: [(&dyn Method, usize); 20] = [
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
        (&KronaBlockConfig::new(1.0), 4_614),
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
        (&WaveFtConfig::new(2592).with_targets(qv), 31_104),
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

/// What is fixed is held beside what is trained, and is in the file where the configuration says so. Integers count in
/// files only.
#[test]
fn counts_of_shared_random_numbers_are_those_of_their_pages() {
    let model = minilm_l6();
    let base = model.counts().total;
    let qv = ["query", "value"];
    let unilora = || UniLoraConfig::new(4, 4608).with_targets(qv);
    // Trained, held, stored.
    let tinylora = || TinyLoraConfig::new(64).with_targets(qv);
    let pvera = || PveraConfig::new(256).with_targets(qv);
    let cases: [(&dyn Method, usize, usize, usize); 7] = [
        (&pvera(), 10_752, 305_664, 305_664),
        (
            &pvera().with_save_projection(false),
            10_752,
            305_664,
            10_752,
        ),
        (&tinylora(), 768, 22_272, 22_272),
        (&tinylora().with_save_projection(false), 768, 22_272, 19_200),
        (
            &tinylora().with_u(13).with_weight_tying(1.0),
            13,
            19_069,
            19_069,
        ),
        (&unilora(), 4608, 41_472, 4608),
        (&unilora().with_save_indices(true), 4608, 41_472, 78_336),
    ];
    for (method, trained, held, stored) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), trained, "{method:?}");
        assert_eq!(counts.total, base + held, "{method:?}");
        assert_eq!(counts.stored, stored, "{method:?}");
    }
}

#[test]
fn counts_of_blocks_and_of_weight_aware_methods_are_those_of_their_pages() {
    let model = minilm_l6();
    let qv = ["query", "value"];
    let cases: &[(&dyn Method, usize)] = &[
        (&GraLoraConfig::new(8).with_targets(qv), 73_728),
        (
            &GraLoraConfig::new(8).with_hybrid_r(2).with_targets(qv),
            92_160,
        ),
        // Two factors and a λ a matrix. The norms do not train.
        (&DeLoraConfig::new(8).with_targets(qv), 73_740),
        (&DeftConfig::new(8).with_targets(qv), 73_728),
        (&DeftConfig::para(8).with_targets(qv), 36_864),
        (&PeanutConfig::new(8).with_targets(qv), 73_728),
        // Four matrices of r × r a matrix more.
        (&PeanutConfig::new(8).with_depth(2).with_targets(qv), 76_800),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", *method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), *expected, "{method:?}");
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
    assert_eq!(6 * (3 * 384 * 384 + 2 * 384), 2_658_816);
    assert_eq!(counts.adapter_trainable(), 2_658_816);
}

#[test]
fn counts_of_the_selections_are_those_of_their_pages() {
    let model = minilm_l6();
    let base = model.counts();
    let rows: Vec<usize> = (0..10).collect();
    let shira = |r| ShiraConfig::new(r).with_targets(["query", "value"]);
    // Trained, and stored, indices included.
    let supertuning = || SuperTuningConfig::new().with_targets(["query", "value"]);
    let cases: [(&dyn Method, usize, usize); 12] = [
        (&BitFitConfig::query_and_mlp(), 11_520, 11_520),
        (&PartialConfig::last(2), 3_548_928, 3_548_928),
        (&PartialConfig::first(1), 1_774_464, 1_774_464),
        (&PartialConfig::attention(), 3_548_160, 3_548_160),
        (&PartialConfig::embeddings(), 11_917_824, 11_917_824),
        (&PartialConfig::new(), 22_713_216, 22_713_216),
        // 1,474 of each matrix.
        (&supertuning(), 17_688, 2 * 17_688),
        (
            &supertuning().with_save_precomputed_indices(false),
            17_688,
            17_688,
        ),
        (&LnTuningConfig::new(), 9_984, 9_984),
        (&TrainableTokensConfig::new(rows), 3_840, 3_840),
        (&shira(8), 73_728, 3 * 73_728),
        (&shira(32), 294_912, 3 * 294_912),
    ];
    for (method, trained, stored) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), trained, "{method:?}");
        assert_eq!(counts.changed, trained, "{method:?}");
        assert_eq!(counts.stored, stored, "{method:?}");
        assert_eq!(counts.total, base.total + trained, "{method:?}");
    }
    let supra = supertuning().with_r(8);
    let counts = model.attach("a", &supra).unwrap().counts();
    assert_eq!(counts.adapter_trainable(), 17_688 + 73_728);
}

#[test]
fn counts_of_sparse_training_are_those_of_their_pages() {
    let model = minilm_l6().train();
    let loss = |model: &BertClassifier, id: i64| {
        let ids =
            Tensor::<2, Int>::from_data([[101, id, 102]], &cpu_devices()[0].1.clone().autodiff());
        model.forward(ids, None).mean()
    };
    // At first all train, and with gates twice as many, with one for each tensor.
    let feed_forward = r".*(intermediate|layer\.\d+\.output)\.dense";
    let far = FarConfig::new().with_targets(feed_forward);
    let cases: [(&dyn Method, usize); 3] = [
        (&LtSftConfig::new(), 22_713_216),
        (&far, 7_089_408),
        (&DiffPruningConfig::new(), 45_426_535),
    ];
    for (method, expected) in cases {
        let counts = model.attach("a", method).unwrap().counts();
        assert_eq!(counts.adapter_trainable(), expected, "{method:?}");
    }
    let spt = SptConfig::new().with_threshold(usize::MAX);
    let counts = model.attach_on("a", &spt, [2023], loss).unwrap().counts();
    assert_eq!(counts.adapter_trainable(), 53_821);
    let config = FishMaskConfig::new();
    let counts = model
        .attach_on("a", &config, [2023], loss)
        .unwrap()
        .counts();
    assert_eq!(counts.adapter_trainable(), 113_566);
    assert_eq!(counts.changed, 113_566);
    assert_eq!(counts.stored, 2 * 113_566);
    assert_eq!(counts.stored_bytes, 8 * 113_566);
}
