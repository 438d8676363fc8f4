//! The limit on new connections of a source in user space, by the algorithm and the figures of the kernel.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use mc_proxy_common::{
    rate::{Admission, RateLimit, home, spend},
    table::Line,
};

/// Lines of four sources each: 4 MiB, whatever comes.
const LINES: usize = 65_536;

/// Connections that the kernel let in one after the other may be accepted closer together than their SYNs came: by the
/// handshake of the first, with two retransmissions (RFC 6298 §2.1), less that of the last.
const HANDSHAKE_JITTER: u64 = 3_000_000_000;

/// What every source has used up lately. Asking takes no lock.
///
/// A source is forgotten early only for another one in the same line, when all four have connections in the window;
/// this is counted.
pub struct RateLimiter {
    limit: RateLimit,
    lines: Box<[CacheLine]>,
    seed: u64,
    is_second: AtomicBool,
    crowded: AtomicU64,
}

#[repr(align(64))]
struct CacheLine(Line);

impl RateLimiter {
    /// For a limit that stays; [`RateLimit::OFF`] takes no memory.
    pub fn new(limit: RateLimit) -> Self {
        Self::with_lines(limit, if limit.interval == 0 { 0 } else { LINES })
    }

    /// `lines` is 0 or a power of two.
    fn with_lines(limit: RateLimit, lines: usize) -> Self {
        Self {
            limit,
            lines: std::iter::repeat_with(|| CacheLine(std::array::from_fn(|_| AtomicU64::new(0))))
                .take(lines)
                .collect(),
            seed: RandomState::new().hash_one(0),
            is_second: AtomicBool::new(false),
            crowded: AtomicU64::new(0),
        }
    }

    /// The limit.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Whether the kernel limits new connections too. If so, the window here is three seconds wider, so that a
    /// connection that the kernel let in is not refused for having been delayed on the way; what the kernel does not
    /// see, as on an interface without the program, is limited all the same.
    pub fn set_second(&self, is_second: bool) {
        self.is_second.store(is_second, Relaxed);
    }

    /// Spends one connection of `source` at `now`, in nanoseconds of the boot-time clock; `false` if it is one too many.
    pub fn admit(&self, source: IpAddr, now: u64) -> bool {
        self.spend(source, now, self.is_second.load(Relaxed))
    }

    /// The same for a source whose packets the kernel does not see: one that a PROXY header names.
    pub fn admit_named(&self, source: IpAddr, now: u64) -> bool {
        self.spend(source, now, false)
    }

    fn spend(&self, source: IpAddr, now: u64, is_second: bool) -> bool {
        let key = self.limit.key(source.into());
        let mask = self.lines.len().wrapping_sub(1);
        let Some(CacheLine(line)) = self.lines.get(home(key, self.seed) as usize & mask) else { return true };
        let mut limit = self.limit;
        if is_second {
            limit.window = limit.window.saturating_add(HANDSHAKE_JITTER);
        }
        match spend(&limit, line, key, now) {
            Admission::Admitted => true,
            Admission::Crowded => {
                self.crowded.fetch_add(1, Relaxed);
                true
            }
            Admission::Limited => false,
        }
    }

    /// Sources that were forgotten early.
    pub fn crowded(&self) -> u64 {
        self.crowded.load(Relaxed)
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("limit", &self.limit)
            .field("crowded", &self.crowded)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_000 * SECOND;

    fn limiter(connections: u32, seconds: u64) -> RateLimiter {
        RateLimiter::with_lines(RateLimit::new(connections, seconds * SECOND, 32, 64), 1)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_edges_of_a_window() {
        let limiter = limiter(4, 8);
        let source = ip("192.0.2.1");
        assert_eq!([(); 5].map(|()| limiter.admit(source, START)), [true, true, true, true, false]);
        assert!(limiter.admit(ip("192.0.2.2"), START), "another source");
        assert!(!limiter.admit(source, START + 2 * SECOND - 1));
        assert!(limiter.admit(source, START + 2 * SECOND));
        assert!(!limiter.admit(source, START + 2 * SECOND));
        assert_eq!([(); 5].map(|()| limiter.admit(source, START + 10 * SECOND)), [true, true, true, true, false]);
    }

    /// Behind the kernel's limit the window is wider, but not for whom the kernel has not seen.
    #[test]
    fn a_source_that_a_header_names_has_the_window_that_was_set() {
        let limiter = limiter(1, 1);
        limiter.set_second(true);
        for source in ["192.0.2.1", "192.0.2.2"].map(ip) {
            assert!(limiter.admit_named(source, START) && !limiter.admit_named(source, START + SECOND - 1));
            assert!(limiter.admit_named(source, START + SECOND));
        }
    }

    #[test]
    fn no_limit_takes_no_memory_and_refuses_nobody() {
        let limiter = RateLimiter::new(RateLimit::OFF);
        assert!(limiter.lines.is_empty());
        assert!((0..1_000).all(|_| limiter.admit(ip("192.0.2.1"), START)));
    }

    #[test]
    fn the_second_to_limit_is_patient() {
        let limiter = limiter(2, 4);
        limiter.set_second(true);
        // Seven seconds of two each.
        assert_eq!([(); 4].map(|()| limiter.admit(ip("2001:db8::1"), START)), [true, true, true, false]);
        assert!(!limiter.admit(ip("2001:db8::2"), START), "the same source");
        limiter.set_second(false);
        assert!(!limiter.admit(ip("2001:db8::1"), START + 4 * SECOND - 1));
        assert!(limiter.admit(ip("2001:db8::1"), START + 4 * SECOND));
    }

    #[test]
    fn more_sources_than_there_is_room_for() {
        let limiter = RateLimiter::new(RateLimit::new(1, 1_000 * SECOND, 32, 64));
        let sources = 6 * LINES as u32;
        let refused = (0..sources).filter(|n| !limiter.admit(Ipv4Addr::from_bits(*n).into(), START + 1)).count();
        assert_eq!(refused, 0, "nobody pays for the others");
        assert!(limiter.crowded() >= u64::from(sources) - 4 * LINES as u64);
    }

    proptest! {
        #[test]
        fn each_source_is_limited_as_if_it_were_alone(
            connections in 1_u32..5,
            seconds in 1_u64..5,
            steps in prop::collection::vec((0_u8..4, 0_u64..2 * SECOND), 0..200),
        ) {
            let limiter = limiter(connections, seconds);
            let (mut now, mut alone) = (START, HashMap::new());
            for (source, step) in steps {
                now += step;
                let tat = alone.entry(source).or_insert(0);
                let admitted = limiter.limit().admit(*tat, now);
                *tat = admitted.unwrap_or(*tat);
                prop_assert_eq!(limiter.admit(Ipv4Addr::new(192, 0, 2, source).into(), now), admitted.is_some());
            }
        }

        #[test]
        fn what_the_kernel_let_in_is_never_refused(
            connections in 1_u32..5,
            syns in prop::collection::vec((0_u64..2 * SECOND, 0..=HANDSHAKE_JITTER), 0..200),
        ) {
            let (kernel, user) = (limiter(connections, 3), limiter(connections, 3));
            user.set_second(true);
            let (source, mut now, mut accepted) = (ip("192.0.2.1"), START, Vec::new());
            for (step, delay) in syns {
                now += step;
                if kernel.admit(source, now) {
                    accepted.push(now + delay);
                }
            }
            accepted.sort_unstable();
            for at in accepted {
                prop_assert!(user.admit(source, at));
            }
        }
    }
}
