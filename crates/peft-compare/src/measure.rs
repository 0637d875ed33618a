//! Measurements of this process.

use std::fs;
use std::time::Instant;

/// A line of `/proc/self/status`, in bytes; 0 on systems that have none.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')?
                .trim()
                .strip_suffix("kB")
        })
        .and_then(|kibibytes| kibibytes.trim().parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes * 1024)
}

/// Resident bytes now; 0 where they cannot be read.
pub(crate) fn resident() -> u64 {
    status("VmRSS")
}

/// The highest number of resident bytes since [`reset_peak`]; 0 where it cannot be read.
pub(crate) fn peak() -> u64 {
    status("VmHWM")
}

/// Forgets the peak so far. Linux only; elsewhere the peak is that of the whole process.
pub(crate) fn reset_peak() {
    // A refusal leaves the peak of loading in the figure, which is then too high, never too low.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Median milliseconds of each of several things, run in turn so that a slow moment of the
/// machine hits all of them.
pub(crate) fn interleaved(rounds: usize, things: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(rounds); things.len()];
    for round in 0..rounds + 2 {
        for (thing, times) in things.iter_mut().zip(&mut times) {
            let start = Instant::now();
            thing();
            // The first two rounds warm up.
            if round >= 2 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    times
        .iter()
        .map(|times| crate::statistics::percentile(times, 50.0).unwrap_or_default())
        .collect()
}

/// The processor's name; empty where it is not said.
pub(crate) fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map(|(_, name)| name.trim().to_string())
        .unwrap_or_default()
}

/// What the processor has of all that CPU kernels are chosen by: instruction sets, and the sizes of its caches, by which
/// long sums are cut into pieces. Both decide the order in which numbers are added, and so the last digits of sums.
pub(crate) fn kernels() -> String {
    let mut words: Vec<String> = instruction_sets().into_iter().map(Into::into).collect();
    words.extend(caches());
    words.join(" ")
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let all = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("avx512f", has!("avx512f")),
        ("avx512vl", has!("avx512vl")),
    ];
    all.iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
fn instruction_sets() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// Levels and sizes of the first core's caches for data, such as `L2:512K`; none on systems that do not say.
fn caches() -> Vec<String> {
    let folder = std::path::Path::new("/sys/devices/system/cpu/cpu0/cache");
    let said = |index: usize, file: &str| {
        let path = folder.join(format!("index{index}")).join(file);
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_string())
    };
    (0..8)
        .filter(|index| said(*index, "type").is_some_and(|kind| kind != "Instruction"))
        .filter_map(|index| {
            Some(format!(
                "L{}:{}",
                said(index, "level")?,
                said(index, "size")?
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_sees_what_was_freed() {
        super::reset_peak();
        let before = super::peak();
        let mut block = vec![1_u8; 64 << 20];
        block[5] = 2;
        std::hint::black_box(&block);
        drop(block);
        let grown = super::peak() - before;
        assert!(grown > 50 << 20, "the peak grew by {grown} bytes");
    }
}
