//! Element types of collectives.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// The type of the elements of a buffer, in the order of `ncclDataType_t`.
///
/// The fp8 types are the OCP ones (`e4m3fn` and `e5m2`).
#[doc(alias = "ncclDataType_t")]
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// IEEE 754 half precision.
    F16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// bfloat16: the upper half of an [`F32`](Self::F32).
    Bf16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP `e4m3fn`).
    F8E4M3,
    /// 8-bit float, 5 exponent and 2 mantissa bits (OCP `e5m2`).
    F8E5M2,
}

impl DType {
    /// Every type, in the order of `ncclDataType_t`.
    pub const ALL: [Self; 12] = [
        Self::I8,
        Self::U8,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
        Self::F16,
        Self::F32,
        Self::F64,
        Self::Bf16,
        Self::F8E4M3,
        Self::F8E5M2,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Whether this is a floating-point type.
    pub const fn is_float(self) -> bool {
        match self {
            Self::F16 | Self::F32 | Self::F64 | Self::Bf16 | Self::F8E4M3 | Self::F8E5M2 => true,
            Self::I8 | Self::U8 | Self::I32 | Self::U32 | Self::I64 | Self::U64 => false,
        }
    }

    /// Whether this is one of the 8-bit floating-point types.
    pub const fn is_fp8(self) -> bool {
        matches!(self, Self::F8E4M3 | Self::F8E5M2)
    }

    /// The short name, as in messages and on command lines: `f32`, `bf16`, `f8e4m3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bf16 => "bf16",
            Self::F8E4M3 => "f8e4m3",
            Self::F8E5M2 => "f8e5m2",
        }
    }

    /// PyTorch's name without the `torch.` prefix.
    ///
    /// ```
    /// use collectives_core::DType;
    /// assert_eq!(DType::Bf16.torch_name(), "bfloat16");
    /// assert_eq!(DType::from_torch_name("torch.half")?, DType::F16);
    /// # Ok::<(), collectives_core::Error>(())
    /// ```
    pub const fn torch_name(self) -> &'static str {
        match self {
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::I32 => "int32",
            Self::U32 => "uint32",
            Self::I64 => "int64",
            Self::U64 => "uint64",
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::Bf16 => "bfloat16",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E5M2 => "float8_e5m2",
        }
    }

    /// Reads PyTorch's name of a type, with or without the `torch.` prefix, aliases included.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a PyTorch type that has no collective (`bool`, `int16`,
    /// complex and quantised types), with what to use instead; [`ErrorKind::InvalidArgument`] for
    /// any other text.
    pub fn from_torch_name(name: &str) -> Result<Self, Error> {
        let bare = name.strip_prefix("torch.").unwrap_or(name);
        let dtype = match bare {
            "int8" => Self::I8,
            "uint8" => Self::U8,
            "int32" | "int" => Self::I32,
            "uint32" => Self::U32,
            "int64" | "long" => Self::I64,
            "uint64" => Self::U64,
            "float16" | "half" => Self::F16,
            "float32" | "float" => Self::F32,
            "float64" | "double" => Self::F64,
            "bfloat16" => Self::Bf16,
            "float8_e4m3fn" => Self::F8E4M3,
            "float8_e5m2" => Self::F8E5M2,
            _ => return Err(no_collective(name, bare)),
        };
        Ok(dtype)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads the short name ([`DType::name`]).
impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::new(ErrorKind::InvalidArgument, format!("unknown dtype '{text}'"))
                .with_hint(format!("use one of {names}"))
        })
    }
}

fn no_collective(name: &str, bare: &str) -> Error {
    let instead = match bare {
        "bool" => "send it as uint8",
        "int16" | "short" | "uint16" => "widen it to int32",
        "complex64" | "cfloat" => "view it as float32 with twice the elements",
        "complex128" | "cdouble" => "view it as float64 with twice the elements",
        "complex32" | "chalf" => "view it as float16 with twice the elements",
        "float8_e4m3fnuz" | "float8_e5m2fnuz" => {
            "convert it to float8_e4m3fn or float8_e5m2; the library reduces fnuz bits only on the \
             GPUs that use them"
        }
        "float8_e8m0fnu" | "float4_e2m1fn_x2" | "qint8" | "quint8" | "qint32" => {
            "move it as uint8 with operations that do not reduce"
        }
        _ => {
            return Error::new(
                ErrorKind::InvalidArgument,
                format!("'{name}' is no PyTorch dtype with a collective"),
            )
            .with_hint(format!("use one of {}", DType::ALL.map(DType::torch_name).join(", ")));
        }
    };
    Error::new(ErrorKind::Unsupported, format!("dtype '{name}' has no collective"))
        .with_hint(instead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_torch_name(dtype.torch_name()).unwrap(), dtype);
            let prefixed = format!("torch.{}", dtype.torch_name());
            assert_eq!(DType::from_torch_name(&prefixed).unwrap(), dtype);
            assert_eq!(dtype.name().parse::<DType>().unwrap(), dtype);
        }
    }

    #[test]
    fn torch_aliases_are_known() {
        let table = [
            ("half", DType::F16),
            ("float", DType::F32),
            ("double", DType::F64),
            ("int", DType::I32),
            ("long", DType::I64),
        ];
        for (alias, dtype) in table {
            assert_eq!(DType::from_torch_name(alias).unwrap(), dtype);
        }
    }

    #[test]
    fn a_dtype_without_collective_says_what_to_do() {
        let error = DType::from_torch_name("torch.bool").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "dtype 'torch.bool' has no collective; send it as uint8");
        let error = DType::from_torch_name("complex64").unwrap_err();
        assert!(error.to_string().contains("view it as float32"), "{error}");
        let error = DType::from_torch_name("floaty").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("bfloat16"), "{error}");
    }
}
