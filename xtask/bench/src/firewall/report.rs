//! Tables and plots of a run: medians with their spread, and ratios to controls computed within each round.

use std::collections::BTreeMap;

use anyhow::Context;

use super::super::markdown::table;
use super::super::stats::{Spread, ratios};
use super::chart::{Bar, Chart, Series};
use super::subject::SUBJECTS;
use super::{Document, Record};

const MC_PROXY: &str = "mc-proxy";
const XDP_FILTER: &str = "xdp-filter-bare";

/// One kind of table: every case that has its first metric.
struct Section {
    /// In the page: `<!-- bench:NAME -->`.
    name: &'static str,
    title: &'static str,
    metrics: &'static [&'static str],
    /// This metric also as ratios to these, where they ran.
    compared: (&'static str, &'static [&'static str]),
}

const SECTIONS: [Section; 5] = [
    Section {
        name: "flood",
        title: "Packets of blocked sources",
        metrics: &["one_mpps", "one_ns", "own_mpps", "own_ns", "own_cpu_pct", "passed_pct"],
        compared: ("one_mpps", &["ctl-drop", XDP_FILTER, "ctl-lpm", "ipset-raw"]),
    },
    Section {
        name: "pass",
        title: "Packets that nothing blocks",
        metrics: &["pass_mpps", "pass_ns", "pass_passed_pct"],
        compared: ("pass_ns", &["nothing", XDP_FILTER]),
    },
    Section {
        name: "time",
        title: "The program alone",
        metrics: &["hot_ns", "cold_ns", "hot_pass_ns", "cold_pass_ns"],
        compared: ("hot_ns", &["ctl-hash", "ctl-lpm", XDP_FILTER]),
    },
    Section {
        name: "load",
        title: "Loading a table, and its memory",
        metrics: &["load_s", "rss_mb", "rss_most_mb", "maps_mb"],
        compared: ("load_s", &["nft-input", "ipset-raw"]),
    },
    Section {
        name: "act",
        title: "One more rule",
        metrics: &["command_ms", "effect_ms", "rpc_ms", "rpc_effect_ms"],
        compared: ("effect_ms", &["nft-input", "ipset-raw"]),
    },
];

/// What this project asks of itself: a ratio of medians within rounds, or a figure.
struct Floor {
    what: &'static str,
    cases: &'static [&'static str],
    metric: &'static str,
    /// The control, or the case that is compared with; none: the figure itself.
    over: Over,
    limit: f64,
    is_least: bool,
}

