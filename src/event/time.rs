//! Reads points in time in the forms in which producers write them.

use std::ops::{Range, RangeInclusive};

use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};

/// The first moment after 2100, in seconds since 1970. A date before 1970 or from here on is a placeholder, such as Go's zero
/// time (year 1), or was read in the wrong unit.
const END: i64 = 4_133_980_800;

/// The first moment of 2000, in seconds since 1970. No event is older. A time of 2026 in seconds that was read as milliseconds
/// is in 1970.
const FIRST_EVENT: i64 = 946_684_800;

/// The first number of seconds that is read as a date, which is 1973-03-03. A smaller number is more likely a mistake than a
/// date. With this bound no number fits two units.
const FIRST_NUMBER: f64 = 1e8;

/// The units of the numbers that are read, per second: seconds, milliseconds, microseconds, nanoseconds.
const UNITS: [i64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];

/// Reads a date of the years 1970 to 2100. Returns `None` if the text is no date. A date without a zone is taken as UTC.
///
/// It reads these forms:
/// - ISO 8601 and RFC 3339, also with a zone's name behind the offset.
/// - RFC 2822.
/// - Unix time in any of `UNITS`.
/// - Digits from the year to the day, minute, second or millisecond.
/// - .NET's `/Date(1526387472123)/`.
/// - A `Date` of JavaScript, a `time.Time` of Go and a `Time` of Ruby as text.
pub fn date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let time = match text.as_bytes().first()? {
        b'0'..=b'9' if is_iso_of_this_century(text) => text.parse().ok(),
        b'0'..=b'9' => digits(text).or_else(|| unix(text)).or_else(|| iso(text)).or_else(|| rfc2822(text)),
        b'/' => text.strip_prefix("/Date(")?.strip_suffix(")/").and_then(dot_net),
        b'A'..=b'Z' | b'a'..=b'z' => rfc2822(text).or_else(|| java_script(text)),
        _ => None,
    }?;
    is_within_years(time).then_some(time)
}

/// Returns true if the text is a date in the form in which this worker writes dates, `2018-05-15T12:31:12.123Z`. Nearly all dates
/// have it. Reading and writing one again took 2 to 4% of a row's time (perf over `benches/delivery`).
pub fn is_written(text: &str) -> bool {
    text.len() == "2018-05-15T12:31:12.123Z".len() && is_iso_of_this_century(text)
}

/// Returns true if an event can have happened at this time, as far as that is known without a clock.
pub fn is_event_time(text: &str) -> bool {
    // Nearly all times have this form, and seeing it takes a tenth of the time of reading it.
    is_iso_of_this_century(text) || date(text).is_some_and(|time| time.as_second() >= FIRST_EVENT)
}

/// Returns true if a text has the form `2018-05-15T12:31:12Z` or `2018-05-15T12:31:12.123Z`. The year must be 2000 to 2099, and
/// the day must be one that every month has.
fn is_iso_of_this_century(text: &str) -> bool {
    let number = |range: Range<usize>| match text.as_bytes()[range] {
        [ten @ b'0'..=b'9', one @ b'0'..=b'9'] => Some(10 * (ten - b'0') + (one - b'0')),
        _ => None,
    };
    let is_in = |range: Range<usize>, values: RangeInclusive<u8>| number(range).is_some_and(|n| values.contains(&n));
    let bytes = text.as_bytes();
    matches!(bytes.get(19..), Some([b'Z'] | [b'.', b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b'Z']))
        && (bytes[0], bytes[1], bytes[4], bytes[7]) == (b'2', b'0', b'-', b'-')
        && (bytes[10], bytes[13], bytes[16]) == (b'T', b':', b':')
        && number(2..4).is_some()
        && is_in(5..7, 1..=12)
        && is_in(8..10, 1..=28)
        && is_in(11..13, 0..=23)
        && is_in(14..16, 0..=59)
        && is_in(17..19, 0..=59)
}

/// Converts milliseconds since 1970 to a date of the years 1970 to 2100.
pub fn milliseconds(milliseconds: i64) -> Option<Timestamp> {
    let time = Timestamp::from_millisecond(milliseconds).ok()?;
    is_within_years(time).then_some(time)
}

fn is_within_years(time: Timestamp) -> bool {
    time >= Timestamp::UNIX_EPOCH && time.as_second() < END
}

