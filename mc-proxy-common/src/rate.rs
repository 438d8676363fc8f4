//! New connections of a source by time: the generic cell rate algorithm (ITU-T I.371) over a table of fixed size.
//!
//! A source's whole state is the moment at which it would have used up nothing again, its theoretical arrival time
//! (TAT). One in the past says no more than that the source may do everything, so such a place is free. The same code
//! limits in the kernel and in user space.

use crate::{
    atomic::{load, store},
    source::Source,
    table::Line,
};

/// How many connections in which time, and what a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Nanoseconds that one connection uses up; 0 = no limit.
    pub interval: u64,
    /// Nanoseconds that may be used up at once: the window.
    pub window: u64,
    /// Bits of an IPv4 address that make a source.
    pub prefix_v4: u8,
    /// Bits of an IPv6 address that make a source, at most 64.
    pub prefix_v6: u8,
}

impl RateLimit {
    /// No limit.
    pub const OFF: Self = Self { interval: 0, window: 0, prefix_v4: 32, prefix_v6: 64 };

    /// So many connections within `window` nanoseconds, all at once if they like.
    pub const fn new(connections: u32, window: u64, prefix_v4: u8, prefix_v6: u8) -> Self {
        let interval = if connections == 0 { 0 } else { window / connections as u64 };
        Self { interval, window, prefix_v4, prefix_v6 }
    }

    /// Whether one more connection at `now` fits, and the TAT that it leaves behind.
    #[inline(always)]
    pub const fn admit(&self, tat: u64, now: u64) -> Option<u64> {
        let start = if tat > now { tat } else { now };
        let next = start.saturating_add(self.interval);
        if next - now <= self.window { Some(next) } else { None }
    }

    /// What stands for a source. 0, as `::1` is, finds an empty place, which is as good.
    #[inline(always)]
    pub const fn key(&self, source: Source) -> u64 {
        match source.as_v4() {
            // ff00::/8 is multicast, which is never a source.
            Some(addr) => 0xff00_0000_0000_0000 | (addr & mask32(self.prefix_v4)) as u64,
            None => source.high & mask64(self.prefix_v6),
        }
    }
}

/// What came of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It fits.
    Admitted,
    /// It fits, and another source's state had to be forgotten for it.
    Crowded,
    /// It is one too many.
    Limited,
}

/// Spends one connection of `key`, in the line that belongs to it.
///
/// Writers do not wait for each other: of two CPUs that judge the same source at the same moment one may be forgotten,
/// so a source that is spread over many queues gets a few connections more than its share.
#[inline(always)]
pub fn spend(limit: &RateLimit, line: &Line, key: u64, now: u64) -> Admission {
    let [k0, t0, k1, t1, k2, t2, k3, t3] = line;
    let places = [(k0, t0), (k1, t1), (k2, t2), (k3, t3)];
    let mut seen = [(0, 0); 4];
    let (mut victim, mut victim_tat) = (0, u64::MAX);
    for (index, (place, tat)) in places.into_iter().enumerate() {
        seen[index] = (load(place), load(tat));
        if seen[index].0 == key {
            return match limit.admit(seen[index].1, now) {
                Some(next) => {
                    store(tat, next);
                    Admission::Admitted
                }
                None => Admission::Limited,
            };
        }
        if seen[index].1 < victim_tat {
            (victim, victim_tat) = (index, seen[index].1);
        }
    }
    // A limit of at least one connection in the window always admits the first.
    let new = (key, now.saturating_add(limit.interval));
    // Every place is written, most of them with what they had: where a store goes must not depend on a condition, or else
    // the verifier refuses the program without `CAP_PERFMON`.
    for (index, (place, tat)) in places.into_iter().enumerate() {
        let (key, next) = if index == victim { new } else { seen[index] };
        store(place, key);
        store(tat, next);
    }
    if victim_tat > now { Admission::Crowded } else { Admission::Admitted }
}

/// The line of a key, before masking.
#[inline(always)]
pub const fn home(key: u64, seed: u64) -> u32 {
    let key = key ^ key >> 32 ^ seed;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

const fn mask32(bits: u8) -> u32 {
    if bits == 0 { 0 } else { u32::MAX << (32 - if bits > 32 { 32 } else { bits as u32 }) }
}

const fn mask64(bits: u8) -> u64 {
    if bits == 0 { 0 } else { u64::MAX << (64 - if bits > 64 { 64 } else { bits as u32 }) }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn line() -> Line {
        core::array::from_fn(|_| AtomicU64::new(0))
    }

    #[test]
    fn a_window_holds_so_many_and_then_a_steady_flow() {
        let limit = RateLimit::new(5, 10 * SECOND, 32, 64);
        let (line, start) = (line(), 100 * SECOND);
        for _ in 0..5 {
            assert_eq!(spend(&limit, &line, 7, start), Admission::Admitted);
        }
        assert_eq!(spend(&limit, &line, 7, start), Admission::Limited);
        assert_eq!(spend(&limit, &line, 7, start + 2 * SECOND - 1), Admission::Limited);
        assert_eq!(spend(&limit, &line, 7, start + 2 * SECOND), Admission::Admitted);
        assert_eq!(spend(&limit, &line, 7, start + 2 * SECOND), Admission::Limited);
        // Refused ones cost nothing: after the window everything is as at the beginning.
        for _ in 0..5 {
            assert_eq!(spend(&limit, &line, 7, start + 12 * SECOND), Admission::Admitted);
        }
    }

    #[test]
    fn sources_share_a_line_until_it_is_full_of_busy_ones() {
        let limit = RateLimit::new(1, 10 * SECOND, 32, 64);
        let (line, now) = (line(), 100 * SECOND);
        for key in 1..=4 {
            assert_eq!(spend(&limit, &line, key, now + key), Admission::Admitted);
        }
        assert_eq!(spend(&limit, &line, 5, now + 5), Admission::Crowded);
        assert_eq!(spend(&limit, &line, 2, now + 6), Admission::Limited);
        assert_eq!(spend(&limit, &line, 1, now + 7), Admission::Crowded);
        // Idle sources are forgotten without loss.
        assert_eq!(spend(&limit, &line, 6, now + 20 * SECOND), Admission::Admitted);
    }

    #[test]
    fn a_source_is_a_prefix() {
        let limit = RateLimit::new(1, SECOND, 32, 64);
        let key = |text: &str| limit.key(Source::from(text.parse::<core::net::IpAddr>().unwrap()));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:2::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        let wide = RateLimit::new(1, SECOND, 24, 48);
        assert_eq!(wide.key(Source::v4(0xc000_0201)), wide.key(Source::v4(0xc000_02c8)));
    }
}
