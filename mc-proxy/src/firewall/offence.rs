//! Which sources offend so often that they are banned for a time. Pure: time and offences come from the caller.
//!
//! A source is an IPv4 address or an IPv6 /64. Its window begins with its first offence and is as long as
//! [`AutoBan::within`]; the offence that makes them [`AutoBan::after`] is followed by a ban, whatever the kinds of those
//! before. So nobody is banned for fewer within that time, and who goes on is banned before he has made twice as many.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mc_proxy_common::rate::home;

use super::{Action, Expiry, Group, Rule, RuleKey, RuleScope, Subject};

/// 65,536 sources in 1.5 MiB.
const SETS: usize = 8_192;
const WAYS: usize = 8;

/// A ban is made longer when a tenth of it is over, and not with each of the offences that were under way when it began.
const EXTENSIONS_PER_TTL: u64 = 10;

/// What a client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffenceKind {
    /// Sent something that is no ClientHello.
    Handshake,
    /// Asked for a server name that is none, or that has no route.
    ServerName,
    /// Did not finish its ClientHello in time.
    Timeout,
    /// Made more new connections than the rate limit admits. What the kernel saw of it are SYNs, whose source nobody has
    /// proven: a ban for this can be brought upon somebody else.
    Rate,
    /// Was refused by an L7 policy.
    Policy,
    /// Sent a request that is malformed or beyond a limit, or abused HTTP/2.
    Http,
}

/// When a source is banned for what it does, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoBan {
    /// Offences that make a ban; 0 is 1.
    pub after: u32,
    /// The time in which they are counted; above 0, at most an hour.
    pub within: Duration,
    /// From the last offence on; above 0.
    pub ttl: Duration,
}

/// A source is to be banned, or, if it is banned, from now on for `ttl` again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The source.
    pub net: IpNet,
    /// The offence that decided. A ban that is made longer keeps its kind.
    pub kind: OffenceKind,
    /// From now on.
    pub ttl: Duration,
}

/// The sources that have offended lately: a table of a fixed size, eight places for each hash value.
///
/// When all eight are taken, a new source gets the place of one whose time is over, else that of the oldest ban (which
/// stays in force; only what would make it longer is counted from the beginning), else that of the source with the
/// fewest offences, the oldest of these. Sources that never offend twice therefore displace each other, and not the one
/// that goes on.
pub struct Offenders {
    policy: AutoBan,
    sets: Box<[[Place; WAYS]]>,
    seed: u64,
    displaced: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    V4(u32),
    /// The upper half.
    V6(u64),
}

#[derive(Clone, Copy, Debug)]
struct Place {
    source: Source,
    standing: Standing,
}

/// Times are nanoseconds of the boot-time clock.
#[derive(Clone, Copy, Debug)]
enum Standing {
    Unknown,
    Watched { since: u64, offences: u32 },
    Banned { since: u64, kind: OffenceKind },
}

impl Offenders {
    /// Nobody has offended yet.
    pub fn new(policy: AutoBan) -> Self {
        Self::with_sets(policy, SETS)
    }

    fn with_sets(policy: AutoBan, sets: usize) -> Self {
        let free = Place { source: Source::V4(0), standing: Standing::Unknown };
        let sets = vec![[free; WAYS]; sets].into_boxed_slice();
        Self { policy, sets, seed: RandomState::new().hash_one(0), displaced: 0 }
    }

    /// Notes an offence at `now`, in nanoseconds of the boot-time clock. The ban that follows from it, if any.
    ///
    /// Loopback is the host itself and an IPv6 link-local /64 is everybody on the link; these, and what cannot be the
    /// source of a connection, are never banned.
    pub fn offend(&mut self, source: IpAddr, kind: OffenceKind, now: u64) -> Option<Ban> {
        let source = Source::of(source)?;
        let policy = self.policy;
        let place = self.place(source, now);
        let (standing, banned_for) = match place.standing {
            Standing::Banned { since, kind } if elapsed(since, now) < nanos(policy.ttl) => {
                if elapsed(since, now) < nanos(policy.ttl) / EXTENSIONS_PER_TTL {
                    return None;
                }
                (Standing::Banned { since: now, kind }, Some(kind))
            }
            known @ (Standing::Banned { .. } | Standing::Watched { .. } | Standing::Unknown) => {
                let (since, before) = match known {
                    Standing::Watched { since, offences } if elapsed(since, now) < nanos(policy.within) => {
                        (since, offences)
                    }
                    Standing::Watched { .. } | Standing::Banned { .. } | Standing::Unknown => (now, 0),
                };
                let offences = before.saturating_add(1);
                if offences >= policy.after {
                    (Standing::Banned { since: now, kind }, Some(kind))
                } else {
                    (Standing::Watched { since, offences }, None)
                }
            }
        };
        *place = Place { source, standing };
        banned_for.map(|kind| Ban { net: source.net(), kind, ttl: policy.ttl })
    }

