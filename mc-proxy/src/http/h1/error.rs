//! Why a message is not one that is forwarded.

use ::http::StatusCode;

use crate::http::{authority::AuthorityError, limits::HttpLimits};

/// How long the parts of a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Start line and fields, with their line ends; trailers by themselves.
    pub head_bytes: usize,
    /// Fields of a head, and of trailers.
    pub fields: usize,
    /// Of the request's target.
    pub target_bytes: usize,
}

impl HeadLimits {
    /// Of a client's requests.
    pub fn of_requests(limits: &HttpLimits) -> Self {
        Self {
            head_bytes: limits.max_head_bytes as usize,
            fields: limits.max_fields as usize,
            target_bytes: limits.max_target_bytes as usize,
        }
    }

    /// Of a backend's responses, which may be longer: a backend is not an attacker, and a response that is refused is a page
    /// that nobody sees.
    pub fn of_responses(limits: &HttpLimits) -> Self {
        Self { head_bytes: 4 * limits.max_head_bytes as usize, fields: 4 * limits.max_fields as usize, target_bytes: 0 }
    }
}

/// Why bytes are not the head or the chunks of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeadError {
    /// RFC 9112 §2.2 lets a recipient take it for a line end, and another one not.
    #[error("a line ends with LF alone")]
    BareLf,
    /// RFC 9112 §3: method, target and version, one space between them.
    #[error("malformed request line")]
    RequestLine,
    /// Not a token (RFC 9110 §9.1), or longer than any method is.
    #[error("malformed method")]
    Method,
    /// RFC 9112 §3.2; a fragment and user names are none of its forms.
    #[error("malformed request target")]
    Target,
    /// Longer than [`HeadLimits::target_bytes`].
    #[error("request target too long")]
    TargetTooLong,
    /// RFC 9110 §9.3.6: tunnels to elsewhere are not what this proxy is for.
    #[error("CONNECT")]
    Connect,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("unsupported version of HTTP")]
    Version,
    /// RFC 9112 §4.
    #[error("malformed status line")]
    StatusLine,
    /// Longer than [`HeadLimits::head_bytes`].
    #[error("head too long")]
    TooLong,
    /// More than [`HeadLimits::fields`].
    #[error("too many fields")]
    TooManyFields,
    /// RFC 9112 §5.1: not a token and a colon; a space between the two is how requests are smuggled.
    #[error("malformed field name")]
    FieldName,
    /// A control character, CR among them (RFC 9110 §5.5).
    #[error("malformed field value")]
    FieldValue,
    /// RFC 9112 §5.2.
    #[error("a folded field line")]
    ObsFold,
    /// `Host` is absent, repeated, malformed, or not that of the target.
    #[error(transparent)]
    Host(#[from] AuthorityError),
    /// Not digits, too large, or given twice, even if alike (RFC 9112 §6.3 allows that to be repaired).
    #[error("malformed Content-Length")]
    ContentLength,
    /// RFC 9112 §6.1: which of them counts is what requests are smuggled by.
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndCoding,
    /// RFC 9112 §6.1: anything but one `chunked`, or in HTTP/1.0.
    #[error("malformed Transfer-Encoding")]
    TransferEncoding,
    /// A coding besides `chunked` (RFC 9112 §7).
    #[error("unsupported transfer coding")]
    TransferCoding,
    /// RFC 9110 §10.1.1: an expectation other than `100-continue`.
    #[error("unsupported expectation")]
    Expectation,
    /// RFC 9112 §7.1.
    #[error("malformed chunk")]
    Chunk,
    /// Extensions of chunks (RFC 9112 §7.1.1) beyond what is put up with.
    #[error("chunk extensions too long")]
    ChunkExtensions,
}

impl HeadError {
    /// All that [`Self::reason`] says.
    pub const REASONS: [&'static str; 21] = [
        "http_bare_lf",
        "http_request_line",
        "http_method",
        "http_target",
        "http_target_too_long",
        "http_connect",
        "http_version",
        "http_status_line",
        "http_head_too_long",
        "http_too_many_fields",
        "http_field_name",
        "http_field_value",
        "http_obs_fold",
        "http_host",
        "http_content_length",
        "http_length_and_coding",
        "http_transfer_encoding",
        "http_transfer_coding",
        "http_expectation",
        "http_chunk",
        "http_chunk_extensions",
    ];

    /// The word in logs and counters.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BareLf => "http_bare_lf",
            Self::RequestLine => "http_request_line",
            Self::Method => "http_method",
            Self::Target => "http_target",
            Self::TargetTooLong => "http_target_too_long",
            Self::Connect => "http_connect",
            Self::Version => "http_version",
            Self::StatusLine => "http_status_line",
            Self::TooLong => "http_head_too_long",
            Self::TooManyFields => "http_too_many_fields",
            Self::FieldName => "http_field_name",
            Self::FieldValue => "http_field_value",
            Self::ObsFold => "http_obs_fold",
            Self::Host(_) => "http_host",
            Self::ContentLength => "http_content_length",
            Self::LengthAndCoding => "http_length_and_coding",
            Self::TransferEncoding => "http_transfer_encoding",
            Self::TransferCoding => "http_transfer_coding",
            Self::Expectation => "http_expectation",
            Self::Chunk => "http_chunk",
            Self::ChunkExtensions => "http_chunk_extensions",
        }
    }

    /// What a client is told (RFC 9110 §15.5, §15.6).
    pub fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLong | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TransferCoding | Self::Connect => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::BareLf
            | Self::RequestLine
            | Self::Method
            | Self::Target
            | Self::StatusLine
            | Self::FieldName
            | Self::FieldValue
            | Self::ObsFold
            | Self::Host(_)
            | Self::ContentLength
            | Self::LengthAndCoding
            | Self::TransferEncoding
            | Self::Chunk
            | Self::ChunkExtensions => StatusCode::BAD_REQUEST,
        }
    }
}
