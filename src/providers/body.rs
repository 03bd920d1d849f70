//! Reads a reply's body as JSON: the members that an API promises count, and all others are ignored.

use serde_json::value::RawValue;

use super::Reply;
use super::values::{Kind, kind, member, text};

/// Returns the body as JSON, without a byte order mark and blanks around it, or `None` for anything else. Bytes that are not
/// UTF-8 damage the text that holds them, but not the whole body.
pub fn json(reply: &Reply) -> Option<Box<RawValue>> {
    serde_json::from_str(&String::from_utf8_lossy(bare(reply))).ok()
}

/// Returns true if the body is not empty and not JSON: a page or a line of a proxy, a firewall or a load balancer.
pub fn is_page(reply: &Reply) -> bool {
    !bare(reply).is_empty() && json(reply).is_none()
}

/// Returns true if the body is a page in a markup language.
pub fn is_markup(reply: &Reply) -> bool {
    bare(reply).first() == Some(&b'<')
}

/// Returns a member that is a string.
pub fn string(object: &RawValue, name: &str) -> Option<String> {
    member(object, name).filter(|value| kind(value) == Kind::String).and_then(text)
}

/// Returns a member that is a whole number of at least zero.
pub fn count(object: &RawValue, name: &str) -> Option<u64> {
    member(object, name)?.get().parse().ok()
}

/// Returns the elements of a member that is a list, or none if the member is something else.
pub fn list<'a>(object: &'a RawValue, name: &str) -> Vec<&'a RawValue> {
    member(object, name).and_then(|list| serde_json::from_str(list.get()).ok()).unwrap_or_default()
}

fn bare(reply: &Reply) -> &[u8] {
    reply.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&reply.body).trim_ascii()
}
