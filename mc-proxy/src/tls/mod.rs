//! What an SNI proxy reads of TLS.

mod alert;
mod client_hello;
mod server_name;

pub use alert::UNRECOGNIZED_NAME_ALERT;
pub use client_hello::{ClientHello, ClientHelloReader, HelloError, MAX_HELLO, MAX_RECORDS, MAX_WIRE, Progress};
pub use server_name::{ServerName, ServerNameError};
