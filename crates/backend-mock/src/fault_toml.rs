//! A fault plan as text.

use std::{fmt, fs, str::FromStr, time::Duration};

use collectives_core::{Error, ErrorKind, Result, Version};
use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected, Visitor},
};

use crate::{
    error::{invalid, refuse},
    fault::{Action, FaultPlan, Rule, Sequence},
    op::Kind,
};

/// Reads TOML. The keys are the fields of [`FaultPlan`] and [`Rule`]; see the guide on faults.
impl FromStr for FaultPlan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plan: Plan = toml::from_str(text)
            .map_err(|error| invalid(format!("the fault plan is not as wanted: {error}")))?;
        let Plan { seed, rule } = plan;
        Ok(Self { seed, rules: rule.into_iter().map(Rule::from).collect() })
    }
}

impl FaultPlan {
    /// Reads a plan, or, behind an `@`, the file that holds it: as in `COLLECTIVES_MOCK_FAULTS`.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where the text is not a plan: with the line, the
    /// value and what was wanted. [`System`](ErrorKind::System) where the file cannot be read.
    pub fn load(text: &str) -> Result<Self> {
        let Some(path) = text.strip_prefix('@') else { return text.parse() };
        let text = fs::read_to_string(path).map_err(|error| {
            refuse(ErrorKind::System, format!("cannot read the fault plan '{path}': {error}"))
        })?;
        text.parse().map_err(|error: Error| invalid(format!("'{path}': {}", error.message())))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    rule: Vec<RuleText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    action: ActionText,
    #[serde(default)]
    rank: OneOrMore<u32>,
    communicator: Option<String>,
    #[serde(default)]
    operation: OneOrMore<Method>,
    #[serde(default)]
    sequence: Sequence,
    #[serde(default)]
    probability: Probability,
    times: Option<u64>,
}

impl From<RuleText> for Rule {
    fn from(text: RuleText) -> Self {
        let RuleText { action, rank, communicator, operation, sequence, probability, times } = text;
        Self {
            action: action.into(),
            ranks: rank.0,
            communicator,
            operations: operation.0.into_iter().map(|method| method.0).collect(),
            sequence,
            probability: probability.0,
            times,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActionText {
    AsyncError(AsyncErrorText),
    Delay(Span),
    Hang,
    JoinFails,
    JoinHangs,
    JoinLate(Span),
    Kill,
    OutOfMemory(u64),
    Straggle(Span),
    Version(Version),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AsyncErrorText {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    kind: KindText,
}

/// The errors that a library reports by itself.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindText {
    Device,
    Internal,
    #[default]
    Remote,
    System,
    Timeout,
    Vendor,
}

impl From<ActionText> for Action {
    fn from(text: ActionText) -> Self {
        match text {
            ActionText::AsyncError(AsyncErrorText { after, kind }) => {
                let kind = match kind {
                    KindText::Device => ErrorKind::Device,
                    KindText::Internal => ErrorKind::Internal,
                    KindText::Remote => ErrorKind::Remote,
                    KindText::System => ErrorKind::System,
                    KindText::Timeout => ErrorKind::Timeout,
                    KindText::Vendor => ErrorKind::Vendor,
                };
                Self::AsyncError { after, kind }
            }
            ActionText::Delay(by) => Self::Delay(by.0),
            ActionText::Hang => Self::Hang,
            ActionText::JoinFails => Self::JoinFails,
            ActionText::JoinHangs => Self::JoinHangs,
            ActionText::JoinLate(by) => Self::JoinLate(by.0),
            ActionText::Kill => Self::Kill,
            ActionText::OutOfMemory(allocation) => Self::OutOfMemory { allocation },
            ActionText::Straggle(by) => Self::Straggle(by.0),
            ActionText::Version(version) => Self::Version(version),
        }
    }
}

/// A value, or a list of them.
struct OneOrMore<T>(Vec<T>);

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMore<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                T::deserialize(de::value::I64Deserializer::new(value))
                    .map(|value| OneOrMore(vec![value]))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                T::deserialize(de::value::StrDeserializer::new(value))
                    .map(|value| OneOrMore(vec![value]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMore(values))
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// The name of an operation.
struct Method(String);

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if Kind::ALL.iter().any(|kind| kind.name() == text) {
            return Ok(Self(text));
        }
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let want = format!("one of {}", names.join(", "));
        Err(de::Error::invalid_value(Unexpected::Str(&text), &&*want))
    }
}

struct Probability(f64);

impl Default for Probability {
    fn default() -> Self {
        Self(1.0)
    }
}

impl<'de> Deserialize<'de> for Probability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        if (0.0..=1.0).contains(&value) {
            return Ok(Self(value));
        }
        Err(de::Error::invalid_value(Unexpected::Float(value), &"a number from 0 to 1"))
    }
}

/// A number, `"3..7"`, or `"every 4"`.
impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;

        impl Visitor<'_> for Numbers {
            type Value = Sequence;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0, a range like \"3..7\", or \"every 4\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Sequence, E> {
                match u64::try_from(value) {
                    Ok(at) => Ok(Sequence::In(at, at.saturating_add(1))),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Sequence, E> {
                let every = text.strip_prefix("every ").and_then(|n| n.trim().parse().ok());
                if let Some(n) = every.filter(|&n| n > 0) {
                    return Ok(Sequence::Every(n));
                }
                let range = text.split_once("..").and_then(|(start, end)| {
                    let start: u64 = start.trim().parse().ok()?;
                    let end = end.trim();
                    let end = if end.is_empty() { u64::MAX } else { end.parse().ok()? };
                    (start < end).then_some(Sequence::In(start, end))
                });
                range.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

/// A duration: `"20us"`, `"1.5ms"`, `"2s"`.
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, unit) = text.split_at(digits);
            let factor = match unit.trim() {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "min" => 60.0,
                _ => return None,
            };
            Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
        };
        let wanted = &"a duration like \"20us\", \"1.5ms\" or \"2s\"";
        parse().map(Self).ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), wanted))
    }
}
