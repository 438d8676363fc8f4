//! Looks into the records of a run: rows, peers, values by round.

use std::collections::BTreeMap;

use super::super::stats::Spread;
use super::peers::OURS;
use super::rows::Row;
use super::stage::Record;

/// The records of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a>(pub(super) &'a [Record]);

/// Whether more of a metric is better.
pub(super) fn is_more_better(metric: &str) -> bool {
    ["req_s", "gbit_s"].contains(&metric)
}

impl View<'_> {
    /// The rows that somebody was measured at.
    pub(super) fn rows(self) -> Vec<Row> {
        Row::ALL.into_iter().filter(|row| self.0.iter().any(|record| record.row == *row)).collect()
    }

    /// Everybody who was measured: the others by name, ours last.
    pub(super) fn peers(self) -> Vec<&'static str> {
        let mut peers: Vec<&'static str> = self.0.iter().map(|record| record.peer).collect();
        peers.sort_unstable_by_key(|&peer| (peer == OURS, peer));
        peers.dedup();
        peers
    }

    /// A peer's values by round.
    pub(super) fn series(self, row: Row, peer: &str, metric: &str) -> BTreeMap<u32, f64> {
        let is_meant = |record: &&Record| record.row == row && record.peer == peer;
        let value = |record: &Record| Some((record.round, *record.metrics.get(metric)?));
        self.0.iter().filter(is_meant).filter_map(value).collect()
    }

    /// A peer's values over the rounds; `None` without any.
    pub(super) fn spread(self, row: Row, peer: &str, metric: &str) -> Option<Spread> {
        Spread::of(&self.series(row, peer, metric).into_values().collect::<Vec<_>>())
    }

    /// What everybody had of a metric.
    pub(super) fn spread_of_all(self, row: Row, metric: &str) -> Option<Spread> {
        let of = |peer: &'static str| self.series(row, peer, metric).into_values();
        Spread::of(&self.peers().into_iter().flat_map(of).collect::<Vec<_>>())
    }

    /// The one of `peers` with the best median: of several equal peers one is lucky in each round, and it is not to be
    /// luck that is compared with.
    pub(super) fn best(self, row: Row, metric: &str, peers: &[&'static str]) -> Option<&'static str> {
        let medians = peers.iter().filter_map(|&peer| Some((self.spread(row, peer, metric)?.median, peer)));
        let best = if is_more_better(metric) {
            medians.max_by(|a, b| a.0.total_cmp(&b.0))
        } else {
            medians.min_by(|a, b| a.0.total_cmp(&b.0))
        };
        best.map(|(_, peer)| peer)
    }

    /// Other projects' proxies that ran.
    pub(super) fn others(self) -> Vec<&'static str> {
        self.peers().into_iter().filter(|&peer| peer != OURS).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::peers::{HAPROXY, NGINX};
    use super::*;

    pub(crate) fn record(row: Row, peer: &'static str, round: u32, metrics: &[(&'static str, f64)]) -> Record {
        Record { row, peer, round, metrics: metrics.iter().copied().collect() }
    }

    #[test]
    fn the_best_has_the_best_median_and_ours_comes_last() {
        let records = [
            record(Row::H2, OURS, 0, &[("req_s", 7.0)]),
            record(Row::H1, OURS, 0, &[("req_s", 900.0)]),
            record(Row::H1, NGINX, 0, &[("req_s", 100.0), ("proxy_us_per_req", 9.0)]),
            record(Row::H1, NGINX, 1, &[("req_s", 80.0), ("proxy_us_per_req", 9.0)]),
            record(Row::H1, HAPROXY, 0, &[("req_s", 10.0), ("proxy_us_per_req", 5.0)]),
            record(Row::H1, HAPROXY, 1, &[("req_s", 130.0), ("proxy_us_per_req", 5.0)]),
        ];
        let view = View(&records);
        assert_eq!((view.rows(), view.peers()), (vec![Row::H1, Row::H2], vec![HAPROXY, NGINX, OURS]));
        assert_eq!(view.best(Row::H1, "req_s", &view.others()), Some(NGINX));
        assert_eq!(view.best(Row::H1, "proxy_us_per_req", &view.others()), Some(HAPROXY));
        assert_eq!(view.best(Row::H2, "req_s", &view.others()), None);
        assert_eq!(view.spread_of_all(Row::H1, "req_s").unwrap().max, 900.0);
    }
}
