//! From the rule book to the tables that are looked up.
//!
//! ```text
//! book ─► sweep ─► lists ──────────► chains: clauses, each list once
//!           │  for each prefix, composed of the list around it and its own rules
//!           ├────► slots             prefixes longer than a granule (IPv4 /24, IPv6 /32)
//!           └────► tree              a word for each granule
//! ```
//! A change walks over the changed prefixes alone. What a look-up under way may still be at — nodes, clauses, slots —
//! is not used for anything else before [`GRACE`] has passed.

mod chains;
mod clock;
mod lists;
mod recent;
mod slots;
mod sweep;
mod tree;

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mc_proxy_common::table::Word;

use self::{
    chains::Chains,
    clock::Clock,
    lists::{Lists, Terms},
    recent::Recent,
    slots::{Lines, Slot},
    sweep::{Deferred, Purpose, Sweep},
    tree::Nodes,
};
use super::{
    book::RuleBook,
    engine::Moment,
    prefix::{Family, Prefix, V4, V6},
    tables::{Sizes, TableMemory},
};
use crate::xdp::PlaneError;

/// Longest time that a look-up takes, in nanoseconds, with much to spare.
pub(super) const GRACE: u64 = 1_000_000_000;

/// Entries of a granule that are looked at in order to find out that one of its levels is no longer used. A level that is
/// used by nothing costs look-ups a little time and is right all the same.
const LEVELS_SOUGHT: usize = 4096;

/// What the tables have too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exhausted {
    Nodes,
    Clauses,
    Lines4,
    Lines6,
    LinesLong6,
}

/// Why the tables could not be made to say what the book says.
#[derive(Debug)]
pub(super) enum CompileError {
    Exhausted(Exhausted),
    /// The decision list of a prefix is longer than a look-up follows.
    TooLong(IpNet),
    /// Look-ups under way could not be waited for.
    Unsettled(PlaneError),
}

impl From<Exhausted> for CompileError {
    fn from(exhausted: Exhausted) -> Self {
        Self::Exhausted(exhausted)
    }
}

/// Returns when all look-ups that are under way have ended.
type Settle<'a> = &'a mut dyn FnMut() -> Result<(), PlaneError>;

/// The tables of one generation, and what is where in them.
#[derive(Debug)]
struct Writer {
    memory: Arc<TableMemory>,
    chains: Chains,
    nodes: Nodes,
    lines: Lines,
    recent: Recent,
    /// A granule of each node that was written to, IPv6 or not.
    written: Vec<(bool, u32)>,
}

/// Keeps the tables of one generation equal to the book.
#[derive(Debug)]
pub(super) struct Compiler {
    writer: Writer,
    clock: Clock,
    is_host: bool,
}

/// What is used of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nodes.
    pub nodes: u64,
    /// Clauses.
    pub clauses: u64,
    /// Slots of IPv4 lines.
    pub slots4: u64,
    /// Slots of IPv6 lines up to /64.
    pub slots6: u64,
    /// Slots of longer IPv6 lines.
    pub slots_long6: u64,
}

impl Writer {
    /// The chain of a list, in the table.
    fn chain(&mut self, lists: &mut Lists, list: u32, now: u64) -> Result<u32, Exhausted> {
        if let Some(chain) = lists.chain(list) {
            return Ok(chain);
        }
        let chain = self.chains.intern(&self.memory, lists.clauses(list), now)?;
        lists.set_chain(list, chain);
        Ok(chain)
    }

    /// Lets no look-up miss any slot that there is.
    fn settle(&mut self, settle: Settle<'_>) -> Result<(), CompileError> {
        settle().map_err(CompileError::Unsettled)?;
        self.recent.settled();
        Ok(())
    }

    /// Gives up what the last change has left without use.
    fn finish(&mut self, now: u64) {
        let mut written = std::mem::take(&mut self.written);
        written.sort_unstable();
        written.dedup_by_key(|(is_v6, granule)| (*is_v6, *granule >> 8));
        for (is_v6, granule) in written {
            self.collapse(is_v6, granule, now);
        }
        self.chains.collect(now);
        self.lines.cool(now);
    }
}

impl Compiler {
    /// For empty tables. `is_host` tells whether the default scope is every packet.
    pub(super) fn new(memory: Arc<TableMemory>, is_host: bool, now: Moment) -> Self {
        let Sizes { nodes, clauses, .. } = memory.sizes();
        let writer = Writer {
            memory,
            chains: Chains::new(clauses),
            nodes: Nodes::new(nodes),
            lines: Lines::default(),
            recent: Recent::default(),
            written: Vec::new(),
        };
        Self { writer, clock: Clock::at(now), is_host }
    }

    pub(super) fn memory(&self) -> &Arc<TableMemory> {
        &self.writer.memory
    }

    /// Whether expiries are as the clocks are now.
    pub(super) fn is_on_time(&self, now: Moment) -> bool {
        self.clock.agrees(now)
    }

    /// From now on expiries are converted by the clocks as they are; those in the tables are not.
    pub(super) fn set_clock(&mut self, now: Moment) {
        self.clock = Clock::at(now);
    }

    /// Fills tables that are empty and that nothing reads.
    pub(super) fn fill(&mut self, book: &RuleBook, now: Moment) -> Result<(), CompileError> {
        self.sweep(book, &everything(), Purpose::Fill, now, &mut || Ok(()))?;
        self.writer.finish(now.boot);
        Ok(())
    }

