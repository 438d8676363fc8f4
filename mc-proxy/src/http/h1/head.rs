//! Heads of requests (RFC 9112 §3) and responses (§4).

use ::http::{
    HeaderMap, Method, StatusCode, Version, header,
    uri::{PathAndQuery, Scheme},
};
use bytes::{Buf, Bytes, BytesMut};

use super::{
    HeadError, HeadLimits, RequestFraming, ResponseFraming, fields, framing,
    lines::{Lines, split_line},
};
use crate::http::authority::{Authority, AuthorityError};

/// Longer than any registered method.
const METHOD_MAX: usize = 32;

/// The head of a request, of which every part has been checked.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Any token but CONNECT.
    pub method: Method,
    /// What is asked for.
    pub target: Target,
    /// Who is asked; none in HTTP/1.0 without `Host`.
    pub authority: Option<Authority>,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// All fields, with those that frame the body; `Expect` only if it counts.
    pub headers: HeaderMap,
    /// Where the body ends.
    pub framing: RequestFraming,
    /// Whether the connection may be used again after this request (RFC 9112 §9.3).
    pub is_persistent: bool,
    /// Whether the client waits for 100 before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
}

/// The target of a request (RFC 9112 §3.2) without the authority, which an absolute form has too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Path and query.
    Origin(PathAndQuery),
    /// `OPTIONS *`.
    Asterisk,
}

/// The head of a response, of which every part has been checked. The reason phrase is not kept (RFC 9112 §4).
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// From 100 to 999.
    pub status: StatusCode,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// All fields, with those that frame the body.
    pub headers: HeaderMap,
    /// Where the body ends.
    pub framing: ResponseFraming,
    /// Whether the connection may be used again after this response (RFC 9112 §9.3).
    pub is_persistent: bool,
}

/// Reads heads from what has come so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadReader {
    lines: Lines,
    has_skipped: bool,
}

impl HeadReader {
    /// The next request, once its head is whole; it is taken out of `buffer`. One empty line before it is skipped
    /// (RFC 9112 §2.2).
    ///
    /// # Errors
    /// When it is none that is forwarded; what follows in the buffer is not to be read then.
    pub fn request(&mut self, buffer: &mut BytesMut, limits: HeadLimits) -> Result<Option<RequestHead>, HeadError> {
        if !self.has_skipped {
            match buffer.first_chunk::<2>() {
                Some(b"\r\n") => buffer.advance(2),
                None if buffer.first().is_none_or(|byte| *byte == b'\r') => return Ok(None),
                _ => {}
            }
            self.has_skipped = true;
        }
        // Another protocol is refused before the end of its first line is waited for.
        if buffer.first().is_some_and(|byte| !is_token_byte(*byte)) {
            return Err(HeadError::RequestLine);
        }
        let Some(block) = self.lines.take(buffer, limits.head_bytes)? else { return Ok(None) };
        *self = Self::default();
        parse_request(&block, limits).map(Some)
    }

    /// The next response to `method`, once its head is whole; it is taken out of `buffer`.
    ///
    /// # Errors
    /// When it is none that is forwarded; what follows in the buffer is not to be read then.
    pub fn response(
        &mut self,
        buffer: &mut BytesMut,
        limits: HeadLimits,
        method: &Method,
    ) -> Result<Option<ResponseHead>, HeadError> {
        let Some(block) = self.lines.take(buffer, limits.head_bytes)? else { return Ok(None) };
        *self = Self::default();
        parse_response(&block, limits, method).map(Some)
    }

    /// Whether a part of a request has come; the empty line before it is none.
    pub fn has_begun(&self, buffer: &BytesMut) -> bool {
        !buffer.is_empty()
    }
}

fn parse_request(block: &Bytes, limits: HeadLimits) -> Result<RequestHead, HeadError> {
    let (line, lines) = split_line(block);
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HeadError::RequestLine);
    };
    let version = parse_version(version).ok_or(HeadError::RequestLine)??;
    if method.is_empty() || method.len() > METHOD_MAX {
        return Err(HeadError::Method);
    }
    let method = Method::from_bytes(method).map_err(|_| HeadError::Method)?;
    if method == Method::CONNECT {
        return Err(HeadError::Connect);
    }
    if target.len() > limits.target_bytes {
        return Err(HeadError::TargetTooLong);
    }
    let (target, authority) = parse_target(block, target, &method)?;
    let mut headers = fields::parse(block, lines, limits.fields)?;
    let authority = match (version, headers.contains_key(header::HOST)) {
        (Version::HTTP_10, false) if authority.is_none() => None,
        // RFC 9112 §3.2: with an absolute target too.
        (Version::HTTP_11, false) => return Err(AuthorityError::Missing.into()),
        _ => Some(Authority::of_request(authority, &headers)?),
    };
    let framing = framing::of_request(&headers, version)?;
    let expects_continue = expects_continue(&headers, version, framing)?;
    if !expects_continue {
        // What stands behind would wait for something, or disagree about it.
        headers.remove(header::EXPECT);
    }
    Ok(RequestHead {
        expects_continue,
        is_persistent: is_persistent(&headers, version),
        method,
        target,
        authority,
        version,
        headers,
        framing,
    })
}

