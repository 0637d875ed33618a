//! Memory of this process.

use std::fs;

/// A line of `/proc/self/status`, in bytes; 0 on systems that have none.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.trim_end_matches("kB").trim().parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes * 1024)
}

/// Resident bytes now; 0 where they cannot be read.
pub(crate) fn resident() -> u64 {
    status("VmRSS:")
}

/// The highest number of resident bytes since [`reset_peak`]; 0 where it cannot be read.
pub(crate) fn peak() -> u64 {
    status("VmHWM:")
}

/// Forgets the peak so far. Linux only; elsewhere the peak is that of the whole process.
pub(crate) fn reset_peak() {
    // A refusal leaves the peak of loading in the figure, which is then too high, never too low.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_is_no_less_than_what_is_resident() {
        let resident = super::resident();
        assert!(resident > 1 << 20, "{resident} bytes");
        assert!(super::peak() >= resident / 2);
    }
}
