//! Hop-by-hop fields (RFC 9110 §7.6.1).

use ::http::{HeaderMap, HeaderValue, header};

use super::table;

/// Removes what `Connection` names.
pub(super) fn remove_named(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let values = headers.get_all(header::CONNECTION).iter().cloned().collect::<Vec<_>>();
        for option in values.iter().flat_map(tokens) {
            if !table::is_protected(option) {
                headers.remove(option);
            }
        }
    }
}

/// Whether `TE` asks for trailers (RFC 9110 §10.1.4), which is all of it that is forwarded.
pub(super) fn wants_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .flat_map(tokens)
        .any(|coding| coding.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers")))
}

/// The protocol that a message asks to change to (RFC 9110 §7.8), if it is forwarded: `Connection` has the option, and
/// `Upgrade` names one protocol, of another kind than HTTP and TLS. `h2c` behind a proxy that does not see it is a tunnel
/// past its rules, and RFC 9113 §3.1 has done away with it.
pub fn upgrade_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let options = headers.get_all(header::CONNECTION).iter().flat_map(tokens);
    if !options.into_iter().any(|option| option.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let mut protocols = headers.get_all(header::UPGRADE).iter().flat_map(tokens);
    let protocol = protocols.next().filter(|_| protocols.next().is_none())?;
    let (name, version) = protocol.split_once('/').map_or((protocol, None), |(name, version)| (name, Some(version)));
    let is_http = ["h2c", "h2", "h3", "http", "https", "tls"].iter().any(|known| known.eq_ignore_ascii_case(name));
    if is_http || !is_token(name) || !version.is_none_or(is_token) {
        return None;
    }
    HeaderValue::from_str(protocol).ok()
}

/// The elements of a comma-separated list (RFC 9110 §5.6.1) without quoted strings; what is not visible ASCII is none.
pub(super) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let elements = value.as_bytes().split(|byte| *byte == b',');
    elements.filter_map(|element| std::str::from_utf8(element.trim_ascii()).ok()).filter(|element| !element.is_empty())
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
