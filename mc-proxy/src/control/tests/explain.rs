//! What is said of an address is what becomes of it.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use super::support::{Bench, Setup, block, listener, route, rule};
use crate::{
    control::{ControlError, ExplainRequest, Explanation, KernelAnswer, Verdict},
    desired::Listener,
    firewall::{
        Action, Expiry, Rule, RuleScope,
        geoip_fixture::{iso, mmdb},
    },
};

fn about(source: &str) -> ExplainRequest {
    ExplainRequest { source: source.parse().unwrap(), listener: None, server_name: None, alpn: Vec::new() }
}

impl Bench {
    async fn explain(&self, source: &str) -> Explanation {
        let explanation = self.control.explain(about(source)).await.unwrap();
        assert_eq!(explanation.verdict == Verdict::Drop, self.is_dropped(source), "{source}");
        explanation
    }

    /// The reason, what decides, and each rule that was considered with its why.
    async fn told(&self, source: &str) -> (String, String, Vec<String>) {
        let explanation = self.explain(source).await;
        let decisive = explanation.decisive.map(|listed| listed.rule.key.to_string()).unwrap_or_default();
        let considered = explanation.covering.iter().map(|considered| {
            let holds = if considered.holds { '+' } else { '-' };
            format!("{holds} {}: {}", considered.rule.rule.key, considered.why)
        });
        (explanation.reason, decisive, considered.collect())
    }
}

#[tokio::test]
async fn every_kind_of_rule() {
    let dir = tempfile::tempdir().unwrap();
    let geoip = dir.path().join("country.mmdb");
    fs::write(&geoip, mmdb(6, 24, &[("203.0.112.0/20", iso("RU"))])).unwrap();
    let listener = Listener { routes: vec![route("a.example", "192.0.2.80:443")], ..listener() };
    let bench = Bench::with(Setup { geoip: Some(geoip), listener, ..Setup::default() });
    let scope = RuleScope::Default;
    bench
        .put(&[
            block("198.51.100.7"),
            block("198.51.100.0/24"),
            rule("office", Action::Allow, "198.51.100.9", RuleScope::Listener(443)),
            rule("try", Action::Count, "198.51.100.0/25", scope),
            rule("auto/rate", Action::Block, "203.0.113.7", scope),
            block("RU"),
        ])
        .await;

    let told = |reason: &str, decisive: &str, considered: &[&str]| {
        (reason.to_owned(), decisive.to_owned(), considered.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    };
    let counts = "counts what it would have dropped, and leaves the decision to the next";
    assert_eq!(bench.told("192.0.2.1").await, told("no_rule", "", &[]));
    assert_eq!(
        bench.told("198.51.100.7").await,
        told(
            "blocked_address",
            "block 198.51.100.7",
            &[
                "+ block 198.51.100.7: decides: 198.51.100.7/32",
                "+ count 198.51.100.0/25 in group try: would hold, but a rule above decides",
                "+ block 198.51.100.0/24: would hold, but a rule above decides",
            ]
        )
    );
    assert_eq!(
        bench.told("198.51.100.8").await,
        told(
            "blocked_prefix",
            "block 198.51.100.0/24",
            &[
                &format!("+ count 198.51.100.0/25 in group try: {counts}"),
                "+ block 198.51.100.0/24: decides: 198.51.100.0/24",
            ]
        )
    );
    assert_eq!(
        bench.told("198.51.100.9").await,
        told(
            "allowed",
            "allow 198.51.100.9 in group office with scope listener:443",
            &[
                "+ allow 198.51.100.9 in group office with scope listener:443: decides: 198.51.100.9/32",
                "+ count 198.51.100.0/25 in group try: would hold, but a rule above decides",
                "+ block 198.51.100.0/24: would hold, but a rule above decides",
            ]
        )
    );
    assert_eq!(
        bench.told("203.0.113.7").await,
        told(
            "banned",
            "block 203.0.113.7 in group auto/rate",
            &[
                "+ block 203.0.113.7 in group auto/rate: decides: 203.0.113.7/32",
                "+ block RU: would hold, but a rule above decides",
            ]
        )
    );
    let (reason, decisive, _) = bench.told("203.0.113.8").await;
    assert_eq!((reason.as_str(), decisive.as_str()), ("blocked_country", "block RU"));
    assert_eq!(bench.explain("::ffff:203.0.113.8").await.country, "RU".parse().ok());
    assert_eq!(bench.explain("198.51.100.7").await.country, None);
}

#[tokio::test]
async fn a_rule_that_does_not_hold() {
    let bench = Bench::new();
    let expires_at = Some(Expiry::after(SystemTime::now(), Duration::from_millis(20)));
    bench.put(&[Rule { expires_at, ..block("203.0.113.7") }]).await;
    bench.until("it expires", async |bench| !bench.is_dropped("203.0.113.7")).await;
    let (reason, decisive, considered) = bench.told("203.0.113.7").await;
    // It goes with the next tick.
    if !considered.is_empty() {
        assert_eq!((reason.as_str(), decisive.as_str()), ("expired", ""));
        assert_eq!(considered, ["- block 203.0.113.7: has expired"]);
    }
}

#[tokio::test]
async fn kernel_and_route() {
    let listener = Listener { routes: vec![route("a.example", "192.0.2.80:443")], ..listener() };
    let bench = Bench::with(Setup { listener, ..Setup::default() });
    let ask = |listener: &str, name: &str| {
        let request = ExplainRequest {
            listener: Some(listener.to_owned()),
            server_name: Some(name.to_owned()),
            ..about("192.0.2.1")
        };
        bench.control.explain(request)
    };
    let explanation = ask(":443", "a.example").await.unwrap();
    assert_eq!(explanation.route.as_deref(), Some("192.0.2.80:443"));
    assert_eq!(explanation.user, "lets it in: no_rule");
    assert_eq!(explanation.kernel, KernelAnswer::NotAttached("a plane of a test runs no program".to_owned()));
    assert_eq!(ask(":443", "b.example").await.unwrap().route.as_deref(), Some("no route for the name"));
    assert!(matches!(ask(":443", "a..b").await, Err(ControlError::Refused(_))));
    assert!(matches!(ask(":80", "a.example").await, Err(ControlError::NotFound(_))));
    bench.put(&[block("192.0.2.1")]).await;
    assert_eq!(ask(":443", "a.example").await.unwrap().user, "refuses the connection: blocked_address");
}
