//! Finds the NDJSON file in a `multipart/form-data` body (RFC 7578), just enough for one upload.

use serde_json::Value;

/// Returns the rows of the part named `file`, one JSON object per line.
///
/// # Errors
/// The text for the vendor's refusal, which names what the upload lacks.
pub(super) fn ndjson_file(content_type: &str, body: &[u8]) -> Result<Vec<Value>, String> {
    let boundary = parameter(content_type, "boundary").ok_or("multipart boundary is missing")?;
    let file = part(boundary, body).ok_or("part file with a file name is missing")?;
    let text = std::str::from_utf8(file).map_err(|_| "the file is not UTF-8")?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let rows: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
    match rows {
        Ok(rows) if rows.is_empty() => Err("the file is empty".into()),
        Ok(rows) => Ok(rows),
        Err(error) => Err(format!("a line of the file is not JSON: {error}")),
    }
}

fn part<'a>(boundary: &str, body: &'a [u8]) -> Option<&'a [u8]> {
    let opening = format!("--{boundary}\r\n");
    let closing = format!("\r\n--{boundary}");
    let mut rest = &body[find(body, opening.as_bytes())? + opening.len()..];
    loop {
        let head_end = find(rest, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&rest[..head_end]).ok()?;
        let content = &rest[head_end + 4..];
        let end = find(content, closing.as_bytes())?;
        let disposition = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
        if parameter(disposition, "name") == Some("file") && parameter(disposition, "filename").is_some() {
            return Some(&content[..end]);
        }
        rest = content[end + closing.len()..].strip_prefix(b"\r\n")?;
    }
}

fn parameter<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.trim().split_once('=')?;
        (key.eq_ignore_ascii_case(name) && !value.is_empty()).then(|| value.trim_matches('"'))
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=cut";

    #[test]
    fn the_file_is_found_behind_another_part() {
        let body = b"--cut\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n\
            --cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"users.ndjson\"\r\n\
            Content-Type: application/x-ndjson\r\n\r\n{\"user_id\":\"a\"}\n{\"user_id\":\"b\"}\n\r\n--cut--\r\n";
        let rows = ndjson_file(TYPE, body).expect("two rows");
        assert_eq!(rows.iter().map(|row| row["user_id"].as_str()).collect::<Vec<_>>(), [Some("a"), Some("b")]);
    }

    #[test]
    fn a_part_without_a_file_name_is_no_file() {
        let body = b"--cut\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{}\r\n--cut--\r\n";
        assert_eq!(ndjson_file(TYPE, body), Err("part file with a file name is missing".into()));
        assert!(ndjson_file("multipart/form-data", body).is_err());
    }
}
