//! Changes that are taken back unless somebody confirms them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::support::{Bench, block, confirm, new};
use crate::{
    control::{ChangeOptions, ControlError, NewRule},
    firewall::{Expiry, Rule, RuleKey},
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_nobody_confirms_is_taken_back() {
    let bench = Bench::new();
    let kept = NewRule { rule: block("198.51.100.0/24"), comment: Some("kept".to_owned()) };
    bench.control.put_rules(vec![kept.clone()], ChangeOptions::default()).await.unwrap();
    let before = bench.state(&["192.0.2.1", "198.51.100.1"]).await;
    let until = Rule { expires_at: Some(Expiry::after(SystemTime::now(), HOUR)), ..kept.rule };
    let changes = vec![new(block("192.0.2.1")), new(until)];
    let begun = SystemTime::now();
    let made = bench.control.put_rules(changes, confirm(Duration::from_millis(300))).await.unwrap();
    assert!(bench.is_dropped("192.0.2.1"));
    let pending = bench.control.status().await.unwrap().firewall.pending.unwrap();
    assert_eq!((Some(pending.id), made.replaced), (made.confirm_id, 1));
    assert!(made.confirm_by.unwrap() >= begun + Duration::from_millis(300));
    bench.until("it is taken back", async |bench| !bench.is_dropped("192.0.2.1")).await;
    assert!(begun.elapsed().unwrap() >= Duration::from_millis(300));
    assert_eq!(bench.state(&["192.0.2.1", "198.51.100.1"]).await, before);
    assert!(matches!(bench.control.confirm(None).await, Err(ControlError::NotFound(_))));
    assert_eq!(bench.control.status().await.unwrap().firewall.pending, None);
    assert_eq!(bench.restarted().await.state(&["192.0.2.1", "198.51.100.1"]).await, before);
}

#[tokio::test]
async fn one_change_waits_at_a_time() {
    let bench = Bench::new();
    let id = bench.put_with(&[block("192.0.2.1")], confirm(HOUR)).await.unwrap();
    let second = bench.control.put_rules(vec![new(block("192.0.2.2"))], confirm(HOUR)).await.unwrap_err();
    assert!(matches!(second, ControlError::Refused(_)), "{second}");
    assert!(!bench.is_dropped("192.0.2.2"));
    // What is to stay at once may be put meanwhile.
    bench.put(&[block("192.0.2.3")]).await;
    assert!(matches!(bench.control.confirm(Some(id + 1)).await, Err(ControlError::NotFound(_))));
    assert!(matches!(bench.control.revert(Some(id + 1)).await, Err(ControlError::NotFound(_))));
    bench.control.revert(Some(id)).await.unwrap();
    assert_eq!(bench.keys().await, ["block 192.0.2.3"]);
    let removed = bench.control.remove_rules(vec![block("192.0.2.3").key], confirm(HOUR)).await.unwrap();
    assert!(!bench.is_dropped("192.0.2.3"));
    bench.control.confirm(removed.confirm_id).await.unwrap();
    assert!(bench.restarted().await.listed().await.is_empty());
}

#[tokio::test]
async fn a_restart_does_not_let_it_off() {
    let bench = Bench::new();
    let patience = Duration::from_millis(1_500);
    let begun = SystemTime::now();
    let id = bench.put_with(&[block("192.0.2.1")], confirm(patience)).await;
    let bench = bench.restarted().await;
    assert!(bench.is_dropped("192.0.2.1"));
    assert_eq!(bench.control.status().await.unwrap().firewall.pending.map(|pending| pending.id), id);
    bench.until("it is taken back", async |bench| !bench.is_dropped("192.0.2.1")).await;
    assert!(begun.elapsed().unwrap() >= patience);
    assert!(begun.elapsed().unwrap() < patience + Duration::from_secs(2));
    assert!(bench.restarted().await.listed().await.is_empty());
}

#[tokio::test]
async fn a_thousand_changes_end_in_what_was_confirmed() {
    const CYCLES: u32 = 1_000;
    /// So many of them are left to their deadline, which is looked at once a second.
    const TIMEOUTS_EVERY: u32 = 250;
    let bench = Bench::new();
    let mut expected: BTreeMap<RuleKey, Rule> = BTreeMap::new();
    for cycle in 0..CYCLES {
        let subject = |n: u32| block(&format!("10.{}.{}.0/24", n % 7, n % 31));
        let expires_at =
            (cycle % 3 == 0).then(|| Expiry::after(SystemTime::now(), HOUR + Duration::from_secs(cycle.into())));
        let rules = [cycle, cycle + 1, cycle + 5].map(|n| Rule { expires_at, ..subject(n) });
        let is_timeout = cycle % TIMEOUTS_EVERY == TIMEOUTS_EVERY - 1;
        let patience = if is_timeout { Duration::from_millis(1) } else { HOUR };
        let is_removal = cycle % 5 == 4 && rules.iter().all(|rule| expected.contains_key(&rule.key));
        let made = if is_removal {
            let keys = rules.iter().map(|rule| rule.key).collect();
            bench.control.remove_rules(keys, confirm(patience)).await.unwrap()
        } else {
            bench.control.put_rules(rules.map(new).into(), confirm(patience)).await.unwrap()
        };
        if made.confirm_id.is_none() || is_timeout {
            let is_settled = async |bench: &Bench| bench.control.status().await.unwrap().firewall.pending.is_none();
            bench.until("it is taken back", is_settled).await;
        } else if cycle % 2 == 0 {
            bench.control.confirm(made.confirm_id).await.unwrap();
            for rule in rules {
                if is_removal {
                    expected.remove(&rule.key);
                } else {
                    expected.insert(rule.key, rule);
                }
            }
        } else {
            bench.control.revert(made.confirm_id).await.unwrap();
        }
    }
    assert!(expected.len() > 50);
    let expected: Vec<Rule> = expected.into_values().collect();
    let bench = {
        check(&bench, &expected).await;
        bench.restarted().await
    };
    check(&bench, &expected).await;
    assert!(bench.stored(|store| store.pending()).await.is_none());
}

async fn check(bench: &Bench, expected: &[Rule]) {
    let listed: Vec<Rule> = bench.listed().await.into_iter().map(|listed| listed.rule).collect();
    assert_eq!(listed, expected);
    for (a, b) in (0..7).flat_map(|a| (0..31).map(move |b| (a, b))) {
        let is_expected = expected.iter().any(|rule| rule.key == block(&format!("10.{a}.{b}.0/24")).key);
        assert_eq!(bench.is_dropped(&format!("10.{a}.{b}.77")), is_expected, "10.{a}.{b}.0/24");
    }
}
