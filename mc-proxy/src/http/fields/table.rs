//! The names.

/// Never leave the connection that they came by.
pub(super) const HOP_BY_HOP: &[&str] = &[
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What `Connection` does not remove: for every recipient, or needed to tell where a message ends and whose it is.
const PROTECTED: &[&str] = &[
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "location",
    "origin",
    "pragma",
    "range",
    "set-cookie",
    "trailer",
    "traceparent",
    "tracestate",
    "user-agent",
    "vary",
    "www-authenticate",
];

/// What backends believe about the client and its connection, `Client-Cert` (RFC 9440 §2.4) among it.
const IDENTITY: &[&str] = &[
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "front-end-https",
    "true-client-ip",
    "x-arr-clientcert",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-cert",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-request-id",
    "x-rewrite-url",
    "x-scheme",
];

/// Beginnings of more of them.
const IDENTITY_PREFIXES: &[&str] = &["x-forwarded-", "x-original-", "x-ssl-", "ssl-client-"];

/// RFC 9110 §6.5.1 in names: fields that a recipient needs before the content, or that would change what it has decided.
const NO_TRAILER: &[&str] = &[
    "accept-encoding",
    "age",
    "alt-svc",
    "authentication-info",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "host",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "trailer",
    "vary",
    "warning",
    "www-authenticate",
];

/// What becomes of a field of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    EndToEnd,
    /// For this connection only.
    HopByHop,
    /// Written here, or by a trusted peer.
    Identity,
    /// Believed to be another field by some backends.
    Odd,
}

/// `name` is in lower case, as all names of a `HeaderMap` are.
pub(super) fn class(name: &str) -> Class {
    if is_hop_by_hop(name) {
        return Class::HopByHop;
    }
    if name.contains('_') || name == "proxy" {
        return Class::Odd;
    }
    if is_identity(name) {
        return Class::Identity;
    }
    // Servers that make variables of names fold every odd byte (`x.real.ip`); elsewhere it means nothing, so only what
    // would pass for one of ours is refused.
    let is_odd = |byte: u8| !byte.is_ascii_alphanumeric() && byte != b'-';
    if name.bytes().any(is_odd) {
        let folded = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        if is_identity(&folded) || folded == "host" || is_hop_by_hop(&folded) {
            return Class::Odd;
        }
    }
    Class::EndToEnd
}

/// Whether it never leaves the connection that it came by.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether `Connection` may name it.
pub(super) fn is_protected(name: &str) -> bool {
    PROTECTED.iter().any(|known| known.eq_ignore_ascii_case(name)) || is_identity(&name.to_ascii_lowercase())
}

pub(super) fn is_trailer(name: &str) -> bool {
    !NO_TRAILER.contains(&name) && !is_hop_by_hop(name) && !name.starts_with("if-") && name != "proxy"
}

fn is_identity(name: &str) -> bool {
    IDENTITY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || IDENTITY.contains(&name)
}
