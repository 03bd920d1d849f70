//! Times and counts as the demo prints them.

use std::time::Duration;

/// Returns a time as minutes and seconds, rounded up, or as hours and minutes if it is that long.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_millis().div_ceil(1_000);
    match seconds {
        0..3_600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}", seconds / 3_600, seconds / 60 % 60),
    }
}

/// Returns a number with commas between the thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the digits of a number below a million, or else the number of millions, so that columns hold.
pub fn short(number: u64) -> String {
    match number {
        0..1_000_000 => number.to_string(),
        1_000_000..10_000_000 => format!("{:.1}M", number as f64 / 1e6),
        _ => format!("{}M", number / 1_000_000),
    }
}
