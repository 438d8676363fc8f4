//! The report of a run in Markdown: where it took place, what the project asks of itself, then the tables.

use super::super::markdown::table;
use super::digest::digest;
use super::floors::{Verdict, verdicts};
use super::record::Document;
use super::view::View;

/// The whole report, aligned to be read as it is.
pub(super) fn markdown(document: &Document) -> String {
    let machine = &document.machine;
    let mut out = format!(
        "# Passthrough, {}\n\nKernel {}, {} CPUs ({}); proxies on CPU {}, load and backend on CPU {}. Rounds: {}, {} s \
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
    out + &floors(&verdicts(view)) + &digest(view)
}

/// What is met and what is missed; empty when nothing could be judged.
fn floors(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return String::new();
    }
    let head = ["case", "subject", "metric", "relative to", "asked", "found", ""].map(str::to_owned).to_vec();
    let line = |verdict: &Verdict| {
        vec![
            verdict.row.clone(),
            verdict.subject.to_owned(),
            verdict.metric.to_owned(),
            verdict.against.clone(),
            verdict.bound.clone(),
            verdict.found.to_string(),
            if verdict.is_met { "met" } else { "MISSED" }.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(verdicts.iter().map(line)).collect();
    let met = verdicts.iter().filter(|verdict| verdict.is_met).count();
    format!("\n## Floors\n\n{met} of {} met.\n\n{}", verdicts.len(), table(&rows))
}

#[cfg(test)]
mod tests {
    use super::super::super::stats::Spread;
    use super::*;

    #[test]
    fn floors_say_what_is_missed() {
        let verdict = |is_met| Verdict {
            row: "relay: lo, up".to_owned(),
            subject: "mc-proxy",
            metric: "gbit_s",
            against: "nginx".to_owned(),
            bound: "≥ 2.00".to_owned(),
            found: Spread { min: 1.0, median: 1.5, max: 2.5 },
            is_met,
        };
        let text = floors(&[verdict(true), verdict(false), verdict(true)]);
        assert!(text.contains("2 of 3 met"), "{text}");
        let missed: Vec<&str> = text.lines().filter(|line| line.contains("MISSED")).collect();
        assert_eq!(missed.len(), 1);
        assert!(missed[0].contains("≥ 2.00") && missed[0].contains("1.50 (1.00–2.50)"), "{text}");
        assert_eq!(floors(&[]), "");
    }
}
