//! What ranks need to find each other.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Error, ErrorKind};

/// The name under which the ranks of one communicator meet: opaque bytes that one rank makes and
/// all others are given.
///
/// NCCL's and RCCL's are 128 bytes; other backends may use another length. It holds an address at
/// which the library listens, so `Debug` does not print it. In text it is base64, the form vLLM's
/// workers exchange.
#[doc(alias = "ncclUniqueId")]
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct UniqueId(Box<[u8]>);

impl UniqueId {
    /// Takes bytes that [`Backend::unique_id`](crate::Backend::unique_id) made, perhaps in another
    /// process or language.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes in base64.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(&self.0)
    }

    /// The bytes as an NCCL or RCCL unique id.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] naming both lengths where there are not 128.
    pub fn to_array(&self) -> Result<[u8; 128], Error> {
        <[u8; 128]>::try_from(&*self.0).map_err(|_| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("unique id holds {} bytes, want 128", self.0.len()),
            )
            .with_hint("pass the id that rank 0 made with the same backend")
        })
    }
}

impl From<[u8; 128]> for UniqueId {
    fn from(bytes: [u8; 128]) -> Self {
        Self(bytes.into())
    }
}

/// Reads base64.
impl FromStr for UniqueId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        STANDARD.decode(text.trim()).map(Self::from_bytes).map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, format!("unique id is not base64: {error}"))
                .with_source(error)
        })
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UniqueId({} bytes)", self.0.len())
    }
}

/// As base64.
impl Serialize for UniqueId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

/// From base64.
impl<'de> Deserialize<'de> for UniqueId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> UniqueId {
        UniqueId::from(std::array::from_fn::<u8, 128, _>(|i| i as u8))
    }

    #[test]
    fn text_and_serde_round_trip() {
        let json = serde_json::to_string(&id()).unwrap();
        assert_eq!(json, format!("\"{}\"", id().to_base64()));
        assert_eq!(serde_json::from_str::<UniqueId>(&json).unwrap(), id());
        assert_eq!(format!(" {}\n", id().to_base64()).parse::<UniqueId>().unwrap(), id());
    }

    #[test]
    fn debug_hides_the_bytes() {
        assert_eq!(format!("{:?}", id()), "UniqueId(128 bytes)");
    }

    #[test]
    fn wrong_lengths_and_text_are_named() {
        let error = UniqueId::from_bytes(vec![0; 3]).to_array().unwrap_err();
        assert!(error.to_string().starts_with("unique id holds 3 bytes, want 128"), "{error}");
        let error = "no base64!".parse::<UniqueId>().unwrap_err();
        assert!(error.to_string().contains("not base64"), "{error}");
    }
}
