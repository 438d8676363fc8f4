//! Backend names, resolved anew as their answers age.
//!
//! A name that connections ask for is *kept*: a task asks again whenever the answer's TTL has passed, so that no connection
//! waits for a name server but the first. While name servers fail, the last answer goes on being used, without a limit:
//! traffic to a backend that works must not depend on them.

mod answer;
mod system;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use self::{
    answer::{Answer, Heard, Unheard},
    system::System,
};

/// A name that nobody has asked for so long is not kept any more.
const UNUSED: Duration = Duration::from_secs(600);

/// How long the first connection after that waits for a new answer before it takes the old one.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long an address that won a race is tried first; then whatever is ahead of it gets another chance.
const PREFERRED: Duration = Duration::from_secs(30);

/// With so many names, those that are not kept are forgotten: names that no route has any more go with them.
const MAX_NAMES: usize = 4096;

/// The answers to names, shared by all connections. No lock is taken to look one up.
#[derive(Debug, Default)]
pub struct Resolver {
    names: ArcSwap<HashMap<Arc<str>, Arc<Name>>>,
    source: Arc<Source>,
}

/// What a [`Resolver`] has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Names that are asked for again as their answers age.
    pub kept: u64,
    /// Of these, names whose last look-up failed.
    pub failing: u64,
    /// Look-ups since the start.
    pub lookups: u64,
    /// Of these, those that failed.
    pub failures: u64,
}

/// Addresses of a name, at least one.
#[derive(Clone, Debug)]
pub struct Addresses {
    ips: Arc<[IpAddr]>,
    name: Arc<Name>,
}

#[derive(Debug, Default)]
struct Source {
    from: From,
    lookups: AtomicU64,
    failures: AtomicU64,
}

#[derive(Debug)]
enum From {
    System(System),
    #[cfg(test)]
    Script(tests::Script),
}

#[derive(Debug, Default)]
struct Name {
    answer: ArcSwap<Answer>,
    /// A task sees to it.
    is_kept: AtomicBool,
    /// What the task has heard is the latest word, be it that name servers fail.
    is_current: AtomicBool,
    /// Since the task last looked.
    is_used: AtomicBool,
    answered: Notify,
    preferred: ArcSwapOption<(IpAddr, Instant)>,
}

impl Resolver {
    /// The addresses of a host. Waits only for a name that nobody has asked for before, until the caller's deadline ends
    /// it, and half a second at most for one that nobody has asked for in a long time.
    ///
    /// # Errors
    /// When there has never been an answer, and the last look-up failed.
    pub async fn lookup(&self, host: &str) -> io::Result<Addresses> {
        let name = self.name(host);
        let ips = match name.answer_now(Instant::now()) {
            Some(answer) => answer.result()?,
            None => {
                let old = Arc::clone(&name.answer.load().ips);
                let new = name.next_answer(host, &self.source);
                if old.is_empty() {
                    new.await.result()?
                } else {
                    timeout(PATIENCE, new).await.map_or(Ok(old), |answer| answer.result())?
                }
            }
        };
        Ok(Addresses { ips, name })
    }

    /// The last answer for a host, however old; nothing if it has not been asked for.
    pub fn known(&self, host: &str) -> Arc<[IpAddr]> {
        self.names.load().get(host).map(|name| Arc::clone(&name.answer.load().ips)).unwrap_or_default()
    }

    /// What it has to do.
    pub fn figures(&self) -> Figures {
        let names = self.names.load();
        let kept: Vec<_> = names.values().filter(|name| name.is_kept.load(Relaxed)).collect();
        Figures {
            kept: kept.len() as u64,
            failing: kept.iter().filter(|name| name.answer.load().error.is_some()).count() as u64,
            lookups: self.source.lookups.load(Relaxed),
            failures: self.source.failures.load(Relaxed),
        }
    }

    fn name(&self, host: &str) -> Arc<Name> {
        if let Some(name) = self.names.load().get(host) {
            return Arc::clone(name);
        }
        let new = Arc::new(Name::default());
        self.names.rcu(|names| {
            let mut names = HashMap::clone(names);
            if names.len() >= MAX_NAMES {
                names.retain(|_, name| name.is_kept.load(Relaxed));
            }
            if names.len() >= MAX_NAMES {
                names.clear();
            }
            names.entry(host.into()).or_insert_with(|| Arc::clone(&new));
            names
        });
        // Another may have been quicker.
        self.names.load().get(host).map_or(new, Arc::clone)
    }
}

