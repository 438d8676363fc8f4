//! The route table of one listener: immutable, built whole, shared by its connections.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{Destination, Pattern};
use crate::{
    desired::{Route, Target},
    tls::{AlpnOffer, ServerName, certs::Certificates},
};

/// What the default route is called; no hostname can be.
const DEFAULT: &str = "(default)";

/// Finds the target for a server name and an ALPN offer: the exact hostname first, then the longest wildcard, then the
/// shorter ones, then the default. Of the routes of one hostname, those that list ALPN names come first, in their order,
/// and the one that lists none is for everybody else; where neither is, the search goes on.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    exact: HashMap<ServerName, Choices>,
    /// By what follows `*.`.
    wildcard: HashMap<ServerName, Choices>,
    /// The labels of the longest key of `wildcard`: a name of 127 labels does not cost 127 look-ups.
    wildcard_labels: usize,
    default: Option<Arc<Destination>>,
    len: usize,
}

/// The routes of one hostname.
#[derive(Clone, Debug, Default)]
struct Choices {
    /// With the ALPN names that they list.
    by_alpn: Vec<(Box<[String]>, Arc<Destination>)>,
    any: Option<Arc<Destination>>,
}

/// Where a connection goes, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMatch<'a> {
    /// Which route it was.
    pub rule: MatchedRule<'a>,
    /// The ALPN names that the route lists.
    pub alpn: &'a [String],
    /// Shared with the table: a connection keeps its target when the table is replaced.
    pub target: &'a Arc<Destination>,
}

/// The route that matched. Displays as its hostname, or as `(default)`, which no hostname can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedRule<'a> {
    /// The hostname itself.
    Exact(&'a ServerName),
    /// The wildcard of this suffix.
    Wildcard(&'a ServerName),
    /// The listener's default route.
    Default,
}

impl RouteTable {
    /// Builds the table of routes that need no certificates. Of two routes with one hostname and the same ALPN names the
    /// later counts.
    pub fn new(routes: &[Route], default: Option<Target>) -> Self {
        Self::build(routes, default.as_ref(), None, None)
    }

    /// The same with certificates for the routes that terminate TLS. Destinations of `previous`, the table in whose place it
    /// comes, go on where their routes are the same, and so do the counters of policies where only these are.
    pub fn with_certificates(
        routes: &[Route],
        default: Option<&Target>,
        certificates: &Certificates,
        previous: Option<&Self>,
    ) -> Self {
        Self::build(routes, default, Some(certificates), previous)
    }

    fn build(
        routes: &[Route],
        default: Option<&Target>,
        certificates: Option<&Certificates>,
        previous: Option<&Self>,
    ) -> Self {
        let before = previous.and_then(|table| table.default.as_ref());
        let default = default.map(|target| Destination::new(MatchedRule::Default, target, certificates, before));
        let mut table = Self { default, ..Self::default() };
        for route in routes {
            let (names, hostname) = match &route.hostname {
                Pattern::Exact(name) => (&mut table.exact, name),
                Pattern::Wildcard(suffix) => {
                    table.wildcard_labels = table.wildcard_labels.max(label_count(suffix.as_str()));
                    (&mut table.wildcard, suffix)
                }
            };
            let before = previous.and_then(|table| table.destination(&route.hostname, &route.alpn));
            let rule = match &route.hostname {
                Pattern::Exact(name) => MatchedRule::Exact(name),
                Pattern::Wildcard(suffix) => MatchedRule::Wildcard(suffix),
            };
            let destination = Destination::new(rule, &route.target, certificates, before);
            let choices = names.entry(hostname.clone()).or_default();
            table.len += usize::from(choices.add(&route.alpn, destination));
        }
        table
    }

    /// The destination of the very route that has this hostname and these ALPN names, as they are in the desired state.
    pub fn destination(&self, hostname: &Pattern, alpn: &[String]) -> Option<&Arc<Destination>> {
        let choices = match hostname {
            Pattern::Exact(name) => self.exact.get(name),
            Pattern::Wildcard(suffix) => self.wildcard.get(suffix),
        };
        choices?.exactly(alpn)
    }

    /// The route for a server name and what the client offers by ALPN; without a name, or when no route is for it, the
    /// default. Allocates nothing.
    pub fn lookup(&self, name: Option<&ServerName>, offer: &AlpnOffer) -> Option<RouteMatch<'_>> {
        name.and_then(|name| self.lookup_exact(name, offer).or_else(|| self.lookup_wildcard(name, offer))).or_else(
            || {
                let target = self.default.as_ref()?;
                Some(RouteMatch { rule: MatchedRule::Default, alpn: &[], target })
            },
        )
    }

    /// Whether a route has the name, whatever it wants to be offered by ALPN.
    pub fn knows(&self, name: &ServerName) -> bool {
        self.exact.contains_key(name) || self.wildcards(name).next().is_some()
    }

    /// How many routes there are, the default not counted.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no route but perhaps the default.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lookup_exact(&self, name: &ServerName, offer: &AlpnOffer) -> Option<RouteMatch<'_>> {
        let (name, choices) = self.exact.get_key_value(name)?;
        choices.of(MatchedRule::Exact(name), offer)
    }

    fn lookup_wildcard(&self, name: &ServerName, offer: &AlpnOffer) -> Option<RouteMatch<'_>> {
        self.wildcards(name).find_map(|(suffix, choices)| choices.of(MatchedRule::Wildcard(suffix), offer))
    }

    /// Those that cover the name, the longest first.
    fn wildcards<'a, 'n>(
        &'a self,
        name: &'n ServerName,
    ) -> impl Iterator<Item = (&'a ServerName, &'a Choices)> + use<'a, 'n> {
        let name = name.as_str();
        let too_long = label_count(name).saturating_sub(self.wildcard_labels);
        // The first label is what the star stands for, however short the name.
        let skipped = too_long.max(1);
        let longest = name.splitn(skipped + 1, '.').nth(skipped);
        std::iter::successors(longest, |suffix| suffix.split_once('.').map(|(_, rest)| rest))
            .filter_map(|suffix| self.wildcard.get_key_value(suffix))
    }
}

