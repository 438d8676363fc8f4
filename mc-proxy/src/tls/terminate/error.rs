//! Why a handshake came to nothing.

use std::io;

use rustls::{Error, PeerIncompatible};

/// Who is at fault, roughly. Displays as words for a log line; [`Self::reason`] is for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not complete at the deadline.
    #[error("the handshake was not complete in time")]
    Timeout,
    /// The client has closed or reset the connection, or the network has failed.
    #[error("the client went away during the handshake")]
    Gone,
    /// The client has sent a fatal alert: it does not like the certificate, as a rule.
    #[error("the client refused with an alert")]
    Refused,
    /// The client offers application protocols, and none that is spoken here.
    #[error("the client offers no application protocol that is spoken here")]
    NoAlpn,
    /// The client speaks neither TLS 1.2 nor 1.3.
    #[error("the client speaks neither TLS 1.2 nor TLS 1.3")]
    Version,
    /// No cipher suite, group or signature scheme in common.
    #[error("the client and the certificate have no cryptography in common")]
    Incompatible,
    /// What the client sent breaks the protocol.
    #[error("the client broke the protocol")]
    Malformed,
    /// The route has no certificate that could be loaded.
    #[error("the route has no certificate that could be loaded")]
    NoCertificate,
    /// It went wrong here.
    #[error("the handshake failed on this side")]
    Internal,
}

impl HandshakeError {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Timeout,
        Self::Gone,
        Self::Refused,
        Self::NoAlpn,
        Self::Version,
        Self::Incompatible,
        Self::Malformed,
        Self::NoCertificate,
        Self::Internal,
    ];

    /// The name in logs and counters.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Timeout => "tls_timeout",
            Self::Gone => "tls_client_gone",
            Self::Refused => "tls_client_refused",
            Self::NoAlpn => "tls_no_alpn",
            Self::Version => "tls_version",
            Self::Incompatible => "tls_incompatible",
            Self::Malformed => "tls_malformed",
            Self::NoCertificate => "tls_no_certificate",
            Self::Internal => "tls_internal",
        }
    }

    /// Whether the client has been sent an alert.
    pub(super) fn has_alert(self) -> bool {
        matches!(self, Self::NoAlpn | Self::Version | Self::Incompatible | Self::Malformed | Self::Internal)
    }
}

impl From<&Error> for HandshakeError {
    fn from(error: &Error) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the enumerations are rustls's, and grow")]
        match error {
            Error::AlertReceived(_) => Self::Refused,
            Error::NoApplicationProtocol => Self::NoAlpn,
            Error::PeerIncompatible(incompatible) => match incompatible {
                // Who has no such extension knows nothing of TLS 1.2, which has brought it.
                PeerIncompatible::SignatureAlgorithmsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled => Self::Version,
                _ => Self::Incompatible,
            },
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidMessage(_)
            | Error::PeerMisbehaved(_)
            | Error::DecryptError
            | Error::PeerSentOversizedRecord => Self::Malformed,
            _ => Self::Internal,
        }
    }
}

/// What tokio-rustls makes of both kinds.
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map_or(Self::Gone, Self::from)
    }
}
