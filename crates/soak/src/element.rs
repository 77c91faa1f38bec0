//! Elements as bytes, and the arithmetic of the oracle: one element at a time, in integers of 128
//! bits or in `f64`, shared with nothing that is tested.

use collectives_core::DType;

use crate::{program::Reduction, random::hash};

/// The value of an element. Floats are always small whole numbers or halves and quarters of such, so
/// that every result is exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    Float(f64),
    Int(i128),
}

/// Combines the values of all ranks. The scalars are those of a PreMulSum.
pub(crate) fn reduce(
    dtype: DType,
    reduction: Reduction,
    values: &[Value],
    scalars: &[Value],
) -> Value {
    let combine = |a: Value, b: Value| {
        let value = match (reduction, a, b) {
            (Reduction::Prod, Value::Int(a), Value::Int(b)) => Value::Int(a.wrapping_mul(b)),
            (Reduction::Prod, Value::Float(a), Value::Float(b)) => Value::Float(a * b),
            (Reduction::Max, Value::Int(a), Value::Int(b)) => Value::Int(a.max(b)),
            (Reduction::Max, Value::Float(a), Value::Float(b)) => Value::Float(a.max(b)),
            (Reduction::Min, Value::Int(a), Value::Int(b)) => Value::Int(a.min(b)),
            (Reduction::Min, Value::Float(a), Value::Float(b)) => Value::Float(a.min(b)),
            (_, Value::Int(a), Value::Int(b)) => Value::Int(a.wrapping_add(b)),
            (_, Value::Float(a), Value::Float(b)) => Value::Float(a + b),
            _ => unreachable!("elements of one dtype"),
        };
        wrap(dtype, value)
    };
    let scaled = values.iter().enumerate().map(|(rank, &value)| match (scalars.get(rank), value) {
        (None, value) => value,
        (Some(&Value::Int(scalar)), Value::Int(value)) => {
            wrap(dtype, Value::Int(value.wrapping_mul(scalar)))
        }
        (Some(&Value::Float(scalar)), Value::Float(value)) => Value::Float(value * scalar),
        _ => unreachable!("a scalar of the elements' dtype"),
    });
    let total = scaled.reduce(combine).unwrap_or(Value::Int(0));
    match (reduction, total) {
        (Reduction::Avg, Value::Int(total)) => Value::Int(total / values.len() as i128),
        (Reduction::Avg, Value::Float(total)) => Value::Float(total / values.len() as f64),
        _ => total,
    }
}

/// The element at `index` of a buffer.
pub(crate) fn read(dtype: DType, bytes: &[u8], index: usize) -> Value {
    let size = dtype.size();
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(&bytes[index * size..(index + 1) * size]);
    decode(dtype, u64::from_le_bytes(wide))
}

/// Puts an element at `index` of a buffer.
pub(crate) fn write(dtype: DType, bytes: &mut [u8], index: usize, value: Value) {
    let size = dtype.size();
    let wide = encode(dtype, value).to_le_bytes();
    bytes[index * size..(index + 1) * size].copy_from_slice(&wide[..size]);
}

/// What a seed writes before an operation: any bytes, but for reductions of floats numbers whose
/// result is exact in any type.
pub(crate) fn fresh(
    dtype: DType,
    reduction: Option<Reduction>,
    seed: u64,
    bytes: usize,
) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    match reduction {
        Some(reduction) if dtype.is_float() => {
            for index in 0..bytes / dtype.size() {
                let dice = hash([seed, index as u64]);
                write(dtype, &mut buffer, index, Value::Float(summand(dtype, reduction, dice)));
            }
        }
        _ => fill(seed, &mut buffer),
    }
    buffer
}

/// The scalar of a rank in a PreMulSum.
pub(crate) fn scalar(dtype: DType, seed: u64, rank: usize) -> Value {
    let dice = hash([seed, rank as u64, 77]);
    if !dtype.is_float() {
        return wrap(dtype, Value::Int(i128::from(dice)));
    }
    let scalars: &[f64] = if dtype.is_fp8() { &[1.0, -1.0] } else { &[1.0, -1.0, 2.0, 0.5] };
    Value::Float(scalars[(dice % scalars.len() as u64) as usize])
}

/// The bytes of an element, followed by zeros.
pub(crate) fn bytes_of(dtype: DType, value: Value) -> [u8; 8] {
    encode(dtype, value).to_le_bytes()
}

/// Any bytes.
pub(crate) fn fill(seed: u64, buffer: &mut [u8]) {
    for (index, chunk) in buffer.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&hash([seed, index as u64]).to_le_bytes()[..chunk.len()]);
    }
}

/// Six such numbers, added up in any order or multiplied, need no more bits than the type has.
fn summand(dtype: DType, reduction: Reduction, dice: u64) -> f64 {
    if reduction == Reduction::Prod {
        return [1.0, -1.0, 2.0, -2.0][(dice % 4) as usize];
    }
    let most = match dtype {
        DType::F8E5M2 => 1,
        DType::F8E4M3 => 2,
        _ => 8,
    };
    (dice % (2 * most + 1)) as f64 - most as f64
}

