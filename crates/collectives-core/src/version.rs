//! Library versions, in every numbering scheme NCCL has used.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// The version of a collective library.
///
/// NCCL encodes versions as one integer, in two schemes: `major * 1000 + minor * 100 + patch` up to
/// 2.8 (2708 is 2.7.8) and `major * 10000 + minor * 100 + patch` from 2.9 on (22703 is 2.27.3,
/// `NCCL_VERSION` in `nccl.h`). RCCL reports the version of the NCCL release it follows.
///
/// ```
/// use collectives_core::Version;
/// assert_eq!(Version::from_code(2708).to_string(), "2.7.8");
/// assert_eq!(Version::from_code(22703), Version::new(2, 27, 3));
/// assert!(Version::from_code(20906) > Version::from_code(2804));
/// ```
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Makes a version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Decodes the integer that `ncclGetVersion` reports.
    #[doc(alias = "ncclGetVersion")]
    pub const fn from_code(code: u32) -> Self {
        let major_unit = if code < FIRST_LONG_CODE { 1000 } else { 10_000 };
        Self::new(code / major_unit, code % major_unit / 100, code % 100)
    }

    /// The integer that `ncclGetVersion` reports for this version.
    #[doc(alias = "NCCL_VERSION_CODE")]
    pub const fn code(self) -> u32 {
        let short = self.major < 2 || (self.major == 2 && self.minor <= 8);
        let major_unit = if short { 1000 } else { 10_000 };
        self.major * major_unit + self.minor * 100 + self.patch
    }

    /// The first number.
    pub const fn major(self) -> u32 {
        self.major
    }

    /// The second number.
    pub const fn minor(self) -> u32 {
        self.minor
    }

    /// The third number.
    pub const fn patch(self) -> u32 {
        self.patch
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Reads `major.minor.patch`.
impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('.').map(str::parse);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => {
                Ok(Self::new(major, minor, patch))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("'{text}' is no version, want three numbers as in 2.27.3"),
            )),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

/// Codes from here on use the five-digit scheme; the largest four-digit code in use is 2804.
const FIRST_LONG_CODE: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_historical_code_reads_and_prints_right() {
        let table = [
            (2305, "2.3.5"),
            (2402, "2.4.2"),
            (2703, "2.7.3"),
            (2708, "2.7.8"),
            (2804, "2.8.4"),
            (20906, "2.9.6"),
            (21003, "2.10.3"),
            (21104, "2.11.4"),
            (21304, "2.13.4"),
            (21605, "2.16.5"),
            (21803, "2.18.3"),
            (21903, "2.19.3"),
            (22105, "2.21.5"),
            (22700, "2.27.0"),
            (22703, "2.27.3"),
            (22809, "2.28.9"),
            (23000, "2.30.0"),
            (23102, "2.31.2"),
            (23203, "2.32.3"),
        ];
        for (code, text) in table {
            let version = Version::from_code(code);
            assert_eq!(version.to_string(), text, "code {code}");
            assert_eq!(version.code(), code, "{text}");
            assert_eq!(text.parse::<Version>().unwrap(), version);
        }
        let json = serde_json::to_string(&Version::new(2, 27, 3)).unwrap();
        assert_eq!(json, "\"2.27.3\"");
        assert_eq!(serde_json::from_str::<Version>(&json).unwrap(), Version::new(2, 27, 3));
        assert!("2.27".parse::<Version>().is_err());
    }

    #[test]
    fn order_follows_time_across_both_schemes() {
        assert!(Version::from_code(2708) < Version::from_code(2804));
        assert!(Version::from_code(2804) < Version::from_code(20906));
        assert!(Version::from_code(20906) < Version::from_code(22700));
    }
}
