//! HTTP/1.1 as bytes: clients that send exactly what a test wants over TLS and read strictly, backends that follow a script
//! and keep what they got, and the daemon between the two.

mod client;
mod edge;
pub mod h2;
mod message;
mod origin;

pub use self::{
    client::{Client, Ended, Response, get},
    edge::{Edge, HOST, Plan},
    message::{Fields, Framing, Head, Reader},
    origin::{Conn, Origin, Request, ok},
};