/// Reads `20180515`, `201805151231`, `20180515123112` and `20180515123112123`. No unix time in any unit has these lengths and
/// begins like a year, except milliseconds of 1976 and seconds of 1970.
fn digits(text: &str) -> Option<Timestamp> {
    if !matches!(text.len(), 8 | 12 | 14 | 17) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |range: Range<usize>| text.get(range).map_or(Some(0), |digits| digits.parse::<i16>().ok());
    let small = |range| part(range).and_then(|number| i8::try_from(number).ok());
    let nanoseconds = i32::from(part(14..17)?) * 1_000_000;
    let date = civil::DateTime::new(
        part(0..4)?,
        small(4..6)?,
        small(6..8)?,
        small(8..10)?,
        small(10..12)?,
        small(12..14)?,
        nanoseconds,
    );
    let time = date.ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    is_within_years(time).then_some(time)
}

fn unix(text: &str) -> Option<Timestamp> {
    let number: f64 = text.parse().ok()?;
    let seconds = FIRST_NUMBER..END as f64;
    let per_second = UNITS.into_iter().find(|unit| seconds.contains(&(number / *unit as f64)))?;
    let milliseconds = match text.parse::<i64>() {
        // Cuts off what is finer than a millisecond, as in a text.
        Ok(number) if per_second == 1 => number * 1_000,
        Ok(number) => number / (per_second / 1_000),
        Err(_) => (number * 1_000.0 / per_second as f64).round() as i64,
    };
    Timestamp::from_millisecond(milliseconds).ok()
}

fn iso(text: &str) -> Option<Timestamp> {
    // A zone's name adds nothing to an offset. Without an offset it needs a table of zones, which this worker does not have.
    let (text, has_zone) = text.split_once('[').map_or((text, false), |(text, _)| (text, true));
    let local = |text: &str| {
        let date = text.parse::<civil::DateTime>().ok().filter(|_| !has_zone)?;
        date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    };
    text.parse::<Timestamp>().ok().or_else(|| local(text)).or_else(|| spaced(text))
}

/// Reads `2018-05-15 14:31:12.5 +0200 CEST m=+0.1` of Go and `2018-05-15 12:31:12 UTC` of Ruby.
fn spaced(text: &str) -> Option<Timestamp> {
    let mut words = text.split_ascii_whitespace();
    let (date, time, zone) = (words.next()?, words.next()?, words.next()?);
    let zone = if matches!(zone, "UTC" | "GMT") { "Z" } else { zone };
    format!("{date}T{time}{zone}").parse().ok()
}

