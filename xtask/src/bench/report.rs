//! Tables of a run: medians with their spread, and ratios to controls computed within each round.

use std::collections::BTreeMap;

use super::peers::{DIRECT, HAPROXY_SPLICE, MC_PROXY};
use super::record::{Document, Figure, Record};
use super::stats::{Spread, ratios};

/// Ratios are to these, where they ran.
const CONTROLS: [&str; 2] = [DIRECT, HAPROXY_SPLICE];
/// Bulk through the relay, relative to HAProxy with splice.
const RELAY_FLOOR: f64 = 0.9;
/// Connection rate, relative to the other proxy with the best median.
const RATE_FLOOR: f64 = 1.0;

/// What a figure's table shows, and which of it as ratios too.
fn columns(figure: Figure) -> (&'static [&'static str], &'static [&'static str]) {
    match figure {
        Figure::Relay => (
            &["gbit_s", "proxy_cpu_s_per_gb", "total_cpu_s_per_gb", "proxy_cpu_pct", "load_cpu_pct"],
            &["gbit_s", "total_cpu_s_per_gb"],
        ),
        Figure::Rate => (
            &["conn_s", "p50_us", "p99_us", "proxy_us_per_conn", "total_us_per_conn", "load_cpu_pct", "errors"],
            &["conn_s", "total_us_per_conn"],
        ),
        Figure::Ping => {
            (&["p50_us", "p99_us", "p999_us", "added_p50_us", "proxy_us_per_trip", "total_us_per_trip"], &["p50_us"])
        }
        Figure::Idle => (&["open", "rss_kb_per_conn", "slab_kb_per_conn", "base_rss_mb", "errors"], &[]),
    }
}

/// The whole report in Markdown, aligned to be read as it is.
pub(super) fn markdown(document: &Document) -> String {
    let machine = &document.machine;
    let mut out = format!(
        "# Benchmark of {}\n\nKernel {}, {} CPUs ({}); proxies on CPU {}, load and backend on CPU {}. Rounds: {}, {} s \
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
    for (group, records) in groups(&document.records) {
        out += &section(&group, &records);
    }
    out + &floors(&document.records)
}

/// Records of one figure, layout and case.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    figure: Figure,
    layout: String,
    case: String,
}

/// Records by group: figures in their order, groups of a figure in the order they were measured.
fn groups(records: &[Record]) -> Vec<(Group, Vec<&Record>)> {
    let mut groups: Vec<(Group, Vec<&Record>)> = Vec::new();
    for record in records {
        let group = Group { figure: record.figure, layout: record.layout.to_string(), case: record.case.clone() };
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, members)) => members.push(record),
            None => groups.push((group, vec![record])),
        }
    }
    groups.sort_by_key(|(group, _)| group.figure);
    groups
}

/// A metric of a peer by round.
fn series(records: &[&Record], peer: &str, metric: &str) -> BTreeMap<u32, f64> {
    let of_peer = records.iter().filter(|record| record.peer == peer);
    of_peer.filter_map(|record| Some((record.round, *record.metrics.get(metric)?))).collect()
}

fn spread(values: impl IntoIterator<Item = f64>) -> String {
    let values: Vec<f64> = values.into_iter().collect();
    Spread::of(&values).map_or_else(String::new, |spread| spread.to_string())
}

fn section(group: &Group, records: &[&Record]) -> String {
    let (metrics, compared) = columns(group.figure);
    let controls: Vec<&str> =
        CONTROLS.into_iter().filter(|control| records.iter().any(|record| record.peer == *control)).collect();
    let mut head = vec!["peer".to_owned()];
    head.extend(metrics.iter().map(|&metric| metric.to_owned()));
    let pairs: Vec<(&str, &str)> =
        compared.iter().flat_map(|&metric| controls.iter().map(move |&control| (metric, control))).collect();
    head.extend(pairs.iter().map(|(metric, control)| format!("{metric} / {control}")));

    let mut rows = vec![head];
    for peer in peers(records) {
        let mut row = vec![peer.to_owned()];
        row.extend(metrics.iter().map(|metric| spread(series(records, peer, metric).into_values())));
        row.extend(pairs.iter().map(|(metric, control)| {
            if peer == *control {
                return String::new();
            }
            spread(ratios(&series(records, peer, metric), &series(records, control, metric)))
        }));
        rows.push(row);
    }
    let everywhere = |metric: &str| spread(records.iter().filter_map(|record| record.metrics.get(metric).copied()));
    let mut out = format!("\n## {}: {}, {}\n\n{}", group.figure, group.layout, group.case, table(&rows));
    if !everywhere("foreign_pct").is_empty() {
        out += &format!(
            "\nMeanwhile others took {} % of a CPU, and the host {} %.\n",
            everywhere("foreign_pct"),
            everywhere("steal_pct"),
        );
    }
    out
}

/// Peers of a group: direct, then the others by name.
fn peers<'a>(records: &[&'a Record]) -> Vec<&'a str> {
    let mut peers: Vec<&str> = records.iter().map(|record| record.peer).collect();
    peers.sort_unstable_by_key(|&peer| (peer != DIRECT, peer));
    peers.dedup();
    peers
}

