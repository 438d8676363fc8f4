//! What this project asks of itself, and whether a run has it. A floor that is missed fails nothing: it is told.

use super::super::stats::{Spread, number, ratios};
use super::peers::{ENVOY, HAPROXY, NGINX, OURS, SOZU};
use super::rows::Row;
use super::view::{View, is_more_better};

/// Asked of every row: the metric, with whom it is compared (the better one of them), and the bound. More has to be at
/// least that, less at most.
const FLOORS: [(&str, &[&str], f64); 6] = [
    ("req_s", &[SOZU], 1.0),
    ("proxy_us_per_req", &[SOZU], 1.0),
    ("req_s", &[ENVOY], 1.0),
    ("proxy_us_per_req", &[ENVOY], 1.0),
    ("req_s", &[NGINX, HAPROXY], 1.0),
    ("proxy_us_per_req", &[NGINX, HAPROXY], 1.0),
];

/// One floor on one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    pub(super) row: Row,
    pub(super) metric: &'static str,
    pub(super) against: String,
    pub(super) bound: String,
    /// Ratios within a round; the verdict is on their median. `None`: mc-proxy could not do what another did.
    pub(super) found: Option<Spread>,
    pub(super) is_met: bool,
}

/// Every floor on every row at which one to compare with was measured; none in a run without mc-proxy.
pub(super) fn verdicts(view: View<'_>) -> Vec<Verdict> {
    if !view.peers().contains(&OURS) {
        return Vec::new();
    }
    let rows = view.rows();
    FLOORS.iter().flat_map(|floor| rows.iter().filter_map(|&row| judge(view, row, *floor))).collect()
}

fn judge(view: View<'_>, row: Row, floor: (&'static str, &'static [&'static str], f64)) -> Option<Verdict> {
    let (metric, others, bound) = floor;
    let other = view.best(row, metric, others)?;
    let found = Spread::of(&ratios(&view.series(row, OURS, metric), &view.series(row, other, metric)));
    let against = match others {
        [_] => other.to_owned(),
        _ => format!("{other}, the better of {}", others.join(" and ")),
    };
    let is_more = is_more_better(metric);
    let reaches = |median: f64| if is_more { median >= bound } else { median <= bound };
    let is_met = found.is_some_and(|found| reaches(found.median));
    let bound = format!("{} {}", if is_more { "≥" } else { "≤" }, number(bound));
    Some(Verdict { row, metric, against, bound, found, is_met })
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::record;
    use super::*;

    #[test]
    fn the_better_of_nginx_and_haproxy_is_asked_for_and_envoy_by_itself() {
        let of = |req_s, us| [("req_s", req_s), ("proxy_us_per_req", us)];
        let records: Vec<_> = (0..3)
            .flat_map(|round| {
                let drift = f64::from(round);
                [
                    record(Row::H1, OURS, round, &of(110.0 + drift, 12.0)),
                    record(Row::H1, NGINX, round, &of(100.0 + drift, 10.0)),
                    record(Row::H1, HAPROXY, round, &of(90.0 + drift, 11.0)),
                    record(Row::H1, ENVOY, round, &of(50.0, 20.0)),
                    record(Row::Grpc, OURS, round, &of(1.0, 1.0)),
                    record(Row::H2, ENVOY, round, &of(1.0, 1.0)),
                ]
            })
            .collect();
        let found: Vec<_> = verdicts(View(&records)).into_iter().map(|v| (v.metric, v.against, v.is_met)).collect();
        let better = "nginx, the better of nginx and haproxy".to_owned();
        let expected = [
            ("req_s", ENVOY.to_owned(), true),
            ("req_s", ENVOY.to_owned(), false),
            ("proxy_us_per_req", ENVOY.to_owned(), true),
            ("proxy_us_per_req", ENVOY.to_owned(), false),
            ("req_s", better.clone(), true),
            ("proxy_us_per_req", better, false),
        ];
        assert_eq!(found, expected);
        let verdicts = verdicts(View(&records));
        assert_eq!((verdicts[1].row, verdicts[1].found), (Row::H2, None), "what ours could not do is missed");
        assert_eq!(verdicts[5].bound, "≤ 1.00");
        let without_ours: Vec<_> = records.into_iter().filter(|record| record.peer != OURS).collect();
        assert!(super::verdicts(View(&without_ours)).is_empty());
    }
}
