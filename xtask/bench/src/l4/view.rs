//! Looks into the records of a run: rows, peers, values by round.

use std::collections::BTreeMap;

use super::super::stats::Spread;
use super::super::topology::Layout;
use super::peers::{AUTO, DIRECT, is_rival};
use super::record::{Figure, Record};

/// One row of a report: what every peer went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row<'a> {
    pub(super) figure: Figure,
    pub(super) layout: Layout,
    pub(super) case: &'a str,
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

impl Better {
    /// By what the name of a metric begins or ends with.
    pub(super) fn of(metric: &str) -> Self {
        if ["gbit_s", "conn_s", "trips_s"].contains(&metric) { Self::Higher } else { Self::Lower }
    }

    /// Whether `a` is better than `b`.
    pub(super) fn is_better(self, a: f64, b: f64) -> bool {
        match self {
            Self::Higher => a > b,
            Self::Lower => a < b,
        }
    }
}

/// The records of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a>(pub(super) &'a [Record]);

impl<'a> View<'a> {
    /// All rows: figures in their order, rows of a figure in the order they were measured.
    pub(super) fn rows(self) -> Vec<Row<'a>> {
        let mut rows: Vec<Row<'a>> = Vec::new();
        for record in self.0 {
            let row = Row { figure: record.figure, layout: record.layout, case: &record.case };
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows.sort_by_key(|row| row.figure);
        rows
    }

    /// What was measured over a layout of a figure.
    pub(super) fn rows_of(self, figure: Figure, layout: Layout) -> Vec<Row<'a>> {
        self.rows().into_iter().filter(|row| row.figure == figure && row.layout == layout).collect()
    }

    /// Everybody who has a figure anywhere: direct, the others by name, ours last.
    pub(super) fn peers(self) -> Vec<&'static str> {
        let mut peers: Vec<&'static str> = self.0.iter().map(|record| record.peer).collect();
        peers.sort_unstable_by_key(|&peer| (peer != DIRECT, !is_rival(peer), peer));
        peers.dedup();
        peers
    }

    /// A peer's values by round.
    pub(super) fn series(self, row: Row<'_>, peer: &str, metric: &str) -> BTreeMap<u32, f64> {
        let is_meant = |record: &&Record| {
            (record.figure, record.layout, record.case.as_str(), record.peer)
                == (row.figure, row.layout, row.case, peer)
        };
        let value = |record: &Record| Some((record.round, *record.metrics.get(metric)?));
        self.0.iter().filter(is_meant).filter_map(value).collect()
    }

    /// A peer's values over the rounds; `None` without any.
    pub(super) fn spread(self, row: Row<'_>, peer: &str, metric: &str) -> Option<Spread> {
        let values: Vec<f64> = self.series(row, peer, metric).into_values().collect();
        Spread::of(&values)
    }

    /// What everybody had of a metric.
    pub(super) fn spread_of_all(self, row: Row<'_>, metric: &str) -> Option<Spread> {
        let values: Vec<f64> =
            self.peers().iter().flat_map(|peer| self.series(row, peer, metric).into_values()).collect();
        Spread::of(&values)
    }

    /// The one of `peers` with the best median. Not each round's best: of several equal peers one is always lucky, and
    /// ours would lose to luck.
    pub(super) fn best(self, row: Row<'_>, metric: &str, peers: &[&'static str]) -> Option<&'static str> {
        let better = Better::of(metric);
        let mut best: Option<(f64, &'static str)> = None;
        for &peer in peers {
            let Some(spread) = self.spread(row, peer, metric) else { continue };
            if best.is_none_or(|(median, _)| better.is_better(spread.median, median)) {
                best = Some((spread.median, peer));
            }
        }
        best.map(|(_, peer)| peer)
    }

    /// Other projects' proxies that ran.
    pub(super) fn rivals(self) -> Vec<&'static str> {
        self.peers().into_iter().filter(|peer| is_rival(peer)).collect()
    }

    /// mc-proxy in each mode that ran.
    pub(super) fn ours(self) -> Vec<&'static str> {
        self.peers().into_iter().filter(|peer| peer.starts_with(AUTO)).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::record::Metrics;
    use super::super::peers::{HAPROXY_SPLICE, NGINX};
    use super::*;

    pub(crate) fn record(
        (figure, case): (Figure, &str),
        peer: &'static str,
        round: u32,
        metrics: &[(&'static str, f64)],
    ) -> Record {
        let metrics: Metrics = metrics.iter().copied().collect();
        Record { figure, layout: Layout::Lo, case: case.to_owned(), peer, round, metrics }
    }

    #[test]
    fn figures_keep_their_order_and_ours_comes_last() {
        let records = [
            record((Figure::Idle, "idle"), AUTO, 0, &[]),
            record((Figure::Relay, "up"), NGINX, 0, &[]),
            record((Figure::Relay, "down"), DIRECT, 0, &[]),
            record((Figure::Relay, "up"), DIRECT, 0, &[]),
        ];
        let view = View(&records);
        let cases: Vec<&str> = view.rows().iter().map(|row| row.case).collect();
        assert_eq!(cases, ["up", "down", "idle"]);
        assert_eq!(view.peers(), [DIRECT, NGINX, AUTO]);
        assert_eq!((view.rivals(), view.ours()), (vec![NGINX], vec![AUTO]));
    }

    #[test]
    fn the_best_has_the_best_median() {
        let case = (Figure::Rate, "32 clients");
        let records = [
            record(case, NGINX, 0, &[("conn_s", 100.0), ("proxy_us_per_conn", 9.0)]),
            record(case, NGINX, 1, &[("conn_s", 80.0), ("proxy_us_per_conn", 9.0)]),
            record(case, HAPROXY_SPLICE, 0, &[("conn_s", 10.0), ("proxy_us_per_conn", 5.0)]),
            record(case, HAPROXY_SPLICE, 1, &[("conn_s", 130.0), ("proxy_us_per_conn", 5.0)]),
        ];
        let view = View(&records);
        let row = view.rows()[0];
        assert_eq!(view.best(row, "conn_s", &view.rivals()), Some(NGINX));
        assert_eq!(view.best(row, "proxy_us_per_conn", &view.rivals()), Some(HAPROXY_SPLICE));
        assert_eq!(view.best(row, "gbit_s", &view.rivals()), None);
        assert_eq!(view.spread(row, NGINX, "conn_s").unwrap().median, 90.0);
    }
}
