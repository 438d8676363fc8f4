//! Backend names, resolved anew as answers age.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::Notify,
    time::{Instant, timeout},
};

/// How long an answer is used. The system's resolver does not tell the TTL.
const FRESH: Duration = Duration::from_secs(5);

/// How long a failure is repeated without asking again.
const FAILED: Duration = Duration::from_secs(1);

/// How long a new answer is waited for where there is an old one: a resolver that is silent costs no connection its
/// deadline.
const PATIENCE: Duration = Duration::from_millis(500);

/// All answers are dropped, to be asked for anew, when there are so many: names that no route has any more go with them.
const MAX_NAMES: usize = 4096;

/// A cache in front of the system's resolver: one look-up at a time for each name, whatever the number of connections,
/// and however long it takes.
#[derive(Debug, Default)]
pub struct Resolver {
    names: Mutex<HashMap<Box<str>, Arc<Name>>>,
}

#[derive(Debug, Default)]
struct Name {
    answer: Mutex<Answer>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Answer {
    addrs: Arc<[IpAddr]>,
    until: Option<Instant>,
    error: Option<(io::ErrorKind, String)>,
    is_asked: bool,
}

impl Resolver {
    /// The addresses of a host, in the system's order. When a look-up fails or takes long, an older answer goes on being
    /// used; without one the caller's deadline ends the wait.
    ///
    /// # Errors
    /// When there has never been an answer.
    pub async fn lookup(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        let name = self.name(host);
        let old = Arc::clone(&name.lock().addrs);
        if old.is_empty() {
            return name.fresh(host).await;
        }
        timeout(PATIENCE, name.fresh(host)).await.unwrap_or(Ok(old))
    }

    /// The last answer for a host, however old; nothing if it has not been asked for.
    pub fn known(&self, host: &str) -> Arc<[IpAddr]> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(host).map(|name| Arc::clone(&name.lock().addrs)).unwrap_or_default()
    }

    fn name(&self, host: &str) -> Arc<Name> {
        // Nothing can panic half-way through a change of the map.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(host) {
            return Arc::clone(name);
        }
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        Arc::clone(names.entry(host.into()).or_default())
    }
}

impl Name {
    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, once it is not due for another look-up.
    async fn fresh(self: &Arc<Self>, host: &str) -> io::Result<Arc<[IpAddr]>> {
        loop {
            // Listens before it looks.
            let answered = self.answered.notified();
            {
                let mut answer = self.lock();
                if answer.until.is_some_and(|until| until > Instant::now()) {
                    return answer.result();
                }
                if !answer.is_asked {
                    answer.is_asked = true;
                    tokio::spawn(ask(Asking(Arc::clone(self)), host.into()));
                }
            }
            answered.await;
        }
    }
}

/// The look-up that is under way for a name. A task of its own: whoever wanted the answer may be gone before it comes,
/// and the system's resolver goes on all the same, so nobody is to start another.
struct Asking(Arc<Name>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.lock().is_asked = false;
        self.0.answered.notify_waiters();
    }
}

async fn ask(asking: Asking, host: Box<str>) {
    let found = lookup_host((&*host, 0)).await.map(|addrs| addrs.map(|addr| addr.ip()).collect());
    asking.0.lock().note(&host, found);
}

impl Answer {
    fn result(&self) -> io::Result<Arc<[IpAddr]>> {
        match &self.error {
            Some((kind, message)) if self.addrs.is_empty() => Err(io::Error::new(*kind, message.clone())),
            _ => Ok(Arc::clone(&self.addrs)),
        }
    }

    fn note(&mut self, host: &str, found: io::Result<Arc<[IpAddr]>>) {
        match found {
            Ok(addrs) if !addrs.is_empty() => {
                self.addrs = addrs;
                self.until = Some(Instant::now() + FRESH);
                self.error = None;
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
        let until = resolver.name(name).lock().until;
        assert!(resolver.lookup(name).await.is_err());
        assert_eq!(resolver.name(name).lock().until, until);
    }

    #[tokio::test]
    async fn an_old_answer_serves_while_the_resolver_is_silent_or_fails() {
        let resolver = Resolver::default();
        let name = resolver.name("app.invalid");
        let addrs: Arc<[IpAddr]> = Arc::new([IpAddr::from([192, 0, 2, 1])]);
        *name.lock() = Answer { addrs: Arc::clone(&addrs), is_asked: true, ..Answer::default() };
        assert_eq!(resolver.lookup("app.invalid").await.unwrap(), addrs);

        drop(Asking(Arc::clone(&name)));
        assert_eq!(resolver.lookup("app.invalid").await.unwrap(), addrs);
        assert!(name.lock().error.is_some(), "it was not asked anew");
    }

    #[tokio::test]
    async fn a_look_up_outlives_who_wanted_it() {
        let resolver = Resolver::default();
        tokio::select! {
            biased;
            _ = resolver.lookup("localhost") => panic!("an answer at once"),
            () = std::future::ready(()) => {}
        }
        let name = resolver.name("localhost");
        assert!(name.lock().is_asked);
        while name.lock().until.is_none() {
            timeout(Duration::from_secs(10), name.answered.notified()).await.expect("no answer");
        }
        assert!(!name.lock().is_asked);
    }
}
