//! The daemon's own responses: small, in the form that the client asks for, and silent about what is behind.
//!
//! `Date` (RFC 9110 §6.6.1) is left to whoever writes responses.

use std::fmt::Write as _;

use ::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;

use super::fields::forwarded::REQUEST_ID;

/// Why a request is answered here. RFC 9110 §15 unless another is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpError {
    /// 400: malformed, or ambiguous.
    BadRequest,
    /// 403: refused by a policy.
    Forbidden,
    /// 408: the request did not come in time.
    RequestTimeout,
    /// 413: the body is too long.
    ContentTooLarge,
    /// 414: the target is too long.
    UriTooLong,
    /// 417: an expectation other than `100-continue`.
    ExpectationFailed,
    /// 421: the host is not what the connection was made for.
    Misdirected,
    /// 431 (RFC 6585 §5): the head is too long.
    FieldsTooLarge,
    /// 500: a mistake of this program.
    Internal,
    /// 501: a method or coding that is not spoken here.
    NotImplemented,
    /// 502: the backend is down, or does not speak HTTP.
    BadGateway,
    /// 503: overload.
    Unavailable,
    /// 504: the backend did not answer in time.
    GatewayTimeout,
    /// 505: neither HTTP/1 nor HTTP/2.
    VersionNotSupported,
}

/// What a response has to suit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    form: Form,
    is_head: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    /// With the content type of the answer.
    Grpc(&'static str),
}

impl Asked {
    /// Of a request whose head could not be read.
    pub const UNKNOWN: Self = Self { form: Form::Text, is_head: false };

    /// Looks at what the client sent: `Content-Type` tells gRPC, `Accept` (RFC 9110 §12.5.1) JSON from text.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let form = match headers.get(header::CONTENT_TYPE).and_then(|value| grpc(value.as_bytes())) {
            Some(content_type) => Form::Grpc(content_type),
            None if prefers_json(headers) => Form::Json,
            None => Form::Text,
        };
        Self { form, is_head: method == Method::HEAD }
    }
}

impl HttpError {
    /// All of them, in the order of their status.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::Forbidden,
        Self::RequestTimeout,
        Self::ContentTooLarge,
        Self::UriTooLong,
        Self::ExpectationFailed,
        Self::Misdirected,
        Self::FieldsTooLarge,
        Self::Internal,
        Self::NotImplemented,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
        Self::VersionNotSupported,
    ];

    /// The status code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::ContentTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::FieldsTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::VersionNotSupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }

    /// The reason phrase, which is all that a client is told.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad Request",
            Self::Forbidden => "Forbidden",
            Self::RequestTimeout => "Request Timeout",
            Self::ContentTooLarge => "Content Too Large",
            Self::UriTooLong => "URI Too Long",
            Self::ExpectationFailed => "Expectation Failed",
            Self::Misdirected => "Misdirected Request",
            Self::FieldsTooLarge => "Request Header Fields Too Large",
            Self::Internal => "Internal Server Error",
            Self::NotImplemented => "Not Implemented",
            Self::BadGateway => "Bad Gateway",
            Self::Unavailable => "Service Unavailable",
            Self::GatewayTimeout => "Gateway Timeout",
            Self::VersionNotSupported => "HTTP Version Not Supported",
        }
    }

    /// The gRPC status code. Where gRPC's `http-grpc-status-mapping.md` has no line, or a vaguer one than is known here, it
    /// is the code that a gRPC server would give.
    pub fn grpc_status(self) -> u8 {
        match self {
            // DEADLINE_EXCEEDED
            Self::RequestTimeout | Self::GatewayTimeout => 4,
            // PERMISSION_DENIED
            Self::Forbidden => 7,
            // RESOURCE_EXHAUSTED
            Self::ContentTooLarge | Self::UriTooLong | Self::FieldsTooLarge => 8,
            // UNIMPLEMENTED
            Self::Misdirected | Self::NotImplemented | Self::VersionNotSupported => 12,
            // INTERNAL
            Self::BadRequest | Self::ExpectationFailed | Self::Internal => 13,
            // UNAVAILABLE
            Self::BadGateway | Self::Unavailable => 14,
        }
    }

    /// Whether an HTTP/1.1 connection cannot go on after it: where the next request begins is not known, or not wanted.
    pub fn closes(self) -> bool {
        match self {
            Self::BadRequest
            | Self::RequestTimeout
            | Self::ContentTooLarge
            | Self::UriTooLong
            | Self::ExpectationFailed
            | Self::FieldsTooLarge
            | Self::Internal
            | Self::NotImplemented
            | Self::VersionNotSupported => true,
            Self::Forbidden | Self::Misdirected | Self::BadGateway | Self::Unavailable | Self::GatewayTimeout => false,
        }
    }

    /// The response. To a gRPC request it is 200 with the status in the head and no body ("Trailers-Only"), which HTTP/2
    /// ends with the head.
    pub fn respond(self, asked: Asked, request_id: Option<&HeaderValue>) -> Response<Bytes> {
        // A value that is not text was not made here, and is not repeated in a body.
        let id = request_id.and_then(|id| id.to_str().ok());
        let (status, reason) = (self.status(), self.reason());
        let mut body = String::new();
        let content_type = match asked.form {
            Form::Text => {
                let _ = writeln!(body, "{} {reason}", status.as_u16());
                if let Some(id) = id {
                    let _ = writeln!(body, "request id: {id}");
                }
                "text/plain; charset=utf-8"
            }
            Form::Json => {
                let json = serde_json::json!({"status": status.as_u16(), "error": reason, "request_id": id});
                let _ = writeln!(body, "{json}");
                "application/json"
            }
            Form::Grpc(content_type) => content_type,
        };
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(id) = request_id {
            headers.insert(REQUEST_ID, id.clone());
        }
        if let Form::Grpc(_) = asked.form {
            headers.insert("grpc-status", HeaderValue::from(u16::from(self.grpc_status())));
            // Words and spaces need no percent-encoding.
            headers.insert("grpc-message", HeaderValue::from_static(reason));
            return response;
        }
        // RFC 9110 §8.6: to HEAD it says what GET would have got.
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.status_mut() = status;
        if !asked.is_head {
            *response.body_mut() = body.into();
        }
        response
    }
}