/// Integers as they are in their type.
fn wrap(dtype: DType, value: Value) -> Value {
    match value {
        Value::Float(_) => value,
        Value::Int(_) => decode(dtype, encode(dtype, value)),
    }
}

/// Exponent and mantissa bits of a float type.
fn format(dtype: DType) -> Option<(u32, u32)> {
    match dtype {
        DType::F16 => Some((5, 10)),
        DType::F32 => Some((8, 23)),
        DType::F64 => Some((11, 52)),
        DType::Bf16 => Some((8, 7)),
        DType::F8E4M3 => Some((4, 3)),
        DType::F8E5M2 => Some((5, 2)),
        _ => None,
    }
}

fn decode(dtype: DType, bits: u64) -> Value {
    let width = 8 * dtype.size() as u32;
    let Some((exponents, mantissas)) = format(dtype) else {
        let signed = matches!(dtype, DType::I8 | DType::I32 | DType::I64);
        let shift = 64 - width;
        let signed_value = ((bits << shift) as i64) >> shift;
        return Value::Int(if signed { signed_value.into() } else { bits.into() });
    };
    let sign = if bits >> (width - 1) & 1 == 1 { -1.0 } else { 1.0 };
    let exponent = (bits >> mantissas & ((1 << exponents) - 1)) as i32;
    let mantissa = bits & ((1 << mantissas) - 1);
    assert!(exponent > 0 || mantissa == 0, "small floats are normal: {bits:#x} as {dtype}");
    if exponent == 0 {
        return Value::Float(0.0 * sign);
    }
    let bias = (1 << (exponents - 1)) - 1;
    let fraction = 1.0 + mantissa as f64 / (1_u64 << mantissas) as f64;
    Value::Float(sign * fraction * f64::powi(2.0, exponent - bias))
}

fn encode(dtype: DType, value: Value) -> u64 {
    let width = 8 * dtype.size() as u32;
    let value = match value {
        Value::Int(value) => return value as u64 & (u64::MAX >> (64 - width)),
        Value::Float(value) => value,
    };
    let (exponents, mantissas) = format(dtype).expect("a float's type");
    let sign = u64::from(value.is_sign_negative()) << (width - 1);
    if value == 0.0 {
        return sign;
    }
    let bits = value.to_bits();
    let rest = 52 - mantissas;
    let exponent = (bits >> 52 & 0x7ff) as i64 - 1023 + ((1 << (exponents - 1)) - 1);
    let fits = bits & ((1 << rest) - 1) == 0 && (1..(1 << exponents)).contains(&exponent);
    assert!(fits, "{value} is not exact in {dtype}: the generator has to choose other inputs");
    sign | (exponent as u64) << mantissas | (bits & ((1 << 52) - 1)) >> rest
}

#[cfg(test)]
mod tests {
    use collectives_core::{F8E4M3, F8E5M2, bf16, f16};

    use super::*;

    #[test]
    fn floats_are_encoded_as_their_types_say() {
        for value in [-96.5, -12.0, -0.25, -0.0, 0.0, 0.5, 1.0, 7.0, 64.0] {
            let of = |dtype| encode(dtype, Value::Float(value));
            assert_eq!(of(DType::F32), u64::from((value as f32).to_bits()));
            assert_eq!(of(DType::F64), value.to_bits());
            assert_eq!(of(DType::F16), u64::from(f16::from_f64(value).to_bits()));
            assert_eq!(of(DType::Bf16), u64::from(bf16::from_f64(value).to_bits()));
            if value != -96.5 {
                assert_eq!(of(DType::F8E4M3), u64::from(F8E4M3::from_f64(value).to_bits()));
            }
            if value != -96.5 {
                assert_eq!(of(DType::F8E5M2), u64::from(F8E5M2::from_f64(value).to_bits()));
            }
            for dtype in [DType::F16, DType::F32, DType::F64, DType::Bf16] {
                assert_eq!(decode(dtype, of(dtype)), Value::Float(value));
            }
        }
    }

    #[test]
    fn integers_wrap_and_average_toward_zero() {
        let int = |reduction, values: &[i128]| {
            let values: Vec<_> = values.iter().map(|&value| Value::Int(value)).collect();
            reduce(DType::I8, reduction, &values, &[])
        };
        assert_eq!(int(Reduction::Sum, &[100, 100]), Value::Int(-56));
        assert_eq!(int(Reduction::Prod, &[100, 3, 2]), Value::Int(88));
        assert_eq!(int(Reduction::Avg, &[-7, 0]), Value::Int(-3));
        assert_eq!(int(Reduction::Max, &[-7, 0]), Value::Int(0));
        let scaled = [Value::Int(7), Value::Int(9)];
        let scalars = [Value::Int(2), Value::Int(-1)];
        assert_eq!(reduce(DType::I32, Reduction::PreMulHost, &scaled, &scalars), Value::Int(5));
    }
}
