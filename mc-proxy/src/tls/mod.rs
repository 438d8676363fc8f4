//! What an SNI proxy reads of TLS.

mod server_name;

pub use server_name::{ServerName, ServerNameError};
