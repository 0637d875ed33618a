//! Bit by bit against bitsandbytes 0.50.

use std::path::{Path, PathBuf};

use peft_quantization::{Error, QuantCase, report};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bitsandbytes.safetensors")
}

#[test]
fn codes_scales_and_values_are_upstreams() {
    let cases = report(golden()).unwrap();
    assert_eq!(cases.len(), 30);
    for case in &cases {
        let QuantCase {
            scale_ulp,
            value_ulp,
            ..
        } = case;
        assert!(case.agrees(), "{case}");
        assert_eq!((*scale_ulp, *value_ulp), (0, 0), "{case}");
        // Rows of 64 in blocks of 128, decoded by upstream's AVX-512 kernel.
        let misplaced = ["outlier.nf4.b128", "outlier.fp4.b128"].contains(&case.name.as_str());
        assert_eq!(case.misplaced_scales, misplaced, "{case}");
    }
    let doubly = cases.iter().filter(|case| case.double_quantization);
    assert_eq!(doubly.count(), 10);
}

/// The golden with one byte changed: where the report must show it.
#[test]
fn a_report_finds_what_differs() {
    let mut bytes = std::fs::read(golden()).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap() + 8;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    for tensor in [
        "square.nf4.b64.packed",
        "square.nf4.b64.absmax",
        "square.nf4.dq.absmax_u8",
    ] {
        let start = json[tensor]["data_offsets"][0].as_u64().unwrap();
        bytes[header + usize::try_from(start).unwrap()] ^= 0x11;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let cases = report(&path).unwrap();
    let case = |name| cases.iter().find(|case| case.name == name).unwrap();
    let plain = case("square.nf4.b64");
    assert_eq!((plain.codes_differ, plain.scale_codes_differ), (1, 0));
    assert!(plain.scale_ulp > 2);
    assert_eq!(case("square.nf4.dq").scale_codes_differ, 1);
    let disagreeing = cases.iter().filter(|case| !case.agrees());
    assert_eq!(disagreeing.count(), 2);
}

#[test]
fn a_report_refuses_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let missing = report(folder.path().join("missing")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }));
    let golden = std::fs::read(golden()).unwrap();
    let path = folder.path().join("broken.safetensors");
    for length in [0, 7, 8, 100, golden.len() - 1] {
        std::fs::write(&path, &golden[..length]).unwrap();
        let refused = report(&path).unwrap_err();
        assert!(matches!(refused, Error::File { .. }), "{refused}");
    }
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state.safetensors");
    assert!(matches!(report(other).unwrap_err(), Error::File { .. }));
}