impl Choices {
    /// Whether it is one more, and not in the place of another.
    fn add(&mut self, alpn: &[String], target: Arc<Destination>) -> bool {
        if alpn.is_empty() {
            return self.any.replace(target).is_none();
        }
        match self.by_alpn.iter_mut().find(|(known, _)| known.as_ref() == alpn) {
            Some((_, known)) => {
                *known = target;
                false
            }
            None => {
                self.by_alpn.push((alpn.into(), target));
                true
            }
        }
    }

    fn exactly(&self, alpn: &[String]) -> Option<&Arc<Destination>> {
        if alpn.is_empty() {
            return self.any.as_ref();
        }
        self.by_alpn.iter().find(|(known, _)| known.as_ref() == alpn).map(|(_, target)| target)
    }

    fn of<'a>(&'a self, rule: MatchedRule<'a>, offer: &AlpnOffer) -> Option<RouteMatch<'a>> {
        match self.by_alpn.iter().find(|(names, _)| offer.has_any(names)) {
            Some((alpn, target)) => Some(RouteMatch { rule, alpn, target }),
            None => self.any.as_ref().map(|target| RouteMatch { rule, alpn: &[], target }),
        }
    }
}

impl fmt::Display for MatchedRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Default => f.write_str(DEFAULT),
        }
    }
}

