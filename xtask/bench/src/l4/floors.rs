//! What this project asks of itself, and whether a run has it. A floor that is missed fails nothing: it is told.

use super::super::stats::{Spread, number, ratios};
use super::peers::{AUTO, DIRECT, FIXED, HAPROXY_SPLICE, NGINX};
use super::record::Figure;
use super::view::{Better, Row, View};

/// Whom a figure is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    Peer(&'static str),
    /// The other project's proxy with the best median.
    BestRival,
    /// The better of mc-proxy's fixed modes.
    BetterMode,
    /// A figure in its own unit, of mc-proxy in every mode.
    Nobody,
}

/// One demand on the rows of a figure.
#[derive(Debug)]
struct Floor {
    figure: Figure,
    /// Of these rows.
    rows: fn(&str) -> bool,
    metric: &'static str,
    against: Against,
    /// At least this where more is better, at most where less is.
    bound: f64,
}

const EVERY: fn(&str) -> bool = |_| true;
const MANY_CLIENTS: fn(&str) -> bool = |case| case == "32 clients";
const ONE_CPU: fn(&str) -> bool = |case| case.ends_with("one CPU");
const AFTER_BULK: fn(&str) -> bool = |case| case.ends_with("after bulk");

/// In the order of the report.
const FLOORS: [Floor; 14] = [
    floor(Figure::Relay, EVERY, "gbit_s", Against::Peer(HAPROXY_SPLICE), 1.0),
    floor(Figure::Relay, EVERY, "total_cpu_s_per_gb", Against::Peer(HAPROXY_SPLICE), 1.0),
    floor(Figure::Relay, EVERY, "gbit_s", Against::Peer(NGINX), 2.0),
    floor(Figure::Rate, MANY_CLIENTS, "conn_s", Against::BestRival, 1.15),
    floor(Figure::Rate, MANY_CLIENTS, "proxy_us_per_conn", Against::BestRival, 0.85),
    floor(Figure::Ping, ONE_CPU, "added_p50_us", Against::BestRival, 0.7),
    floor(Figure::Ping, ONE_CPU, "added_us_per_trip", Against::BestRival, 0.7),
    floor(Figure::Idle, EVERY, "rss_bytes_per_conn", Against::BestRival, 1.0),
    floor(Figure::Stalled, |case| !AFTER_BULK(case), "grew_mib_per_pair", Against::Nobody, 8.0),
    // The ends alone hold more: their buffers have grown to what net.ipv4.tcp_rmem lets them.
    floor(Figure::Stalled, AFTER_BULK, "added_mib_per_pair", Against::Nobody, 8.0),
    floor(Figure::Relay, EVERY, "gbit_s", Against::BetterMode, 0.95),
    floor(Figure::Ping, EVERY, "trips_s", Against::BetterMode, 0.95),
    floor(Figure::Mixed, EVERY, "gbit_s", Against::BetterMode, 0.95),
    floor(Figure::Mixed, EVERY, "trips_s", Against::BetterMode, 0.95),
];

const fn floor(figure: Figure, rows: fn(&str) -> bool, metric: &'static str, against: Against, bound: f64) -> Floor {
    Floor { figure, rows, metric, against, bound }
}

/// One floor on one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    pub(super) row: String,
    pub(super) subject: &'static str,
    pub(super) metric: &'static str,
    pub(super) against: String,
    pub(super) bound: String,
    pub(super) found: Spread,
    pub(super) is_met: bool,
}

/// Every floor on every row for which there are figures to judge by.
pub(super) fn verdicts(view: View<'_>) -> Vec<Verdict> {
    let rows = view.rows();
    let applies = |floor: &Floor, row: &Row<'_>| row.figure == floor.figure && (floor.rows)(row.case);
    FLOORS
        .iter()
        .flat_map(|floor| rows.iter().filter(|row| applies(floor, row)).map(move |row| (floor, *row)))
        .flat_map(|(floor, row)| floor.judge(view, row))
        .collect()
}

impl Floor {
    fn judge(&self, view: View<'_>, row: Row<'_>) -> Vec<Verdict> {
        let other = match self.against {
            Against::Nobody => {
                // What the ends hold by themselves is part of what grows.
                let direct = view.spread(row, DIRECT, "grew_mib_per_pair");
                let beside = direct.map_or_else(String::new, |direct| format!("(direct has {direct})"));
                let absolute = |subject| {
                    // A bound on growth is on the worst of it.
                    let found = view.spread(row, subject, self.metric)?;
                    Some(self.verdict(row, subject, beside.clone(), found, found.max))
                };
                return view.ours().into_iter().filter_map(absolute).collect();
            }
            Against::Peer(peer) => Some(peer),
            Against::BestRival => view.best(row, self.metric, &view.rivals()),
            Against::BetterMode => view.best(row, self.metric, &FIXED),
        };
        let Some(other) = other else { return Vec::new() };
        let found = ratios(&view.series(row, AUTO, self.metric), &view.series(row, other, self.metric));
        let Some(found) = Spread::of(&found) else { return Vec::new() };
        let name = match self.against {
            Against::BestRival => format!("{other}, the best other"),
            Against::BetterMode => format!("{other}, the better mode"),
            Against::Peer(_) | Against::Nobody => other.to_owned(),
        };
        vec![self.verdict(row, AUTO, name, found, found.median)]
    }

