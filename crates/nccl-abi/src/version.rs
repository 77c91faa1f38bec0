//! Version codes as text. Comparing is done on the raw codes, which grow with the releases.

use std::ffi::c_int;

/// The release behind a version code, as text: 2708 is `2.7.8`, 22703 is `2.27.3`.
///
/// Codes below 10000 are `X·1000 + Y·100 + Z` (releases up to 2.8.4), the others `X·10000 + Y·100 +
/// Z`: the macro `NCCL_VERSION` of `nccl.h`. A code that no release can have is shown as it is.
///
/// ```
/// use collectives_nccl_abi::version_text;
///
/// assert_eq!(version_text(2804), "2.8.4");
/// assert_eq!(version_text(20906), "2.9.6");
/// assert_eq!(version_text(23000), "2.30.0");
/// ```
#[doc(alias = "NCCL_VERSION")]
pub fn version_text(code: c_int) -> String {
    if code < 1000 {
        return format!("version code {code}");
    }
    let major = if code < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", code / major, code % major / 100, code % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_all_schemes_are_read() {
        for (code, text) in [
            (2305, "2.3.5"),
            (2708, "2.7.8"),
            (2804, "2.8.4"),
            (20906, "2.9.6"),
            (21003, "2.10.3"),
            (21304, "2.13.4"),
            (21605, "2.16.5"),
            (21903, "2.19.3"),
            (22703, "2.27.3"),
            (23000, "2.30.0"),
            (23203, "2.32.3"),
            (30001, "3.0.1"),
        ] {
            assert_eq!(version_text(code), text);
        }
    }

    #[test]
    fn nonsense_is_shown_as_it_is() {
        for (code, text) in
            [(0, "version code 0"), (-1, "version code -1"), (999, "version code 999")]
        {
            assert_eq!(version_text(code), text);
        }
    }

    #[test]
    fn codes_grow_with_the_releases() {
        assert!([2708, 2804, 20906, 21304, 22703, 23203].is_sorted());
    }
}
