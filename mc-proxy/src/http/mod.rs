//! HTTP: what a request and a response are allowed to be, and what becomes of them on the way through.
//!
//! The crate of the same name is written `::http` here.

pub mod access;
pub mod authority;
pub mod error;
pub mod fields;
pub mod h1;
pub mod limits;
pub mod policy;
