//! What the kernel's topology tells of AMD GPUs, in files: no runtime is called for it.

use std::{fs, path::Path};

use collectives_core::F8Format;

/// What the bits of an fp8 number mean to the GPUs of this machine; unknown where there are none, or
/// where they differ.
pub(crate) fn machine() -> F8Format {
    machine_at(Path::new("/sys/class/kfd/kfd/topology/nodes"))
}

fn machine_at(nodes: &Path) -> F8Format {
    let versions = fs::read_dir(nodes).into_iter().flatten().flatten().filter_map(|node| {
        let text = fs::read_to_string(node.path().join("properties")).ok()?;
        let version = text.lines().find_map(|line| line.strip_prefix("gfx_target_version "))?;
        // A CPU has version 0.
        version.trim().parse().ok().filter(|&version: &u32| version > 0)
    });
    let mut formats = versions.map(|version| match version {
        FIRST_WITH_FNUZ..=LAST_WITH_FNUZ => F8Format::Fnuz,
        _ => F8Format::Ocp,
    });
    match formats.next() {
        Some(first) if formats.all(|format| format == first) => first,
        _ => F8Format::Unknown,
    }
}

/// What the bits of an fp8 number mean to an architecture, as RCCL's kernels are built
/// (`rccl_float8.h`): FNUZ on the MI300 series, OCP on all others.
pub(crate) fn f8_format(architecture: &str) -> F8Format {
    match architecture {
        "gfx940" | "gfx941" | "gfx942" => F8Format::Fnuz,
        other if other.starts_with("gfx") => F8Format::Ocp,
        _ => F8Format::Unknown,
    }
}

/// gfx940 to gfx942, as the kernel writes them.
const FIRST_WITH_FNUZ: u32 = 90_400;
const LAST_WITH_FNUZ: u32 = 90_402;

#[cfg(test)]
mod tests {
    use super::*;

    fn on(versions: &[u32]) -> F8Format {
        let nodes = tempfile::tempdir().expect("a folder");
        for (node, version) in versions.iter().enumerate() {
            let node = nodes.path().join(node.to_string());
            fs::create_dir(&node).expect("a folder");
            let text = format!("simd_count 1216\ngfx_target_version {version}\nvendor_id 4098\n");
            fs::write(node.join("properties"), text).expect("a file");
        }
        machine_at(nodes.path())
    }

    #[test]
    fn the_mi300_series_has_a_format_of_its_own() {
        for (architecture, version, format) in [
            ("gfx90a", 90_010, F8Format::Ocp),
            ("gfx940", 90_400, F8Format::Fnuz),
            ("gfx942", 90_402, F8Format::Fnuz),
            ("gfx950", 90_500, F8Format::Ocp),
            ("gfx1201", 120_001, F8Format::Ocp),
        ] {
            assert_eq!(f8_format(architecture), format, "{architecture}");
            assert_eq!(on(&[0, version, version]), format, "{architecture}");
        }
        assert_eq!(f8_format("sm_90"), F8Format::Unknown);
    }

    #[test]
    fn machines_of_two_kinds_or_none_are_unknown() {
        assert_eq!(on(&[]), F8Format::Unknown);
        assert_eq!(on(&[0, 0]), F8Format::Unknown);
        assert_eq!(on(&[0, 90_402, 90_500]), F8Format::Unknown);
        assert_eq!(on(&[90_500, 110_000]), F8Format::Ocp);
        assert_eq!(machine_at(Path::new("/nowhere")), F8Format::Unknown);
    }
}