/// The content type of an answer to a gRPC request.
fn grpc(content_type: &[u8]) -> Option<&'static str> {
    let media = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let is = |name: &[u8]| media.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"));
    if is(b"application/grpc") {
        Some("application/grpc")
    } else if is(b"application/grpc-web") {
        Some("application/grpc-web")
    } else if is(b"application/grpc-web-text") {
        Some("application/grpc-web-text")
    } else {
        None
    }
}

/// The heavier weight wins, then the range that names it more exactly, then text; a weight of 0 is a refusal.
fn prefers_json(headers: &HeaderMap) -> bool {
    let (mut json, mut text) = ((0, 0), (0, 0));
    for value in headers.get_all(header::ACCEPT) {
        for range in value.as_bytes().split(|byte| *byte == b',') {
            let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let media = parts.next().unwrap_or_default();
            let weight = parts.find_map(weight).unwrap_or(1_000);
            for (found, names) in [
                (&mut json, [&b"application/json"[..], b"application/*"]),
                (&mut text, [&b"text/plain"[..], b"text/*"]),
            ] {
                let precision = match media {
                    _ if media.eq_ignore_ascii_case(names[0]) => 3,
                    _ if media.eq_ignore_ascii_case(names[1]) => 2,
                    b"*/*" => 1,
                    _ => 0,
                };
                // Of several ranges for one type the most exact counts (RFC 9110 §12.5.1).
                if precision > found.0 {
                    *found = (precision, weight);
                }
            }
        }
    }
    json.1 > 0 && (json.1, json.0) > (text.1, text.0)
}

