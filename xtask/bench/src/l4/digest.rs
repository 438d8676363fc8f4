//! The tables of a report that documentation shows: one for each metric, peers down and cases across.

use super::super::markdown::table;
use super::super::stats::{Spread, ratios};
use super::super::topology::Layout;
use super::limit::limit;
use super::record::Figure;
use super::view::{Row, View};

const LAYOUTS: [Layout; 2] = [Layout::Lo, Layout::Veth];

/// What is shown of a figure: the metric, and what to call it.
fn metrics(figure: Figure) -> &'static [(&'static str, &'static str)] {
    match figure {
        Figure::Relay => &[
            ("gbit_s", "Gbit/s"),
            ("total_cpu_s_per_gb", "CPU-s per GB: proxy, load, backend and kernel threads"),
            ("proxy_cpu_s_per_gb", "CPU-s per GB: the proxy"),
            ("machine_cpu_s_per_gb", "CPU-s per GB: the machine"),
        ],
        Figure::Rate => &[
            ("conn_s", "connections/s"),
            ("proxy_us_per_conn", "CPU µs per connection: the proxy"),
            ("total_us_per_conn", "CPU µs per connection: proxy, load, backend and kernel threads"),
            ("p50_us", "p50 µs"),
            ("p99_us", "p99 µs"),
        ],
        Figure::Ping => &[
            ("p50_us", "p50 µs"),
            ("p99_us", "p99 µs"),
            ("p999_us", "p999 µs"),
            ("added_p50_us", "p50 µs, added to direct"),
            ("added_p99_us", "p99 µs, added to direct"),
            ("added_us_per_trip", "CPU µs per round trip, all participants, added to direct"),
            ("proxy_us_per_trip", "CPU µs per round trip: the proxy"),
            ("trips_s", "round trips/s"),
        ],
        Figure::Mixed => &[
            ("gbit_s", "Gbit/s"),
            ("trips_s", "round trips/s"),
            ("p50_us", "p50 µs of a round trip"),
            ("p99_us", "p99 µs of a round trip"),
            ("total_cpu_s_per_gb", "CPU-s per GB: proxy, load, backend and kernel threads"),
        ],
        Figure::Idle => &[
            ("rss_bytes_per_conn", "bytes per connection: resident, the proxy"),
            ("kernel_bytes_per_conn", "bytes per connection: slab and socket buffers"),
            ("added_kernel_bytes_per_conn", "bytes per connection: slab and socket buffers, added to direct"),
            ("base_rss_mb", "resident MB of the proxy before"),
            ("open", "connections held"),
        ],
        Figure::Stalled => &[
            ("grew_mib_per_pair", "MiB per pair that the machine holds"),
            ("added_mib_per_pair", "MiB per pair that the machine holds, added to direct"),
            ("available_mib_per_pair", "MiB per pair by MemAvailable"),
            ("noise_mib_per_pair", "MiB per pair by which MemAvailable swung before"),
            ("socket_mib_per_pair", "MiB per pair by sockstat"),
            ("slab_mib_per_pair", "MiB per pair by slab"),
            ("rss_mib_per_pair", "MiB per pair: resident, the proxy"),
            ("taken_mib_per_pair", "MiB per pair that the sender got rid of"),
        ],
    }
}

/// What is compared as a ratio.
fn compared(figure: Figure) -> &'static [&'static str] {
    match figure {
        Figure::Relay => &["gbit_s", "total_cpu_s_per_gb"],
        Figure::Rate => &["conn_s", "proxy_us_per_conn", "total_us_per_conn"],
        Figure::Ping => &["p50_us", "added_p50_us", "added_us_per_trip"],
        Figure::Mixed => &["gbit_s", "trips_s", "total_cpu_s_per_gb"],
        Figure::Idle => &["rss_bytes_per_conn"],
        Figure::Stalled => &["grew_mib_per_pair"],
    }
}

/// All tables of a run.
pub(super) fn digest(view: View<'_>) -> String {
    let mut out = String::new();
    for figure in Figure::ALL {
        for layout in LAYOUTS {
            let rows = view.rows_of(figure, layout);
            if !rows.is_empty() {
                out += &of_figure(view, figure, layout, &rows);
            }
        }
    }
    out
}

fn of_figure(view: View<'_>, figure: Figure, layout: Layout, rows: &[Row<'_>]) -> String {
    let mut out = format!("\n## {figure}, `{layout}`\n");
    for (metric, title) in metrics(figure) {
        out += &across(view, rows, title, |row, peer| spread(view.spread(row, peer, metric)));
    }
    out += &across(view, rows, "what limits", |row, peer| limit(view, row, peer).unwrap_or_default().to_owned());
    for metric in compared(figure) {
        out += &compare(view, rows, metric);
    }
    out + &disturbance(view, rows)
}

