//! Requests of HTTP/2 (RFC 9113 §8.3.1), which the `h2` crate has checked in part: that there are no fields with upper case or
//! control characters, pseudo-fields come first, and content is as long as its head says.

use ::h2::ext::Protocol;
use ::http::{HeaderMap, HeaderValue, Method, Version, header, request::Parts, uri::Scheme};

use super::stream::Kind;
use crate::http::{
    authority::{Authority, AuthorityError},
    fields::{translate::check_h2, upgrade_protocol},
    h1::{HeadError, Target},
    limits::HttpLimits,
    message::{Content, Request},
    websocket,
};

/// The head as both sides of the proxy know it. `is_ended`: no content follows it.
pub(super) fn request(head: Parts, is_ended: bool, limits: &HttpLimits) -> Result<(Request, Kind), HeadError> {
    let Parts { method, uri, mut headers, extensions, .. } = head;
    check_h2(&headers).map_err(|_| HeadError::FieldName)?;
    if headers.len() > limits.max_fields as usize {
        return Err(HeadError::TooManyFields);
    }
    if headers.values().any(has_space_around) {
        return Err(HeadError::FieldValue);
    }
    let protocol = extensions.get::<Protocol>();
    if method == Method::CONNECT && protocol.is_none() {
        // RFC 9113 §8.5: without an authority it is malformed.
        return Err(uri.authority().map_or(HeadError::Host(AuthorityError::Missing), |_| HeadError::Connect));
    }
    // Without an authority the crate has dropped the scheme.
    if uri.scheme().is_some_and(|scheme| ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
        return Err(HeadError::Target);
    }
    let named = uri.authority().map(|authority| authority.as_str().as_bytes());
    let authority = Authority::of_request(named, &headers)?;
    let host = match (named, headers.remove(header::HOST)) {
        (Some(named), _) => HeaderValue::from_bytes(named).map_err(|_| HeadError::Host(AuthorityError::Host))?,
        (None, Some(host)) => host,
        (None, None) => return Err(HeadError::Host(AuthorityError::Missing)),
    };
    let path = uri.path_and_query().ok_or(HeadError::Target)?;
    if path.as_str().len() > limits.max_target_bytes as usize {
        return Err(HeadError::TargetTooLong);
    }
    let is_path = path.as_str().starts_with('/')
        // As in HTTP/1.1.
        && path.as_str().bytes().all(|byte| matches!(byte, b'!' | b'"' | b'$'..=b'~'));
    let target = match path.as_str() {
        "*" if method == Method::OPTIONS => Target::Asterisk,
        _ if is_path => Target::Origin(path.clone()),
        _ => return Err(HeadError::Target),
    };
    let (method, content, upgrade, kind) = match protocol {
        Some(protocol) => {
            let upgrade = upgrade(protocol).ok_or(HeadError::Connect)?;
            // Of the tunnel nothing is known, and the key is HTTP/1.1's.
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(websocket::KEY);
            (Method::GET, Content::None, Some(upgrade), Kind::Connect)
        }
        None => {
            let kind = if method == Method::HEAD { Kind::Head } else { Kind::Other };
            let content = content(&mut headers, is_ended)?;
            (method, content, None, kind)
        }
    };
    let expects_continue = expects_continue(&mut headers, content)?;
    let version = Version::HTTP_2;
    let request = Request { method, target, authority, host, version, headers, content, expects_continue, upgrade };
    Ok((request, kind))
}

/// RFC 9113 §8.2.1.
fn has_space_around(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// The protocol of an extended CONNECT, if it is one that an upgrade could have.
fn upgrade(protocol: &Protocol) -> Option<HeaderValue> {
    let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
    let headers = [(header::CONNECTION, HeaderValue::from_static("upgrade")), (header::UPGRADE, protocol)];
    upgrade_protocol(&HeaderMap::from_iter(headers))
}

/// What `Content-Length` says, which HTTP/2 does not need; one of those that say the same is left.
fn content(headers: &mut HeaderMap, is_ended: bool) -> Result<Content, HeadError> {
    let Some(value) = headers.get(header::CONTENT_LENGTH).cloned() else {
        return Ok(if is_ended { Content::None } else { Content::Parts });
    };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse().ok()).ok_or(HeadError::ContentLength)?;
    headers.insert(header::CONTENT_LENGTH, value);
    match (length, is_ended) {
        (1.., true) => Err(HeadError::ContentLength),
        // DATA without data, or trailers, may still come.
        (0, false) => Ok(Content::Parts),
        (length, _) => Ok(Content::Length(length)),
    }
}

/// RFC 9110 §10.1.1, as in HTTP/1.1.
fn expects_continue(headers: &mut HeaderMap, content: Content) -> Result<bool, HeadError> {
    let mut values = headers.get_all(header::EXPECT).iter();
    let Some(value) = values.next() else { return Ok(false) };
    if values.next().is_some() || !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Err(HeadError::Expectation);
    }
    let expects = !content.is_empty();
    if !expects {
        headers.remove(header::EXPECT);
    }
    Ok(expects)
}
