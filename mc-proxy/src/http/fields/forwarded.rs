//! What the backend is told about the client.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use ::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{http::authority::Authority, net::addr::ClientAddr};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// `X-Request-Id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Of a list that a trusted peer sends so many bytes are appended to; a longer one is discarded whole, as the end of it
/// that backends look at cannot be told from the part that a client made up.
const LIST_MAX: usize = 2_048;

/// A trusted peer's request id is as long as this, or replaced.
const REQUEST_ID_MAX: usize = 128;

/// What is known of the client of a request.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<'a> {
    /// The socket's peer, or whom a PROXY header named.
    pub client: ClientAddr,
    /// Whether the client is a proxy whose own `X-Forwarded-*` is believed and appended to.
    pub is_trusted: bool,
    /// Whether the request came over TLS.
    pub is_tls: bool,
    /// What the request is for, as [`Authority::of_request`] found it.
    pub host: &'a Authority,
    /// 128 random bits, from which the request's id is made where it has none.
    pub random: u128,
}

/// What is written of a client that is not trusted, which is the same for all of its requests to one host.
#[derive(Debug)]
pub struct Written {
    host: Authority,
    values: [(HeaderName, HeaderValue); 5],
}

impl Forwarding<'_> {
    /// Writes what the backend is told, and returns the value of `X-Request-Id`. Expects what an untrusted client says of
    /// itself to be [gone](super::strip_request). `written` is that of the connection's last request.
    pub fn write(&self, headers: &mut HeaderMap, written: &Mutex<Option<Written>>) -> HeaderValue {
        if self.is_trusted {
            return self.append(headers);
        }
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.as_ref().is_none_or(|written| written.host != *self.host) {
            let mut made = HeaderMap::new();
            self.append(&mut made);
            let value = |name: &HeaderName| made.remove(name).map(|value| (name.clone(), value));
            let [Some(a), Some(b), Some(c), Some(d), Some(e)] =
                [FOR, header::FORWARDED, REAL_IP, PROTO, HOST].each_ref().map(value)
            else {
                // Addresses and names are visible ASCII.
                return self.append(headers);
            };
            *written = Some(Written { host: self.host.clone(), values: [a, b, c, d, e] });
        }
        for (name, value) in written.iter().flat_map(|written| &written.values) {
            headers.insert(name, value.clone());
        }
        let id = self.id();
        headers.insert(REQUEST_ID, id.clone());
        id
    }

    fn id(&self) -> HeaderValue {
        let mut hex = [0; 32];
        for (at, digit) in hex.iter_mut().enumerate() {
            let nibble = (self.random >> (124 - 4 * at)) as usize & 0xf;
            *digit = b"0123456789abcdef"[nibble];
        }
        HeaderValue::from_bytes(&hex).expect("digits are visible")
    }

    fn append(&self, headers: &mut HeaderMap) -> HeaderValue {
        let ip = self.client.ip();
        let proto = if self.is_tls { "https" } else { "http" };
        let host = self.host.to_string();

        let mut list = list(headers, &FOR);
        write(&mut list, format_args!("{ip}"));
        set(headers, FOR, list);

        let mut list = self::list(headers, &header::FORWARDED);
        write(&mut list, format_args!("for={};host=\"{host}\";proto={proto}", node(self.client.socket())));
        set(headers, header::FORWARDED, list);

        // One value each: that of the proxy next to the client, if it makes sense.
        keep_or(headers, REAL_IP, |text| text.parse::<IpAddr>().is_ok(), || ip.to_string());
        keep_or(headers, PROTO, |text| matches!(text, "http" | "https" | "ws" | "wss"), || proto.to_owned());
        keep_or(headers, HOST, |text| Authority::parse(text.as_bytes()).is_ok(), || host);
        let is_id = |text: &str| text.len() <= REQUEST_ID_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_kept = {
            let mut ids = headers.get_all(REQUEST_ID).iter();
            let first = ids.next().and_then(|id| id.to_str().ok());
            ids.next().is_none() && first.is_some_and(|text| !text.is_empty() && is_id(text))
        };
        match headers.get(REQUEST_ID) {
            Some(id) if is_kept => id.clone(),
            Some(_) | None => {
                let id = self.id();
                headers.insert(REQUEST_ID, id.clone());
                id
            }
        }
    }
}

/// RFC 7239 §6: with its colons the address has to be quoted, IPv6 in brackets.
fn node(client: SocketAddr) -> String {
    format!("\"{client}\"")
}

/// What is there of a list, with a separator behind it.
fn list(headers: &HeaderMap, name: &HeaderName) -> String {
    let mut list = String::new();
    for value in headers.get_all(name) {
        let text = value.to_str().map(str::trim).unwrap_or_default();
        if list.len() + text.len() > LIST_MAX || (text.is_empty() && !value.is_empty()) {
            return String::new();
        }
        if !text.is_empty() {
            list.push_str(text);
            list.push_str(", ");
        }
    }
    list
}

/// Leaves the only value if it is good.
fn keep_or(headers: &mut HeaderMap, name: HeaderName, is_good: impl Fn(&str) -> bool, make: impl FnOnce() -> String) {
    let mut values = headers.get_all(&name).iter();
    let first = values.next().and_then(|value| value.to_str().ok());
    if values.next().is_none() && first.is_some_and(is_good) {
        return;
    }
    set(headers, name, make());
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: String) {
    match HeaderValue::try_from(text) {
        Ok(value) => drop(headers.insert(name, value)),
        // Not with what is written here; if it were, the client's own word must not stay.
        Err(_) => drop(headers.remove(name)),
    }
}

fn write(to: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = to.write_fmt(what);
}
