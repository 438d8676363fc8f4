//! What a change does when all goes well, and what is refused beforehand.

use super::support::{Bench, block};

#[tokio::test]
async fn a_rule_is_everywhere_when_the_call_returns() {
    let bench = Bench::new();
    assert!(!bench.is_dropped("203.0.113.50"));
    let rule = block("203.0.113.50");
    bench.put(&[rule]).await;
    assert!(bench.is_dropped("203.0.113.50"));
    assert_eq!(bench.keys().await, ["block 203.0.113.50"]);
    let bench = bench.restarted().await;
    assert!(bench.is_dropped("203.0.113.50"));
    assert_eq!(bench.keys().await, ["block 203.0.113.50"]);
}
