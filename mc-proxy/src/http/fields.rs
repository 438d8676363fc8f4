//! Which fields go through, by one table: hop-by-hop fields end here (RFC 9110 §7.6.1), what tells the backend about the
//! client is written here, and the client's own word for it counts only when the peer is trusted.
//!
//! | field | request | response |
//! |---|---|---|
//! | `Connection` and what it names, `Keep-Alive`, `Proxy-Connection`, `Transfer-Encoding`, `HTTP2-Settings` | ends | ends |
//! | `Upgrade` | ends, unless the upgrade is forwarded | likewise |
//! | `TE` | `trailers` is kept, which gRPC needs | ends |
//! | `Trailer` | kept: RFC 9110 §6.6.2 has it end-to-end, and trailers are forwarded | kept |
//! | `Proxy-Authorization`, `Proxy-Authenticate`, `Proxy-Authentication-Info` | ends: they are between a client and a proxy that it chose, and would be credentials in a stranger's hands | ends |
//! | `Proxy` | ends: CGI makes it `HTTP_PROXY` (CVE-2016-5385) | kept |
//! | names with `_` | end: CGI and WSGI cannot tell `X_Real_IP` from `X-Real-IP` | kept |
//! | `X-Forwarded-*`, `Forwarded`, `X-Real-IP` and those that CDNs use | written here | kept |
//! | `X-Request-Id` | generated, or a trusted peer's | kept |
//! | `Traceparent`, `Tracestate`, `Host`, `Max-Forwards`, all others | kept | kept |
//! | `Server`, `Date` | kept | kept, the backend's |
//! | `Alt-Svc` | kept | ends: it would lead clients round this proxy, by HTTP/3 or to the backend's own port (RFC 7838 §2) |
//! | `Via` | kept, not added | kept, not added |
//!
//! `Via`: RFC 9110 §7.6.3 wants it of gateways towards the backend. It is left out, as nginx, HAProxy and Envoy leave it out:
//! nginx behind a `Via` stops compressing, and it tells the world what stands in front.
//!
//! `Max-Forwards`: RFC 9110 §7.6.2 has it counted down for OPTIONS and TRACE, and answered here at 0. It passes unchanged, as with
//! the same three.
//!
//! `Connection` may not name what is meant for every recipient (RFC 9110 §7.6.1). Such options are ignored rather than obeyed:
//! with them clients would strip credentials, cookies or framing, or what a trusted peer has told of the client. Policies are to be
//! asked about the fields that are left, or a required one could be shown to them and then be named.

pub mod forwarded;
mod hop;
mod table;
#[cfg(test)]
mod tests;
pub mod translate;

use ::http::{HeaderMap, HeaderName, HeaderValue, header};

use self::table::Class;
pub use self::{forwarded::Forwarding, hop::upgrade_protocol};

/// Removes from a request what ends here, and, unless the client is a trusted peer, what it says of itself. Policies judge what
/// is left, to which [`Forwarding::write`] adds.
pub fn strip_request(headers: &mut HeaderMap, is_trusted: bool) {
    let wants_trailers = hop::wants_trailers(headers);
    hop::remove_named(headers);
    remove(headers, |name| match table::class(name) {
        Class::HopByHop | Class::Odd => true,
        Class::Identity => !is_trusted,
        Class::EndToEnd => false,
    });
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Why no policy ever sees a field of that name in a request, in words; none if one may.
pub fn unseen(name: &HeaderName) -> Option<&'static str> {
    match table::class(name.as_str()) {
        // `trailers` is kept.
        Class::HopByHop if name != header::TE => Some("such fields are for one connection and are removed"),
        Class::Odd => Some("backends may take it for another field, and it is removed"),
        Class::EndToEnd if name == header::HOST => {
            Some("every request has it, and it is not among the fields that are judged")
        }
        Class::HopByHop | Class::EndToEnd | Class::Identity => None,
    }
}

/// Whether a field of that name is left in requests of trusted peers only.
pub fn is_of_trusted(name: &HeaderName) -> bool {
    table::class(name.as_str()) == Class::Identity
}

/// Makes the fields of a response what the client gets. `upgrade`, the protocol of a 101 that is forwarded, goes into
/// HTTP/1.1 only.
pub fn forward_response(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    hop::remove_named(headers);
    remove(headers, |name| table::is_hop_by_hop(name) || name == "alt-svc");
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Removes from the trailers of a request what must not be there (RFC 9110 §6.5.1), and what would pass for a field of the
/// head that was written here.
pub fn forward_request_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |name| !table::is_trailer(name) || table::class(name) != Class::EndToEnd);
}

/// Removes from the trailers of a response what must not be there (RFC 9110 §6.5.1): framing, routing, modifiers,
/// authentication and content fields.
pub fn forward_response_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |name| !table::is_trailer(name));
}

fn remove(headers: &mut HeaderMap, ends: impl Fn(&str) -> bool) {
    // Most requests have none of them, and then nothing is allocated.
    let ending = headers.keys().filter(|name| ends(name.as_str())).cloned().collect::<Vec<HeaderName>>();
    for name in ending {
        headers.remove(name);
    }
}