fn rfc2822(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

/// Reads `Tue May 15 2018 14:31:12 GMT+0200 (Central European Summer Time)`.
fn java_script(text: &str) -> Option<Timestamp> {
    let text = text.split_once(" (").map_or(text, |(text, _)| text);
    Timestamp::strptime("%a %b %d %Y %H:%M:%S GMT%z", text).ok()
}

/// Reads milliseconds since 1970 in UTC. An offset behind them only names the zone of the writer.
fn dot_net(text: &str) -> Option<Timestamp> {
    let text = text.split_once(['+', '-']).map_or(text, |(text, _)| text);
    milliseconds(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2018-05-15T12:31:12Z is 1526387472, the example of Vitally's and Segment's pages on `createdAt`.
    #[test]
    fn dates_in_every_form_are_one_moment() {
        for (written, milliseconds) in [
            ("2018-05-15T12:31:12Z", 0),
            ("2018-05-15T12:31:12.123456Z", 123),
            ("2018-05-15T14:31:12+02:00", 0),
            ("2018-05-15T14:31:12+0200", 0),
            ("2018-05-15 12:31:12", 0),
            (" 2018-05-15T12:31:12 ", 0),
            // `datetime.isoformat()` and PostgreSQL.
            ("2018-05-15T12:31:12.123456+00:00", 123),
            ("2018-05-15 12:31:12.123+00", 123),
            // `DateTime.ToString("o")` of .NET.
            ("2018-05-15T14:31:12.1234567+02:00", 123),
            // `ZonedDateTime` of Java; RFC 9557.
            ("2018-05-15T14:31:12+02:00[Europe/Berlin]", 0),
            ("2018-05-15T12:31:12Z[UTC]", 0),
            // RFC 2822, and HTTP's form of it.
            ("Tue, 15 May 2018 14:31:12 +0200", 0),
            ("15 May 2018 12:31:12 +0000", 0),
            ("Tue, 15 May 2018 12:31:12 GMT", 0),
            ("1526387472", 0),
            ("1526387472.123", 123),
            ("1526387472123", 123),
            ("1526387472123456", 123),
            ("1526387472123456789", 123),
            ("1.526387472e9", 0),
            ("20180515123112", 0),
            ("20180515123112123", 123),
            ("/Date(1526387472123)/", 123),
            ("/Date(1526387472000+0200)/", 0),
            ("Tue May 15 2018 14:31:12 GMT+0200 (Central European Summer Time)", 0),
            ("Tue May 15 2018 12:31:12 GMT+0000", 0),
            ("2018-05-15 14:31:12.123456 +0200 CEST m=+0.148209228", 123),
            ("2018-05-15 12:31:12 UTC", 0),
            ("2018-05-15 14:31:12 +0200", 0),
        ] {
            let expected = Timestamp::from_millisecond(1_526_387_472_000 + milliseconds).expect("in range");
            let found = date(written).and_then(|time| Timestamp::from_millisecond(time.as_millisecond()).ok());
            assert_eq!(found, Some(expected), "{written}");
        }
        let midnight: Timestamp = "2018-05-15T00:00:00Z".parse().expect("a time");
        assert_eq!([date("2018-05-15"), date("20180515")], [Some(midnight); 2]);
        assert_eq!(date("201805151231"), "2018-05-15T12:31:00Z".parse().ok());
    }

    #[test]
    fn what_is_no_date_of_the_years_1970_to_2100_is_none() {
        for written in [
            "",
            " ",
            "yesterday",
            "n/a",
            "NaN",
            "inf",
            "infinity",
            "0",
            "17",
            "2018",
            "-1",
            "-62135596800",
            "1e300",
            "1.2.3",
            "99999999999999999999",
            // Zero dates of Go, .NET and MySQL, and dates next to the years that are read.
            "0001-01-01T00:00:00Z",
            "0000-00-00 00:00:00",
            "0000-00-00",
            "00010101",
            "00000000000000",
            "1969-12-31T23:59:59Z",
            "2101-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "21010101",
            "4133980800",
            "20181315123112",
            "20180230",
            "2018-02-30",
            "2018-05-15T25:00:00Z",
            // The offset is not known.
            "2018-05-15T14:31:12[Europe/Berlin]",
            // The month could be either number.
            "05/06/2018",
            "/Date(-62135596800000)/",
            "/Date(x)/",
            "12:31:12",
            "Ünix",
        ] {
            assert_eq!(date(written), None, "{written}");
        }
        assert_eq!(milliseconds(i64::MAX), None);
        assert_eq!(milliseconds(-1), None);
    }

    #[test]
    fn a_number_is_read_in_the_one_unit_that_fits() {
        for first in [100_000_000_i64, 4_133_980_799] {
            for unit in UNITS {
                let expected = Timestamp::from_second(first).ok();
                // Nanoseconds of 2100 still fit into 64 bits.
                assert_eq!(date(&(first * unit).to_string()), expected, "{first} times {unit}");
            }
        }
        for between in ["99999999", "5000000000", "99999999999", "5000000000000", "99999999999999"] {
            assert_eq!(date(between), None, "{between}");
        }
    }

    #[test]
    fn an_event_is_no_older_than_2000() {
        assert!(is_event_time("2000-01-01T00:00:00Z") && is_event_time("1257894000000"));
        // The seconds of 2018, read as milliseconds.
        assert!(!is_event_time("1970-01-18T15:59:47.472Z") && !is_event_time("1999-12-31T23:59:59Z"));
    }

    /// Replaces each character of a good text by others. Every text that the quick look accepts is a time of this century for
    /// jiff too.
    #[test]
    fn the_quick_look_takes_nothing_that_is_no_time() {
        let mut taken = 0;
        for good in ["2018-05-15T12:31:12Z", "2099-12-28T23:59:59.999Z", "2000-01-01T00:00:00.000Z"] {
            assert!(is_iso_of_this_century(good), "{good}");
            for at in 0..good.len() {
                for byte in b' '..=b'~' {
                    let mut text = good.as_bytes().to_vec();
                    text[at] = byte;
                    let text = String::from_utf8(text).expect("ASCII");
                    if is_iso_of_this_century(&text) {
                        taken += 1;
                        assert!(date(&text).is_some_and(|time| time.as_second() >= FIRST_EVENT), "{text}");
                    }
                }
            }
        }
        assert!(taken > 100, "{taken}");
        for other in [
            "2018-02-29T12:31:12Z",
            "1999-05-15T12:31:12Z",
            "2018-05-15T12:31:12+02:00",
            "2018-05-15",
            "äääääääääääääääääääää",
        ] {
            assert!(!is_iso_of_this_century(other), "{other}");
        }
    }
}
