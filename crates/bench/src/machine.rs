//! Where and when a benchmark ran.

use std::{fs, process::Command, thread};

use jiff::{Timestamp, tz::TimeZone};

/// The date in Greenwich, year first.
pub(crate) fn today() -> String {
    Timestamp::now().to_zoned(TimeZone::UTC).date().to_string()
}

/// The processor: `AMD EPYC, 2 cores`.
pub(crate) fn cpu() -> String {
    let known = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model_name(&known).unwrap_or(std::env::consts::ARCH);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cores} cores")
}

/// The GPUs and their driver: `2 × NVIDIA H200, driver 580.159.04`; none where `nvidia-smi` knows
/// none.
pub(crate) fn gpus() -> Option<String> {
    let mut query = Command::new("nvidia-smi");
    query.args(["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    let output = query.output().ok().filter(|output| output.status.success())?;
    count_gpus(&String::from_utf8_lossy(&output.stdout))
}

/// The compiler: `rustc 1.95.0`.
pub(crate) fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace();
    Some(format!("{} {}", words.next()?, words.next()?))
}

fn model_name(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn count_gpus(lines: &str) -> Option<String> {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        match kinds.iter_mut().find(|(kind, _)| *kind == line) {
            Some((_, count)) => *count += 1,
            None => kinds.push((line, 1)),
        }
    }
    let texts = kinds.into_iter().map(|(kind, count)| match kind.split_once(',') {
        Some((name, driver)) => format!("{count} × {}, driver {}", name.trim(), driver.trim()),
        None => format!("{count} × {}", kind.trim()),
    });
    Some(texts.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_names() {
        let known = "processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: another\n";
        assert_eq!(model_name(known), Some("AMD EPYC"));
        assert_eq!(model_name("processor : 0\n"), None);
    }

    #[test]
    fn gpus_of_a_kind_are_counted() {
        let two = "NVIDIA H200, 580.159.04\nNVIDIA H200, 580.159.04\n";
        assert_eq!(count_gpus(two).as_deref(), Some("2 × NVIDIA H200, driver 580.159.04"));
        assert_eq!(count_gpus("A, 1\nB, 1\n").as_deref(), Some("1 × A, driver 1; 1 × B, driver 1"));
        assert_eq!(count_gpus(""), None);
    }
}
