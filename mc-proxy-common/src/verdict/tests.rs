//! Decision lists in tables in memory, asked about frames of which it is known what they are.

use core::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    frames::{ethernet, fragment, ipv4, ipv6, tcp, udp},
    table::{Clause, ClauseWords, Geometry, Line, TREE_WORDS, Word, with_half},
};

const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const NOW: u64 = 1_000_000;
/// A listener whose new connections are limited, one whose are not, and none.
const LIMITED: u16 = 443;
const LISTENER: u16 = 8443;
const OTHER: u16 = 22;
const BLOCK: Clause = Clause {
    expires_at: 0,
    action: ClauseAction::Drop,
    scope: ClauseScope::Default,
    reason: Reason::BlockedPrefix,
    group: 7,
    next: 0,
};
const ALLOW: Clause = Clause { action: ClauseAction::Allow, reason: Reason::Allowed, group: 3, ..BLOCK };

/// Both sources have one decision list.
struct Memory {
    tree4: Vec<AtomicU64>,
    tree6: Vec<AtomicU64>,
    clauses: Vec<ClauseWords>,
    scope: Scope,
    limits: bool,
    admits: bool,
    counted: RefCell<Vec<u32>>,
    asked: RefCell<Vec<Source>>,
}

impl Memory {
    fn new(list: &[Clause], scope: Scope) -> Self {
        let words = || (0..TREE_WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let (tree4, tree6) = (words(), words());
        let chain = Word::leaf(u32::from(!list.is_empty()), 0);
        for (tree, top) in [(&tree4, V4.to_bits() >> 16), (&tree6, (V6.to_bits() >> 112) as u32)] {
            let pair = &tree[top as usize / 2];
            pair.store(with_half(pair.load(Relaxed), top, chain), Relaxed);
        }
        let mut clauses = vec![[AtomicU64::new(0), AtomicU64::new(0)]];
        for (index, clause) in (1..).zip(list) {
            let next = if index < list.len() as u32 { index + 1 } else { 0 };
            clauses.push(Clause { next, ..*clause }.words().map(AtomicU64::new));
        }
        let (counted, asked) = (RefCell::default(), RefCell::default());
        Self { tree4, tree6, clauses, scope, limits: false, admits: true, counted, asked }
    }

    fn limited(self, admits: bool) -> Self {
        Self { limits: true, admits, ..self }
    }

    fn judge(&self, frame: &[u8]) -> (Reason, u32) {
        let verdict = judge_packet(self, || frame);
        (Reason::from_index(verdict.reason).unwrap(), verdict.group)
    }
}

impl Tables for Memory {
    fn tree4(&self, index: u32) -> Option<&AtomicU64> {
        self.tree4.get(index as usize)
    }

    fn tree6(&self, index: u32) -> Option<&AtomicU64> {
        self.tree6.get(index as usize)
    }

    fn node(&self, _index: u32) -> Option<&AtomicU64> {
        None
    }

    fn line4(&self, _index: u32) -> Option<&Line> {
        None
    }

    fn line6(&self, _index: u32) -> Option<&Line> {
        None
    }

    fn line_long6(&self, _index: u32) -> Option<&Line> {
        None
    }

    fn clause(&self, id: u32) -> Option<&ClauseWords> {
        self.clauses.get(id as usize)
    }

    fn geometry(&self) -> Geometry {
        Geometry { mask4: 0, mask6: 0, mask_long6: 0, seed: 0 }
    }
}

impl Host for Memory {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn port(&self, port: u16) -> PortFlags {
        match port {
            LIMITED => PortFlags::LIMITED,
            LISTENER => PortFlags::LISTENER,
            _ => PortFlags::NONE,
        }
    }

    fn now(&self) -> u64 {
        NOW
    }

    fn would_drop(&self, group: u32) {
        self.counted.borrow_mut().push(group);
    }

    fn limits(&self) -> bool {
        self.limits
    }

