//! What is told of a request once it has ended: exactly one count and one record, also of what is no request, and of one whose
//! connection was cut off.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::{HeaderValue, Method, StatusCode, Version, header};
use tokio::time::Instant;

use super::Left;
use crate::http::{
    access::{self, Outcome, Timings},
    h1::{RequestHead, Target},
    message::Request,
    site::Site,
};

/// Filled in stage by stage. Dropped without [`Self::finish`] its request was cut off, and it says so.
#[derive(Debug)]
pub(super) struct RequestLog<'a> {
    site: &'a Site,
    begun_at: Instant,
    /// A number that is spread evenly.
    draw: u64,
    is_finished: bool,
    /// Only where records are written.
    head: Option<Box<(SystemTime, Seen)>>,
    pub(super) route: Option<Arc<str>>,
    pub(super) backend: Option<String>,
    pub(super) request_id: Option<HeaderValue>,
    /// Of a response of which the client may have got something.
    pub(super) status: Option<StatusCode>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) queue: Option<Duration>,
    pub(super) connect: Option<Duration>,
    pub(super) first_byte: Option<Duration>,
}

/// What could be read of a request's head.
#[derive(Debug)]
pub struct Seen {
    host: Option<HeaderValue>,
    method: Option<Method>,
    target: Option<Target>,
    version: Version,
    user_agent: Option<HeaderValue>,
}

impl Seen {
    /// Nothing but what is spoken on the connection.
    pub fn nothing(version: Version) -> Self {
        Self { host: None, method: None, target: None, version, user_agent: None }
    }

    /// The method at least.
    pub fn method(method: Method, version: Version) -> Self {
        Self { method: Some(method), ..Self::nothing(version) }
    }

    /// A head that does not tell whom it is for.
    pub fn without_host(head: &RequestHead) -> Self {
        Self {
            host: None,
            method: Some(head.method.clone()),
            target: Some(head.target.clone()),
            version: head.version,
            user_agent: head.headers.get(header::USER_AGENT).cloned(),
        }
    }

    pub(super) fn request(request: &Request) -> Self {
        Self {
            host: Some(request.host.clone()),
            method: Some(request.method.clone()),
            target: Some(request.target.clone()),
            version: request.version,
            user_agent: request.headers.get(header::USER_AGENT).cloned(),
        }
    }
}

impl<'a> RequestLog<'a> {
    /// `seen` is asked where records are written.
    pub(super) fn new(site: &'a Site, begun_at: Instant, draw: u64, seen: impl FnOnce() -> Seen) -> Self {
        let head = site.edge().access.as_ref().map(|_| Box::new((SystemTime::now() - begun_at.elapsed(), seen())));
        Self {
            site,
            begun_at,
            draw,
            is_finished: false,
            head,
            route: None,
            backend: None,
            request_id: None,
            status: None,
            request_bytes: 0,
            response_bytes: 0,
            queue: None,
            connect: None,
            first_byte: None,
        }
    }

    /// When the request began.
    pub(super) fn begun_at(&self) -> Instant {
        self.begun_at
    }

    /// Whether what is collected is written.
    pub(super) fn is_wanted(&self) -> bool {
        self.head.is_some()
    }

    /// The request was answered here, with content of `bytes`; gives back how that has ended.
    pub(super) fn answered(&mut self, status: StatusCode, (left, bytes): (Left, u64)) -> Left {
        if left != Left::Broken {
            (self.status, self.response_bytes) = (Some(status), bytes);
        }
        left
    }

    /// Counts the request, and writes its record if it is one that is kept.
    pub(super) fn finish(mut self, outcome: Outcome) {
        self.write(outcome);
    }

    fn write(&mut self, outcome: Outcome) {
        self.is_finished = true;
        let (site, edge) = (self.site, self.site.edge());
        edge.http_counters.count(self.status, outcome);
        let (Some(access), Some((time, head))) = (&edge.access, self.head.as_deref()) else { return };
        if !access.sample.keeps(self.draw, self.status, outcome) {
            return;
        }
        let path = match &head.target {
            Some(Target::Origin(path)) => path.as_str().as_bytes(),
            Some(Target::Asterisk) => b"*",
            None => b"-",
        };
        let record = access::Record {
            time: *time,
            client: site.client,
            country: site.country.as_deref(),
            sni: site.server_name.as_ref().map(|name| name.as_str()),
            host: head.host.as_ref().map(HeaderValue::as_bytes),
            route: self.route.as_deref(),
            method: head.method.as_ref().map_or(b"-", |method| method.as_str().as_bytes()),
            path,
            status: self.status,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            timings: Timings {
                queue: self.queue,
                connect: self.connect,
                first_byte: self.first_byte,
                total: self.begun_at.elapsed(),
            },
            backend: self.backend.as_deref(),
            protocol: head.version,
            tls: site.tls,
            user_agent: head.user_agent.as_ref().map(HeaderValue::as_bytes),
            request_id: self.request_id.as_ref().map_or(b"-", |id| id.as_bytes()),
            outcome,
        };
        let mut line = Vec::with_capacity(512);
        access.style.write(&record, &mut line);
        access.log.send(line);
    }
}

impl Drop for RequestLog<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            let is_stopping = self.site.local.drain.has_begun();
            self.write(if is_stopping { Outcome::Shutdown } else { Outcome::ClientAborted });
        }
    }
}