fn parse_response(block: &Bytes, limits: HeadLimits, method: &Method) -> Result<ResponseHead, HeadError> {
    let (line, lines) = split_line(block);
    let (version, rest) = line.split_at_checked(8).ok_or(HeadError::StatusLine)?;
    let version = parse_version(version).ok_or(HeadError::StatusLine)??;
    // The space before an absent reason phrase is often absent too.
    let (status, reason) = match rest {
        [b' ', a, b, c] => ([*a, *b, *c], &[][..]),
        [b' ', a, b, c, b' ', reason @ ..] => ([*a, *b, *c], reason),
        _ => return Err(HeadError::StatusLine),
    };
    let status = StatusCode::from_bytes(&status).map_err(|_| HeadError::StatusLine)?;
    if reason.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(HeadError::StatusLine);
    }
    let headers = fields::parse(block, lines, limits.fields)?;
    let framing = framing::of_response(&headers, version, status, method)?;
    let is_persistent = is_persistent(&headers, version) && framing != ResponseFraming::UntilClose;
    Ok(ResponseHead { status, version, headers, framing, is_persistent })
}

/// A later minor version is one that says it can be treated as HTTP/1.1 (RFC 9110 §2.5), but none exists: refused.
/// None for what is no version at all.
fn parse_version(bytes: &[u8]) -> Option<Result<Version, HeadError>> {
    match bytes {
        b"HTTP/1.1" => Some(Ok(Version::HTTP_11)),
        b"HTTP/1.0" => Some(Ok(Version::HTTP_10)),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Some(Err(HeadError::Version)),
        _ => None,
    }
}

/// The target, and the authority of an absolute one.
fn parse_target<'a>(block: &Bytes, target: &'a [u8], method: &Method) -> Result<(Target, Option<&'a [u8]>), HeadError> {
    // What URIs are made of (RFC 3986 §2), and most of what browsers send unencoded all the same; never a space, a control
    // character, a fragment or a byte that is not ASCII.
    if !target.iter().all(|byte| matches!(byte, b'!' | b'"' | b'$'..=b'~')) {
        return Err(HeadError::Target);
    }
    let path = |bytes: &[u8]| {
        let path = PathAndQuery::from_maybe_shared(block.slice_ref(bytes)).map_err(|_| HeadError::Target)?;
        // It adds a slash where it finds none.
        if path.as_str().len() == bytes.len() { Ok(Target::Origin(path)) } else { Err(HeadError::Target) }
    };
    match target {
        [b'/', ..] => Ok((path(target)?, None)),
        b"*" if method == Method::OPTIONS => Ok((Target::Asterisk, None)),
        _ => {
            let start = memchr::memmem::find(target, b"://").ok_or(HeadError::Target)?;
            let (scheme, rest) = target.split_at(start);
            let is_http = [Scheme::HTTP, Scheme::HTTPS]
                .iter()
                .any(|known| scheme.eq_ignore_ascii_case(known.as_str().as_bytes()));
            let rest = rest.get(3..).filter(|_| is_http).ok_or(HeadError::Target)?;
            let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            let target = match rest {
                [] if method == Method::OPTIONS => Target::Asterisk,
                [] => Target::Origin(PathAndQuery::from_static("/")),
                [b'/', ..] => path(rest)?,
                // RFC 9112 §3.2.1: an empty path is sent as a slash.
                _ => {
                    let path = [b"/", rest].concat();
                    Target::Origin(PathAndQuery::from_maybe_shared(Bytes::from(path)).map_err(|_| HeadError::Target)?)
                }
            };
            Ok((target, Some(authority)))
        }
    }
}

/// RFC 9112 §9.3.
fn is_persistent(headers: &HeaderMap, version: Version) -> bool {
    let has = |option: &[u8]| {
        let values = headers.get_all(header::CONNECTION).iter();
        let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        options.any(|known| fields::trim(known).eq_ignore_ascii_case(option))
    };
    !has(b"close") && (version == Version::HTTP_11 || has(b"keep-alive"))
}

/// RFC 9110 §10.1.1: to be ignored in HTTP/1.0, and without a body there is nothing to wait for.
fn expects_continue(headers: &HeaderMap, version: Version, framing: RequestFraming) -> Result<bool, HeadError> {
    let mut values = headers.get_all(header::EXPECT).iter();
    let Some(value) = values.next() else { return Ok(false) };
    if values.next().is_some() || !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Err(HeadError::Expectation);
    }
    Ok(version == Version::HTTP_11 && !matches!(framing, RequestFraming::None | RequestFraming::Length(0)))
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_a_list_form() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, "x, Keep-Alive".parse().unwrap());
        assert!(is_persistent(&headers, Version::HTTP_10) && is_persistent(&headers, Version::HTTP_11));
        headers.append(header::CONNECTION, "CLOSE ,y".parse().unwrap());
        assert!(!is_persistent(&headers, Version::HTTP_10) && !is_persistent(&headers, Version::HTTP_11));
        assert!(!is_persistent(&HeaderMap::new(), Version::HTTP_10));
    }
}