    fn admit(&self, source: Source) -> bool {
        self.asked.borrow_mut().push(source);
        self.admits
    }
}

/// What a frame is, as its maker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syn(u16),
    Ack(u16),
    /// A first fragment that ends before the flags: it may open a connection.
    ShortFragment(u16),
    Udp,
    LaterFragment,
    Hidden,
    Truncated,
    NeighborDiscovery,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Syn(LIMITED),
        Self::Syn(LISTENER),
        Self::Syn(OTHER),
        Self::Ack(LIMITED),
        Self::Ack(LISTENER),
        Self::Ack(OTHER),
        Self::ShortFragment(LIMITED),
        Self::ShortFragment(LISTENER),
        Self::ShortFragment(OTHER),
        Self::Udp,
        Self::LaterFragment,
        Self::Hidden,
        Self::Truncated,
        Self::NeighborDiscovery,
    ];

    /// Neighbour discovery is IPv6 whatever is asked for.
    fn frame(self, is_v6: bool) -> Vec<u8> {
        let segment = |port, flags| {
            let mut segment = tcp(port);
            segment[13] = flags;
            segment
        };
        let v4 = |protocol, flags, payload: &[u8]| ethernet(&[], 0x0800, &ipv4(V4, protocol, 0, flags, payload));
        let v6 = |next, payload: &[u8]| ethernet(&[], 0x86dd, &ipv6(V6, next, 255, payload));
        match (self, is_v6) {
            (Self::Syn(port), false) => v4(6, 0, &tcp(port)),
            (Self::Syn(port), true) => v6(6, &tcp(port)),
            // With SYN, as the answer to one.
            (Self::Ack(port), false) => v4(6, 0, &segment(port, 0x12)),
            (Self::Ack(port), true) => v6(6, &segment(port, 0x10)),
            (Self::ShortFragment(port), false) => v4(6, 0x2000, &tcp(port)[..8]),
            (Self::ShortFragment(port), true) => v6(44, &fragment(6, 0, true, &tcp(port)[..8])),
            (Self::Udp, false) => v4(17, 0, &udp(LIMITED)),
            (Self::Udp, true) => v6(17, &udp(LIMITED)),
            (Self::LaterFragment, false) => v4(6, 0x2003, &tcp(LIMITED)),
            (Self::LaterFragment, true) => v6(44, &fragment(6, 3, true, &tcp(LIMITED))),
            (Self::Hidden, false) => v4(6, 0x2000, &[]),
            (Self::Hidden, true) => v6(44, &fragment(60, 0, true, &[])),
            (Self::Truncated, false) => v4(6, 0, &[0xc0]),
            (Self::Truncated, true) => v6(6, &[0xc0]),
            (Self::NeighborDiscovery, _) => v6(58, &[135, 0, 0, 0, 0, 0, 0, 0]),
        }
    }

    fn port(self) -> Option<u16> {
        match self {
            Self::Syn(port) | Self::Ack(port) | Self::ShortFragment(port) => Some(port),
            Self::Udp | Self::LaterFragment | Self::Hidden | Self::Truncated | Self::NeighborDiscovery => None,
        }
    }

    fn is_opening(self) -> bool {
        matches!(self, Self::Syn(_) | Self::ShortFragment(_))
    }

    /// What the packet passes for where a rule about a listener's packets, or about one port's, does not hold for it.
    fn miss(self, port: Option<u16>) -> Option<Reason> {
        match self {
            Self::Syn(to) | Self::Ack(to) | Self::ShortFragment(to) => {
                (to == OTHER || port.is_some_and(|port| port != to)).then_some(Reason::OutOfScope)
            }
            Self::Hidden => None,
            Self::Udp => Some(Reason::OutOfScope),
            Self::LaterFragment => Some(Reason::LaterFragment),
            Self::Truncated => Some(Reason::Malformed),
            Self::NeighborDiscovery => Some(Reason::NeighborDiscovery),
        }
    }
}

/// The verdict, the groups that are counted, and whether the limit is asked; read from the text of the specification.
fn expected(list: &[Clause], scope: Scope, kind: Kind, admits: Option<bool>) -> ((Reason, u32), Vec<u32>, bool) {
    let (mut passed, mut counted) = (Reason::NoRule, Vec::new());
    for clause in list {
        let everything = (kind == Kind::NeighborDiscovery).then_some(Reason::NeighborDiscovery);
        let miss = match clause.scope {
            _ if clause.expires_at != 0 && clause.expires_at <= NOW => Some(Reason::Expired),
            // What lets in for ports has to know the port.
            ClauseScope::Port(_) if kind == Kind::Hidden && clause.action == ClauseAction::Allow => {
                Some(Reason::OutOfScope)
            }
            ClauseScope::Default
                if scope == Scope::Listeners && kind == Kind::Hidden && clause.action == ClauseAction::Allow =>
            {
                Some(Reason::OutOfScope)
            }
            ClauseScope::Port(port) => kind.miss(Some(port)),
            ClauseScope::Default if scope == Scope::Listeners => kind.miss(None),
            ClauseScope::Default | ClauseScope::Host => everything,
        };
        match (miss, clause.action) {
            (Some(miss), _) => passed = miss,
            (None, ClauseAction::Count) => counted.push(clause.group.into()),
            (None, ClauseAction::Allow) => return ((Reason::Allowed, 0), counted, false),
            (None, ClauseAction::Drop) => return ((clause.reason, clause.group.into()), counted, false),
        }
    }
    match admits {
        Some(admits) if kind.is_opening() && kind.port() == Some(LIMITED) => {
            (if admits { (passed, 0) } else { (Reason::RateLimited, 0) }, counted, true)
        }
        _ => ((passed, 0), counted, false),
    }
}

