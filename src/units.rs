//! Durations, sizes and rates as people write them in the configuration: `10s`, `500KiB`, `unlimited`.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A duration with its unit: `500ms`, `10s`, `1m 30s`. A number without a unit is refused; `0s` is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    pub const fn from_secs(seconds: u64) -> Self {
        HumanDuration(Duration::from_secs(seconds))
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(HumanDuration)
            .map_err(|_| "not a duration: write a number and its unit, such as 500ms, 10s or 5m".to_owned())
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes: `500KiB`, `1MiB`, or a plain integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub usize);

impl ByteCount {
    pub const fn kib(kib: usize) -> Self {
        ByteCount(kib * 1024)
    }

    pub const fn mib(mib: usize) -> Self {
        ByteCount(mib * 1024 * 1024)
    }
}

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_size = || "not a size: write bytes, or a number and its unit, such as 500KiB or 1MiB".to_owned();
        let size = text.trim().parse::<ByteSize>().map_err(|_| not_a_size())?;
        usize::try_from(size.as_u64()).map(ByteCount).map_err(|_| not_a_size())
    }
}

impl fmt::Display for ByteCount {
    /// Writes the size in the largest unit that is exact, so that it reads back as the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bytes) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 > 0 && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{name}", self.0 / bytes);
            }
        }
        self.0.fmt(f)
    }
}

/// The number of rows that a destination takes in any 60 seconds, or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsPerMinute {
    Limited(NonZeroU32),
    Unlimited,
}

impl FromStr for RowsPerMinute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("unlimited") {
            return Ok(RowsPerMinute::Unlimited);
        }
        text.parse()
            .map(RowsPerMinute::Limited)
            .map_err(|_| "not a rate: write rows a minute as a whole number from 1, or unlimited".to_owned())
    }
}

impl fmt::Display for RowsPerMinute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowsPerMinute::Limited(rows) => rows.fmt(f),
            RowsPerMinute::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)
            .map_err(|_| de::Error::custom("not a duration: write a number and its unit, such as 500ms, 10s or 5m"))?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText(|number: u64| usize::try_from(number).ok().map(ByteCount)))
    }
}

impl Serialize for ByteCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RowsPerMinute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText(|number: u64| {
            u32::try_from(number).ok().and_then(NonZeroU32::new).map(RowsPerMinute::Limited)
        }))
    }
}

impl Serialize for RowsPerMinute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            RowsPerMinute::Limited(rows) => serializer.serialize_u32(rows.get()),
            RowsPerMinute::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

/// Reads a value that YAML gives as a number and the environment as text.
struct NumberOrText<F>(F);

impl<T, F> Visitor<'_> for NumberOrText<F>
where
    T: FromStr<Err = String>,
    F: Fn(u64) -> Option<T>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number or text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(de::Error::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        // The text form words the refusal, so that 0 and "0" give the same message.
        (self.0)(number).map_or_else(|| self.visit_str(&number.to_string()), Ok)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(de::Error::invalid_value(Unexpected::Signed(number), &"a whole number that is not negative")),
        }
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A number and its unit, such as 500ms, 10s or 5m.",
            "pattern": r"^\s*\d+\s*[a-zA-Zµ]+(\s*\d+\s*[a-zA-Zµ]+)*\s*$",
        })
    }
}

impl JsonSchema for ByteCount {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "description": "Bytes, or a number and its unit, such as 500KiB or 1MiB.",
            "minimum": 0,
            "pattern": r"^\d+(\.\d+)?\s*([kKmMgGtT]?[iI]?[bB]?)$",
        })
    }
}

impl JsonSchema for RowsPerMinute {
    fn schema_name() -> Cow<'static, str> {
        "RowsPerMinute".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "description": "Rows in any 60 seconds, or unlimited.",
            "minimum": 1,
            "maximum": u32::MAX,
            "pattern": r"^(unlimited|[1-9]\d*)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn durations_read_back_as_they_are_written() {
        for text in ["500ms", "10s", "5m", "1m 30s", "0s"] {
            let duration: HumanDuration = text.parse().expect("a duration");
            assert_eq!(duration.to_string(), text);
            assert_eq!(read::<HumanDuration>(&format!("{text:?}")), Ok(duration));
        }
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_the_remedy() {
        for json in ["\"10\"", "10", "\"\"", "\"-1s\"", "true", "\"ten seconds\""] {
            let error = read::<HumanDuration>(json).expect_err("refused");
            assert!(error.contains("such as 500ms, 10s or 5m"), "{json}: {error}");
        }
    }

    #[test]
    fn sizes_are_exact_in_text_and_in_number() {
        let sizes = [("\"500KiB\"", 512_000), ("\"1MiB\"", 1_048_576), ("1000", 1000), ("\"1000\"", 1000)];
        for (json, bytes) in sizes {
            let size: ByteCount = read(json).expect("a size");
            assert_eq!(size, ByteCount(bytes), "{json}");
            assert_eq!(size.to_string().parse(), Ok(size), "{json}");
        }
        assert_eq!(ByteCount(512_000).to_string(), "500KiB");
        assert_eq!(ByteCount(0).to_string(), "0");
    }

    #[test]
    fn a_size_that_is_no_size_is_refused() {
        for json in ["\"1 potato\"", "-1", "\"\"", "1.5", "null"] {
            assert!(read::<ByteCount>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_rate_is_a_number_its_text_or_unlimited() {
        let limited = RowsPerMinute::Limited(NonZeroU32::new(1200).expect("not zero"));
        assert_eq!(read("1200"), Ok(limited));
        assert_eq!(read("\"1200\""), Ok(limited));
        assert_eq!(read("\"unlimited\""), Ok(RowsPerMinute::Unlimited));
        for json in ["0", "\"0\"", "-5", "5000000000", "\"many\"", "1.5"] {
            assert!(read::<RowsPerMinute>(json).is_err(), "{json}");
        }
    }
}
