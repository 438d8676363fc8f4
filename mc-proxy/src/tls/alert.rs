//! What an SNI proxy says of TLS, which is one thing.

/// The alert record for a name that no route has: fatal, `unrecognized_name` (RFC 6066 §3, RFC 8446 §6.2).
pub const UNRECOGNIZED_NAME_ALERT: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 2, 112];
