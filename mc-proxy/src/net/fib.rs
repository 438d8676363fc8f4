//! What the kernel would do with a packet: its rules and routes (ip-rule(8), ip-route(8)), as far as transparent mode
//! has to know them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use rtnetlink::packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::netlink;

/// Where a packet would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// To this host itself.
    pub(crate) is_local: bool,
    /// Index of the interface it would leave through.
    pub(crate) interface: u32,
}

/// A rule that leads to a table, with the conditions that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) table: u32,
    /// Mark and mask.
    pub(crate) mark: Option<(u32, u32)>,
    /// Whether it has conditions besides, other than that the packet is this host's own.
    pub(crate) has_more: bool,
}

impl Rule {
    /// Whether it leads every packet of this host with a mark to a table.
    pub(crate) fn leads(&self, mark: u32, table: u32) -> bool {
        self.table == table && !self.has_more && self.mark.is_none_or(|(value, mask)| mark & mask == value)
    }
}

/// Where this host's own packets to an address go, as long as no mark says otherwise.
///
/// # Errors
/// The kernel's: there may be no route.
pub(crate) fn toward(to: IpAddr) -> io::Result<Hop> {
    hop(to, Vec::new())
}

/// Where an unmarked answer of a backend to a client goes, when it comes in through an interface, or from a backend on
/// this host.
///
/// # Errors
/// The kernel's: there may be no route; `EXDEV` when `rp_filter` would drop it.
pub(crate) fn of_answer(backend: SocketAddr, client: IpAddr, interface: Option<u32>) -> io::Result<Hop> {
    let mut attributes = vec![
        RouteAttribute::Source(backend.ip().into()),
        RouteAttribute::IpProto(IpProtocol::Tcp.into()),
        RouteAttribute::Sport(backend.port()),
    ];
    attributes.extend(interface.map(RouteAttribute::Iif));
    hop(client, attributes)
}

fn hop(to: IpAddr, mut attributes: Vec<RouteAttribute>) -> io::Result<Hop> {
    let length = if to.is_ipv4() { 32 } else { 128 };
    let mut question = RouteMessage::default();
    question.header = RouteHeader {
        address_family: family(to.is_ipv4()),
        destination_prefix_length: length,
        ..RouteHeader::default()
    };
    if attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Source(_))) {
        question.header.source_prefix_length = length;
    }
    attributes.push(RouteAttribute::Destination(to.into()));
    question.attributes = attributes;
    let RouteNetlinkMessage::NewRoute(route) = netlink::ask(RouteNetlinkMessage::GetRoute(question))? else {
        return Err(io::Error::other("the kernel answered a question about a route with something else"));
    };
    let interface =
        route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None });
    Ok(Hop { is_local: route.header.kind == RouteType::Local, interface: interface.unwrap_or_default() })
}

/// Whether a table takes every address for this host's own: `local default dev lo`.
///
/// # Errors
/// The kernel's.
pub(crate) fn takes_everything(is_ipv4: bool, table: u32) -> io::Result<bool> {
    let mut question = RouteMessage::default();
    question.header = RouteHeader { address_family: family(is_ipv4), ..RouteHeader::default() };
    question.attributes.push(RouteAttribute::Table(table));
    let routes = match netlink::list(RouteNetlinkMessage::GetRoute(question)) {
        Ok(routes) => routes,
        // There is no such table.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(routes.iter().any(|message| {
        let RouteNetlinkMessage::NewRoute(route) = message else { return false };
        let RouteHeader { kind, destination_prefix_length, .. } = route.header;
        kind == RouteType::Local && destination_prefix_length == 0 && table_of(route) == table
    }))
}

fn table_of(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|a| if let RouteAttribute::Table(t) = a { Some(*t) } else { None });
    named.unwrap_or_else(|| route.header.table.into())
}

/// The rules that lead to tables, in the kernel's order.
///
/// # Errors
/// The kernel's.
pub(crate) fn rules(is_ipv4: bool) -> io::Result<Vec<Rule>> {
    let mut question = RuleMessage::default();
    question.header.family = family(is_ipv4);
    let rules = netlink::list(RouteNetlinkMessage::GetRule(question))?;
    let rules = rules.iter().filter_map(|message| {
        let RouteNetlinkMessage::NewRule(rule) = message else { return None };
        (rule.header.action == RuleAction::ToTable).then(|| understood(rule))
    });
    Ok(rules.collect())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is not known may be a condition, now and later")]
fn understood(message: &RuleMessage) -> Rule {
    let header = &message.header;
    let mut rule = Rule {
        table: header.table.into(),
        has_more: header.src_len != 0
            || header.dst_len != 0
            || header.tos != 0
            || header.flags.contains(RuleFlags::Invert),
        ..Rule::default()
    };
    let mut mask = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => rule.mark = Some((*mark, u32::MAX)),
            RuleAttribute::FwMask(bits) => mask = Some(*bits),
            // That a packet comes from the loopback says that it is this host's own.
            RuleAttribute::Iifname(name) if name == "lo" => {}
            RuleAttribute::Priority(_) | RuleAttribute::Protocol(_) => {}
            // Minus one: no suppression.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => rule.has_more = true,
        }
    }
    // A mask without a mark asks for the mark 0.
    if let Some(bits) = mask {
        rule.mark = Some((rule.mark.map_or(0, |(mark, _)| mark), bits));
    }
    rule
}

fn family(is_ipv4: bool) -> AddressFamily {
    if is_ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_local() {
        for addr in ["127.0.0.1", "127.9.9.9"] {
            assert!(toward(addr.parse().unwrap()).unwrap().is_local, "{addr}");
        }
    }

    #[test]
    fn every_namespace_has_the_rules_of_the_kernel() {
        let rules = rules(true).unwrap();
        for table in [255, 254] {
            let rule = rules.iter().find(|rule| rule.table == table).unwrap_or_else(|| panic!("{rules:?}"));
            assert_eq!(*rule, Rule { table, ..Rule::default() });
        }
    }

    #[test]
    fn a_table_that_nobody_has_made_takes_nothing() {
        for is_ipv4 in [true, false] {
            assert!(!takes_everything(is_ipv4, 0x7f00_1234).unwrap());
        }
    }

    #[test]
    fn conditions_of_rules() {
        let rule = |attributes: Vec<RuleAttribute>, src_len| {
            let mut message = RuleMessage::default();
            message.header.src_len = src_len;
            message.attributes = attributes;
            understood(&message)
        };
        let marked = rule(vec![RuleAttribute::Table(5), RuleAttribute::FwMark(7), RuleAttribute::FwMask(0xff)], 0);
        assert_eq!(marked, Rule { table: 5, mark: Some((7, 0xff)), has_more: false });
        assert!(marked.leads(0x107, 5) && !marked.leads(7, 6) && !marked.leads(8, 5));
        let lo: IpAddr = "127.0.0.0".parse().unwrap();
        let from = rule(vec![RuleAttribute::Source(lo), RuleAttribute::Iifname("lo".into())], 8);
        assert!(from.has_more && !from.leads(7, 0));
        assert!(!rule(vec![RuleAttribute::Iifname("lo".into())], 0).has_more);
        assert!(rule(vec![RuleAttribute::Oifname("eth0".into())], 0).has_more);
        assert!(rule(vec![RuleAttribute::Iifname("eth0".into())], 0).has_more);
    }
}
