//! What an SNI proxy says of TLS: that there is nobody for the client.

/// The alert record for a name that no route has: fatal, `unrecognized_name` (RFC 6066 §3, RFC 8446 §6.2).
pub const UNRECOGNIZED_NAME_ALERT: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 2, 112];

/// The alert record for a name whose routes want another ALPN name than any that is offered: fatal,
/// `no_application_protocol` (RFC 7301 §3.2).
pub const NO_APPLICATION_PROTOCOL_ALERT: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 2, 120];
