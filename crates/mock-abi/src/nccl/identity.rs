//! Which library this says it is.

use std::{env, ffi::c_int, sync::OnceLock};

use collectives_nccl_abi::{Flavour, version_text};

use crate::runtime::say_once;

/// The release that the library says it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) flavour: Flavour,
    /// As `ncclGetVersion` tells it.
    pub(crate) code: c_int,
}

impl Identity {
    /// The newest release whose functions are here.
    const NEWEST: Self = Self { flavour: Flavour::Nccl, code: 23203 };

    /// What `COLLECTIVES_MOCK_VERSION` asks for; read once.
    pub(crate) fn get() -> Self {
        static IDENTITY: OnceLock<Identity> = OnceLock::new();
        *IDENTITY.get_or_init(|| {
            let Some(text) = env::var_os(VARIABLE) else { return Self::NEWEST };
            let text = text.to_string_lossy();
            Self::parse(&text).unwrap_or_else(|| {
                say_once(
                    VARIABLE,
                    &format!(
                        "{VARIABLE} is '{text}', want a release such as 2.18.3 or rccl-2.27.7; \
                         going on as {}",
                        version_text(Self::NEWEST.code)
                    ),
                );
                Self::NEWEST
            })
        })
    }

    /// Reads `2.18.3`, `nccl-2.18.3` or `rccl-2.27.7`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (flavour, release) = match text.split_once('-') {
            None => (Flavour::Nccl, text),
            Some(("nccl", release)) => (Flavour::Nccl, release),
            Some(("rccl", release)) => (Flavour::Rccl, release),
            Some(_) => return None,
        };
        let numbers: Vec<c_int> =
            release.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [major, minor, patch] = numbers[..] else { return None };
        let in_range =
            (1..100).contains(&major) && [minor, patch].iter().all(|n| (0..100).contains(n));
        // The formula of `NCCL_VERSION`: three digits before 2.9, five from then on.
        let factor = if major <= 2 && minor <= 8 { 1000 } else { 10_000 };
        in_range.then_some(Self { flavour, code: major * factor + minor * 100 + patch })
    }

    /// Whether it is release `code` or a later one.
    pub(crate) const fn is_at_least(self, code: c_int) -> bool {
        self.code >= code
    }

    /// The number of element types that its `ncclDataType_t` has.
    pub(crate) const fn datatypes(self) -> c_int {
        let first_with_fp8 = match self.flavour {
            Flavour::Nccl => 22403,
            Flavour::Rccl => 22005,
        };
        if self.is_at_least(first_with_fp8) { 12 } else { 10 }
    }

    /// The name before the version, in logs.
    pub(crate) const fn name(self) -> &'static str {
        match self.flavour {
            Flavour::Nccl => "NCCL",
            Flavour::Rccl => "RCCL",
        }
    }
}

const VARIABLE: &str = "COLLECTIVES_MOCK_VERSION";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_encoded_as_their_headers_do() {
        for (text, flavour, code) in [
            ("2.18.3", Flavour::Nccl, 21803),
            ("2.8.4", Flavour::Nccl, 2804),
            ("2.9.6", Flavour::Nccl, 20906),
            ("nccl-2.32.3", Flavour::Nccl, 23203),
            ("rccl-2.27.7", Flavour::Rccl, 22707),
            (" rccl-2.7.8", Flavour::Rccl, 2708),
        ] {
            assert_eq!(Identity::parse(text), Some(Identity { flavour, code }), "{text}");
        }
    }

    #[test]
    fn what_is_no_release_is_refused() {
        for text in ["", "2", "2.18", "2.18.3.1", "2.x.3", "mpi-4.0.0", "2.-1.3", "2.100.0"] {
            assert_eq!(Identity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn fp8_came_late() {
        let types = |text| Identity::parse(text).unwrap().datatypes();
        assert_eq!([types("2.18.3"), types("2.24.3"), types("rccl-2.20.5")], [10, 12, 12]);
    }
}