    /// Makes the tables say what the book says of the prefixes `nets`, of which none contains another. `settle` returns
    /// when all look-ups that are under way have ended. After an error the tables say partly this and partly that.
    pub(super) fn change(
        &mut self,
        book: &RuleBook,
        nets: &[IpNet],
        now: Moment,
        settle: Settle<'_>,
    ) -> Result<(), CompileError> {
        self.sweep(book, nets, Purpose::Change, now, settle)?;
        self.writer.finish(now.boot);
        Ok(())
    }

    /// Makes the tables say what the book says again, after a [`Self::change`] of the same prefixes has failed. Takes
    /// nothing that was not there before.
    pub(super) fn undo(
        &mut self,
        book: &RuleBook,
        nets: &[IpNet],
        now: Moment,
        settle: Settle<'_>,
    ) -> Result<(), CompileError> {
        self.sweep(book, nets, Purpose::Undo, now, settle)?;
        self.writer.finish(now.boot);
        Ok(())
    }

    fn sweep(
        &mut self,
        book: &RuleBook,
        nets: &[IpNet],
        purpose: Purpose,
        now: Moment,
        settle: Settle<'_>,
    ) -> Result<(), CompileError> {
        let terms = Terms { clock: self.clock, wall: now.wall, is_host: self.is_host };
        self.writer.recent.begin(now.boot);
        let result = self.stages(book, nets, (now.boot, purpose), &terms, settle);
        if self.writer.recent.end(now.boot) {
            self.writer.settle(settle)?;
        }
        result
    }

    fn stages(
        &mut self,
        book: &RuleBook,
        nets: &[IpNet],
        (now, purpose): (u64, Purpose),
        terms: &Terms,
        settle: Settle<'_>,
    ) -> Result<(), CompileError> {
        let (mut lists, mut deferred) = (Lists::new(), Deferred::default());
        for net in nets {
            let (writer, lists, deferred) = (&mut self.writer, &mut lists, &mut deferred);
            let how = (now, purpose);
            let prefix = Prefix::of(*net);
            match net {
                IpNet::V4(_) => Sweep::<V4>::new(writer, lists, book, terms, how, deferred, settle).run(prefix)?,
                IpNet::V6(_) => Sweep::<V6>::new(writer, lists, book, terms, how, deferred, settle).run(prefix)?,
            }
        }
        deferred.slots.sort_by_key(|(stage, ..)| *stage);
        let mut reached = 0;
        for (stage, slot, chain) in deferred.slots {
            if stage != reached {
                self.writer.settle(settle)?;
                reached = stage;
            }
            self.writer.set_slot(slot, chain)?;
        }
        for (is_v6, granule, list, levels) in deferred.words {
            let word = Word::leaf(self.writer.chain(&mut lists, list, now)?, levels);
            self.writer.fill(is_v6, granule.into(), u64::from(granule) + 1, word, now)?;
        }
        Ok(())
    }

    /// Takes away the slots of prefixes that have gone from the book after having been empty for long enough. `gone` is
    /// sorted.
    pub(super) fn remove(&mut self, book: &RuleBook, gone: &[IpNet], now: Moment) -> Result<(), CompileError> {
        let v6_from = gone.partition_point(|net| net.addr().is_ipv4());
        let (v4, v6) = gone.split_at(v6_from);
        self.remove_of::<V4>(book, v4, now)?;
        self.remove_of::<V6>(book, v6, now)?;
        self.writer.finish(now.boot);
        Ok(())
    }

    fn remove_of<F: Family>(&mut self, book: &RuleBook, gone: &[IpNet], now: Moment) -> Result<(), CompileError> {
        let prefixes: Vec<Prefix> = gone.iter().map(|net| Prefix::of(*net)).collect();
        for group in prefixes.chunk_by(|a, b| F::granule(a.first) == F::granule(b.first)) {
            let Some(granule) = group.first().map(|prefix| prefix.parent(F::GRANULE)) else { continue };
            let number = F::granule(granule.first);
            let word = self.writer.granule(F::IS_V6, number);
            let levels = levels_used::<F>(book, granule, word.levels(), LEVELS_SOUGHT + group.len());
            if levels != word.levels() {
                let word = Word::leaf(word.chain(), levels);
                self.writer.fill(F::IS_V6, number.into(), u64::from(number) + 1, word, now.boot)?;
            }
            for prefix in group {
                let level = F::level(prefix.length);
                let length = F::parent_length(level) + F::STEP;
                for part in 0..1_u128 << (length - prefix.length) {
                    let slot = Prefix { first: prefix.first | part << (128 - length), length };
                    if !has_slot::<F>(book, slot, level) {
                        self.writer.clear_slot(Slot::new(F::IS_V6, slot, level), now.boot);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn usage(&self) -> Usage {
        let [slots4, slots6, slots_long6] = self.writer.lines.used();
        let nodes = self.writer.nodes.used() as u64;
        Usage { nodes, clauses: self.writer.chains.used() as u64, slots4, slots6, slots_long6 }
    }
}

/// All addresses.
pub(super) fn everything() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// Which of the levels `known` the entries of a granule use.
fn levels_used<F: Family>(book: &RuleBook, granule: Prefix, known: u32, limit: usize) -> u32 {
    let mut used = 0;
    let inside = book.entries.inside::<F>(granule).filter(|(prefix, _)| prefix.length > F::GRANULE);
    for (count, (prefix, _)) in inside.enumerate() {
        if used == known || count == limit {
            return known;
        }
        used |= F::level_bit(F::level(prefix.length));
    }
    used & known
}

/// Whether the book has an entry that is kept in this slot.
fn has_slot<F: Family>(book: &RuleBook, slot: Prefix, level: u8) -> bool {
    let mut lengths = F::parent_length(level) + 1..=slot.length;
    lengths.any(|length| F::entries(&book.entries).contains_key(&F::key(slot.parent(length))))
}
