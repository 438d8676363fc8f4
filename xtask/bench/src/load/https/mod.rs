//! Load over TLS, and the plaintext backends behind the proxies that terminate it.
//!
//! One thread for each role, like the other roles: with the backend on the same CPU it costs a fraction of what a proxy
//! spends on the same request, so that the proxy is what limits.

mod backend;
mod client;
mod frames;
mod h1;
mod h2;
mod server;
mod tls;

use std::path::PathBuf;

use super::Common;
use super::socket::pattern;
use client::{Demand, Enough};
use h1::{Get, Lasts};
use h2::{Request, Streams};
use tls::Sessions;

pub(crate) use client::Outcome;

const HTTP_1_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";
const SMALL_PATH: &str = "/small";
const LARGE_PATH: &str = "/large";
const METHOD: &str = "/bench.Echo/Unary";
/// A message of gRPC and the five bytes before it: 1 KiB.
const GRPC_MESSAGE: usize = 1 << 10;

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// HTTP/1.1, connections that stay open, 1 KiB.
    H1,
    /// The same with 1 MiB.
    H1Large,
    /// HTTP/2, 1 KiB.
    H2,
    /// A full handshake for each request of HTTP/1.1.
    Handshake,
    /// A resumed handshake for each request of HTTP/1.1.
    Resumed,
    /// Unary calls.
    Grpc,
}

impl Kind {
    /// As it is said on a command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1Large => "h1-large",
            Self::H2 => "h2",
            Self::Handshake => "handshake",
            Self::Resumed => "resumed",
            Self::Grpc => "grpc",
        }
    }
}

/// Options of the client over TLS.
#[derive(Debug, clap::Args)]
pub(super) struct Client {
    #[command(flatten)]
    common: Common,
    #[arg(long)]
    kind: Kind,
    /// Requests in flight on each connection of HTTP/2.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// The certificate that the proxy has, PEM.
    #[arg(long)]
    certificate: PathBuf,
    /// Ends as soon as every connection has had a response; an error if that does not happen.
    #[arg(long)]
    probe: bool,
}

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Speaks {
    Http,
    Grpc,
}

/// Asks until it is stopped.
pub(super) fn client(args: &Client) -> anyhow::Result<Outcome> {
    let kind = args.kind;
    let is_h2 = matches!(kind, Kind::H2 | Kind::Grpc);
    let alpn = if is_h2 { HTTP_2 } else { HTTP_1_1 };
    let (sessions, enough) = match kind {
        Kind::Resumed => (Sessions::Resume, Enough::Resumed),
        Kind::H1 | Kind::H1Large | Kind::H2 | Kind::Handshake | Kind::Grpc => (Sessions::Forget, Enough::Exchanges),
    };
    let config = tls::config(&args.certificate, alpn)?;
    let demand = Demand { config, sessions, alpn, enough: args.probe.then_some(enough) };
    let (plan, counters) = (args.common.plan()?, args.common.counters()?);

    let is_large = kind == Kind::H1Large;
    let path = if is_large { LARGE_PATH } else { SMALL_PATH };
    let body = pattern(if is_large { backend::LARGE_BODY } else { backend::SMALL_BODY });
    if is_h2 {
        let is_call = kind == Kind::Grpc;
        let request = if is_call { Request::grpc(METHOD, grpc_message()) } else { Request::get(path, body) };
        return client::run(&plan, &demand, counters, |_| Streams::new(&request, args.streams));
    }
    let lasts = if matches!(kind, Kind::Handshake | Kind::Resumed) { Lasts::Once } else { Lasts::Keep };
    let request = h1::request(path, lasts);
    client::run(&plan, &demand, counters, |began| Get::new(&request, &body, lasts, began))
}

/// Answers until its time is over.
pub(super) fn backend(common: &Common, speaks: Speaks) -> anyhow::Result<()> {
    let (lifetime, counters) = (common.plan()?.lifetime, common.counters()?);
    match speaks {
        Speaks::Http => backend::http(common.addr, lifetime, counters),
        Speaks::Grpc => backend::grpc(common.addr, lifetime, counters),
    }
}

/// A message as it is framed: not compressed, its length, its bytes.
fn grpc_message() -> Vec<u8> {
    let length = GRPC_MESSAGE - 5;
    let mut message = vec![0];
    message.extend_from_slice(&(length as u32).to_be_bytes());
    message.extend(pattern(length));
    message
}