fn clause() -> impl Strategy<Value = Clause> {
    let action = prop_oneof![Just(ClauseAction::Allow), Just(ClauseAction::Drop), Just(ClauseAction::Count)];
    let scope = prop_oneof![
        Just(ClauseScope::Default),
        Just(ClauseScope::Host),
        prop::sample::select(vec![LIMITED, LISTENER, OTHER]).prop_map(ClauseScope::Port)
    ];
    let reason = prop::sample::select(vec![
        Reason::BlockedAddress,
        Reason::BlockedPrefix,
        Reason::Banned,
        Reason::BlockedCountry,
    ]);
    let expires_at = prop::sample::select(vec![0, 0, 1, NOW - 1, NOW, NOW + 1, u64::MAX]);
    (action, scope, reason, expires_at, 0..1024_u16).prop_map(|(action, scope, reason, expires_at, group)| Clause {
        expires_at,
        action,
        scope,
        reason,
        group,
        next: 0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn the_first_that_holds_decides(
        list in prop::collection::vec(clause(), 0..=CHAIN_CLAUSES_MAX as usize),
        is_host in any::<bool>(),
        admits in prop::option::of(any::<bool>()),
        kind in prop::sample::select(Kind::ALL.to_vec()),
        is_v6 in any::<bool>(),
    ) {
        let scope = if is_host { Scope::Host } else { Scope::Listeners };
        let memory = Memory::new(&list, scope);
        let memory = match admits {
            Some(admits) => memory.limited(admits),
            None => memory,
        };
        let (mut verdict, counted, is_asked) = expected(&list, scope, kind, admits);
        if list.is_empty() && admits.is_none() {
            verdict = (Reason::NoRule, 0);
        }
        prop_assert_eq!(memory.judge(&kind.frame(is_v6)), verdict);
        prop_assert_eq!(memory.counted.take(), counted);
        let source = if is_v6 { IpAddr::V6(V6).into() } else { IpAddr::V4(V4).into() };
        prop_assert_eq!(memory.asked.take(), if is_asked { vec![source] } else { Vec::new() });

        // A connection has come to a listener, and its rate is another's business.
        if let Some(port) = kind.port().filter(|port| *port != OTHER) {
            let (verdict, ..) = expected(&list, scope, kind, None);
            let judged = judge_connection(&memory, source, port);
            prop_assert_eq!((Reason::from_index(judged.reason).unwrap(), judged.group), verdict);
            prop_assert!(memory.asked.take().is_empty());
        }
    }
}

#[test]
fn a_clause_holds_until_the_moment_at_which_it_expires() {
    for action in [ClauseAction::Drop, ClauseAction::Allow, ClauseAction::Count] {
        for (expires_at, holds) in [(0, true), (1, false), (NOW - 1, false), (NOW, false), (NOW + 1, true)] {
            let list = [Clause { action, expires_at, group: 5, ..BLOCK }, Clause { scope: ClauseScope::Host, ..BLOCK }];
            let memory = Memory::new(&list, Scope::Listeners);
            let decided = match action {
                _ if !holds => (Reason::BlockedPrefix, 7),
                ClauseAction::Drop => (Reason::BlockedPrefix, 5),
                ClauseAction::Allow => (Reason::Allowed, 0),
                ClauseAction::Count => (Reason::BlockedPrefix, 7),
            };
            assert_eq!(memory.judge(&Kind::Syn(LIMITED).frame(false)), decided, "{action:?} {expires_at}");
            let is_counted = holds && action == ClauseAction::Count;
            assert_eq!(memory.counted.take(), if is_counted { vec![5] } else { Vec::new() });
        }
    }
    let alone = Memory::new(&[Clause { expires_at: NOW, ..BLOCK }], Scope::Host);
    assert_eq!(alone.judge(&Kind::Udp.frame(true)), (Reason::Expired, 0));
}

#[test]
fn an_allow_beats_what_comes_after_it_and_nothing_else() {
    let blocks = [Reason::BlockedAddress, Reason::BlockedPrefix, Reason::Banned, Reason::BlockedCountry];
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NeighborDiscovery) {
        let host = |clause| Clause { scope: ClauseScope::Host, ..clause };
        let list: Vec<Clause> =
            [host(ALLOW)].into_iter().chain(blocks.map(|reason| host(Clause { reason, ..BLOCK }))).collect();
        let memory = Memory::new(&list, Scope::Listeners).limited(false);
        assert_eq!(memory.judge(&kind.frame(false)), (Reason::Allowed, 0), "{kind:?}");
        assert!(memory.asked.take().is_empty(), "who is allowed spends nothing");
        // Allowed on one port alone.
        let port = Clause { scope: ClauseScope::Port(LISTENER), ..ALLOW };
        let memory = Memory::new(&[port, host(BLOCK)], Scope::Listeners).limited(false);
        // What hides its port is not let in for it.
        let verdict = if kind.port() == Some(LISTENER) { (Reason::Allowed, 0) } else { (Reason::BlockedPrefix, 7) };
        assert_eq!(memory.judge(&kind.frame(true)), verdict, "{kind:?}");
        assert!(memory.asked.take().is_empty(), "nor does who is blocked");
    }
}

#[test]
fn neighbour_discovery_is_never_dropped() {
    for (scope, clause) in [Scope::Listeners, Scope::Host].into_iter().flat_map(|scope| {
        let scopes = [ClauseScope::Default, ClauseScope::Host, ClauseScope::Port(LIMITED)];
        scopes.map(|of| (scope, Clause { scope: of, ..BLOCK }))
    }) {
        let memory = Memory::new(&[clause], scope).limited(false);
        for kind in 133..=137 {
            let solicitation = ethernet(&[], 0x86dd, &ipv6(V6, 58, 255, &[kind, 0, 0, 0, 0, 0, 0, 0]));
            assert_eq!(memory.judge(&solicitation), (Reason::NeighborDiscovery, 0), "{scope:?} {clause:?}");
        }
        // From behind a router it is none, and is judged like any other packet.
        let from_afar = ethernet(&[], 0x86dd, &ipv6(V6, 58, 64, &[135, 0, 0, 0, 0, 0, 0, 0]));
        let is_judged =
            clause.scope == ClauseScope::Host || (clause.scope, scope) == (ClauseScope::Default, Scope::Host);
        assert_eq!(memory.judge(&from_afar).0.is_drop(), is_judged, "{scope:?} {clause:?}");
    }
}

#[test]
fn what_hides_its_port_may_be_for_every_listener() {
    for scope in [ClauseScope::Default, ClauseScope::Host, ClauseScope::Port(LIMITED), ClauseScope::Port(OTHER)] {
        let memory = Memory::new(&[Clause { scope, ..BLOCK }], Scope::Listeners).limited(false);
        for is_v6 in [false, true] {
            assert_eq!(memory.judge(&Kind::Hidden.frame(is_v6)), (Reason::BlockedPrefix, 7), "{scope:?}");
            let later = memory.judge(&Kind::LaterFragment.frame(is_v6));
            let is_judged = scope == ClauseScope::Host;
            assert_eq!(later.0, if is_judged { Reason::BlockedPrefix } else { Reason::LaterFragment }, "{scope:?}");
        }
    }
}

#[test]
fn only_what_may_open_a_connection_to_a_limited_port_is_limited() {
    for list in [&[][..], &[Clause { expires_at: 1, ..BLOCK }], &[Clause { action: ClauseAction::Count, ..BLOCK }]] {
        for (kind, is_v6) in Kind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            let memory = Memory::new(list, Scope::Listeners).limited(false);
            let reason = memory.judge(&kind.frame(is_v6)).0;
            let is_limited = matches!(kind, Kind::Syn(LIMITED) | Kind::ShortFragment(LIMITED));
            assert_eq!(reason == Reason::RateLimited, is_limited, "{kind:?}");
            assert_eq!(memory.asked.take().len(), usize::from(is_limited));
        }
    }
}

#[test]
fn a_list_that_does_not_end_is_left() {
    let mut memory = Memory::new(&[Clause { action: ClauseAction::Count, ..BLOCK }; 2], Scope::Host);
    let circle = Clause { action: ClauseAction::Count, next: 1, ..BLOCK };
    memory.clauses[2] = circle.words().map(AtomicU64::new);
    assert_eq!(memory.judge(&Kind::Udp.frame(false)), (Reason::NoRule, 0));
    assert_eq!(memory.counted.take().len(), CHAIN_CLAUSES_MAX as usize);
    // A clause that is not there decides nothing.
    memory.clauses.truncate(2);
    assert_eq!(memory.judge(&Kind::Udp.frame(false)), (Reason::NoRule, 0));
}

#[test]
fn what_is_no_packet_is_not_judged() {
    let memory = Memory::new(&[BLOCK], Scope::Host).limited(false);
    assert_eq!(memory.judge(&ethernet(&[], 0x0806, &[0; 28])), (Reason::NotIp, 0));
    assert_eq!(memory.judge(&[0; 13]), (Reason::Malformed, 0));
    assert_eq!(memory.judge(&Kind::Udp.frame(false)[..30]), (Reason::Malformed, 0));
}
