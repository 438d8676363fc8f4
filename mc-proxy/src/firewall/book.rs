//! All rules in memory, compact, in the order in which a prefix comes before those inside it.
//!
//! ```text
//! prefix ─► id of its own list ─► rules without subject (tier, action, scope, group, expiry), shared by equal prefixes
//! country ─► rules            ─► the same, at every prefix of the country
//! ```
//! A prefix that leads to a slot of the tables stays for a while after its last rule has gone, as an empty one (a
//! *ghost*), so that look-ups under way do not miss the slot; see `compile`.

mod build;
mod change;
mod country;
mod group;
mod own;
mod query;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::IpNet;

use self::country::Countries;
pub(super) use self::own::{OwnLists, OwnRule};
pub use self::{
    change::{Applied, RuleChange},
    group::{GROUPS_MAX, GroupIds, GroupSize},
    query::{Covering, Replacement},
};
use super::{
    Expiry, Group, Rule, RuleKey,
    prefix::{Entries, Family, Prefix, V4, V6},
};

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// The kernel's counters are for so many groups.
    #[error("there are {GROUPS_MAX} rule groups already; the group \"{0}\" would be one too many")]
    TooManyGroups(Group),
}

/// All rules.
#[derive(Debug)]
pub struct RuleBook {
    pub(super) entries: Entries,
    pub(super) own: OwnLists,
    groups: GroupIds,
    sizes: Vec<GroupSize>,
    countries: Countries,
    /// Operators' rules that expire, soonest first.
    deadlines: BTreeSet<(Expiry, RuleKey)>,
    /// Bans, those that end soonest first.
    bans: BTreeSet<(Expiry, RuleKey)>,
    bans_max: usize,
    /// Prefixes of each length, by family: which of them need be asked for.
    lengths4: [u32; 33],
    lengths6: [u32; 129],
    slots: Slots,
    ghosts: VecDeque<Ghosts>,
    batch: u32,
    log: change::Log,
}

/// Slots that prefixes need at most, by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    pub(super) v4: u64,
    pub(super) v6: u64,
    pub(super) long6: u64,
}

/// Prefixes whose last rule went in one change.
#[derive(Debug)]
struct Ghosts {
    /// When nobody misses them, in nanoseconds of the boot-time clock.
    due: u64,
    mark: u32,
    nets: Vec<IpNet>,
}

/// Marks an entry as a ghost; the other bits tell of which change.
const GHOST: u32 = 1 << 31;

pub(super) fn is_ghost(own: u32) -> bool {
    own & GHOST != 0
}

/// Whether a prefix leads to slots.
pub(super) fn is_long(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() > V4::GRANULE,
        IpNet::V6(net) => net.prefix_len() > V6::GRANULE,
    }
}

impl Slots {
    /// Those of one prefix: an IPv6 prefix is kept as all of the next level's.
    fn of(net: IpNet) -> Self {
        let length = net.prefix_len();
        match net {
            _ if !is_long(net) => Self::default(),
            IpNet::V4(_) => Self { v4: 1, ..Self::default() },
            IpNet::V6(_) => {
                let count = 1 << ((128 - length) % V6::STEP);
                if length <= 64 {
                    Self { v6: count, ..Self::default() }
                } else {
                    Self { long6: count, ..Self::default() }
                }
            }
        }
    }

    pub(super) fn add(&mut self, net: IpNet) {
        let Self { v4, v6, long6 } = Self::of(net);
        self.v4 += v4;
        self.v6 += v6;
        self.long6 += long6;
    }

    fn subtract(&mut self, net: IpNet) {
        let Self { v4, v6, long6 } = Self::of(net);
        self.v4 -= v4;
        self.v6 -= v6;
        self.long6 -= long6;
    }
}

impl RuleBook {
    /// An empty book for at most `bans_max` bans. Groups have the numbers of `groups`.
    pub fn new(groups: GroupIds, bans_max: usize) -> Self {
        Self {
            entries: Entries::default(),
            own: OwnLists::default(),
            sizes: vec![GroupSize::default(); groups.len()],
            groups,
            countries: Countries::default(),
            deadlines: BTreeSet::new(),
            bans: BTreeSet::new(),
            bans_max,
            lengths4: [0; 33],
            lengths6: [0; 129],
            slots: Slots::default(),
            ghosts: VecDeque::new(),
            batch: 0,
            log: change::Log::default(),
        }
    }

    /// Numbers of the groups.
    pub fn groups(&self) -> &GroupIds {
        &self.groups
    }

    /// How many rules each group has that has any.
    pub fn group_sizes(&self) -> BTreeMap<Group, GroupSize> {
        let sizes = self.groups.iter().filter_map(|(group, id)| Some((group, *self.sizes.get(usize::from(id))?)));
        sizes.filter(|(_, size)| size.total() > 0).collect()
    }

    /// Rules; a country's is one.
    pub fn len(&self) -> u64 {
        self.sizes.iter().map(GroupSize::total).sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Prefixes with rules, the countries' included, and those that had one a moment ago.
    pub fn prefixes(&self) -> usize {
        self.entries.len()
    }

    /// Rules that have expired at `wall`, in milliseconds since the Unix epoch.
    pub fn expired(&self, wall: u64) -> Vec<RuleKey> {
        let past = |(at, _): &&(Expiry, RuleKey)| at.as_millis() <= wall;
        let [deadlines, bans] = [&self.deadlines, &self.bans].map(|set| set.iter().take_while(past));
        deadlines.chain(bans).map(|(_, key)| *key).collect()
    }

    pub(super) fn has_expiries(&self) -> bool {
        !self.deadlines.is_empty() || !self.bans.is_empty()
    }

    pub(super) fn slots(&self) -> Slots {
        self.slots
    }

    /// Prefix lengths that occur, ascending.
    pub(super) fn lengths(&self, is_v6: bool) -> impl Iterator<Item = u8> + '_ {
        let lengths: &[u32] = if is_v6 { &self.lengths6 } else { &self.lengths4 };
        (0_u8..).zip(lengths).filter(|(_, count)| **count > 0).map(|(length, _)| length)
    }

    /// What is at the prefixes that contain `prefix`, itself not included, shortest first.
    pub(super) fn above<F: Family>(&self, prefix: Prefix) -> impl Iterator<Item = (Prefix, u32)> + '_ {
        let lengths = self.lengths(F::IS_V6).take_while(move |length| *length < prefix.length);
        lengths.filter_map(move |length| {
            let parent = prefix.parent(length);
            Some((parent, *F::entries(&self.entries).get(&F::key(parent))?))
        })
    }

    /// Sets what is at a prefix, and keeps the figures about prefixes.
    fn set_entry(&mut self, net: IpNet, own: Option<u32>) -> Option<u32> {
        let old = self.entries.set(net, own);
        let length = usize::from(net.prefix_len());
        let count = match net {
            IpNet::V4(_) => self.lengths4.get_mut(length),
            IpNet::V6(_) => self.lengths6.get_mut(length),
        };
        if let Some(count) = count {
            match (old, own) {
                (None, Some(_)) => {
                    *count += 1;
                    self.slots.add(net);
                }
                (Some(_), None) => {
                    *count -= 1;
                    self.slots.subtract(net);
                }
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        old
    }

    fn rule(&self, subject: super::Subject, own: &OwnRule) -> Option<Rule> {
        let group = self.groups.group(own.group)?;
        let key = RuleKey { group, action: own.action, subject, scope: own.scope };
        Some(Rule { key, expires_at: own.expires_at })
    }
}
