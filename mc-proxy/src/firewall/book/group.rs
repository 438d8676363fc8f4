//! Numbers of groups, which the kernel's counters have.

use std::collections::HashMap;

use super::BookError;
use crate::firewall::{Group, Tier};

/// Groups that have counters of their own.
pub const GROUPS_MAX: usize = 1024;

/// The number of each group: 0 to [`GROUPS_MAX`] - 1. One that was given stays given, unless the change is taken back.
#[derive(Clone, Debug, Default)]
pub struct GroupIds {
    ids: HashMap<Group, u16>,
    groups: Vec<Option<Group>>,
}

/// How many rules a group has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSize {
    by_tier: [u64; 4],
}

impl GroupIds {
    /// Gives a group the number that it had before a restart; `false` if the number is another group's, too great, or the
    /// group has one.
    pub fn insert(&mut self, group: Group, id: u16) -> bool {
        let index = usize::from(id);
        if index >= GROUPS_MAX || self.ids.contains_key(&group) || self.groups.get(index).is_some_and(Option::is_some) {
            return false;
        }
        if self.groups.len() <= index {
            self.groups.resize(index + 1, None);
        }
        if let Some(place) = self.groups.get_mut(index) {
            *place = Some(group);
        }
        self.ids.insert(group, id);
        true
    }

    /// The number of a group.
    pub fn id(&self, group: &Group) -> Option<u16> {
        self.ids.get(group).copied()
    }

    /// The group with a number.
    pub fn group(&self, id: u16) -> Option<Group> {
        self.groups.get(usize::from(id)).copied().flatten()
    }

    /// The number of a group, which gets the lowest that is free if it has none.
    pub(super) fn assign(&mut self, group: Group) -> Result<u16, BookError> {
        if let Some(id) = self.id(&group) {
            return Ok(id);
        }
        let free = self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len());
        let id = u16::try_from(free).map_err(|_| BookError::TooManyGroups(group))?;
        if self.insert(group, id) { Ok(id) } else { Err(BookError::TooManyGroups(group)) }
    }

    /// Takes the numbers from `len` on back.
    pub(super) fn truncate(&mut self, len: usize) {
        for group in self.groups.iter().skip(len).flatten() {
            self.ids.remove(group);
        }
        self.groups.truncate(len);
    }

    /// Every group with its number, by number.
    pub fn iter(&self) -> impl Iterator<Item = (Group, u16)> + '_ {
        (0..).zip(&self.groups).filter_map(|(id, group)| Some(((*group)?, id)))
    }

    /// Whether no group has a number.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers that were given out, those that are free again included.
    pub fn len(&self) -> usize {
        self.groups.len()
    }
}

impl GroupSize {
    /// Rules of one tier.
    pub fn of(&self, tier: Tier) -> u64 {
        let [allow, block, ban, country] = self.by_tier;
        match tier {
            Tier::Allow => allow,
            Tier::Block => block,
            Tier::Ban => ban,
            Tier::Country => country,
        }
    }

    /// Rules of all tiers.
    pub fn total(&self) -> u64 {
        self.by_tier.iter().sum()
    }

    pub(super) fn of_mut(&mut self, tier: Tier) -> &mut u64 {
        let [allow, block, ban, country] = &mut self.by_tier;
        match tier {
            Tier::Allow => allow,
            Tier::Block => block,
            Tier::Ban => ban,
            Tier::Country => country,
        }
    }
}
