//! What is known of a name: the last answer, how long it is used, and in which order its addresses are tried. Pure.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

/// Bounds of a TTL. Less would be a query for every connection, more a name that cannot be moved within a working day.
pub(super) const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// After a failure the name is asked for again so soon, then twice as late each time.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(10);

/// Addresses of one name that are tried; an answer may have thousands.
const MAX_ADDRESSES: usize = 32;

/// An answer as it was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// At least one.
    pub(super) ips: Vec<IpAddr>,
    /// Until then it need not be asked for again.
    pub(super) ttl: Duration,
    /// Of this family no answer was to be had, which is not to say that there are no addresses.
    pub(super) unheard: Option<Family>,
}

/// The two kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unheard {
    /// Name servers say so.
    #[error("there is no such name, or it has no address")]
    NoSuchName,
    /// Name servers do not answer, or do not know.
    #[error("{0}")]
    Failed(String),
}

/// The last answer, and whether it is the latest word.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// In the order in which they are tried; empty before the first answer.
    pub(super) ips: Arc<[IpAddr]>,
    /// When to ask again; `None` before the first look-up has ended.
    pub(super) until: Option<Instant>,
    /// Why the last look-up failed.
    pub(super) error: Option<Unheard>,
    /// Failures since the last success.
    pub(super) failures: u32,
}

impl Answer {
    /// The next answer. A failure leaves the addresses as they are, however old they get.
    pub(super) fn next(&self, heard: Result<Heard, Unheard>, now: Instant) -> Self {
        match heard {
            Ok(heard) => {
                let mut ttl = heard.ttl.clamp(*TTL.start(), *TTL.end());
                let mut ips = heard.ips;
                if let Some(unheard) = heard.unheard {
                    ips.extend(self.ips.iter().filter(|ip| Family::of(**ip) == unheard));
                    ttl = ttl.min(*RETRY.end());
                }
                Self { ips: interleaved(&ips).into(), until: Some(now + ttl), error: None, failures: 0 }
            }
            Err(error) => {
                let pause = RETRY.start().saturating_mul(1 << self.failures.min(8)).min(*RETRY.end());
                Self {
                    ips: Arc::clone(&self.ips),
                    until: Some(now + pause),
                    error: Some(error),
                    failures: self.failures.saturating_add(1),
                }
            }
        }
    }

    /// The addresses, or why there are none.
    pub(super) fn result(&self) -> io::Result<Arc<[IpAddr]>> {
        match &self.error {
            Some(error) if self.ips.is_empty() => {
                let kind = match error {
                    Unheard::NoSuchName => io::ErrorKind::NotFound,
                    Unheard::Failed(_) => io::ErrorKind::Other,
                };
                Err(io::Error::new(kind, error.to_string()))
            }
            _ => Ok(Arc::clone(&self.ips)),
        }
    }
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// RFC 8305 §4: IPv6 first, then the families in turn, each in the order that the name server chose. Each address once.
fn interleaved(ips: &[IpAddr]) -> Vec<IpAddr> {
    let mut v6 = ips.iter().filter(|ip| ip.is_ipv6());
    let mut v4 = ips.iter().filter(|ip| ip.is_ipv4());
    let mut ordered: Vec<IpAddr> = Vec::with_capacity(ips.len().min(MAX_ADDRESSES));
    loop {
        let pair = [v6.next(), v4.next()];
        if pair == [None, None] {
            return ordered;
        }
        for ip in pair.into_iter().flatten() {
            if ordered.len() == MAX_ADDRESSES {
                return ordered;
            }
            if !ordered.contains(ip) {
                ordered.push(*ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    fn heard(text: &str, seconds: u64) -> Result<Heard, Unheard> {
        Ok(Heard { ips: ips(text), ttl: Duration::from_secs(seconds), unheard: None })
    }

    fn failed() -> Result<Heard, Unheard> {
        Err(Unheard::Failed("server failure".to_owned()))
    }

    #[tokio::test]
    async fn ttls_have_bounds() {
        let now = Instant::now();
        for (ttl, used) in [(0, 1), (1, 1), (300, 300), (86_400, 3_600)] {
            let answer = Answer::default().next(heard("192.0.2.1", ttl), now);
            assert_eq!(answer.until, Some(now + Duration::from_secs(used)));
        }
    }

    #[tokio::test]
    async fn failures_are_retried_soon_then_later_and_keep_the_addresses() {
        let now = Instant::now();
        let mut answer = Answer::default().next(failed(), now);
        assert_eq!(answer.result().unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(answer.next(Err(Unheard::NoSuchName), now).result().unwrap_err().kind(), io::ErrorKind::NotFound);
        answer = answer.next(heard("192.0.2.1", 60), now);
        for pause in [1, 2, 4, 8, 10, 10, 10, 10, 10, 10, 10] {
            answer = answer.next(failed(), now);
            assert_eq!(answer.until, Some(now + Duration::from_secs(pause)));
            assert_eq!(*answer.result().unwrap(), ips("192.0.2.1"));
        }
        assert_eq!(answer.next(heard("192.0.2.2", 60), now).failures, 0);
    }

    #[tokio::test]
    async fn a_family_without_an_answer_keeps_its_addresses_and_is_asked_for_soon() {
        let now = Instant::now();
        let old = Answer::default().next(heard("192.0.2.1 2001:db8::1", 600), now);
        let unheard = Heard { unheard: Some(Family::V6), ..heard("192.0.2.2", 600).unwrap() };
        let new = old.next(Ok(unheard), now);
        assert_eq!(*new.ips, ips("2001:db8::1 192.0.2.2"));
        assert_eq!(new.until, Some(now + Duration::from_secs(10)));
        assert_eq!(*old.next(heard("192.0.2.2", 600), now).ips, ips("192.0.2.2"));
    }

    #[test]
    fn families_take_turns() {
        let order = |given: &str| interleaved(&ips(given));
        assert_eq!(order("192.0.2.1 192.0.2.2"), ips("192.0.2.1 192.0.2.2"));
        assert_eq!(
            order("192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1 2001:db8::2"),
            ips("2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2 192.0.2.3")
        );
        assert_eq!(order("2001:db8::1 2001:db8::1 192.0.2.1 192.0.2.1"), ips("2001:db8::1 192.0.2.1"));
        assert!(order("").is_empty());
        let many: Vec<IpAddr> = (0..=255).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(interleaved(&many), many[..MAX_ADDRESSES]);
    }
}
