//! Prompts as numbers: SPoT's transfer and similarity, and the lookup in the vocabulary.

use burn::module::Module as _;
use burn::tensor::{Tensor, TensorData};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::method::{Method, PromptAdapter as _};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_soft_prompt::{
    CptConfig, EncodedPrompt, IntrinsicPromptConfig, METHODS, Nearness, PrefixTuningConfig,
    PromptEncoderConfig, PromptTuningConfig, Similarity, SoftPrompt, TrainedPrompt,
};

fn prompt<const N: usize, const D: usize>(tokens: [[f32; D]; N]) -> TrainedPrompt {
    let (_, device) = cpu_devices().remove(0);
    TrainedPrompt::of_tensor(Tensor::from_data(TensorData::from(tokens), &device))
}

#[test]
fn similarities_are_those_of_the_formula() {
    let a = prompt([[1.0, 0.0], [0.0, 2.0]]);
    let b = prompt([[3.0, 4.0]]);
    // The means are (0.5, 1) and (3, 4).
    let of_means = 5.5 / (1.25_f64.sqrt() * 5.0);
    // Cosines of the pairs: 3/5 and 4/5.
    let of_pairs = 0.7;
    for (one, other) in [(&a, &b), (&b, &a)] {
        let found = one.similarity(other, Similarity::OfMeans).unwrap();
        assert!((found - of_means).abs() < 1e-7, "{found}");
        let found = one.similarity(other, Similarity::OfPairs).unwrap();
        assert!((found - of_pairs).abs() < 1e-7, "{found}");
    }
    // Zeros are similar to nothing.
    let zeros = prompt([[0.0, 0.0]]);
    assert_eq!(
        a.similarity(&zeros, Similarity::OfMeans).unwrap().to_bits(),
        0
    );
    let wide = prompt([[1.0, 2.0, 3.0]]);
    assert!(a.similarity(&wide, Similarity::OfPairs).is_err());
}