enum Over {
    Subject(&'static str),
    Case(&'static str),
    Nothing,
}

const FLOORS: [Floor; 13] = [
    at_least("blocked addresses, 10,000", &["v4-address-dense 10000", "v4-address-spread 10000"], XDP_FILTER, 1.0),
    at_least(
        "blocked addresses, 1,000,000",
        &["v4-address-dense 1000000", "v4-address-spread 1000000"],
        XDP_FILTER,
        1.8,
    ),
    at_least("blocked prefixes, 10,000", &["v4-prefix-dense 10000", "v4-prefix-spread 10000"], "ctl-lpm", 1.7),
    at_least("blocked prefixes, 1,000,000", &["v4-prefix-dense 1000000", "v4-prefix-spread 1000000"], "ctl-lpm", 4.0),
    at_least("blocked prefixes, 1,000,000", &["v4-prefix-dense 1000000", "v4-prefix-spread 1000000"], "ipset-raw", 2.2),
    ipv6("IPv6 addresses, 10,000", &["v6-address-spread 10000"], "v4-address-spread 10000"),
    ipv6("IPv6 addresses, 1,000,000", &["v6-address-spread 1000000"], "v4-address-spread 1000000"),
    ipv6("IPv6 prefixes, 1,000,000", &["v6-prefix-spread 1000000"], "v4-prefix-spread 1000000"),
    Floor {
        what: "nothing blocks it, full over empty, hot",
        cases: &["full"],
        metric: "hot_pass_ns",
        over: Over::Case("empty"),
        limit: 1.3,
        is_least: false,
    },
    Floor {
        what: "drop of an address, hot",
        cases: &["v4-address-dense 1", "v4-address-dense 10000", "v4-address-dense 1000000"],
        metric: "hot_ns",
        over: Over::Subject(XDP_FILTER),
        limit: 1.1,
        is_least: false,
    },
    at_most(
        "import of 1,000,000 addresses, s",
        &["v4-address-dense 1000000", "v4-address-spread 1000000"],
        "load_s",
        5.0,
    ),
    at_most("import of 1,000,000 prefixes, s", &["v4-prefix-dense 1000000", "v4-prefix-spread 1000000"], "load_s", 8.0),
    at_most(
        "one more rule on a full table, by a connected client, ms",
        &["v4-address-dense 1000000", "v4-prefix-dense 1000000", "full"],
        "rpc_effect_ms",
        5.0,
    ),
];

const fn at_least(what: &'static str, cases: &'static [&'static str], over: &'static str, limit: f64) -> Floor {
    Floor { what, cases, metric: "one_mpps", over: Over::Subject(over), limit, is_least: true }
}

const fn ipv6(what: &'static str, cases: &'static [&'static str], over: &'static str) -> Floor {
    Floor { what, cases, metric: "one_ns", over: Over::Case(over), limit: 1.5, is_least: false }
}

const fn at_most(what: &'static str, cases: &'static [&'static str], metric: &'static str, limit: f64) -> Floor {
    Floor { what, cases, metric, over: Over::Nothing, limit, is_least: false }
}

/// The whole report in Markdown, aligned to be read as it is.
pub(super) fn markdown(document: &Document) -> String {
    let mut out = format!("# Benchmark of the firewall, {}\n\n{}", document.started, machine(document));
    for section in &SECTIONS {
        let tables = section_tables(section, document);
        if !tables.is_empty() {
            out += &format!("\n## {}\n{tables}", section.title);
        }
    }
    out + &format!("\n## {MC_PROXY} against its floors\n\n{}", floors(&document.records))
}

/// Replaces what stands between `<!-- bench:NAME -->` and `<!-- /bench -->` in a page by this run's tables.
pub(super) fn into_page(page: &str, document: &Document) -> anyhow::Result<String> {
    let mut blocks = vec![("machine", machine(document)), ("floors", floors(&document.records))];
    let plots = plots(document);
    for section in &SECTIONS {
        let prefix = format!("{}-", section.name);
        let images = plots.iter().filter(|(name, _)| name.starts_with(&prefix));
        let images: String = images.map(|(name, _)| format!("\n![{}](performance/{name})\n", section.title)).collect();
        blocks.push((section.name, images + &section_tables(section, document)));
    }
    let mut page = page.to_owned();
    for (name, block) in blocks {
        let (begin, end) = (format!("<!-- bench:{name} -->\n"), "<!-- /bench -->");
        let from = page.find(&begin).with_context(|| format!("the page has no {}", begin.trim()))? + begin.len();
        let length = page[from..].find(end).with_context(|| format!("the page has no end of {}", begin.trim()))?;
        page.replace_range(from..from + length, &format!("\n{}\n", block.trim_matches('\n')));
    }
    Ok(page)
}

fn machine(document: &Document) -> String {
    let mut out = format!(
        "Kernel {}, {} CPUs ({}). Rounds: {}, floods of {} s. Cells are `median (min–max)` over the rounds; ratios are \
         taken within a round.\n\n",
        document.kernel, document.cpus, document.cpu_model, document.rounds, document.secs,
    );
    for (name, version) in &document.versions {
        out += &format!("- {name}: {version}\n");
    }
    for note in &document.notes {
        out += &format!("- note: {note}\n");
    }
    for (metric, text) in [("foreign_pct", "other processes took"), ("steal_pct", "the host took")] {
        let values: Vec<f64> =
            document.records.iter().filter_map(|record| record.metrics.get(metric).copied()).collect();
        if let Some(spread) = Spread::of(&values) {
            out += &format!("- meanwhile {text} {spread} % of a CPU\n");
        }
    }
    out
}

fn section_tables(section: &Section, document: &Document) -> String {
    let mut out = String::new();
    for case in cases(&document.records) {
        let records: Vec<&Record> = document.records.iter().filter(|record| record.case == case).collect();
        // Memory alone is worth no table.
        let is_measured = |metric: &&str| records.iter().any(|record| record.metrics.contains_key(*metric));
        let needed = if section.name == "load" { &section.metrics[..1] } else { section.metrics };
        if needed.iter().any(is_measured) {
            out += &format!("\n{case}:\n\n{}", case_table(section, &records));
        }
    }
    out
}

fn case_table(section: &Section, records: &[&Record]) -> String {
    let (compared, controls) = section.compared;
    let subjects = subjects(records);
    let has = |metric: &str| records.iter().any(|record| record.metrics.contains_key(metric));
    let metrics: Vec<&str> = section.metrics.iter().copied().filter(|metric| has(metric)).collect();
    let ran = |control: &&str| !series(records, control, compared).is_empty();
    let controls: Vec<&str> = controls.iter().copied().filter(ran).collect();
    let mut head = vec!["subject".to_owned()];
    head.extend(metrics.iter().map(|&metric| metric.to_owned()));
    head.extend(controls.iter().map(|control| format!("{compared} / {control}")));
    let mut rows = vec![head];
    for subject in subjects {
        if metrics.iter().all(|metric| series(records, subject, metric).is_empty()) {
            continue;
        }
        let mut row = vec![subject.to_owned()];
        row.extend(metrics.iter().map(|metric| spread(series(records, subject, metric).into_values())));
        row.extend(controls.iter().map(|&control| {
            let values = series(records, subject, compared);
            if subject == control {
                String::new()
            } else {
                spread(ratios(&values, &series(records, control, compared)))
            }
        }));
        rows.push(row);
    }
    table(&rows)
}

fn floors(records: &[Record]) -> String {
    let mut rows = vec![["what", "case", "over", "value", "limit", "median"].map(str::to_owned).to_vec()];
    for floor in &FLOORS {
        for case in floor.cases {
            let of = |case: &str, subject: &str| {
                let records: Vec<&Record> = records.iter().filter(|record| record.case == case).collect();
                series(&records, subject, floor.metric)
            };
            let own = of(case, MC_PROXY);
            let (over, values) = match floor.over {
                Over::Subject(subject) => (subject, ratios(&own, &of(case, subject))),
                Over::Case(other) => (other, ratios(&own, &of(other, MC_PROXY))),
                Over::Nothing => ("", own.into_values().collect()),
            };
            let Some(spread) = Spread::of(&values) else { continue };
            let is_reached = if floor.is_least { spread.median >= floor.limit } else { spread.median <= floor.limit };
            rows.push(vec![
                floor.what.to_owned(),
                (*case).to_owned(),
                over.to_owned(),
                spread.to_string(),
                format!("{} {}", if floor.is_least { "≥" } else { "≤" }, floor.limit),
                if is_reached { "reached" } else { "missed" }.to_owned(),
            ]);
        }
    }
    if rows.len() == 1 { "None of the cases ran that have one.\n".to_owned() } else { table(&rows) }
}

/// The plots of a run, with their file names.
pub(super) fn plots(document: &Document) -> Vec<(String, String)> {
    let plots: [(&str, &str, &str); 5] = [
        ("flood", "one_mpps", "Blocked packets on one core, million a second"),
        ("pass", "pass_ns", "Packets that nothing blocks on one core, ns each"),
        ("time", "cold_ns", "The program alone, random blocked sources, ns a packet"),
        ("load", "load_s", "Loading a table, seconds"),
        ("act", "effect_ms", "Until one more rule acts, ms"),
    ];
    let mut charts: BTreeMap<String, Chart> = BTreeMap::new();
    for (name, metric, title) in plots {
        for case in cases(&document.records) {
            // The sizes of one shape share a plot.
            let (shape, size) = case.rsplit_once(' ').unwrap_or((case, ""));
            let records: Vec<&Record> = document.records.iter().filter(|record| record.case == case).collect();
            let bars: Vec<Bar> = subjects(&records)
                .into_iter()
                .filter_map(|subject| {
                    let values: Vec<f64> = series(&records, subject, metric).into_values().collect();
                    Some(Bar { label: subject.to_owned(), value: Spread::of(&values)? })
                })
                .collect();
            if bars.is_empty() {
                continue;
            }
            let chart = charts
                .entry(format!("{name}-{shape}.svg"))
                .or_insert_with(|| Chart { title: format!("{title}: {shape}"), series: Vec::new() });
            chart.series.push(Series { name: size.to_owned(), bars });
        }
    }
    charts.into_iter().map(|(name, chart)| (name, chart.svg())).collect()
}

/// Cases in the order they were measured.
fn cases(records: &[Record]) -> Vec<&str> {
    let mut cases: Vec<&str> = Vec::new();
    for record in records {
        if !cases.contains(&record.case.as_str()) {
            cases.push(&record.case);
        }
    }
    cases
}

/// The subjects that ran, in the order they are listed in.
fn subjects(records: &[&Record]) -> Vec<&'static str> {
    let names = SUBJECTS.iter().map(|subject| subject.name());
    names.filter(|name| records.iter().any(|record| record.subject == *name)).collect()
}

/// A metric of a subject by round.
fn series(records: &[&Record], subject: &str, metric: &str) -> BTreeMap<u32, f64> {
    let of_subject = records.iter().filter(|record| record.subject == subject);
    of_subject.filter_map(|record| Some((record.round, *record.metrics.get(metric)?))).collect()
}

fn spread(values: impl IntoIterator<Item = f64>) -> String {
    let values: Vec<f64> = values.into_iter().collect();
    Spread::of(&values).map_or_else(String::new, |spread| spread.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(case: &str, subject: &str, round: u32, metrics: &[(&str, f64)]) -> Record {
        let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Record { case: case.to_owned(), subject: subject.to_owned(), round, metrics }
    }

    fn document() -> Document {
        let case = "v4-prefix-dense 1000000";
        Document {
            started: "20260101T000000Z".to_owned(),
            kernel: "6.12".to_owned(),
            cpu_model: "a CPU".to_owned(),
            cpus: 2,
            rounds: 2,
            secs: 1.0,
            versions: BTreeMap::new(),
            notes: vec!["a remark".to_owned()],
            records: vec![
                record(case, "ctl-lpm", 0, &[("one_mpps", 1.0)]),
                record(case, "mc-proxy", 0, &[("one_mpps", 5.0), ("load_s", 9.0), ("one_ns", 200.0)]),
                record(case, "ctl-lpm", 1, &[("one_mpps", 2.0)]),
                record(case, "mc-proxy", 1, &[("one_mpps", 6.0), ("load_s", 9.0), ("one_ns", 300.0)]),
                record("empty", "mc-proxy", 0, &[("hot_pass_ns", 20.0)]),
                record("full", "mc-proxy", 0, &[("hot_pass_ns", 25.0), ("hot_ns", 30.0)]),
            ],
            path: Default::default(),
        }
    }

    #[test]
    fn floors_are_ratios_within_rounds_or_figures() {
        let text = floors(&document().records);
        let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
        assert!(line("ctl-lpm").contains("4.00 (3.00–5.00)") && line("ctl-lpm").contains("reached"), "{text}");
        assert!(line("import of").contains("9.00") && line("import of").contains("missed"), "{text}");
        assert!(line("full over empty").contains("1.25") && line("full over empty").contains("reached"), "{text}");
        assert!(!text.contains("IPv6"), "what did not run has no line");
        assert!(floors(&[]).contains("None"));
    }

    #[test]
    fn tables_have_what_was_measured() {
        let text = markdown(&document());
        assert!(text.contains("note: a remark"), "{text}");
        assert!(text.contains("one_mpps / ctl-lpm") && !text.contains("one_mpps / ctl-drop"), "{text}");
        assert!(!text.contains("own_mpps"), "{text}");
        assert!(text.contains("empty:") && text.contains("full:"), "{text}");
    }

    #[test]
    fn pages_keep_their_words() {
        let page = include_str!("../../../../docs/performance.md");
        let once = into_page(page, &document()).unwrap();
        assert!(once.contains("4.00 (3.00–5.00)"), "{once}");
        assert_eq!(into_page(&once, &document()).unwrap(), once);
        assert!(into_page("no marks", &document()).is_err());
    }

    #[test]
    fn plots_are_named_after_their_case() {
        let names: Vec<String> = plots(&document()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["flood-v4-prefix-dense.svg", "load-v4-prefix-dense.svg"]);
    }
}
