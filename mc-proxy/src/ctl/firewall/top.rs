//! `mcproxyctl firewall top`: drops per second over a window that moves.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use mc_proxy_proto::v1;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    super::{
        CtlError,
        client::Client,
        output::{Output, table},
    },
    options,
    watch::{Drops, Which},
};

/// Slices of the window; the oldest is forgotten as a whole.
const SLICES: u32 = 10;
/// Names that a slice tells apart; the rest is one name. Ten slices are some 5 MB at most.
const NAMES_MAX: usize = 4096;
const OTHERS: &str = "(others)";
const LONGEST: Duration = Duration::from_secs(3600);
/// Clears the screen: cursor home, erase below.
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Args {
    #[command(flatten)]
    which: Which,
    /// Over what time drops are counted, at most 1h.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = options::duration)]
    window: Duration,
    /// Between two tables.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = options::duration)]
    refresh: Duration,
    /// Rows of a table.
    #[arg(long, value_name = "NUMBER", default_value_t = 15)]
    rows: usize,
    /// End after so many tables; without it, one after a whole window when stdout is not a terminal.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    number: Option<u64>,
}

/// Drops of some time.
#[derive(Debug, Default)]
struct Slice {
    groups: HashMap<String, u64>,
    sources: HashMap<String, u64>,
}

/// The drops of the last while.
#[derive(Debug)]
struct Window {
    slices: VecDeque<Slice>,
    missed: u64,
}

pub(super) async fn run(args: &Args, socket: &Path, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let drops = Drops::new(&args.which, client).await?;
    // Kept over the turns of the window: a new connection is not begun anew with each of them.
    let mut next = Box::pin(next_of(drops, socket));
    let length = args.window.min(LONGEST);
    let is_live = out.is_terminal() || args.number.is_some();
    let refresh = if is_live { args.refresh } else { length };
    let mut left = args.number.unwrap_or(if is_live { u64::MAX } else { 1 });
    let began = Instant::now();
    let mut window = Window { slices: VecDeque::from([Slice::default()]), missed: 0 };
    let mut turn = began + length / SLICES;
    let mut show = began + refresh;
    while left > 0 {
        tokio::select! {
            (drops, answer) = &mut next => {
                window.add(&answer?);
                next.set(next_of(drops, socket));
            }
            () = tokio::time::sleep_until(turn) => {
                window.turn();
                turn += length / SLICES;
            }
            () = tokio::time::sleep_until(show) => {
                left -= 1;
                show += refresh;
                let counted = began.elapsed().min(length);
                window.show(args.rows, counted, out)?;
            }
        }
    }
    Ok(())
}

async fn next_of(mut drops: Drops, socket: &Path) -> (Drops, Result<v1::WatchDropsResponse, CtlError>) {
    let answer = drops.next(socket).await;
    (drops, answer)
}

impl Window {
    fn add(&mut self, answer: &v1::WatchDropsResponse) {
        self.missed = self.missed.saturating_add(answer.missed);
        let Some(slice) = self.slices.back_mut() else { return };
        for event in &answer.events {
            let drops = u64::from(event.sampled.max(1));
            count(&mut slice.groups, event.group.clone(), drops);
            count(&mut slice.sources, network(&event.source), drops);
        }
    }

    fn turn(&mut self) {
        self.slices.push_back(Slice::default());
        if self.slices.len() > SLICES as usize {
            self.slices.pop_front();
        }
    }