    /// Forgets the sources within `net`, whose ban could not be put in force, or has been lifted by an operator.
    pub fn forget(&mut self, net: IpNet) {
        // Most are what a ban is about: one source, whose places are known.
        if let Some(source) = Source::of(net.addr()).filter(|source| source.net() == net) {
            let index = self.index(source);
            for place in self.sets[index].iter_mut().filter(|place| place.source == source) {
                place.standing = Standing::Unknown;
            }
            return;
        }
        for place in self.sets.as_flattened_mut() {
            if !matches!(place.standing, Standing::Unknown) && net.contains(&place.source.net()) {
                place.standing = Standing::Unknown;
            }
        }
    }

    /// Sources that were forgotten before their time for others.
    pub fn displaced(&self) -> u64 {
        self.displaced
    }

    fn index(&self, source: Source) -> usize {
        home(source.hash(), self.seed) as usize % self.sets.len()
    }

    /// The place of a source, or the one that is given up for it.
    fn place(&mut self, source: Source, now: u64) -> &mut Place {
        let index = self.index(source);
        let policy = self.policy;
        let set = &mut self.sets[index];
        let is_known = |place: &Place| place.source == source && !matches!(place.standing, Standing::Unknown);
        if let Some(at) = set.iter().position(is_known) {
            return &mut set[at];
        }
        let place = set.iter_mut().min_by_key(|place| place.standing.worth(&policy, now)).expect("a set has places");
        if place.standing.worth(&policy, now) != Worth::Nothing {
            self.displaced += 1;
        }
        place.standing = Standing::Unknown;
        place
    }
}

impl Ban {
    /// The rule that enforces it.
    pub fn rule(&self, now: SystemTime) -> Rule {
        let subject = Subject::Net(self.net);
        let key = RuleKey { group: self.kind.group(), action: Action::Block, subject, scope: RuleScope::Default };
        Rule { key, expires_at: Some(Expiry::after(now, self.ttl)) }
    }
}

/// What would be lost with a place, the least first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Nothing,
    Ban { since: u64 },
    Count { offences: u32, since: u64 },
}

impl Standing {
    fn worth(&self, policy: &AutoBan, now: u64) -> Worth {
        match *self {
            Self::Watched { since, offences } if elapsed(since, now) < nanos(policy.within) => {
                Worth::Count { offences, since }
            }
            Self::Banned { since, .. } if elapsed(since, now) < nanos(policy.ttl) => Worth::Ban { since },
            Self::Unknown | Self::Watched { .. } | Self::Banned { .. } => Worth::Nothing,
        }
    }
}

impl Source {
    fn of(addr: IpAddr) -> Option<Self> {
        match addr.to_canonical() {
            IpAddr::V4(addr) => {
                let is_nobody =
                    addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast();
                (!is_nobody).then(|| Self::V4(addr.to_bits()))
            }
            IpAddr::V6(addr) => {
                let is_nobody =
                    addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() || addr.is_unicast_link_local();
                (!is_nobody).then(|| Self::V6((addr.to_bits() >> 64) as u64))
            }
        }
    }

    fn net(self) -> IpNet {
        match self {
            Self::V4(bits) => Ipv4Net::from(Ipv4Addr::from_bits(bits)).into(),
            Self::V6(high) => {
                let addr = Ipv6Addr::from_bits(u128::from(high) << 64);
                Ipv6Net::new(addr, 64).expect("64 is at most 128").into()
            }
        }
    }

    fn hash(self) -> u64 {
        match self {
            Self::V4(bits) => bits.into(),
            Self::V6(high) => high,
        }
    }
}

impl OffenceKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Handshake, Self::ServerName, Self::Timeout, Self::Rate, Self::Policy, Self::Http];

    /// As in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::ServerName => "server_name",
            Self::Timeout => "timeout",
            Self::Rate => "rate",
            Self::Policy => "policy",
            Self::Http => "http",
        }
    }

    /// The group of the bans for it.
    pub const fn group(self) -> Group {
        const HANDSHAKE: Group = Group::literal("auto/handshake");
        const SERVER_NAME: Group = Group::literal("auto/server_name");
        const TIMEOUT: Group = Group::literal("auto/timeout");
        const RATE: Group = Group::literal("auto/rate");
        const POLICY: Group = Group::literal("auto/policy");
        const HTTP: Group = Group::literal("auto/http");
        match self {
            Self::Handshake => HANDSHAKE,
            Self::ServerName => SERVER_NAME,
            Self::Timeout => TIMEOUT,
            Self::Rate => RATE,
            Self::Policy => POLICY,
            Self::Http => HTTP,
        }
    }
}

impl fmt::Display for OffenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Offenders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offenders")
            .field("policy", &self.policy)
            .field("displaced", &self.displaced)
            .finish_non_exhaustive()
    }
}

/// A clock that was read on another core may be behind.
fn elapsed(since: u64, now: u64) -> u64 {
    now.saturating_sub(since)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
