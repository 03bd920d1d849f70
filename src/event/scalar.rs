//! Reads a field that should be text: at once if it is plain text, and from its raw JSON if it is not.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A value of any type, which an event may hold in a field that should be text.
pub(super) trait Scalar<'a>: Deserialize<'a> {
    /// Returns a string's content, borrowed if it has no escapes.
    fn string(self) -> Option<Cow<'a, str>>;

    /// Returns a string that is not blank, or the exact digits of an integer of any length. `1.0` and `1e3` are not integers.
    fn id(self) -> Option<Cow<'a, str>>;

    /// Returns a string that is not blank.
    fn text(self) -> Option<Cow<'a, str>> {
        self.string().filter(|text| !is_blank(text))
    }

    /// Returns a string that is not blank, or a number as it is written.
    fn text_or_number(self) -> Option<Cow<'a, str>>;

    /// Returns true if the value is an empty string or a string of white space.
    fn is_blank(&self) -> bool;
}

fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

/// Any value, exactly as it is written.
impl<'a> Scalar<'a> for &'a RawValue {
    fn string(self) -> Option<Cow<'a, str>> {
        let content = self.get().strip_prefix('"')?.strip_suffix('"')?;
        if content.as_bytes().contains(&b'\\') {
            serde_json::from_str(self.get()).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(content))
        }
    }

    fn id(self) -> Option<Cow<'a, str>> {
        let digits = self.get().strip_prefix('-').unwrap_or(self.get());
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { Some(Cow::Borrowed(self.get())) } else { self.text() }
    }

    fn text_or_number(self) -> Option<Cow<'a, str>> {
        if self.get().starts_with(|first: char| first.is_ascii_digit() || first == '-') {
            return Some(Cow::Borrowed(self.get()));
        }
        self.text()
    }

    fn is_blank(&self) -> bool {
        self.string().is_some_and(|text| is_blank(&text))
    }
}

/// A string without escapes; anything else is an error. Reading an event of such strings is a twelfth faster than reading it
/// from raw JSON (`benches/decode.rs`). Raw JSON is cut out of the text first and then read again.
pub(super) struct Text<'a>(&'a str);

impl<'a> Scalar<'a> for Text<'a> {
    fn string(self) -> Option<Cow<'a, str>> {
        Some(Cow::Borrowed(self.0))
    }

    fn id(self) -> Option<Cow<'a, str>> {
        self.text()
    }

    fn text_or_number(self) -> Option<Cow<'a, str>> {
        self.text()
    }

    fn is_blank(&self) -> bool {
        is_blank(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string without escapes")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views<'a, S: Scalar<'a>>(json: &'a str) -> Option<[Option<String>; 4]> {
        let read = || serde_json::from_str::<S>(json).ok();
        let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
        Some([owned(read()?.string()), owned(read()?.text()), owned(read()?.id()), owned(read()?.text_or_number())])
    }

    #[test]
    fn plain_text_is_read_as_from_raw_json() {
        for json in [r#""""#, r#""u""#, r#"" u ""#, "\" \u{a0}\"", "\"😀\"", r#""42""#, r#""1.0""#] {
            assert!(views::<Text<'_>>(json).is_some(), "{json}");
            assert_eq!(views::<Text<'_>>(json), views::<&RawValue>(json), "{json}");
        }
    }

    #[test]
    fn everything_else_is_left_to_raw_json() {
        for json in [r#""\u0061""#, r#""\ud83d""#, "0", "-7", "1.0", "18446744073709551616", "true", "[1]", "{}"] {
            assert_eq!(views::<Text<'_>>(json), None, "{json}");
            assert!(views::<&RawValue>(json).is_some(), "{json}");
        }
    }
}
