//! The rules at one prefix, as lists that many prefixes share.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use crate::firewall::{Action, Expiry, RuleScope, Tier};

/// A rule without its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::firewall) struct OwnRule {
    pub(in crate::firewall) tier: Tier,
    pub(in crate::firewall) action: Action,
    pub(in crate::firewall) scope: RuleScope,
    pub(in crate::firewall) group: u16,
    pub(in crate::firewall) expires_at: Option<Expiry>,
}

impl OwnRule {
    /// Whether both have the same key, so that only one of them can be there.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.tier, self.action, self.scope, self.group) == (other.tier, other.action, other.scope, other.group)
    }

    /// The order of evaluation at one prefix: by tier, counts first, then what holds for most.
    pub(super) fn order(&self) -> impl Ord + use<> {
        let scope = match self.scope {
            RuleScope::Host => (0, 0),
            RuleScope::Default => (1, 0),
            RuleScope::Listener(port) => (2, port),
        };
        let until = self.expires_at.map_or(u64::MAX, Expiry::as_millis);
        (self.tier, self.action != Action::Count, scope, Reverse(until), self.group, self.action)
    }
}

/// Lists of rules in order of evaluation; each is kept once.
#[derive(Debug, Default)]
pub(in crate::firewall) struct OwnLists {
    lists: Vec<Own>,
    ids: HashMap<Arc<[OwnRule]>, u32>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Own {
    rules: Arc<[OwnRule]>,
    refs: u32,
}

impl OwnLists {
    /// The id of a sorted list, referred to once more.
    pub(super) fn intern(&mut self, rules: &[OwnRule]) -> u32 {
        if let Some(id) = self.ids.get(rules) {
            if let Some(own) = self.lists.get_mut(*id as usize) {
                own.refs += 1;
            }
            return *id;
        }
        let rules: Arc<[OwnRule]> = rules.into();
        let own = Own { rules: Arc::clone(&rules), refs: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = self.lists.get_mut(id as usize) {
                    *place = own;
                }
                id
            }
            None => {
                self.lists.push(own);
                // There are fewer lists than entries, and of these fewer than the memory holds.
                u32::try_from(self.lists.len() - 1).expect("fewer than 2^31 lists")
            }
        };
        self.ids.insert(rules, id);
        id
    }

    /// One reference less.
    pub(super) fn release(&mut self, id: u32) {
        let Some(own) = self.lists.get_mut(id as usize) else { return };
        own.refs -= 1;
        if own.refs == 0 {
            let rules = std::mem::replace(&mut own.rules, Arc::new([]));
            self.ids.remove(&rules);
            self.free.push(id);
        }
    }

    /// The rules of a list; none for a prefix that has been emptied.
    pub(in crate::firewall) fn rules(&self, id: u32) -> &[OwnRule] {
        self.lists.get(id as usize).map_or(&[], |own| &own.rules)
    }

    /// Lists that are referred to.
    pub(in crate::firewall) fn len(&self) -> usize {
        self.lists.len() - self.free.len()
    }
}
