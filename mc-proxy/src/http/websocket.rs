//! What the opening handshake of a WebSocket needs where one side speaks HTTP/1.1 and the other HTTP/2: RFC 8441 §5 has done
//! away with `Sec-WebSocket-Key` and its answer, which RFC 6455 §4 demands.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// `Sec-WebSocket-Key`.
pub const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

/// `Sec-WebSocket-Accept`.
pub const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a connection is to change to a WebSocket.
pub fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// A key from 16 random bytes.
pub fn key(random: u128) -> HeaderValue {
    text(&random.to_be_bytes())
}

/// What the server answers to `key`.
pub fn accept(key: &HeaderValue) -> HeaderValue {
    text(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat()).as_ref())
}

/// Whether the server has seen `key` (RFC 6455 §4.1).
pub fn is_accepted(headers: &HeaderMap, key: &HeaderValue) -> bool {
    headers.get(ACCEPT).is_some_and(|value| *value == accept(key))
}

fn text(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(BASE64_STANDARD.encode(bytes)).expect("base64 is made of visible characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let headers = HeaderMap::from_iter([(ACCEPT, accept(&key))]);
        assert!(is_accepted(&headers, &key) && !is_accepted(&headers, &super::key(1)));
        assert_eq!(super::key(u128::from_be_bytes(*b"the sample nonce")), key);
        assert!(is_websocket(&HeaderValue::from_static("WebSocket")));
    }
}
