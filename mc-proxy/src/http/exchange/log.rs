//! What is told of a request once it has ended.

use std::time::SystemTime;

use ::http::{HeaderValue, Method, StatusCode, Version, header};
use tokio::time::{Duration, Instant};

use crate::http::{
    access::{self, Outcome, Timings},
    h1::Target,
    message::Request,
    site::Site,
};

/// Filled in stage by stage.
#[derive(Debug)]
pub(super) struct RequestLog {
    begun_at: Instant,
    /// Only where records are written.
    head: Option<Box<Head>>,
    pub(super) route: Option<std::sync::Arc<str>>,
    pub(super) backend: Option<String>,
    pub(super) request_id: Option<HeaderValue>,
    pub(super) status: Option<StatusCode>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) queue: Option<Duration>,
    pub(super) connect: Option<Duration>,
    pub(super) first_byte: Option<Duration>,
}

#[derive(Debug)]
struct Head {
    time: SystemTime,
    host: HeaderValue,
    method: Method,
    target: Target,
    version: Version,
    user_agent: Option<HeaderValue>,
}

impl RequestLog {
    pub(super) fn new(site: &Site, request: &Request, begun_at: Instant) -> Self {
        let head = site.edge().access.as_ref().map(|_| {
            Box::new(Head {
                time: SystemTime::now() - begun_at.elapsed(),
                host: request.host.clone(),
                method: request.method.clone(),
                target: request.target.clone(),
                version: request.version,
                user_agent: request.headers.get(header::USER_AGENT).cloned(),
            })
        });
        Self {
            begun_at,
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

    /// Counts the request, and writes its record if it is one that is kept. `draw`: a number that is spread evenly.
    pub(super) fn finish(self, site: &Site, outcome: Outcome, draw: u64) {
        let edge = site.edge();
        edge.http_counters.count(self.status, outcome);
        let (Some(access), Some(head)) = (&edge.access, self.head) else { return };
        if !access.sample.keeps(draw, self.status, outcome) {
            return;
        }
        let path = match &head.target {
            Target::Origin(path) => path.as_str().as_bytes(),
            Target::Asterisk => b"*",
        };
        let record = access::Record {
            time: head.time,
            client: site.client,
            country: site.country.as_deref(),
            sni: site.server_name.as_ref().map(|name| name.as_str()),
            host: Some(head.host.as_bytes()),
            route: self.route.as_deref(),
            method: head.method.as_str().as_bytes(),
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