    fn show(&self, rows: usize, counted: Duration, out: &mut Output<'_>) -> Result<(), CtlError> {
        let seconds = counted.as_secs_f64().max(0.1);
        let groups = top(self.slices.iter().map(|slice| &slice.groups), rows);
        let sources = top(self.slices.iter().map(|slice| &slice.sources), rows);
        let rate = |drops: u64| (drops as f64 / seconds * 10.0).round() / 10.0;
        let json = |name: &str, drops: &[(&str, u64)]| -> Value {
            drops.iter().map(|(text, drops)| json!({name: text, "drops_per_second": rate(*drops)})).collect()
        };
        let rows = |drops: &[(&str, u64)]| {
            let rows = drops.iter().map(|(name, drops)| [format!("{:.1}", rate(*drops)), (*name).to_owned()]);
            rows.collect::<Vec<_>>()
        };
        let screen = if out.is_terminal() { CLEAR } else { "" };
        out.answer_part(
            || {
                let groups = json("group", &groups);
                let sources = json("source", &sources);
                let object = json!({"seconds": seconds, "groups": groups, "sources": sources, "missed": self.missed});
                format!("{object}\n")
            },
            || {
                let total = groups.iter().map(|(_, drops)| drops).sum();
                format!(
                    "{screen}drops per second over {seconds:.0} s: {:.1}{}\n\n{}\n{}",
                    rate(total),
                    if self.missed > 0 { format!(", and {} events missed", self.missed) } else { String::new() },
                    table(["DROPS/S", "GROUP"], rows(&groups)),
                    table(["DROPS/S", "SOURCE"], rows(&sources)),
                )
            },
        )?;
        out.flush()
    }
}

fn count(names: &mut HashMap<String, u64>, name: String, drops: u64) {
    let is_known = names.len() < NAMES_MAX || names.contains_key(&name);
    let name = if is_known { name } else { OTHERS.to_owned() };
    let sum = names.entry(name).or_default();
    *sum = sum.saturating_add(drops);
}

/// The largest sums, the largest first.
fn top<'s>(slices: impl Iterator<Item = &'s HashMap<String, u64>>, rows: usize) -> Vec<(&'s str, u64)> {
    let mut sums = HashMap::<&str, u64>::new();
    for (name, drops) in slices.flatten() {
        let sum = sums.entry(name).or_default();
        *sum = sum.saturating_add(*drops);
    }
    let mut sums = sums.into_iter().collect::<Vec<_>>();
    sums.sort_unstable_by(|(a, most), (b, least)| least.cmp(most).then(a.cmp(b)));
    sums.truncate(rows);
    sums
}

/// The /24 or /48 of an address; what is no address stays as it is.
fn network(source: &str) -> String {
    let net =
        source.parse::<IpAddr>().ok().and_then(|addr| IpNet::new(addr, if addr.is_ipv4() { 24 } else { 48 }).ok());
    net.map_or_else(|| source.to_owned(), |net| net.trunc().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: &str, group: &str, sampled: u32) -> v1::DropEvent {
        v1::DropEvent { source: source.into(), group: group.into(), sampled, ..v1::DropEvent::default() }
    }

    #[test]
    fn the_window_moves_and_its_memory_is_bounded() {
        let mut window = Window { slices: VecDeque::from([Slice::default()]), missed: 0 };
        let events = vec![event("10.0.0.1", "a", 100), event("10.0.0.9", "a", 1), event("2001:db8:1:2::3", "b", 0)];
        window.add(&v1::WatchDropsResponse { events, missed: 3 });
        let sources = |window: &Window| {
            let drops = top(window.slices.iter().map(|slice| &slice.sources), 2);
            drops.into_iter().map(|(name, drops)| (name.to_owned(), drops)).collect::<Vec<_>>()
        };
        assert_eq!(sources(&window), [("10.0.0.0/24".to_owned(), 101), ("2001:db8:1::/48".to_owned(), 1)]);
        for _ in 0..SLICES - 1 {
            window.turn();
        }
        assert_eq!(sources(&window).len(), 2);
        window.turn();
        assert!(sources(&window).is_empty());
        assert_eq!((window.slices.len(), window.missed), (10, 3));

        let many = (0..10_000_u32).map(|n| event(&std::net::Ipv4Addr::from_bits(n << 8).to_string(), "a", 1)).collect();
        window.add(&v1::WatchDropsResponse { events: many, missed: 0 });
        assert_eq!(window.slices.back().unwrap().sources.len(), NAMES_MAX + 1);
        assert_eq!(sources(&window)[0], (OTHERS.to_owned(), 10_000 - NAMES_MAX as u64));
    }
}