    fn verdict(&self, row: Row<'_>, subject: &'static str, against: String, found: Spread, judged: f64) -> Verdict {
        let (bound, is_met) = match (self.against, Better::of(self.metric)) {
            (Against::Nobody, _) => (format!("< {}", number(self.bound)), judged < self.bound),
            (_, Better::Higher) => (format!("≥ {}", number(self.bound)), judged >= self.bound),
            (_, Better::Lower) => (format!("≤ {}", number(self.bound)), judged <= self.bound),
        };
        let row = format!("{}: {}, {}", row.figure, row.layout, row.case);
        Verdict { row, subject, metric: self.metric, against, bound, found, is_met }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::super::view::tests::record;
    use super::*;

    fn of(records: &[Record]) -> Vec<(&'static str, String, bool)> {
        verdicts(View(records)).into_iter().map(|v| (v.metric, v.against, v.is_met)).collect()
    }

    #[test]
    fn bulk_is_held_against_splice_and_nginx() {
        let case = (Figure::Relay, "up, 1 conn");
        let records = [
            record(case, AUTO, 0, &[("gbit_s", 42.0), ("total_cpu_s_per_gb", 0.31)]),
            record(case, HAPROXY_SPLICE, 0, &[("gbit_s", 40.0), ("total_cpu_s_per_gb", 0.30)]),
            record(case, NGINX, 0, &[("gbit_s", 22.0), ("total_cpu_s_per_gb", 0.9)]),
        ];
        let expected = [
            ("gbit_s", HAPROXY_SPLICE.to_owned(), true),
            ("total_cpu_s_per_gb", HAPROXY_SPLICE.to_owned(), false),
            ("gbit_s", NGINX.to_owned(), false),
        ];
        assert_eq!(of(&records), expected);
        assert!(of(&records[1..]).is_empty(), "without ours there is nothing to judge");
    }

    #[test]
    fn the_median_of_ratios_within_rounds_decides() {
        let case = (Figure::Rate, "32 clients");
        let records: Vec<Record> = [(120.0, 100.0), (90.0, 100.0), (240.0, 200.0)]
            .into_iter()
            .zip(0..)
            .flat_map(|((ours, theirs), round)| {
                [
                    record(case, AUTO, round, &[("conn_s", ours)]),
                    record(case, NGINX, round, &[("conn_s", theirs)]),
                    record(case, DIRECT, round, &[("conn_s", 900.0)]),
                ]
            })
            .collect();
        assert_eq!(of(&records), [("conn_s", "nginx, the best other".to_owned(), true)]);
        let found = verdicts(View(&records)).remove(0).found;
        assert_eq!((found.min, found.median, found.max), (0.9, 1.2, 1.2));
        let one = (Figure::Rate, "1 client");
        let records = [record(one, AUTO, 0, &[("conn_s", 1.0)]), record(one, NGINX, 0, &[("conn_s", 9.0)])];
        assert!(of(&records).is_empty(), "one client has no floor");
    }

    #[test]
    fn round_trips_count_on_one_cpu_only() {
        let metrics = |p50, cpu, trips| [("added_p50_us", p50), ("added_us_per_trip", cpu), ("trips_s", trips)];
        let case = (Figure::Ping, "1 conn, one CPU");
        let mut records = vec![
            record(case, AUTO, 0, &metrics(14.0, 13.0, 50.0)),
            record(case, NGINX, 0, &metrics(20.0, 30.0, 40.0)),
            record(case, HAPROXY_SPLICE, 0, &metrics(21.0, 17.0, 41.0)),
        ];
        let expected = [
            ("added_p50_us", "nginx, the best other".to_owned(), true),
            ("added_us_per_trip", "haproxy-splice, the best other".to_owned(), false),
        ];
        assert_eq!(of(&records), expected);
        for record in &mut records {
            record.case = "1 conn".to_owned();
        }
        assert!(of(&records).is_empty());
    }

    #[test]
    fn auto_keeps_up_with_the_better_mode() {
        let case = (Figure::Mixed, "8 conn in phases");
        let records = [
            record(case, AUTO, 0, &[("gbit_s", 30.0), ("trips_s", 94.0)]),
            record(case, FIXED[0], 0, &[("gbit_s", 20.0), ("trips_s", 100.0)]),
            record(case, FIXED[1], 0, &[("gbit_s", 31.0), ("trips_s", 60.0)]),
        ];
        let expected = [
            ("gbit_s", "mc-proxy-userspace, the better mode".to_owned(), true),
            ("trips_s", "mc-proxy-sockmap, the better mode".to_owned(), false),
        ];
        assert_eq!(of(&records), expected);
    }

    #[test]
    fn a_stalled_reader_is_bounded_in_every_mode_and_round() {
        let case = (Figure::Stalled, "up, at once");
        let records = [
            record(case, AUTO, 0, &[("grew_mib_per_pair", 2.0)]),
            record(case, AUTO, 1, &[("grew_mib_per_pair", 9.0)]),
            record(case, AUTO, 2, &[("grew_mib_per_pair", 2.0)]),
            record(case, FIXED[1], 0, &[("grew_mib_per_pair", 7.9)]),
            record(case, NGINX, 0, &[("grew_mib_per_pair", 100.0)]),
            record(case, DIRECT, 0, &[("grew_mib_per_pair", 1.5)]),
        ];
        let verdicts = verdicts(View(&records));
        let found: Vec<(&str, bool)> = verdicts.iter().map(|verdict| (verdict.subject, verdict.is_met)).collect();
        assert_eq!(found, [(AUTO, false), (FIXED[1], true)]);
        let bulk = (Figure::Stalled, "up, after bulk");
        let both = [("grew_mib_per_pair", 40.0), ("added_mib_per_pair", 6.0)];
        assert_eq!(of(&[record(bulk, AUTO, 0, &both)]), [("added_mib_per_pair", String::new(), true)]);
        assert_eq!((verdicts[0].bound.as_str(), verdicts[0].against.as_str()), ("< 8.00", "(direct has 1.50)"));
    }
}