fn label_count(name: &str) -> usize {
    name.bytes().filter(|b| *b == b'.').count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desired::{L7Policy, L7PolicyKind};

    fn target(port: u16) -> Target {
        Target::passthrough(format!("127.0.0.1:{port}").parse().unwrap())
    }

    fn table(hostnames: &[&str], default: Option<u16>) -> RouteTable {
        let routes = hostnames
            .iter()
            .zip(1..)
            .map(|(hostname, port)| Route {
                hostname: hostname.parse().unwrap(),
                alpn: Vec::new(),
                target: target(port),
            })
            .collect::<Vec<_>>();
        RouteTable::new(&routes, default.map(target))
    }

    fn found(table: &RouteTable, name: &str) -> Option<String> {
        let name = name.parse::<ServerName>().unwrap();
        table
            .lookup(Some(&name), &AlpnOffer::default())
            .map(|found| format!("{} {}", found.rule, found.target.backends[0]))
    }

    #[test]
    fn exact_before_longest_wildcard_before_default() {
        let table = table(&["*.example.com", "*.b.example.com", "a.b.example.com", "example.com"], Some(99));
        for (name, expected) in [
            ("a.b.example.com", "a.b.example.com 127.0.0.1:3"),
            ("c.b.example.com", "*.b.example.com 127.0.0.1:2"),
            ("d.c.b.example.com", "*.b.example.com 127.0.0.1:2"),
            ("b.example.com", "*.example.com 127.0.0.1:1"),
            ("x.y.z.example.com", "*.example.com 127.0.0.1:1"),
            ("example.com", "example.com 127.0.0.1:4"),
            ("notexample.com", "(default) 127.0.0.1:99"),
            ("com", "(default) 127.0.0.1:99"),
        ] {
            assert_eq!(found(&table, name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(table.lookup(None, &AlpnOffer::of(["h2"])).map(|found| found.rule), Some(MatchedRule::Default));
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn without_a_default_an_unknown_name_has_no_route() {
        let table = table(&["*.example.com"], None);
        assert_eq!(found(&table, "example.com"), None, "a wildcard does not match its own suffix");
        assert_eq!(found(&table, "a.example.org"), None);
        assert_eq!(table.lookup(None, &AlpnOffer::default()), None);
        assert!(RouteTable::default().is_empty());
    }

    #[test]
    fn a_wildcard_of_one_label() {
        let table = table(&["*.com"], None);
        assert_eq!(found(&table, "a.b.c.com").as_deref(), Some("*.com 127.0.0.1:1"));
        assert_eq!(found(&table, "com"), None);
    }

    #[test]
    fn names_compare_folded_and_without_their_dot() {
        let table = table(&["A.Example.com.", "*.EXAMPLE.org"], None);
        assert_eq!(found(&table, "a.EXAMPLE.com").as_deref(), Some("a.example.com 127.0.0.1:1"));
        assert_eq!(found(&table, "x.example.ORG.").as_deref(), Some("*.example.org 127.0.0.1:2"));
    }

    #[test]
    fn the_later_of_two_equal_hostnames_counts() {
        let table = table(&["a.example", "b.example", "a.example"], None);
        assert_eq!(found(&table, "a.example").as_deref(), Some("a.example 127.0.0.1:3"));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_hundred_thousand_routes() {
        let routes = (0..100_000_u32)
            .map(|i| {
                let hostname = if i % 10 == 0 { format!("*.w{i}.example") } else { format!("h{i}.example") };
                Route { hostname: hostname.parse().unwrap(), alpn: Vec::new(), target: target(443) }
            })
            .collect::<Vec<_>>();
        let table = RouteTable::new(&routes, None);
        assert_eq!(table.len(), 100_000);
        for i in 0..100_000_u32 {
            let name = if i % 10 == 0 { format!("a.b.w{i}.example") } else { format!("h{i}.example") };
            assert!(found(&table, &name).is_some(), "{name}");
        }
        assert_eq!(found(&table, "h0.example"), None);
    }

    fn with_alpn(hostname: &str, alpn: &[&str], port: u16) -> Route {
        let alpn = alpn.iter().map(|name| (*name).to_owned()).collect();
        Route { hostname: hostname.parse().unwrap(), alpn, target: target(port) }
    }

    #[test]
    fn alpn_decides_among_the_routes_of_a_name() {
        let routes = [
            with_alpn("a.b.example", &[], 1),
            with_alpn("a.b.example", &["acme-tls/1"], 2),
            with_alpn("a.b.example", &["h2", "http/1.1"], 3),
            with_alpn("a.b.example", &["h2"], 4),
            with_alpn("only.b.example", &["h2"], 5),
            with_alpn("*.b.example", &["acme-tls/1"], 6),
            with_alpn("*.example", &[], 7),
        ];
        let table = RouteTable::new(&routes, Some(target(99)));
        assert_eq!(table.len(), 7);
        for (name, offer, expected) in [
            ("a.b.example", vec![], 1),
            ("a.b.example", vec!["acme-tls/1"], 2),
            ("a.b.example", vec!["http/1.1"], 3),
            ("a.b.example", vec!["h2"], 3),
            ("a.b.example", vec!["h2", "acme-tls/1"], 2),
            ("a.b.example", vec!["smtp"], 1),
            ("only.b.example", vec!["h2"], 5),
            ("only.b.example", vec!["acme-tls/1"], 6),
            ("only.b.example", vec!["http/1.1"], 7),
            ("only.b.example", vec![], 7),
            ("elsewhere", vec!["h2"], 99),
        ] {
            let found = table.lookup(Some(&name.parse().unwrap()), &AlpnOffer::of(&offer)).unwrap();
            assert_eq!(found.target.backends, target(expected).backends, "{name} {offer:?}");
        }
        let found = table.lookup(Some(&"a.b.example".parse().unwrap()), &AlpnOffer::of(["h2"])).unwrap();
        assert_eq!((found.rule.to_string().as_str(), found.alpn), ("a.b.example", &routes[2].alpn[..]));
        let strict = RouteTable::new(&routes[4..5], None);
        assert_eq!(strict.lookup(Some(&"only.b.example".parse().unwrap()), &AlpnOffer::of(["h3"])), None);
    }

    #[test]
    fn a_name_is_known_whatever_is_offered() {
        let table = RouteTable::new(&[with_alpn("a.example", &["h2"], 1), with_alpn("*.b.example", &["h2"], 2)], None);
        for (name, is_known) in [
            ("a.example", true),
            ("x.b.example", true),
            ("y.x.b.example", true),
            ("b.example", false),
            ("x.a.example", false),
            ("example", false),
        ] {
            let name = name.parse().unwrap();
            assert_eq!(table.knows(&name), is_known, "{name}");
            assert_eq!(table.lookup(Some(&name), &AlpnOffer::of(["h3"])), None, "{name}");
        }
    }

    #[test]
    fn what_has_not_changed_goes_on() {
        let policy =
            |value: &str| L7Policy { kind: L7PolicyKind::RequireHeader, value: value.to_owned(), shadow: false };
        let mut routes =
            [with_alpn("a.example", &[], 1), with_alpn("a.example", &["h2"], 2), with_alpn("*.example", &[], 3)];
        for route in &mut routes {
            route.target.l7_policies = vec![policy("x")];
        }
        let certificates = Certificates::new(std::time::Instant::now());
        let first = RouteTable::with_certificates(&routes, Some(&target(4)), &certificates, None);
        let of =
            |table: &RouteTable, route: &Route| Arc::clone(table.destination(&route.hostname, &route.alpn).unwrap());
        for route in &routes {
            let found = of(&first, route);
            assert_eq!((&**found, &*found.name), (&route.target, route.hostname.to_string().as_str()));
            found.policies.judge(&::http::HeaderMap::new());
        }
        let mut changed = routes.clone();
        changed[1].target.l7_policies.push(policy("y"));
        changed[2].target.backends = target(9).backends;
        let next = RouteTable::with_certificates(&changed, Some(&target(4)), &certificates, Some(&first));
        let is_same = |route: &Route| Arc::ptr_eq(&of(&first, route), &of(&next, route));
        assert_eq!([0, 1, 2].map(|index| is_same(&changed[index])), [true, false, false]);
        assert!(Arc::ptr_eq(first.default.as_ref().unwrap(), next.default.as_ref().unwrap()));
        assert_eq!(&*next.default.unwrap().name, "(default)");
        let hits = |table, route| of(table, route).policies.hits().map(|(_, hits)| hits).collect::<Vec<_>>();
        let next = RouteTable::with_certificates(&changed, None, &certificates, Some(&first));
        assert_eq!([0, 1, 2].map(|index| hits(&next, &changed[index])), [vec![1], vec![1, 0], vec![1]]);
        assert_eq!(next.destination(&"b.example".parse().unwrap(), &[]), None);
    }

    /// What `lookup` has to agree with, read off the rule: filter, then the best; the routes differ in their keys.
    fn reference<'a>(routes: &'a [Route], name: &ServerName, offer: &[&str]) -> Option<&'a Route> {
        let is_named = |route: &Route| match &route.hostname {
            Pattern::Exact(hostname) => hostname == name,
            Pattern::Wildcard(suffix) => name.as_str().ends_with(&format!(".{suffix}")),
        };
        let is_offered =
            |route: &Route| route.alpn.is_empty() || route.alpn.iter().any(|name| offer.contains(&name.as_str()));
        let rank = |(index, route): &(usize, &Route)| {
            let length = match &route.hostname {
                Pattern::Exact(_) => usize::MAX,
                Pattern::Wildcard(suffix) => suffix.as_str().len(),
            };
            (length, !route.alpn.is_empty(), std::cmp::Reverse(*index))
        };
        let matching = routes.iter().enumerate().filter(|(_, route)| is_named(route) && is_offered(route));
        matching.max_by_key(rank).map(|(_, route)| route)
    }

    fn arb_name() -> impl Strategy<Value = String> {
        // Two letters and few labels, so that names and suffixes meet.
        proptest::collection::vec("[ab]{1,2}", 1..6).prop_map(|labels| labels.join("."))
    }

    const NAMES: [&str; 4] = ["h2", "http/1.1", "acme-tls/1", "x"];

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            hostnames in proptest::collection::vec((any::<bool>(), arb_name(), 0_usize..16), 0..40),
            names in proptest::collection::vec((arb_name(), proptest::sample::subsequence(&NAMES, 0..=4)), 1..40),
            has_default: bool,
        ) {
            let mut routes = Vec::<Route>::new();
            for ((is_wildcard, name, set), port) in hostnames.iter().zip(1000..) {
                let hostname = if *is_wildcard { format!("*.{name}") } else { name.clone() };
                let alpn = NAMES.iter().zip(0..).filter(|(_, bit)| set & (1 << bit) != 0).map(|(name, _)| *name);
                // A third of them for any client.
                let alpn = if set % 3 == 0 { Vec::new() } else { alpn.collect() };
                let route = with_alpn(&hostname, &alpn, port);
                match routes.iter_mut().find(|known| known.is(&route.key())) {
                    Some(known) => *known = route,
                    None => routes.push(route),
                }
            }
            let table = RouteTable::new(&routes, has_default.then(|| target(2)));
            prop_assert_eq!(table.len(), routes.len());
            for (name, offer) in names {
                let name = name.parse::<ServerName>().unwrap();
                let expected = reference(&routes, &name, &offer).map(|route| route.target.clone());
                let found = table.lookup(Some(&name), &AlpnOffer::of(&offer));
                prop_assert_eq!(found.map(|found| Target::clone(found.target)), expected.or_else(|| has_default.then(|| target(2))));
                let is_known = routes.iter().any(|route| reference(std::slice::from_ref(route), &name, &NAMES).is_some());
                prop_assert_eq!(table.knows(&name), is_known);
            }
        }
    }
}
