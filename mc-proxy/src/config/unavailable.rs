//! Settings that the configuration already has and this version cannot honour. To switch one on is an error, so that
//! nobody believes to be protected by what is not there. Whoever builds a feature deletes its line.

/// A setting of a later version.
pub(super) struct Unavailable {
    /// Path of the key.
    key: &'static str,
    /// Whether a value, as text without quotes, switches the feature on.
    is_on: fn(&str) -> bool,
    /// What to do instead.
    remedy: &'static str,
}

pub(super) const UNAVAILABLE: &[Unavailable] = &[
    Unavailable { key: "grpc.addr", is_on: is_tcp, remedy: "write \"unix:/path\"" },
    Unavailable { key: "metrics.addr", is_on: |v| !v.is_empty(), remedy: "remove it" },
    Unavailable { key: "log.format", is_on: |v| v == "journald", remedy: "remove it or write \"text\"" },
];

/// The remedy when `value` of `key` needs a feature of a later version.
pub(super) fn remedy_in(unavailable: &[Unavailable], key: &str, value: &str) -> Option<&'static str> {
    unavailable.iter().find(|entry| entry.key == key && (entry.is_on)(value)).map(|entry| entry.remedy)
}

/// `host:port`, with anything for a host.
fn is_tcp(value: &str) -> bool {
    let port = value.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    !value.starts_with("unix:") && !value.starts_with('/') && port.parse::<u16>().is_ok()
}
