//! What an SNI proxy reads of TLS, and how it speaks TLS where it terminates it.

mod alert;
mod alpn;
pub mod certs;
mod client_hello;
mod cursor;
mod server_name;
mod terminate;
mod versions;

pub use alert::{NO_APPLICATION_PROTOCOL_ALERT, UNRECOGNIZED_NAME_ALERT};
pub use alpn::{AlpnOffer, KEPT_BYTES};
pub use client_hello::{ClientHello, ClientHelloReader, HelloError, MAX_HELLO, MAX_RECORDS, MAX_WIRE, Progress};
pub use server_name::{ServerName, ServerNameError};
pub use terminate::{Alpn, HandshakeError, TlsFacts, TlsStream, terminate};
pub use versions::TlsVersions;
