//! Decision lists.

use core::sync::atomic::AtomicU64;

use super::word::CHAIN_MAX;
use crate::{atomic::load, reason::Reason};

/// A clause in a table: when it expires, and [`Clause`]'s other members packed.
pub type ClauseWords = [AtomicU64; 2];

const GROUP_SHIFT: u32 = 20;
const PORT_SHIFT: u32 = 36;
const ACTION_SHIFT: u32 = 52;
const SCOPE_SHIFT: u32 = 54;
const REASON_SHIFT: u32 = 56;

/// One rule's part in a decision list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clause {
    /// Nanoseconds of the boot-time clock; from then on the clause does not hold. 0 = never.
    pub expires_at: u64,
    /// What happens when it holds.
    pub action: ClauseAction,
    /// For which packets it holds.
    pub scope: ClauseScope,
    /// Why, when it decides.
    pub reason: Reason,
    /// The rule group that is counted.
    pub group: u16,
    /// The clause that is asked when this one does not decide; 0 = none.
    pub next: u32,
}

/// What a clause that holds does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ClauseAction {
    /// Passes.
    Allow = 0,
    /// Drops.
    Drop = 1,
    /// Counts what it would have dropped, and leaves the decision to the next.
    Count = 2,
}

/// For which packets of its addresses a clause holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClauseScope {
    /// For those that the program's own scope is about.
    Default,
    /// For all.
    Host,
    /// For TCP to this port.
    Port(u16),
}

impl Clause {
    /// As it is kept.
    pub const fn words(&self) -> [u64; 2] {
        let (scope, port) = match self.scope {
            ClauseScope::Default => (0_u64, 0),
            ClauseScope::Host => (1, 0),
            ClauseScope::Port(port) => (2, port),
        };
        let packed = (self.next & CHAIN_MAX) as u64
            | (self.group as u64) << GROUP_SHIFT
            | (port as u64) << PORT_SHIFT
            | (self.action as u64) << ACTION_SHIFT
            | scope << SCOPE_SHIFT
            | (self.reason.index() as u64) << REASON_SHIFT;
        [self.expires_at, packed]
    }
}

/// A clause as a look-up reads it: nothing is unpacked that is not asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed<'table> {
    expires_at: &'table AtomicU64,
    packed: u64,
}

impl<'table> Packed<'table> {
    #[inline(always)]
    pub(crate) fn read([expires_at, packed]: &'table ClauseWords) -> Self {
        Self { expires_at, packed: load(packed) }
    }

    #[inline(always)]
    pub(crate) fn expires_at(&self) -> u64 {
        load(self.expires_at)
    }

    #[inline(always)]
    pub(crate) fn next(&self) -> u32 {
        self.packed as u32 & CHAIN_MAX
    }

    #[inline(always)]
    pub(crate) fn group(&self) -> u32 {
        (self.packed >> GROUP_SHIFT) as u32 & 0xffff
    }

    #[inline(always)]
    pub(crate) fn action(&self) -> ClauseAction {
        match self.packed >> ACTION_SHIFT & 3 {
            0 => ClauseAction::Allow,
            1 => ClauseAction::Drop,
            _ => ClauseAction::Count,
        }
    }

    #[inline(always)]
    pub(crate) fn scope(&self) -> ClauseScope {
        match self.packed >> SCOPE_SHIFT & 3 {
            0 => ClauseScope::Default,
            1 => ClauseScope::Host,
            _ => ClauseScope::Port((self.packed >> PORT_SHIFT) as u16),
        }
    }

    /// Index of a [`Reason`].
    #[inline(always)]
    pub(crate) fn reason(&self) -> u32 {
        (self.packed >> REASON_SHIFT) as u32 & 0x1f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clauses_come_back_from_words() {
        for (action, scope, reason) in [
            (ClauseAction::Allow, ClauseScope::Default, Reason::Allowed),
            (ClauseAction::Drop, ClauseScope::Host, Reason::BlockedCountry),
            (ClauseAction::Count, ClauseScope::Port(65_535), Reason::Banned),
        ] {
            let clause = Clause { expires_at: u64::MAX, action, scope, reason, group: 65_535, next: CHAIN_MAX };
            let words = clause.words().map(AtomicU64::new);
            let packed = Packed::read(&words);
            assert_eq!((packed.expires_at(), packed.next(), packed.group()), (u64::MAX, CHAIN_MAX, 65_535));
            assert_eq!((packed.action(), packed.scope(), packed.reason()), (action, scope, reason.index()));
        }
    }
}
