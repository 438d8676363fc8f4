//! The report of a run in Markdown: where it took place, what the project asks of itself, then a table for each row.

use super::super::markdown::table;
use super::super::stats::{Spread, ratios};
use super::floors::{Verdict, verdicts};
use super::peers::OURS;
use super::rows::Row;
use super::stage::Document;
use super::view::View;

/// The columns of a row's table: the metric, and what to call it.
const COLUMNS: [(&str, &str); 10] = [
    ("req_s", "requests/s"),
    ("gbit_s", "Gbit/s"),
    ("p50_us", "p50 µs"),
    ("p99_us", "p99 µs"),
    ("proxy_us_per_req", "CPU µs per request: the proxy"),
    ("total_us_per_req", "CPU µs per request: all"),
    ("proxy_cpu_pct", "the proxy, % of its CPU"),
    ("load_cpu_pct", "load and backends, % of theirs"),
    ("load_core_pct", "that CPU busy, %"),
    ("resumed_pct", "resumed, %"),
];
/// What is compared as a ratio.
const COMPARED: [&str; 4] = ["req_s", "proxy_us_per_req", "p50_us", "p99_us"];

/// The whole report, aligned to be read as it is.
pub(super) fn markdown(document: &Document) -> String {
    let machine = &document.machine;
    let mut out = format!(
        "# TLS and HTTP, {}\n\nKernel {}, {} CPUs ({}); proxies on CPU {}, load and backend on CPU {}. Rounds: {}, {} s \
         each. Cells are `median (min–max)` over the rounds; ratios are taken within a round.\n\n",
        document.started,
        machine.kernel,
        machine.cpus,
        machine.cpu_model,
        machine.proxy_cpu,
        machine.load_cpu,
        document.rounds,
        document.secs,
    );
    for (name, version) in &document.versions {
        out += &format!("- {name}: {version}\n");
    }
    for note in &document.notes {
        out += &format!("- note: {note}\n");
    }
    let view = View(&document.records);
    out += &floors(&verdicts(view));
    for row in view.rows() {
        out += &format!("\n## {}\n\n{}", row.title(), figures(view, row));
    }
    out + &ratios_to_others(view) + &disturbance(view)
}

/// What is met and what is missed; empty when nothing could be judged.
fn floors(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return String::new();
    }
    let head = ["row", "metric", "relative to", "asked", "found", ""].map(str::to_owned).to_vec();
    let line = |verdict: &Verdict| {
        vec![
            verdict.row.to_string(),
            verdict.metric.to_owned(),
            verdict.against.clone(),
            verdict.bound.clone(),
            verdict.found.map_or_else(|| "not measured".to_owned(), |found| found.to_string()),
            if verdict.is_met { "met" } else { "MISSED" }.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(verdicts.iter().map(line)).collect();
    let met = verdicts.iter().filter(|verdict| verdict.is_met).count();
    format!("\n## Floors\n\n{met} of {} met.\n\n{}", verdicts.len(), table(&rows))
}

/// Peers down, metrics across.
fn figures(view: View<'_>, row: Row) -> String {
    let columns: Vec<_> = COLUMNS.iter().filter(|(metric, _)| view.spread_of_all(row, metric).is_some()).collect();
    let head = std::iter::once(String::new()).chain(columns.iter().map(|(_, title)| (*title).to_owned()));
    let mut lines = vec![head.collect::<Vec<_>>()];
    for peer in view.peers().into_iter().filter(|peer| view.spread(row, peer, "req_s").is_some()) {
        let cells = columns.iter().map(|(metric, _)| spread(view.spread(row, peer, metric)));
        lines.push(std::iter::once(peer.to_owned()).chain(cells).collect());
    }
    table(&lines)
}

/// Ours over everybody, within each round; empty without ours.
fn ratios_to_others(view: View<'_>) -> String {
    let others = view.others();
    let head = ["row", "metric", "best other"].into_iter().chain(others.iter().copied()).map(str::to_owned);
    let mut lines = vec![head.collect::<Vec<_>>()];
    for row in view.rows() {
        for metric in COMPARED {
            let own = view.series(row, OURS, metric);
            if own.is_empty() {
                continue;
            }
            let to = |other: &str| spread(Spread::of(&ratios(&own, &view.series(row, other, metric))));
            let best = view.best(row, metric, &others).map(|best| format!("{}: {best}", to(best)));
            let start = [row.to_string(), metric.to_owned(), best.unwrap_or_default()];
            lines.push(start.into_iter().chain(others.iter().map(|other| to(other))).collect());
        }
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!("\n## {OURS}, ratio within a round to\n\n{}", table(&lines))
}

/// What others took of the machine meanwhile.
fn disturbance(view: View<'_>) -> String {
    let each = view.rows().into_iter().filter_map(|row| {
        let foreign = view.spread_of_all(row, "foreign_pct")?;
        let steal = view.spread_of_all(row, "steal_pct")?;
        let errors = view.spread_of_all(row, "errors").map_or(0.0, |errors| errors.max);
        let errors = if errors > 0.0 { format!("; up to {errors} errors in a window") } else { String::new() };
        Some(format!("- {row}: others {foreign}, the host {steal}{errors}\n"))
    });
    let lines: String = each.collect();
    if lines.is_empty() { lines } else { format!("\nWhat others took meanwhile, in % of a CPU:\n\n{lines}") }
}

fn spread(spread: Option<Spread>) -> String {
    spread.map(|spread| spread.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::peers::{HAPROXY, NGINX};
    use super::super::view::tests::record;
    use super::*;

    #[test]
    fn rows_have_tables_and_ours_has_ratios() {
        let records = [
            record(Row::H1, NGINX, 0, &[("req_s", 100.0), ("foreign_pct", 3.0), ("steal_pct", 0.0)]),
            record(Row::H1, NGINX, 1, &[("req_s", 200.0)]),
            record(Row::H1, OURS, 0, &[("req_s", 150.0)]),
            record(Row::H1, OURS, 1, &[("req_s", 400.0)]),
            record(Row::H2, HAPROXY, 0, &[("req_s", 7.0)]),
        ];
        let view = View(&records);
        let table = figures(view, Row::H1);
        assert!(table.contains("150 (100–200)") && !table.contains("p50") && !table.contains(HAPROXY), "{table}");
        let ratios = ratios_to_others(view);
        assert!(ratios.contains("1.75 (1.50–2.00): nginx"), "{ratios}");
        assert_eq!(ratios_to_others(View(&records[4..])), "");
        assert!(disturbance(view).contains("- h1: others 3.00, the host 0\n"));
        let verdicts = verdicts(view);
        assert!(floors(&verdicts).contains("1 of 2 met"), "{verdicts:?}");
        assert!(floors(&verdicts).contains("not measured"), "HAProxy alone was measured at the second row");
        assert_eq!(floors(&[]), "");
    }
}
