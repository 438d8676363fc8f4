//! What kept a figure from being better: a CPU that was full, or waiting.

use super::peers::DIRECT;
use super::view::{Row, View};

/// A CPU that is busy for this share of the time, in percent, is full: ticks are 10 ms long.
const FULL_PCT: f64 = 93.0;

/// What limited a peer, by the medians of the run; `None` where CPUs were not watched.
pub(super) fn limit(view: View<'_>, row: Row<'_>, peer: &str) -> Option<&'static str> {
    let median = |metric: &str| Some(view.spread(row, peer, metric)?.median);
    let load = median("load_core_pct")? >= FULL_PCT;
    Some(match (load, median("proxy_core_pct").map(|busy| busy >= FULL_PCT)) {
        (true, Some(true)) => "both CPUs",
        (true, Some(false)) => "the load's CPU",
        (true, None) if peer == DIRECT => "the load's CPU",
        (true, None) => "the one CPU",
        (false, Some(true)) => "the proxy's CPU",
        (false, Some(false) | None) => "waiting",
    })
}

#[cfg(test)]
mod tests {
    use super::super::peers::{DIRECT, NGINX};
    use super::super::record::Figure;
    use super::super::view::tests::record;
    use super::*;

    #[test]
    fn a_full_cpu_is_the_limit() {
        let said = |metrics: &[(&'static str, f64)]| {
            let records = [record((Figure::Relay, "up"), NGINX, 0, metrics)];
            let view = View(&records);
            limit(view, view.rows()[0], NGINX)
        };
        assert_eq!(said(&[("load_core_pct", 99.0), ("proxy_core_pct", 98.0)]), Some("both CPUs"));
        assert_eq!(said(&[("load_core_pct", 99.0), ("proxy_core_pct", 50.0)]), Some("the load's CPU"));
        assert_eq!(said(&[("load_core_pct", 20.0), ("proxy_core_pct", 98.0)]), Some("the proxy's CPU"));
        assert_eq!(said(&[("load_core_pct", 20.0), ("proxy_core_pct", 30.0)]), Some("waiting"));
        assert_eq!(said(&[("load_core_pct", 99.0)]), Some("the one CPU"));
        assert_eq!(said(&[]), None);
        let records = [record((Figure::Relay, "up"), NGINX, 0, &[("load_core_pct", 99.0)])];
        let view = View(&records);
        assert_eq!(limit(view, view.rows()[0], DIRECT), None, "did not run");
    }
}