impl Addresses {
    #[cfg(test)]
    pub(super) fn of(ips: impl Into<Arc<[IpAddr]>>) -> Self {
        Self { ips: ips.into(), name: Arc::default() }
    }

    /// All of them, in the order in which to try them.
    pub fn in_order(&self, now: Instant) -> impl ExactSizeIterator<Item = IpAddr> + '_ {
        let preferred = self.name.preferred.load();
        let first = preferred.as_deref().filter(|(_, until)| *until > now).map(|(ip, _)| *ip);
        let at = first.and_then(|first| self.ips.iter().position(|ip| *ip == first)).unwrap_or(0);
        // The preferred one comes first, the others keep their order.
        (0..self.ips.len()).map(move |index| match index {
            0 => self.ips[at],
            index if index <= at => self.ips[index - 1],
            index => self.ips[index],
        })
    }

    /// Tells that `ip` has answered where others before it had not.
    pub fn prefer(&self, ip: IpAddr, now: Instant) {
        self.name.preferred.store(Some(Arc::new((ip, now + PREFERRED))));
    }
}

impl Source {
    async fn lookup(&self, host: &str) -> Result<Heard, Unheard> {
        self.lookups.fetch_add(1, Relaxed);
        let heard = match &self.from {
            From::System(system) => system.lookup(host).await,
            #[cfg(test)]
            From::Script(script) => script.lookup(host).await,
        };
        if heard.is_err() {
            self.failures.fetch_add(1, Relaxed);
        }
        heard
    }
}

impl Default for From {
    fn default() -> Self {
        Self::System(System::default())
    }
}

impl Name {
    /// The answer that is to be used at once, if there is one.
    fn answer_now(&self, now: Instant) -> Option<Arc<Answer>> {
        // Written only when it changes: the line is shared by all workers.
        if !self.is_used.load(Relaxed) {
            self.is_used.store(true, Relaxed);
        }
        let is_current = self.is_current.load(Acquire);
        let answer = self.answer.load_full();
        (is_current || answer.until.is_some_and(|until| until > now)).then_some(answer)
    }

    /// The next answer that a task gets; sees to it that there is a task.
    async fn next_answer(self: &Arc<Self>, host: &str, source: &Arc<Source>) -> Arc<Answer> {
        loop {
            // Listens before it looks.
            let answered = self.answered.notified();
            if let Some(answer) = self.answer_now(Instant::now()) {
                return answer;
            }
            if !self.is_kept.swap(true, AcqRel) {
                let keeper = Keeper { name: Arc::clone(self), source: Arc::clone(source), host: host.into() };
                tokio::spawn(keeper.run());
            }
            answered.await;
        }
    }
}

/// The task that keeps a name. One for each name, whoever wanted it may be gone.
struct Keeper {
    name: Arc<Name>,
    source: Arc<Source>,
    host: Box<str>,
}

impl Keeper {
    async fn run(self) {
        let mut used_at = Instant::now();
        loop {
            self.name.is_used.store(false, Relaxed);
            let heard = self.source.lookup(&self.host).await;
            let now = Instant::now();
            let old = self.name.answer.load_full();
            let new = Arc::new(old.next(heard, now));
            self.tell(&old, &new);
            let until = new.until.unwrap_or(now);
            self.name.answer.store(new);
            self.name.is_current.store(true, Release);
            self.name.answered.notify_waiters();
            sleep_until(until).await;
            let now = Instant::now();
            if self.name.is_used.load(Relaxed) {
                used_at = now;
            } else if now.duration_since(used_at) >= UNUSED {
                return;
            }
        }
    }

    /// Tells the operator of changes, and not of every failure.
    fn tell(&self, old: &Answer, new: &Answer) {
        let host = &*self.host;
        match (&old.error, &new.error) {
            (None, Some(error)) => {
                tracing::warn!(host, %error, stale = new.ips.len(), "a backend's name could not be resolved");
            }
            (Some(_), None) => tracing::info!(host, addresses = new.ips.len(), "a backend's name is resolved again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

impl Drop for Keeper {
    /// Also when its worker ends before others: they go on with a task of their own.
    fn drop(&mut self) {
        self.name.is_current.store(false, Relaxed);
        self.name.is_kept.store(false, Release);
        self.name.answered.notify_waiters();
    }
}
