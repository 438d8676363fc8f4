//! Where the body of a message ends (RFC 9112 §6.3).

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

use super::{HeadError, fields::trim};

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFraming {
    /// No body.
    None,
    /// So many bytes, perhaps none, as the client has said.
    Length(u64),
    /// Chunks and trailers.
    Chunked,
}

/// How the body of a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// No body, whatever the fields say of its length: the response to HEAD, 1xx, 204 and 304.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks and trailers.
    Chunked,
    /// All until the end of the connection.
    UntilClose,
}

/// The framing of a request.
pub(super) fn of_request(headers: &HeaderMap, version: Version) -> Result<RequestFraming, HeadError> {
    Ok(match (is_chunked(headers, version)?, length(headers)?) {
        (true, Some(_)) => return Err(HeadError::LengthAndCoding),
        (true, None) => RequestFraming::Chunked,
        (false, Some(length)) => RequestFraming::Length(length),
        (false, None) => RequestFraming::None,
    })
}

/// The framing of a response to `method`.
pub(super) fn of_response(
    headers: &HeaderMap,
    version: Version,
    status: StatusCode,
    method: &Method,
) -> Result<ResponseFraming, HeadError> {
    // Checked in any case: a 304 may have a length, but not a malformed one.
    let (is_chunked, length) = (is_chunked(headers, version)?, length(headers)?);
    if is_chunked && length.is_some() {
        return Err(HeadError::LengthAndCoding);
    }
    let has_none = status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
        || method == Method::HEAD;
    Ok(match (is_chunked, length) {
        _ if has_none => ResponseFraming::None,
        (true, _) => ResponseFraming::Chunked,
        (false, Some(length)) => ResponseFraming::Length(length),
        (false, None) => ResponseFraming::UntilClose,
    })
}

/// Whether `Transfer-Encoding` is there, and all that it may be.
fn is_chunked(headers: &HeaderMap, version: Version) -> Result<bool, HeadError> {
    let mut values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(false) };
    if version == Version::HTTP_10 || values.next().is_some() {
        return Err(HeadError::TransferEncoding);
    }
    let value = value.as_bytes();
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(true);
    }
    // `gzip, chunked` is well-formed, and not supported.
    let mut codings = value.split(|byte| *byte == b',').map(trim).rev();
    let ends_chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let known = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|known| coding.eq_ignore_ascii_case(known))
    };
    Err(if ends_chunked && codings.all(known) { HeadError::TransferCoding } else { HeadError::TransferEncoding })
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeadError::ContentLength);
    }
    digits(value).map(Some).ok_or(HeadError::ContentLength)
}

fn digits(value: &HeaderValue) -> Option<u64> {
    let bytes = value.as_bytes();
    // `u64::from_str` takes a sign.
    bytes.iter().all(u8::is_ascii_digit).then(|| value.to_str().ok()?.parse().ok())?
}
