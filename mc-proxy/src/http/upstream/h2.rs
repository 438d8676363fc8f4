//! A backend that is spoken to in HTTP/2.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use ::http::HeaderMap;
use bytes::Bytes;
use tokio::time::Instant;

use super::{io::Io, pool::Open};
use crate::http::{
    limits::HttpLimits,
    message::{Answer, Broken, Part, Request, Sink, Source, Upstream},
};

#[derive(Clone, Debug)]
pub struct Handle(Infallible);

#[derive(Debug)]
pub struct Backend(Infallible);

impl Handle {
    pub(super) async fn open(_: Io, _: &HttpLimits, _: Open) -> Result<Self, Broken> {
        Err(Broken::Protocol)
    }
    pub(super) fn place(&self) -> usize {
        match self.0 {}
    }
    pub(super) fn is_closed(&self) -> bool {
        match self.0 {}
    }
    pub(super) fn has_room(&self) -> bool {
        match self.0 {}
    }
    pub(super) fn close_if_unused(&self, _: Instant, _: Duration) -> bool {
        match self.0 {}
    }
    pub(super) fn close(self) {
        match self.0 {}
    }
    pub(super) async fn send(self, _: &Request) -> Result<Backend, Broken> {
        match self.0 {}
    }
}

impl Backend {
    pub fn has_sent(&self) -> bool {
        match self.0 {}
    }
}
impl Upstream for Backend {
    fn poll_answer(&mut self, _: &mut Context<'_>) -> Poll<Result<Answer, Broken>> {
        match self.0 {}
    }
}
impl Source for Backend {
    fn poll_part(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Part>, Broken>> {
        match self.0 {}
    }
    fn is_ended(&self) -> bool {
        match self.0 {}
    }
}
impl Sink for Backend {
    fn poll_data(&mut self, _: &mut Context<'_>, _: &mut Bytes, _: bool) -> Poll<Result<(), Broken>> {
        match self.0 {}
    }
    fn end(&mut self, _: Option<HeaderMap>) -> Result<(), Broken> {
        match self.0 {}
    }
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self.0 {}
    }
}
