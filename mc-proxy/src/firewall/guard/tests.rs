use std::net::Ipv4Addr;

use mc_proxy_common::table::{Clause, ClauseAction, ClauseScope, Word, with_half};

use super::*;
use crate::net::addr::PeerAddr;

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000 * SECOND;

pub(crate) const BLOCK: Clause = Clause {
    expires_at: 0,
    action: ClauseAction::Drop,
    scope: ClauseScope::Default,
    reason: Reason::BlockedPrefix,
    group: 1,
    next: 0,
};

/// A firewall of which 10.`n`.0.0/16 has the decision list with index `n`.
pub(crate) fn firewall(lists: &[&[Clause]], limit: RateLimit) -> Firewall {
    let tables = TableMemory::heap(&Sizes { nodes: 1, lines4: 1, lines6: 1, lines_long6: 1, clauses: 64 }, 1);
    let mut id = 1;
    for (n, list) in (0_u32..).zip(lists) {
        let index = 10 << 8 | n;
        let pair = &tables.tree4[index as usize / 2];
        pair.store(with_half(pair.load(Relaxed), index, Word::leaf(id, 0)), Relaxed);
        for (at, clause) in list.iter().enumerate() {
            let next = if at + 1 < list.len() { id + 1 } else { 0 };
            for (word, value) in tables.clause(id).unwrap().iter().zip(Clause { next, ..*clause }.words()) {
                word.store(value, Relaxed);
            }
            id += 1;
        }
    }
    Firewall::new(Arc::new(tables), limit)
}

fn client(n: u8) -> ClientAddr {
    ClientAddr::from_peer(PeerAddr::new((Ipv4Addr::new(10, n, 0, 1), 5_000).into()))
}

#[test]
fn every_reason_with_its_group() {
    let reasons = [Reason::BlockedAddress, Reason::BlockedPrefix, Reason::Banned, Reason::BlockedCountry];
    let clauses = [0, 1, 2, 3].map(|n| [Clause { reason: reasons[n], group: 1020 + n as u16, ..BLOCK }]);
    let firewall = firewall(&clauses.each_ref().map(|list| list.as_slice()), RateLimit::OFF);
    let judged = [0, 1, 2, 3, 4].map(|n| firewall.judge(client(n), 443, NOW));
    assert_eq!(
        judged,
        [
            Judgement::BlockedAddress(1020),
            Judgement::BlockedPrefix(1021),
            Judgement::Banned(1022),
            Judgement::BlockedCountry(1023),
            Judgement::Pass
        ]
    );
    assert_eq!(judged.map(Judgement::group), [Some(1020), Some(1021), Some(1022), Some(1023), None]);
    for group in 1020..1024 {
        assert_eq!(firewall.groups.count(group), GroupCount { dropped: 1, would_drop: 0 });
    }
    let mapped = ClientAddr::from_peer(PeerAddr::new("[::ffff:10.2.9.9]:1".parse().unwrap()));
    assert_eq!(firewall.judge(mapped, 443, NOW), Judgement::Banned(1022));
    assert_eq!(firewall.groups.count(1022).dropped, 2);
    firewall.groups.reset(1022);
    assert_eq!(firewall.groups.count(1022), GroupCount::default());
}

#[test]
fn the_first_that_holds_decides() {
    let allow = Clause { action: ClauseAction::Allow, scope: ClauseScope::Port(8443), group: 2, ..BLOCK };
    let ban = Clause { expires_at: NOW, reason: Reason::Banned, group: 3, ..BLOCK };
    let other = Clause { scope: ClauseScope::Port(25), reason: Reason::BlockedAddress, group: 4, ..BLOCK };
    let host = Clause { scope: ClauseScope::Host, reason: Reason::BlockedCountry, group: 5, ..BLOCK };
    let firewall = firewall(&[&[allow, other, ban, host]], RateLimit::OFF);
    let judge = |port, now| firewall.judge(client(0), port, now);
    assert_eq!(judge(8443, NOW - 1), Judgement::Allowed);
    assert_eq!(judge(25, NOW - 1), Judgement::BlockedAddress(4));
    assert_eq!(judge(443, NOW - 1), Judgement::Banned(3));
    assert_eq!(judge(443, NOW), Judgement::BlockedCountry(5), "the ban has expired");
}

#[test]
fn a_rule_that_only_counts() {
    let count = Clause { action: ClauseAction::Count, group: 7, ..BLOCK };
    let firewall = firewall(&[&[count, BLOCK], &[count]], RateLimit::OFF);
    assert_eq!(firewall.judge(client(0), 443, NOW), Judgement::BlockedPrefix(1));
    assert_eq!(firewall.judge(client(1), 443, NOW), Judgement::Pass);
    assert_eq!(firewall.groups.count(7), GroupCount { dropped: 0, would_drop: 2 });
    assert_eq!(firewall.groups.count(1), GroupCount { dropped: 1, would_drop: 0 });
}

#[test]
fn only_who_is_neither_allowed_nor_blocked_spends() {
    let allow = Clause { action: ClauseAction::Allow, expires_at: NOW + SECOND, ..BLOCK };
    let block = Clause { expires_at: NOW + SECOND, ..BLOCK };
    let firewall = firewall(&[&[allow], &[block]], RateLimit::new(2, 10 * SECOND, 32, 64));
    for _ in 0..5 {
        assert_eq!(firewall.judge(client(0), 443, NOW), Judgement::Allowed);
        assert_eq!(firewall.judge(client(1), 443, NOW), Judgement::BlockedPrefix(1));
    }
    for n in 0..3 {
        let judged = [(); 3].map(|()| firewall.judge(client(n), 443, NOW + SECOND));
        assert_eq!(judged, [Judgement::Pass, Judgement::Pass, Judgement::RateLimited]);
    }
    assert_eq!((firewall.groups.count(0).dropped, firewall.groups.count(1).dropped), (3, 5));
}

#[test]
fn other_tables_take_over() {
    let open = firewall(&[], RateLimit::OFF);
    assert_eq!(open.judge(client(0), 443, NOW), Judgement::Pass);
    open.tables.store(firewall(&[&[BLOCK]], RateLimit::OFF).tables.load_full());
    assert_eq!(open.judge(client(0), 443, NOW), Judgement::BlockedPrefix(1));
}

#[test]
fn groups_have_names() {
    let groups = GroupCounters::default();
    assert_eq!(groups.name(0), None);
    groups.set_names(vec![Group::DEFAULT, Group::literal("auto/rate")]);
    assert_eq!((groups.name(1), groups.name(2)), (Some(Group::literal("auto/rate")), None));
    groups.count_dropped(GROUPS_MAX);
    assert_eq!(groups.count(GROUPS_MAX), GroupCount::default(), "there is no such number");
}