/// `q=` in thousandths (RFC 9110 §12.4.2); one that is malformed is the least.
fn weight(parameter: &[u8]) -> Option<u16> {
    let (name, value) = parameter.split_at_checked(2)?;
    if !name.eq_ignore_ascii_case(b"q=") {
        return None;
    }
    let thousandths = std::str::from_utf8(value).ok().filter(|text| text.len() <= 5).and_then(|text| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let fraction = if digits(fraction) { format!("{fraction:0<3}").parse::<u16>().ok()? } else { return None };
        match whole {
            "0" => Some(fraction),
            "1" if fraction == 0 => Some(1_000),
            _ => None,
        }
    });
    Some(thousandths.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(method: &Method, fields: &[(&'static str, &[u8])]) -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        Asked::of(method, &headers)
    }

    fn field<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
        response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    #[test]
    fn every_error_in_every_form() {
        let id = HeaderValue::from_static("abc");
        for error in HttpError::ALL {
            let text = error.respond(asked(&Method::GET, &[]), Some(&id));
            assert_eq!(text.status(), error.status());
            let status = error.status().as_u16();
            assert_eq!(text.body(), format!("{status} {}\nrequest id: abc\n", error.reason()).as_bytes());
            assert_eq!(field(&text, "content-length"), text.body().len().to_string());
            assert_eq!((field(&text, "cache-control"), field(&text, "x-request-id")), ("no-store", "abc"));

            let head = error.respond(asked(&Method::HEAD, &[]), Some(&id));
            assert!(head.body().is_empty());
            assert_eq!(head.headers(), text.headers());

            let json = error.respond(asked(&Method::GET, &[("accept", b"application/json")]), Some(&id));
            assert_eq!((json.status(), field(&json, "content-type")), (error.status(), "application/json"));
            let value: serde_json::Value = serde_json::from_slice(json.body()).unwrap();
            assert_eq!(value, serde_json::json!({"status": status, "error": error.reason(), "request_id": "abc"}));

            let grpc = error.respond(asked(&Method::POST, &[("content-type", b"application/grpc+proto")]), Some(&id));
            assert_eq!((grpc.status(), field(&grpc, "content-type")), (StatusCode::OK, "application/grpc"));
            assert_eq!(field(&grpc, "grpc-status"), error.grpc_status().to_string());
            assert_eq!(field(&grpc, "grpc-message"), error.reason());
            assert!(grpc.body().is_empty() && field(&grpc, "content-length").is_empty());
        }
        let bare = HttpError::BadRequest.respond(Asked::UNKNOWN, None);
        assert_eq!(bare.body(), "400 Bad Request\n");
        assert!(!bare.headers().contains_key("x-request-id"));
    }

    #[test]
    fn grpc_codes() {
        use HttpError as E;
        let codes = [
            (E::Forbidden, 7),
            (E::BadGateway, 14),
            (E::Unavailable, 14),
            (E::GatewayTimeout, 4),
            (E::ContentTooLarge, 8),
            (E::FieldsTooLarge, 8),
            (E::BadRequest, 13),
        ];
        for (error, code) in codes {
            assert_eq!(error.grpc_status(), code, "{error:?}");
        }
    }

    #[test]
    fn the_kind_of_request() {
        for (content_type, answer) in [
            (&b"application/grpc"[..], Some("application/grpc")),
            (b"Application/GRPC; x=y", Some("application/grpc")),
            (b"application/grpc-web+proto", Some("application/grpc-web")),
            (b"application/grpc-web-text", Some("application/grpc-web-text")),
            (b"application/grpcx", None),
            (b"application/json", None),
            (b"", None),
            (b"\xff", None),
        ] {
            assert_eq!(grpc(content_type), answer);
        }
    }

    #[test]
    fn negotiation() {
        for (accept, is_json) in [
            ("", false),
            ("*/*", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("application/json", true),
            ("Application/JSON;q=0.1", true),
            ("application/json, */*", true),
            ("application/json, text/plain, */*", false),
            ("application/json;q=0.9, text/plain", false),
            ("text/plain;q=0.5, application/json;q=0.6", true),
            ("application/*, text/*;q=0.1", true),
            ("application/json;q=0", false),
            ("application/json;q=0, */*", false),
            ("application/json;charset=utf-8;q=0.5, text/plain;q=0.25", true),
            ("application/json;q=2, text/plain;q=0.1", false),
            ("application/problem+json", false),
        ] {
            let form = asked(&Method::GET, &[("accept", accept.as_bytes())]).form;
            assert_eq!(form == Form::Json, is_json, "{accept}");
        }
        let two: [(&str, &[u8]); 2] = [("accept", b"text/plain;q=0.1"), ("accept", b"application/json")];
        assert_eq!(asked(&Method::GET, &two).form, Form::Json);
    }

    proptest! {
        #[test]
        fn never_panics(accept in prop::collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff], 0..60),
            likely in "(application/|text/|json|plain|\\*/\\*|;q=|[01.,;])*") {
            for accept in [accept.as_slice(), likely.as_bytes()] {
                let asked = asked(&Method::GET, &[("accept", accept), ("content-type", accept)]);
                let response = HttpError::BadGateway.respond(asked, None);
                prop_assert!(response.body().len() < 200);
            }
        }
    }
}