#[test]
fn the_most_similar_source_comes_first() {
    let target = prompt([[1.0, 0.2]]);
    let sources = [
        prompt([[-1.0, 0.0]]),
        prompt([[9.0, 2.0]]),
        prompt([[1.0, 1.0]]),
    ];
    for similarity in [Similarity::OfMeans, Similarity::OfPairs] {
        let ranking = target.most_similar(&sources, similarity).unwrap();
        let order: Vec<usize> = ranking.iter().map(|(at, _)| *at).collect();
        assert_eq!(order, [1, 2, 0]);
        assert!(ranking[0].1 > 0.99 && ranking[2].1 < -0.9);
    }
    assert!(
        target
            .most_similar(&[], Similarity::OfMeans)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_mixture_is_the_weighted_sum() {
    let (a, b) = (prompt([[1.0, 2.0]]), prompt([[3.0, -2.0]]));
    let mixed = TrainedPrompt::mixture(&[(&a, 0.75), (&b, 0.25)]).unwrap();
    assert_eq!(mixed, prompt([[1.5, 1.0]]));
    assert!(TrainedPrompt::mixture(&[]).is_err());
    let longer = prompt([[1.0, 2.0], [3.0, 4.0]]);
    assert!(TrainedPrompt::mixture(&[(&a, 1.0), (&longer, 1.0)]).is_err());
}

/// From the files of methods that end in one prompt, P-tuning's network included.
#[test]
fn a_prompt_starts_from_another_ones_file() {
    let methods: [&dyn Method; 4] = [
        &PromptTuningConfig::new(3),
        &PromptEncoderConfig::new(3)
            .with_lstm(2)
            .with_encoder_dropout(0.5),
        &CptConfig::new([5, 17, 60]),
        &IntrinsicPromptConfig::new(3, 2),
    ];
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let base = TinyTransformer::new(&device);
        for method in methods {
            let title = method.info().title;
            let trained = base.attach("source", method).unwrap();
            let dir = tempfile::tempdir().unwrap();
            trained.save_adapter("source", dir.path()).unwrap();
            let loaded = base.load_adapter("source", dir.path(), METHODS).unwrap();
            let source = TrainedPrompt::of(&loaded, "source").unwrap();
            // That of the adapter in memory is the same, without the dropout.
            let other = TrainedPrompt::of(&trained, "source").unwrap();
            let (found, expected) = (source.data().iter::<f64>(), other.data().iter::<f64>());
            let distance = peft_testing::farthest(found, expected);
            assert!(distance < 1e-6, "{title} on {name}: {distance}");

            let config = PromptTuningConfig::new(3).with_source(source.clone());
            let model = base.attach("target", &config).unwrap();
            let states = model.adapter_states::<SoftPrompt>("target").unwrap();
            assert_eq!(states[0].1.embeddings.val().into_data(), *source.data());
            assert_eq!(model.counts().trainable, 3 * 32);
            let ids = || Tensor::from_data(TensorData::from([[3_i64, 4, 5]]), &device);
            let run = |model: &TinyTransformer| model.forward(ids(), None).into_data();
            let tolerance = burn::tensor::Tolerance::<f32>::absolute(1e-6);
            run(&model).assert_approx_eq::<f32>(&run(&trained.valid()), tolerance);
        }
    }
}

#[test]
fn sources_that_do_not_fit_are_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let refusal = |source: TrainedPrompt| {
        let config = PromptTuningConfig::new(1).with_source(source);
        match base.attach("p", &config).unwrap_err() {
            Error::Config { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    assert_eq!(refusal(prompt([[1.0, 2.0]])), "source");
    assert_eq!(refusal(prompt([[0.0; 32]; 2])), "source");
    let model = base.attach("p", &PrefixTuningConfig::new(2)).unwrap();
    assert!(TrainedPrompt::of(&model, "p").is_err());
    assert!(matches!(
        TrainedPrompt::of(&model, "nobody"),
        Err(Error::UnknownAdapter { .. })
    ));
}

/// The nearest of all rows of the table, computed row by row.
fn expected_near(
    token: &[f64],
    table: &[Vec<f64>],
    nearness: Nearness,
    count: usize,
) -> Vec<(usize, f64)> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut all: Vec<(usize, f64)> = table
        .iter()
        .map(|row| match nearness {
            Nearness::Euclidean => {
                let squares = row.iter().zip(token).map(|(a, b)| (a - b).powi(2));
                squares.sum::<f64>().sqrt()
            }
            _ => dot(row, token) / (dot(row, row) * dot(token, token)).sqrt(),
        })
        .enumerate()
        .collect();
    all.sort_by(|(_, a), (_, b)| match nearness {
        Nearness::Euclidean => a.total_cmp(b),
        _ => b.total_cmp(a),
    });
    all.truncate(count);
    all
}

/// More tokens than are looked up at once.
#[test]
fn the_nearest_words_are_those_of_the_table() {
    for (name, device) in cpu_devices() {
        let base = TinyTransformer::new(&device);
        device.seed(4);
        let model = base.attach("p", &PromptEncoderConfig::new(70)).unwrap();
        let prompt = TrainedPrompt::of(&model, "p").unwrap();
        let rows = |data: &TensorData| -> Vec<Vec<f64>> {
            let values: Vec<f64> = data.iter().collect();
            values.chunks(32).map(<[f64]>::to_vec).collect()
        };
        let tokens = rows(prompt.data());
        let state = model
            .adapter_states::<EncodedPrompt>("p")
            .unwrap()
            .remove(0)
            .1;
        assert_eq!(tokens, rows(&state.prompt().into_data()), "{name}");
        let table = rows(&base.embeddings.word_embeddings.weight.val().into_data());
        for nearness in [Nearness::Cosine, Nearness::Euclidean] {
            let found = prompt.nearest_tokens(&model, 5, nearness).unwrap();
            assert_eq!(found.tokens.len(), 70);
            for (near, token) in found.tokens.iter().zip(&tokens) {
                let expected = expected_near(token, &table, nearness, 5);
                assert_eq!(near.len(), 5);
                for (near, (id, value)) in near.iter().zip(&expected) {
                    assert_eq!(near.id as usize, *id, "{name}: {nearness:?}");
                    assert!((near.value - value).abs() < 1e-5, "{name}: {nearness:?}");
                }
            }
        }
        let all = prompt
            .nearest_tokens(&model, 1000, Nearness::Cosine)
            .unwrap();
        assert_eq!(all.tokens[0].len(), 97);
    }
}

/// Embeddings that are long, and near each other beside that: squares of lengths would leave few digits of a distance.
#[test]
fn distances_of_long_vectors_keep_their_digits() {
    for (name, device) in cpu_devices() {
        let mut base = TinyTransformer::new(&device);
        let table = &mut base.embeddings.word_embeddings.weight;
        *table = table.clone().map(|table| table + 100.0);
        let values: Vec<f64> = table.val().into_data().iter().collect();
        let rows: Vec<Vec<f64>> = values.chunks(32).map(<[f64]>::to_vec).collect();
        let config = PromptTuningConfig::new(2).with_text("good film", [17, 60]);
        let model = base.attach("p", &config).unwrap();
        let prompt = TrainedPrompt::of(&model, "p").unwrap();
        let found = prompt.nearest_tokens(&model, 5, Nearness::Euclidean);
        for (near, id) in found.unwrap().tokens.iter().zip([17, 60]) {
            assert_eq!((near[0].id, near[0].value.to_bits()), (id, 0), "{name}");
            let expected = expected_near(&rows[id as usize], &rows, Nearness::Euclidean, 5);
            for (near, (id, value)) in near.iter().zip(&expected) {
                assert_eq!(near.id as usize, *id, "{name}");
                let distance = (near.value - value).abs();
                assert!(distance < 1e-5, "{name}: {}, {value}", near.value);
            }
        }
    }
}

#[test]
fn names_stand_where_ids_have_them() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let config = PromptTuningConfig::new(2).with_text("good film", [17, 60]);
    let prompt = TrainedPrompt::of(&base.attach("p", &config).unwrap(), "p").unwrap();
    let near = prompt
        .nearest_tokens(&base, 1, Nearness::Euclidean)
        .unwrap();
    assert_eq!(near.to_string(), "0: #17 0.000\n1: #60 0.000\n");
    let names = near.with_names(|id| (id == 17).then(|| "good".to_string()));
    assert_eq!(names, "0: \"good\" 0.000\n1: #60 0.000\n");
    let other = self::prompt([[1.0, 2.0]]);
    assert!(other.nearest_tokens(&base, 1, Nearness::Cosine).is_err());
}
