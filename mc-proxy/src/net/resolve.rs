//! Backend names, resolved anew as answers age.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};

/// How long an answer is used. The system's resolver does not tell the TTL.
const FRESH: Duration = Duration::from_secs(5);

/// How long a failure is repeated without asking again.
const FAILED: Duration = Duration::from_secs(1);

/// A look-up that takes longer counts as failed; whoever waits for it has a deadline of his own too.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers that no route has asked for since are dropped once there are so many.
const MAX_NAMES: usize = 4096;

/// A cache in front of the system's resolver: one look-up at a time for each name, whatever the number of connections.
#[derive(Debug, Default)]
pub struct Resolver {
    names: Mutex<HashMap<Box<str>, Arc<tokio::sync::Mutex<Answer>>>>,
}

#[derive(Debug, Default)]
struct Answer {
    addrs: Arc<[IpAddr]>,
    until: Option<Instant>,
    error: Option<(io::ErrorKind, String)>,
}

impl Resolver {
    /// The addresses of a host, in the system's order. When a look-up fails, an older answer goes on being used.
    ///
    /// # Errors
    /// When there has never been an answer.
    pub async fn lookup(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        let answer = self.answer(host);
        let mut answer = answer.lock().await;
        if answer.until.is_none_or(|until| until <= Instant::now()) {
            answer.refresh(host).await;
        }
        match &answer.error {
            Some((kind, message)) if answer.addrs.is_empty() => Err(io::Error::new(*kind, message.clone())),
            _ => Ok(Arc::clone(&answer.addrs)),
        }
    }

    fn answer(&self, host: &str) -> Arc<tokio::sync::Mutex<Answer>> {
        // Nothing can panic half-way through a change of the map.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = names.get(host) {
            return Arc::clone(answer);
        }
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        Arc::clone(names.entry(host.into()).or_default())
    }
}

impl Answer {
    async fn refresh(&mut self, host: &str) {
        let found = match timeout(PATIENCE, lookup_host((host, 0))).await {
            Ok(result) => result.map(|addrs| addrs.map(|addr| addr.ip()).collect::<Arc<[_]>>()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer")),
        };
        match found {
            Ok(addrs) if !addrs.is_empty() => {
                *self = Self { addrs, until: Some(Instant::now() + FRESH), error: None };
            }
            Ok(_) => self.fail(host, &io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            Err(error) => self.fail(host, &error),
        }
    }

    fn fail(&mut self, host: &str, error: &io::Error) {
        if self.error.is_none() {
            tracing::warn!(host, %error, stale = self.addrs.len(), "a backend's name could not be resolved");
        }
        self.until = Some(Instant::now() + FAILED);
        self.error = Some((error.kind(), error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_resolved_once_while_its_answer_is_fresh() {
        let resolver = Resolver::default();
        let first = resolver.lookup("localhost").await.unwrap();
        assert!(first.iter().all(IpAddr::is_loopback));
        let second = resolver.lookup("localhost").await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[tokio::test]
    async fn a_failure_is_told_to_everyone_and_not_asked_again_at_once() {
        let resolver = Resolver::default();
        let name = "no-such-host.invalid";
        assert!(resolver.lookup(name).await.is_err());
        let until = resolver.answer(name).lock().await.until;
        assert!(resolver.lookup(name).await.is_err());
        assert_eq!(resolver.answer(name).lock().await.until, until);
    }
}
