//! The route table of one listener: immutable, built whole, shared by its connections.

use std::{collections::HashMap, fmt, sync::Arc};

use super::Pattern;
use crate::{
    desired::{Route, Target},
    tls::ServerName,
};

/// Finds the target of a server name: the exact hostname first, then the longest wildcard, then the default.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    exact: HashMap<ServerName, Arc<Target>>,
    /// By what follows `*.`.
    wildcard: HashMap<ServerName, Arc<Target>>,
    /// The labels of the longest key of `wildcard`: a name of 127 labels does not cost 127 look-ups.
    wildcard_labels: usize,
    default: Option<Arc<Target>>,
}

/// Where a connection goes, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMatch<'a> {
    /// Which route it was.
    pub rule: MatchedRule<'a>,
    /// Shared with the table: a connection keeps its target when the table is replaced.
    pub target: &'a Arc<Target>,
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
    /// Builds the table. Of two routes with one hostname the later counts.
    pub fn new(routes: &[Route], default: Option<Target>) -> Self {
        let mut table = Self { default: default.map(Arc::new), ..Self::default() };
        for route in routes {
            let target = Arc::new(route.target.clone());
            match &route.hostname {
                Pattern::Exact(name) => table.exact.insert(name.clone(), target),
                Pattern::Wildcard(suffix) => {
                    table.wildcard_labels = table.wildcard_labels.max(label_count(suffix.as_str()));
                    table.wildcard.insert(suffix.clone(), target)
                }
            };
        }
        table
    }

    /// The route of a server name; without a name, or with one that no route has, the default.
    pub fn lookup(&self, name: Option<&ServerName>) -> Option<RouteMatch<'_>> {
        name.and_then(|name| self.lookup_exact(name).or_else(|| self.lookup_wildcard(name))).or_else(|| {
            let target = self.default.as_ref()?;
            Some(RouteMatch { rule: MatchedRule::Default, target })
        })
    }

    /// How many routes there are, the default not counted.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Whether there is no route but perhaps the default.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lookup_exact(&self, name: &ServerName) -> Option<RouteMatch<'_>> {
        let (name, target) = self.exact.get_key_value(name)?;
        Some(RouteMatch { rule: MatchedRule::Exact(name), target })
    }

    fn lookup_wildcard(&self, name: &ServerName) -> Option<RouteMatch<'_>> {
        let name = name.as_str();
        let too_long = label_count(name).saturating_sub(self.wildcard_labels);
        // The first label is what the star stands for, however short the name.
        let skipped = too_long.max(1);
        let mut suffix = name.splitn(skipped + 1, '.').nth(skipped);
        while let Some(candidate) = suffix {
            if let Some((suffix, target)) = self.wildcard.get_key_value(candidate) {
                return Some(RouteMatch { rule: MatchedRule::Wildcard(suffix), target });
            }
            suffix = candidate.split_once('.').map(|(_, rest)| rest);
        }
        None
    }
}

impl fmt::Display for MatchedRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Default => f.write_str("(default)"),
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
        table.lookup(Some(&name)).map(|found| format!("{} {}", found.rule, found.target.backends[0]))
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
        assert_eq!(table.lookup(None).map(|found| found.rule), Some(MatchedRule::Default));
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn without_a_default_an_unknown_name_has_no_route() {
        let table = table(&["*.example.com"], None);
        assert_eq!(found(&table, "example.com"), None, "a wildcard does not match its own suffix");
        assert_eq!(found(&table, "a.example.org"), None);
        assert_eq!(table.lookup(None), None);
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

    /// What `lookup` has to agree with, read off the rule: filter, then the longest.
    fn reference<'a>(routes: &'a [Route], name: &ServerName) -> Option<&'a Pattern> {
        let matches = |route: &&Route| match &route.hostname {
            Pattern::Exact(hostname) => hostname == name,
            Pattern::Wildcard(suffix) => name.as_str().ends_with(&format!(".{suffix}")),
        };
        let rank = |route: &&Route| match &route.hostname {
            Pattern::Exact(_) => usize::MAX,
            Pattern::Wildcard(suffix) => suffix.as_str().len(),
        };
        routes.iter().filter(matches).max_by_key(rank).map(|route| &route.hostname)
    }

    fn arb_name() -> impl Strategy<Value = String> {
        // Two letters and few labels, so that names and suffixes meet.
        proptest::collection::vec("[ab]{1,2}", 1..6).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            hostnames in proptest::collection::vec((any::<bool>(), arb_name()), 0..40),
            names in proptest::collection::vec(arb_name(), 1..40),
            has_default: bool,
        ) {
            let routes = hostnames
                .iter()
                .map(|(is_wildcard, name)| {
                    let hostname = if *is_wildcard { format!("*.{name}") } else { name.clone() };
                    Route { hostname: hostname.parse().unwrap(), alpn: Vec::new(), target: target(1) }
                })
                .collect::<Vec<_>>();
            let table = RouteTable::new(&routes, has_default.then(|| target(2)));
            for name in names {
                let name = name.parse::<ServerName>().unwrap();
                let expected = reference(&routes, &name)
                    .map(Pattern::to_string)
                    .or_else(|| has_default.then(|| "(default)".to_owned()));
                prop_assert_eq!(table.lookup(Some(&name)).map(|found| found.rule.to_string()), expected);
            }
        }
    }
}
