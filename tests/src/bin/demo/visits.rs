//! Good clients: each visit is a TCP connection, a TLS handshake with a checked certificate, the backend's name and an
//! echo.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{tls::Authority, topology::Namespace};

/// How long visits took.
#[derive(Debug)]
pub(crate) struct Visits(Vec<Duration>);

/// Visits one after the other for `duration`, at least one, each of which has to succeed.
pub(crate) fn visit(
    namespace: Option<&Namespace>,
    authority: &Authority,
    proxy: SocketAddr,
    (hostname, backend): (&str, &str),
    duration: Duration,
) -> Result<Visits> {
    let visits = || -> Result<Visits> {
        let start = Instant::now();
        let mut times = Vec::new();
        while times.is_empty() || start.elapsed() < duration {
            let begin = Instant::now();
            let mut client = authority
                .client(proxy, hostname)
                .with_context(|| format!("visit {} of {hostname}", times.len() + 1))?;
            ensure!(client.answered_by() == backend, "{hostname} was answered by {}", client.answered_by());
            client.echo("a request")?;
            client.close()?;
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        Ok(Visits(times))
    };
    match namespace {
        Some(namespace) => namespace.run(visits)?,
        None => visits(),
    }
}

impl Visits {
    pub(crate) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    fn at(&self, percent: usize) -> Duration {
        self.0.get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl fmt::Display for Visits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percent| self.at(percent).as_secs_f64() * 1e3;
        write!(f, "{} visits, all answered; median {:.1} ms, 99 of 100 within {:.1} ms", self.count(), ms(50), ms(99))
    }
}
