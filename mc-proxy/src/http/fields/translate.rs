//! Between HTTP/1.1 and HTTP/2.

use ::http::{HeaderMap, HeaderValue, header};

/// Why a request or response of HTTP/2 is malformed: a stream error of type PROTOCOL_ERROR (RFC 9113 §8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// RFC 9113 §8.2.2.
    #[error("a connection-specific field in HTTP/2")]
    ConnectionSpecific,
    /// RFC 9113 §8.2.2: `TE` says `trailers` or nothing.
    #[error("TE other than trailers in HTTP/2")]
    Te,
}

/// Checks the fields of an HTTP/2 message as they came (RFC 9113 §8.2.2).
///
/// # Errors
/// When there is a field that only HTTP/1.1 has.
pub fn check_h2(headers: &HeaderMap) -> Result<(), Malformed> {
    const SPECIFIC: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    if SPECIFIC.iter().any(|name| headers.contains_key(*name)) {
        return Err(Malformed::ConnectionSpecific);
    }
    let is_trailers = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"trailers");
    if headers.get_all(header::TE).iter().all(is_trailers) { Ok(()) } else { Err(Malformed::Te) }
}

/// Makes the crumbs of a cookie, which HTTP/2 may divide, one field again (RFC 9113 §8.2.3). RFC 6265 §5.4 allows one only, and
/// servers look at the first.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Of the bytes of values, which are good ones.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}
