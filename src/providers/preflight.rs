//! Refuses rows that every provider would refuse, before they use a part of the limit.

use super::Shape;
use crate::verdict::{RejectReason, Rejection};

/// The most characters of a user id. No vendor states a bound; 255 is Userpilot's bound for names and the usual width of an id
/// column.
const LONGEST_USER_ID: usize = 255;

/// Refuses a user id that is blank or too long.
///
/// # Errors
/// `bad_user_id`.
pub fn user_id(user_id: &str) -> Result<(), Rejection> {
    if user_id.trim().is_empty() {
        return Err(Rejection::local(RejectReason::BadUserId, None, "the user id is blank"));
    }
    // The bytes of a text are an upper bound of its characters.
    if user_id.len() > LONGEST_USER_ID && user_id.chars().count() > LONGEST_USER_ID {
        let message = format!("the user id is longer than {LONGEST_USER_ID} characters");
        return Err(Rejection::local(RejectReason::BadUserId, None, message));
    }
    Ok(())
}

/// Refuses a row that no request can hold.
///
/// # Errors
/// `row_too_large`.
pub fn size(row_bytes: usize, shape: &Shape) -> Result<(), Rejection> {
    let request_bytes = row_bytes + shape.overhead_bytes + shape.overhead_bytes_per_row;
    if request_bytes > shape.max_bytes {
        let message = format!("the row makes a request of {request_bytes} bytes; at most {} are sent", shape.max_bytes);
        return Err(Rejection::local(RejectReason::RowTooLarge, None, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_has_1_to_255_characters_however_many_bytes() {
        assert_eq!(user_id("u"), Ok(()));
        assert_eq!(user_id(&"\u{e9}".repeat(255)), Ok(()));
        for bad in [String::new(), " \t".to_owned(), "x".repeat(256)] {
            assert_eq!(user_id(&bad).map_err(|rejection| rejection.reason), Err(RejectReason::BadUserId), "{bad:?}");
        }
    }

    #[test]
    fn a_row_may_fill_a_request_to_the_last_byte() {
        let shape = Shape {
            max_rows: 1,
            max_bytes: 100,
            overhead_bytes: 12,
            overhead_bytes_per_row: 1,
            single_below: 0,
            calls_per_minute: None,
            default_rows: 1,
            default_in_flight: 1,
            default_rows_per_minute: 1,
            max_in_flight: 1,
        };
        assert_eq!(size(87, &shape), Ok(()));
        assert_eq!(size(88, &shape).map_err(|rejection| rejection.reason), Err(RejectReason::RowTooLarge));
    }
}