/// What this project asks of itself; empty when mc-proxy or the others did not run.
fn floors(records: &[Record]) -> String {
    let mut rows = Vec::new();
    for (group, records) in groups(records) {
        let compared = match group.figure {
            Figure::Relay => {
                let control = series(&records, HAPROXY_SPLICE, "gbit_s");
                Some((HAPROXY_SPLICE, ratios(&series(&records, MC_PROXY, "gbit_s"), &control), RELAY_FLOOR))
            }
            Figure::Rate => best_of_others(&records, "conn_s").map(|best| {
                let control = series(&records, best, "conn_s");
                (best, ratios(&series(&records, MC_PROXY, "conn_s"), &control), RATE_FLOOR)
            }),
            Figure::Ping | Figure::Idle => None,
        };
        let Some((to, values, floor)) = compared else { continue };
        let Some(spread) = Spread::of(&values) else { continue };
        rows.push(vec![
            format!("{}: {}, {}", group.figure, group.layout, group.case),
            to.to_owned(),
            spread.to_string(),
            format!("{floor:.1}"),
            if spread.median >= floor { "reached" } else { "missed" }.to_owned(),
        ]);
    }
    if rows.is_empty() {
        return String::new();
    }
    let head = ["case", "relative to", "ratio", "floor", "median"].map(str::to_owned).to_vec();
    rows.insert(0, head);
    format!("\n## {MC_PROXY} against its floors\n\n{}", table(&rows))
}

/// The proxy that is not ours with the greatest median. Not each round's best: of several equal peers one is always
/// lucky, and ours would lose to luck.
fn best_of_others<'a>(records: &[&'a Record], metric: &str) -> Option<&'a str> {
    let others = peers(records).into_iter().filter(|peer| ![DIRECT, MC_PROXY].contains(peer));
    let medians = others.filter_map(|peer| {
        let values: Vec<f64> = series(records, peer, metric).into_values().collect();
        Some((Spread::of(&values)?.median, peer))
    });
    medians.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, peer)| peer)
}

/// A Markdown table with padded cells; the first row is its head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for (line, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            out += &format!("| {cell:width$} ");
        }
        out += "|\n";
        if line == 0 {
            for width in &widths {
                out += &format!("| {} ", "-".repeat((*width).max(3)));
            }
            out += "|\n";
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::record::Metrics;
    use super::super::topology::Layout;
    use super::*;

    fn record(figure: Figure, peer: &'static str, round: u32, metric: &'static str, value: f64) -> Record {
        let metrics = Metrics::from([(metric, value)]);
        Record { figure, layout: Layout::Lo, case: "case".to_owned(), peer, round, metrics }
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["peer".to_owned(), "a".to_owned()], vec!["x–y".to_owned(), "1234".to_owned()]];
        assert_eq!(table(&rows), "| peer | a    |\n| ---- | ---- |\n| x–y  | 1234 |\n");
    }

    #[test]
    fn a_section_shows_spread_and_ratios_within_rounds() {
        let records = [
            record(Figure::Relay, "nginx", 0, "gbit_s", 10.0),
            record(Figure::Relay, DIRECT, 0, "gbit_s", 40.0),
            record(Figure::Relay, DIRECT, 1, "gbit_s", 20.0),
            record(Figure::Relay, "nginx", 1, "gbit_s", 20.0),
        ];
        let (group, members) = groups(&records).remove(0);
        let text = section(&group, &members);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows[0][1..3], ["peer", "gbit_s"]);
        assert_eq!(rows[2][1..3], [DIRECT, "30.0 (20.0–40.0)"]);
        assert_eq!(rows[3][1..3], ["nginx", "15.0 (10.0–20.0)"]);
        let ratio = rows[0].iter().position(|cell| *cell == "gbit_s / direct").unwrap();
        assert_eq!((rows[2][ratio], rows[3][ratio]), ("", "0.625 (0.250–1.00)"));
        assert!(!text.contains("haproxy-splice"), "a control that did not run has no column");
    }

    #[test]
    fn floors_compare_with_the_best_median_within_rounds() {
        let records = [
            record(Figure::Rate, DIRECT, 0, "conn_s", 900.0),
            record(Figure::Rate, MC_PROXY, 0, "conn_s", 110.0),
            record(Figure::Rate, "nginx", 0, "conn_s", 100.0),
            record(Figure::Rate, "haproxy", 0, "conn_s", 50.0),
            record(Figure::Rate, MC_PROXY, 1, "conn_s", 100.0),
            record(Figure::Rate, "nginx", 1, "conn_s", 80.0),
            record(Figure::Rate, "haproxy", 1, "conn_s", 200.0),
        ];
        let text = floors(&records);
        assert!(text.contains("| haproxy ") && text.contains("1.35 (0.500–2.20)"), "{text}");
        assert!(text.contains("reached") && !text.contains("missed"), "{text}");
        assert!(floors(&records[..1]).is_empty());
        let relay = [
            record(Figure::Relay, MC_PROXY, 0, "gbit_s", 36.0),
            record(Figure::Relay, HAPROXY_SPLICE, 0, "gbit_s", 40.0),
        ];
        assert!(floors(&relay).contains("reached"), "{}", floors(&relay));
    }

    #[test]
    fn figures_keep_their_order() {
        let records = [record(Figure::Idle, DIRECT, 0, "open", 1.0), record(Figure::Relay, DIRECT, 0, "gbit_s", 1.0)];
        let order: Vec<Figure> = groups(&records).iter().map(|(group, _)| group.figure).collect();
        assert_eq!(order, [Figure::Relay, Figure::Idle]);
    }
}
