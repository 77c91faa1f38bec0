//! Reduction operators.

use std::{ffi::c_void, fmt, str::FromStr};

use crate::{CommId, DType, Element, Error, ErrorKind};

/// How elements of different ranks are combined.
#[doc(alias = "ncclRedOp_t")]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ReduceOp {
    /// Sum. Integers wrap.
    Sum,
    /// Product. Integers wrap.
    Prod,
    /// Largest element; a NaN loses against a number.
    Max,
    /// Smallest element; a NaN loses against a number.
    Min,
    /// Sum divided by the number of ranks: integers wrap, then divide toward zero; of floats, each
    /// input is multiplied by 1/size rounded to the type.
    Avg,
    /// Each rank's input times that rank's scalar, then the sum.
    PreMulSum(PreMulSum),
}

impl ReduceOp {
    /// The operators that need no communicator, in the order of `ncclRedOp_t`.
    pub const BUILT_IN: [Self; 5] = [Self::Sum, Self::Prod, Self::Max, Self::Min, Self::Avg];

    /// The name, as in messages and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "max",
            Self::Min => "min",
            Self::Avg => "avg",
            Self::PreMulSum(_) => "premulsum",
        }
    }

    /// PyTorch's name (`torch.distributed.ReduceOp`).
    pub const fn torch_name(self) -> &'static str {
        match self {
            Self::Sum => "SUM",
            Self::Prod => "PRODUCT",
            Self::Max => "MAX",
            Self::Min => "MIN",
            Self::Avg => "AVG",
            Self::PreMulSum(_) => "PREMUL_SUM",
        }
    }

    /// Reads PyTorch's name, with or without a `ReduceOp.` in front.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an operator that no collective library has (`BAND`, `BOR`,
    /// `BXOR`) or that needs a communicator (`PREMUL_SUM`); [`ErrorKind::InvalidArgument`] for any
    /// other text.
    pub fn from_torch_name(name: &str) -> Result<Self, Error> {
        let bare = name.rsplit('.').next().unwrap_or(name);
        let op = match bare {
            "SUM" => Self::Sum,
            "PRODUCT" => Self::Prod,
            "MAX" => Self::Max,
            "MIN" => Self::Min,
            "AVG" => Self::Avg,
            "PREMUL_SUM" => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "reduce op 'PREMUL_SUM' needs a scalar and a communicator",
                )
                .with_hint("create it on the communicator with create_pre_mul_sum"));
            }
            "BAND" | "BOR" | "BXOR" => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("reduce op '{name}' has no collective"),
                )
                .with_hint("gather the operands and combine them locally"));
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("'{name}' is no PyTorch reduce op"),
                )
                .with_hint(format!(
                    "use one of {}",
                    Self::BUILT_IN.map(Self::torch_name).join(", ")
                )));
            }
        };
        Ok(op)
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads the name of a built-in operator ([`ReduceOp::name`]).
impl FromStr for ReduceOp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::BUILT_IN.into_iter().find(|op| op.name() == text).ok_or_else(|| {
            let names = Self::BUILT_IN.map(Self::name).join(", ");
            Error::new(ErrorKind::InvalidArgument, format!("unknown reduce op '{text}'"))
                .with_hint(format!("use one of {names}"))
        })
    }
}

/// A handle of an operator that multiplies each rank's input by a scalar and then sums.
///
/// It belongs to the communicator end that created it and to one dtype; both are checked at each
/// use. Made by [`Collectives::create_pre_mul_sum`](crate::Collectives::create_pre_mul_sum).
#[doc(alias = "ncclRedOpCreatePreMulSum")]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PreMulSum {
    comm: CommId,
    // Half a word, so that a reduce op fits into two registers.
    id: u32,
    dtype: DType,
}

impl PreMulSum {
    /// For backends: names operator `id` of `comm`. An id is never reused on one communicator.
    pub const fn from_parts(comm: CommId, id: u32, dtype: DType) -> Self {
        Self { comm, id, dtype }
    }

    /// The communicator end that it belongs to.
    pub const fn comm(self) -> CommId {
        self.comm
    }

    /// For backends: its number on that communicator.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The type of its scalar, and of the only buffers it reduces.
    pub const fn dtype(self) -> DType {
        self.dtype
    }
}

// Passed in registers: in memory, each layer would copy it.
const _: () = assert!(size_of::<ReduceOp>() == 16);

/// The scalar of a [`PreMulSum`].
#[doc(alias = "ncclScalarResidence_t")]
#[derive(Clone, Copy, Debug)]
pub enum Scalar {
    /// A value, copied when the operator is created.
    Host {
        /// Its type.
        dtype: DType,
        /// Its bytes in memory order, followed by zeros.
        bytes: [u8; 8],
    },
    /// One element in device memory, read when an operation that uses the operator *runs*.
    Device {
        /// Its type.
        dtype: DType,
        /// Where it is.
        ptr: *const c_void,
    },
}

impl Scalar {
    /// A value, copied when the operator is created.
    pub fn host<T: Element>(value: T) -> Self {
        Self::Host { dtype: T::DTYPE, bytes: value.to_bytes() }
    }

    /// Its type.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::Host { dtype, .. } | Self::Device { dtype, .. } => *dtype,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for op in ReduceOp::BUILT_IN {
            assert_eq!(op.name().parse::<ReduceOp>().unwrap(), op);
            assert_eq!(ReduceOp::from_torch_name(op.torch_name()).unwrap(), op);
        }
        assert_eq!(ReduceOp::from_torch_name("ReduceOp.SUM").unwrap(), ReduceOp::Sum);
    }

    #[test]
    fn an_operator_without_collective_says_what_to_do() {
        let error = ReduceOp::from_torch_name("BXOR").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint().is_some());
        let error = "median".parse::<ReduceOp>().unwrap_err();
        assert!(error.to_string().contains("sum, prod, max, min, avg"), "{error}");
    }
}