/// Peers down, cases across; nothing if no cell has a value.
fn across(view: View<'_>, rows: &[Row<'_>], title: &str, cell: impl Fn(Row<'_>, &str) -> String) -> String {
    let mut lines = vec![std::iter::once(String::new()).chain(rows.iter().map(|row| row.case.to_owned())).collect()];
    for peer in view.peers() {
        let cells: Vec<String> = rows.iter().map(|&row| cell(row, peer)).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            lines.push(std::iter::once(peer.to_owned()).chain(cells).collect());
        }
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!("\n**{title}**\n\n{}", table(&lines))
}

/// Ours over everybody, within each round.
fn compare(view: View<'_>, rows: &[Row<'_>], metric: &str) -> String {
    let others: Vec<&str> = view.peers();
    let rivals = view.rivals();
    let mut lines = vec![
        ["case", "subject", "best other"]
            .into_iter()
            .chain(others.iter().copied())
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    for &row in rows {
        for subject in view.ours() {
            let own = view.series(row, subject, metric);
            if own.is_empty() {
                continue;
            }
            let to = |other: &str| spread(Spread::of(&ratios(&own, &view.series(row, other, metric))));
            let best = view.best(row, metric, &rivals).map(|best| format!("{}: {best}", to(best)));
            let cells = others.iter().map(|&other| if other == subject { String::new() } else { to(other) });
            let head = [row.case.to_owned(), subject.to_owned(), best.unwrap_or_default()];
            lines.push(head.into_iter().chain(cells).collect());
        }
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!("\n**{metric}, ratio within a round to**\n\n{}", table(&lines))
}

/// What others took of the machine meanwhile.
fn disturbance(view: View<'_>, rows: &[Row<'_>]) -> String {
    let each = rows.iter().filter_map(|&row| {
        let foreign = view.spread_of_all(row, "foreign_pct")?;
        let steal = view.spread_of_all(row, "steal_pct")?;
        let errors = view.spread_of_all(row, "errors").map_or(0.0, |errors| errors.max);
        let errors = if errors > 0.0 { format!("; up to {errors} errors in a window") } else { String::new() };
        Some(format!("- {}: others {foreign}, the host {steal}{errors}\n", row.case))
    });
    let lines: String = each.collect();
    if lines.is_empty() { lines } else { format!("\nWhat others took meanwhile, in % of a CPU:\n\n{lines}") }
}

fn spread(spread: Option<Spread>) -> String {
    spread.map(|spread| spread.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::peers::{AUTO, DIRECT, FIXED, NGINX};
    use super::super::view::tests::record;
    use super::*;

    fn cells(text: &str, title: &str) -> Vec<Vec<String>> {
        let after = text.split(title).nth(1).unwrap_or_else(|| panic!("no {title:?} in\n{text}"));
        let lines = after.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        lines.map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    }

    #[test]
    fn tables_have_peers_down_and_cases_across() {
        let of = |case, peer, round, gbit| {
            record(
                (Figure::Relay, case),
                peer,
                round,
                &[("gbit_s", gbit), ("foreign_pct", 3.0), ("steal_pct", 0.0), ("load_core_pct", 99.0)],
            )
        };
        let records = [
            of("up", NGINX, 0, 10.0),
            of("up", AUTO, 0, 30.0),
            of("up", AUTO, 1, 40.0),
            of("up", NGINX, 1, 20.0),
            of("down", DIRECT, 0, 50.0),
            of("up", FIXED[1], 0, 20.0),
        ];
        let text = digest(View(&records));
        let table = cells(&text, "**Gbit/s**");
        assert_eq!(table[0][1..4], ["", "up", "down"]);
        assert_eq!(table[2][1..4], [DIRECT, "", "50.0"]);
        assert_eq!(table[3][1..4], [NGINX, "15.0 (10.0–20.0)", ""]);
        assert_eq!(table[4][1..4], [AUTO, "35.0 (30.0–40.0)", ""]);
        let ratios = cells(&text, "**gbit_s, ratio within a round to**");
        assert_eq!(ratios[0][1..6], ["case", "subject", "best other", DIRECT, NGINX]);
        assert_eq!(ratios[2][1..6], ["up", AUTO, "2.50 (2.00–3.00): nginx", "", "2.50 (2.00–3.00)"]);
        assert_eq!(ratios[3][2], FIXED[1]);
        assert_eq!(cells(&text, "**what limits**")[2][1..4], [DIRECT, "", "the load's CPU"]);
        assert!(text.contains("- up: others 3.00, the host 0\n"), "{text}");
        assert!(!text.contains("CPU-s"), "a metric without values has no table");
    }
}
