//! Connections at a time of each source, for a listener that limits them.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Workers wait for each other only when two of their clients are of the same shard in the same moment.
const SHARDS: usize = 64;

/// Sources that a shard keeps room for when it has none.
const ROOM: usize = 64;

/// How many connections each source has. A source that has none takes no memory, so the table is no larger than the
/// number of open connections.
pub(super) struct Sources {
    /// 0 = unlimited, and nothing is counted.
    max: u64,
    shards: Box<[Shard]>,
    hasher: RandomState,
}

#[derive(Default)]
#[repr(align(64))]
struct Shard(Mutex<HashMap<Source, u64>>);

/// An IPv4 address or an IPv6 /64: what one subscriber is given at least (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(client: IpAddr) -> Self {
        Self(match client.to_canonical() {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64).into(),
        })
    }
}

impl Sources {
    pub(super) fn new(max: u64) -> Self {
        Self { max, shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(), hasher: RandomState::new() }
    }

    /// Counts one more connection of `source`: `Ok(true)` when it has to be given back, `Ok(false)` without a limit.
    pub(super) fn take(&self, source: Source) -> Result<bool, AtLimit> {
        if self.max == 0 {
            return Ok(false);
        }
        let mut shard = self.shard(source);
        let active = shard.entry(source).or_insert(0);
        if *active >= self.max {
            return Err(AtLimit);
        }
        *active += 1;
        Ok(true)
    }

    pub(super) fn give_back(&self, source: Source) {
        let mut shard = self.shard(source);
        if let Some(active) = shard.get_mut(&source) {
            *active -= 1;
            if *active == 0 {
                shard.remove(&source);
            }
        }
        // What a flood has grown is not kept for the next one.
        if shard.is_empty() && shard.capacity() > 2 * ROOM {
            shard.shrink_to(ROOM);
        }
    }

    /// Sources that have a connection.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().unwrap().len()).sum()
    }

    fn shard(&self, source: Source) -> MutexGuard<'_, HashMap<Source, u64>> {
        let index = self.hasher.hash_one(source) as usize % SHARDS;
        // No code that could panic runs with the lock held.
        self.shards[index].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source has as many connections as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtLimit;

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("max", &self.max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn what_is_one_source() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }

    #[test]
    fn a_place_that_is_given_back_is_free_and_takes_no_memory() {
        let sources = Sources::new(2);
        let one = source("192.0.2.1");
        assert_eq!([(); 3].map(|()| sources.take(one)), [Ok(true), Ok(true), Err(AtLimit)]);
        assert_eq!(sources.take(source("192.0.2.2")), Ok(true), "another source");
        sources.give_back(one);
        assert_eq!(sources.take(one), Ok(true));
        for gone in [one, one, source("192.0.2.2")] {
            sources.give_back(gone);
        }
        assert_eq!(sources.len(), 0);
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let sources = Sources::new(0);
        assert!((0..100).all(|_| sources.take(source("192.0.2.1")) == Ok(false)));
        assert_eq!(sources.len(), 0);
    }

    #[test]
    fn threads_together_let_in_as_many_as_one() {
        let sources = Sources::new(10);
        let let_in = std::thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| sources.take(source("2001:db8::1")).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(let_in, 10);
    }

    proptest! {
        #[test]
        fn each_source_is_counted_as_if_it_were_alone(
            max in 1_u64..4,
            steps in prop::collection::vec((0_u8..6, any::<bool>()), 0..300),
        ) {
            let sources = Sources::new(max);
            let mut alone: HashMap<u8, u64> = HashMap::new();
            for (number, takes) in steps {
                let source = Source::of([10, 0, 0, number].into());
                let active = alone.entry(number).or_default();
                if takes {
                    let expected = if *active < max { Ok(true) } else { Err(AtLimit) };
                    prop_assert_eq!(sources.take(source), expected);
                    *active += u64::from(expected.is_ok());
                } else if *active > 0 {
                    sources.give_back(source);
                    *active -= 1;
                }
                let open = alone.values().filter(|active| **active > 0).count();
                prop_assert_eq!(sources.len(), open);
            }
        }
    }
}
