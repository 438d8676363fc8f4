//! HTTP/2: a client that sends what no library would, and good clients and backends that a library is for.

pub mod conformance;
pub mod frame;
pub mod good;
pub mod hpack;
pub mod origin;
pub mod raw;

pub use self::{
    frame::{Frame, code, flag, kind},
    good::{Good, Reply},
    origin::{H2Origin, Incoming},
    raw::{Event, Raw},
};
