//! From rules to decision lists.

use std::{collections::HashMap, sync::Arc};

use mc_proxy_common::{
    reason::Reason,
    table::{CHAIN_CLAUSES_MAX, Clause, ClauseAction, ClauseScope},
};

use super::clock::Clock;
use crate::firewall::{
    Action, RuleScope, Tier,
    book::{OwnLists, OwnRule},
};

/// What decision lists are made of beside the rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) clock: Clock,
    /// Milliseconds since the Unix epoch.
    pub(super) wall: u64,
    /// Whether the default scope is every packet.
    pub(super) is_host: bool,
}

/// The decision lists of one change of the tables; 0 is the empty one.
#[derive(Debug)]
pub(super) struct Lists {
    lists: Vec<List>,
    ids: HashMap<Arc<[Clause]>, u32>,
    known: HashMap<Step, u32>,
    last: Option<(Step, u32)>,
}

#[derive(Debug)]
struct List {
    clauses: Arc<[Clause]>,
    /// Once it is in the table.
    chain: Option<u32>,
}

/// From the list of a prefix to that of one inside it.
type Step = (u32, u32, bool);

/// More clauses than a look-up follows.
#[derive(Debug)]
pub(super) struct TooLong;

impl Lists {
    pub(super) fn new() -> Self {
        let empty: Arc<[Clause]> = Arc::new([]);
        let ids = HashMap::from([(Arc::clone(&empty), 0)]);
        Self { lists: vec![List { clauses: empty, chain: Some(0) }], ids, known: HashMap::new(), last: None }
    }

    /// The list for the addresses of a prefix with the rules `own` inside one that has the list `parent`.
    pub(super) fn compose(
        &mut self,
        parent: u32,
        own: u32,
        is_address: bool,
        rules: &OwnLists,
        terms: &Terms,
    ) -> Result<u32, TooLong> {
        let step = (parent, own, is_address);
        if let Some((_, id)) = self.last.filter(|(last, _)| *last == step) {
            return Ok(id);
        }
        let id = match self.known.get(&step) {
            Some(id) => *id,
            None => {
                let own = rules.rules(own).iter().filter_map(|rule| clause(rule, is_address, terms));
                let id = self.merge(parent, own.collect(), terms)?;
                self.known.insert(step, id);
                id
            }
        };
        self.last = Some((step, id));
        Ok(id)
    }

    fn merge(&mut self, parent: u32, mut clauses: Vec<Clause>, terms: &Terms) -> Result<u32, TooLong> {
        let Some(list) = self.lists.get(parent as usize) else { return Err(TooLong) };
        // The longer prefix first within a tier: the sort is stable.
        clauses.extend(list.clauses.iter());
        clauses.sort_by_key(|clause| tier(clause.reason));
        let mut merged: Vec<Clause> = Vec::with_capacity(clauses.len());
        for clause in clauses {
            if !merged.iter().any(|earlier| overrules(earlier, &clause, terms.is_host)) {
                merged.push(clause);
            }
        }
        if merged.len() > CHAIN_CLAUSES_MAX as usize {
            return Err(TooLong);
        }
        if let Some(id) = self.ids.get(merged.as_slice()) {
            return Ok(*id);
        }
        let id = self.lists.len() as u32;
        let clauses: Arc<[Clause]> = merged.into();
        self.lists.push(List { clauses: Arc::clone(&clauses), chain: None });
        self.ids.insert(clauses, id);
        Ok(id)
    }

    pub(super) fn clauses(&self, id: u32) -> &[Clause] {
        self.lists.get(id as usize).map_or(&[], |list| &list.clauses)
    }

    pub(super) fn chain(&self, id: u32) -> Option<u32> {
        self.lists.get(id as usize)?.chain
    }

    pub(super) fn set_chain(&mut self, id: u32, chain: u32) {
        if let Some(list) = self.lists.get_mut(id as usize) {
            list.chain = Some(chain);
        }
    }
}

/// `None` for a rule that has expired.
fn clause(rule: &OwnRule, is_address: bool, terms: &Terms) -> Option<Clause> {
    let expires_at = match rule.expires_at {
        None => 0,
        Some(at) if at.as_millis() <= terms.wall => return None,
        Some(at) => terms.clock.boot(at)?,
    };
    let reason = match rule.tier {
        Tier::Allow => Reason::Allowed,
        Tier::Block if is_address => Reason::BlockedAddress,
        Tier::Block => Reason::BlockedPrefix,
        Tier::Ban => Reason::Banned,
        Tier::Country => Reason::BlockedCountry,
    };
    let action = match rule.action {
        Action::Allow => ClauseAction::Allow,
        Action::Block => ClauseAction::Drop,
        Action::Count => ClauseAction::Count,
    };
    let scope = match rule.scope {
        RuleScope::Default => ClauseScope::Default,
        RuleScope::Host => ClauseScope::Host,
        RuleScope::Listener(port) => ClauseScope::Port(port),
    };
    Some(Clause { expires_at, action, scope, reason, group: rule.group, next: 0 })
}

fn tier(reason: Reason) -> Tier {
    match reason {
        Reason::Allowed => Tier::Allow,
        Reason::Banned => Tier::Ban,
        Reason::BlockedCountry => Tier::Country,
        Reason::BlockedAddress
        | Reason::BlockedPrefix
        | Reason::NoRule
        | Reason::OutOfScope
        | Reason::NotIp
        | Reason::Malformed
        | Reason::NeighborDiscovery
        | Reason::LaterFragment
        | Reason::Expired
        | Reason::RateLimited => Tier::Block,
    }
}

/// Whether `earlier` decides whenever `later` would be asked and hold.
fn overrules(earlier: &Clause, later: &Clause, is_host: bool) -> bool {
    let decides = match earlier.action {
        ClauseAction::Allow | ClauseAction::Drop => true,
        ClauseAction::Count => false,
    };
    let lasts = earlier.expires_at == 0 || (later.expires_at != 0 && later.expires_at <= earlier.expires_at);
    // A port need not be a listener's, so the default scope may hold less often.
    let is_wider = match (earlier.scope, later.scope) {
        (ClauseScope::Host, _) => true,
        (ClauseScope::Default, ClauseScope::Default) => true,
        (ClauseScope::Default, _) => is_host,
        (ClauseScope::Port(port), later) => later == ClauseScope::Port(port),
    };
    // A packet that hides its port is let in by no rule that asks for one, and may meet every other such rule.
    let asks = match earlier.scope {
        ClauseScope::Host => false,
        ClauseScope::Default => !is_host,
        ClauseScope::Port(_) => true,
    };
    let is_same = earlier.action != ClauseAction::Allow || later.action == ClauseAction::Allow || !asks;
    decides && lasts && is_wider && is_same
}
