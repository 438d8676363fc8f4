//! How large the tables of a generation are.

use ipnet::IpNet;
use mc_proxy_common::table::{CHAIN_MAX, SLOTS_LONG6, SLOTS4, SLOTS6};

use super::EngineError;
use crate::firewall::{
    book::{RuleBook, Slots},
    compile::Exhausted,
    prefix::Prefix,
    tables::Sizes,
};

/// How full lines may get before some prefix finds no place in the few lines that may hold it, as a divisor of all
/// slots: the fewer slots a line has, the sooner. Simulated with 2 million slots: not one in ten runs.
const LOAD4: (u64, u64) = (3, 8);
const LOAD6: (u64, u64) = (1, 5);
const LOAD_LONG6: (u64, u64) = (1, 8);

/// Room for prefixes to come, beside half as many as there are.
const SPARE: u64 = 4096;
/// 2 GiB of lines or nodes.
const LINES_MAX: u64 = 1 << 25;
const NODES_MAX: u64 = 1 << 21;
const NODES_MIN: u64 = 1024;
const CLAUSES_MIN: u64 = 4096;

/// Whether so many slots may be in tables of these sizes.
pub(super) fn fit(slots: &Slots, sizes: &Sizes) -> bool {
    let fits = |count: u64, lines: u32, each: usize, load: (u64, u64)| {
        count * load.1 <= u64::from(lines) * each as u64 * load.0
    };
    fits(slots.v4, sizes.lines4, SLOTS4, LOAD4)
        && fits(slots.v6, sizes.lines6, SLOTS6, LOAD6)
        && fits(slots.long6, sizes.lines_long6, SLOTS_LONG6, LOAD_LONG6)
}

/// For the rules of a book and some more.
pub(super) fn of(book: &RuleBook) -> Result<Sizes, EngineError> {
    let (mut slots, mut nodes) = (Slots::default(), 0);
    let (mut last16, mut last24) = (None, None);
    for (net, _) in book.live() {
        slots.add(net);
        let prefix = Prefix::of(net);
        let is_v6 = matches!(net, IpNet::V6(_));
        let is_new = |last: &mut Option<(bool, Prefix)>, length| {
            prefix.length > length
                && last.replace((is_v6, prefix.parent(length))) != Some((is_v6, prefix.parent(length)))
        };
        nodes += u64::from(is_new(&mut last16, 16)) + u64::from(is_v6 && is_new(&mut last24, 24));
    }
    let lines = |count: u64, each: usize, load: (u64, u64)| {
        power((count + count / 2 + SPARE) * load.1 / load.0 / each as u64, LINES_MAX)
    };
    Ok(Sizes {
        nodes: power((nodes + nodes / 4 + 256).max(NODES_MIN), NODES_MAX)?,
        lines4: lines(slots.v4, SLOTS4, LOAD4)?,
        lines6: lines(slots.v6, SLOTS6, LOAD6)?,
        lines_long6: lines(slots.long6, SLOTS_LONG6, LOAD_LONG6)?,
        clauses: power((book.own.len() as u64 * 3).clamp(CLAUSES_MIN, CLAUSES_ALL), CLAUSES_ALL)?,
    })
}

const CLAUSES_ALL: u64 = CHAIN_MAX as u64 + 1;

/// Makes `sizes` at least twice as large as `old` in one respect.
pub(super) fn grow(sizes: &mut Sizes, what: Exhausted, old: &Sizes) -> Result<(), EngineError> {
    let (size, old, max) = match what {
        Exhausted::Nodes => (&mut sizes.nodes, old.nodes, NODES_MAX),
        Exhausted::Clauses => (&mut sizes.clauses, old.clauses, CLAUSES_ALL),
        Exhausted::Lines4 => (&mut sizes.lines4, old.lines4, LINES_MAX),
        Exhausted::Lines6 => (&mut sizes.lines6, old.lines6, LINES_MAX),
        Exhausted::LinesLong6 => (&mut sizes.lines_long6, old.lines_long6, LINES_MAX),
    };
    *size = power((u64::from(old) * 2).max((*size).into()), max)?;
    Ok(())
}

/// The next power of two.
fn power(count: u64, max: u64) -> Result<u32, EngineError> {
    let power = count.max(1).next_power_of_two();
    u32::try_from(power).ok().filter(|_| power <= max).ok_or(EngineError::TooLarge)
}
