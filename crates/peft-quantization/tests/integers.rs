//! Burn's own integers: decoded, they are exactly what Burn makes of them.

use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::device::cpu_devices;
use peft_ops::quantized::{QuantizedMatrix, QuantizedWeight};
use peft_quantization::{BurnRows, BurnScheme, Error, QuantizationConfig};
use peft_testing::{farthest, largest};

const SHAPE: [usize; 2] = [10, 96];

fn values() -> Vec<f32> {
    (0..SHAPE[0] * SHAPE[1])
        .map(|index| (index as f32 * 0.731).sin() * (1.0 + (index % 13) as f32))
        .collect()
}

fn tensor(device: &Device) -> Tensor<2> {
    let data = TensorData::new(values(), SHAPE);
    Tensor::from_data(data, (device, DType::F32))
}

/// The schemes that a CPU backend has, by its name.
fn schemes(backend: &str) -> Vec<QuantScheme> {
    let mut kinds = vec![QuantValue::Q8S, QuantValue::Q8F];
    if backend == "flex" {
        kinds.extend([QuantValue::Q4S, QuantValue::Q4F]);
    }
    let scheme = |value| {
        QuantScheme::default()
            .with_value(value)
            .with_store(QuantStore::Native)
    };
    kinds
        .into_iter()
        .flat_map(|value| {
            [
                scheme(value),
                scheme(value).per_tensor(ScaleDtype::F32),
                scheme(value).per_block([32], ScaleDtype::F32),
                scheme(value).per_block([1, 16], ScaleDtype::F16),
            ]
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    // Burn's zero may have a sign.
    values.iter().map(|value| (value + 0.0).to_bits()).collect()
}

#[test]
fn decoded_is_what_burn_dequantizes() {
    for (backend, device) in cpu_devices() {
        for scheme in schemes(backend) {
            let quantized = tensor(&device).quantize_dynamic(&scheme);
            let dequantized = quantized.clone().dequantize().into_data();
            let expected: Vec<f32> = dequantized.iter::<f32>().collect();
            let rows = BurnRows::from_tensor(quantized).unwrap();
            let quantized = QuantizedWeight::new(rows.clone());
            let decoded = quantized.to_tensor(&device).into_data();
            let decoded: Vec<f32> = decoded.iter::<f32>().collect();
            assert_eq!(bits(&decoded), bits(&expected), "{backend} {scheme:?}");
            // Rows by themselves.
            let mut some = vec![0.0; 3 * SHAPE[1]];
            rows.decode(5, &mut some);
            assert_eq!(bits(&some), bits(&expected[5 * SHAPE[1]..8 * SHAPE[1]]));
            let again = BurnRows::quantize(&values(), SHAPE, &scheme, &device).unwrap();
            assert_eq!(again, rows, "{backend} {scheme:?}");
        }
    }
}

#[test]
fn errors_are_half_a_step_at_most() {
    for (backend, device) in cpu_devices() {
        for (integers, steps) in [(BurnScheme::Int8, 127.0), (BurnScheme::Int4, 7.0)] {
            if backend == "ndarray" && integers == BurnScheme::Int4 {
                continue;
            }
            let scheme = integers.scheme(Some(32), QuantStore::Native);
            let rows = BurnRows::quantize(&values(), SHAPE, &scheme, &device).unwrap();
            let bits = if integers == BurnScheme::Int8 { 9 } else { 5 };
            assert_eq!(rows.bytes() * 8, bits * SHAPE[0] * SHAPE[1]);
            assert_eq!(rows.format(), integers.name());
            let mut decoded = vec![0.0; SHAPE[0] * SHAPE[1]];
            rows.decode(0, &mut decoded);
            for (exact, decoded) in values().chunks(32).zip(decoded.chunks(32)) {
                let largest = largest(exact.iter().copied());
                let error = farthest(exact.iter().copied(), decoded.iter().copied());
                assert!(
                    error <= largest / steps * 0.501,
                    "{backend}: {error}, {exact:?} {decoded:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_not_read_is_refused() {
    for (backend, device) in cpu_devices() {
        let dense = BurnRows::from_tensor(tensor(&device)).unwrap_err();
        assert!(matches!(dense, Error::Scheme { .. }), "{backend}: {dense}");
        let scheme = QuantScheme::default().with_store(QuantStore::Native);
        for refused in [
            scheme.with_value(QuantValue::Q2S),
            scheme.per_block([2, 16], ScaleDtype::F32),
            scheme.per_block([36], ScaleDtype::F32),
        ] {
            let error = BurnRows::quantize(&values(), SHAPE, &refused, &device).unwrap_err();
            assert!(matches!(error, Error::Scheme { .. }), "{backend}: {error}");
        }
        let nan = vec![f32::NAN; SHAPE[0] * SHAPE[1]];
        let error = BurnRows::quantize(&nan, SHAPE, &scheme, &device).unwrap_err();
        assert!(
            matches!(error, Error::NotFinite { .. }),
            "{backend}: {error}"
        );
    }
}

#[test]
fn a_configuration_quantizes_to_them() {
    let Some((backend, _)) = cpu_devices().into_iter().next() else {
        return;
    };
    let quantized = QuantizationConfig::int8()
        .quantize(&values(), SHAPE)
        .unwrap();
    assert_eq!((quantized.format(), quantized.shape()), ("int8", SHAPE));
    let four = QuantizationConfig::int4().with_burn_block_size(None);
    match four.quantize(&values(), SHAPE) {
        Ok(quantized) => assert_eq!(quantized.format(), "int4"),
        Err(error) => assert!(backend == "ndarray" && matches!(error, Error::Scheme { .. })),
    }
}
