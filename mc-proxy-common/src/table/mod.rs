//! Where the rules are: tables of 64-bit words that the XDP program reads and the daemon writes.
//!
//! ```text
//! source ─► tree ─────────────► leaf: chain + levels ──(no levels)──────────────► chain
//!           IPv4 16+8 bits               │ some
//!           IPv6 16+8+8 bits             ▼
//!                              lines: longer prefixes and addresses, longest first ─► chain, or the leaf's
//! chain ─► clauses ─► the first that holds decides
//! ```
//! Every address is decided by one word, the leaf's or a slot's, and a word is written at once: whoever reads while the
//! daemon writes sees the rules before a change or after it. A chain is the whole decision list for its addresses, rules
//! of shorter prefixes included, so no second look-up follows.
//!
//! The daemon keeps these invariants (`firewall::compile`):
//! * a node is filled before a word refers to it, and not reused while a reader may still be in it;
//! * a slot is written before the leaf's level that leads to it; it is emptied, and given to another prefix, only when
//!   no reader can be at it;
//! * a line's last slot is filled last and never becomes empty again, so what it overflows into is found.

mod clause;
mod line;
mod word;

use core::sync::atomic::AtomicU64;

pub(crate) use clause::Packed;
pub use clause::{Clause, ClauseAction, ClauseScope, ClauseWords};
pub use line::{
    LEVEL_MAX6, LEVEL_SHORT6, LINES_PROBED, Line, SLOTS_LONG6, SLOTS4, SLOTS6, Slot4, Slot6, SlotLong6, chain, dead,
    is_free,
};
pub use word::{CHAIN_BITS, CHAIN_MAX, NODE_WORDS, TREE_WORDS, Word, half, with_half};

use crate::{atomic::load, source::Source};

/// Clauses of a decision list at most: how far a look-up follows it.
pub const CHAIN_CLAUSES_MAX: u32 = 8;

/// The tables of one generation.
pub trait Tables {
    /// A pair of the IPv4 root's words; `index` below [`TREE_WORDS`].
    fn tree4(&self, index: u32) -> Option<&AtomicU64>;

    /// A pair of the IPv6 root's words; `index` below [`TREE_WORDS`].
    fn tree6(&self, index: u32) -> Option<&AtomicU64>;

    /// A pair of words of a node; node `n` has those from `n * NODE_WORDS` on.
    fn node(&self, index: u32) -> Option<&AtomicU64>;

    /// IPv4 prefixes from /25 on.
    fn line4(&self, index: u32) -> Option<&Line>;

    /// IPv6 prefixes from /33 to /64.
    fn line6(&self, index: u32) -> Option<&Line>;

    /// IPv6 prefixes from /65 on.
    fn line_long6(&self, index: u32) -> Option<&Line>;

    /// A clause; chain ids are the ids of their first clause, from 1 on.
    fn clause(&self, id: u32) -> Option<&ClauseWords>;

    /// Sizes and hash seed.
    fn geometry(&self) -> Geometry;
}

/// Sizes of the line tables, less one: powers of two. And what makes hash values differ between machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Lines of IPv4, less one.
    pub mask4: u32,
    /// Lines of IPv6 up to /64, less one.
    pub mask6: u32,
    /// Lines of longer IPv6, less one.
    pub mask_long6: u32,
    /// Random.
    pub seed: u64,
}

/// Returns what is found first, level by level. Not a loop: without `CAP_PERFMON` the verifier also follows branches
/// that are taken in speculation only, and there a loop has no end.
macro_rules! first_hit {
    ([$($number:literal)*], |$level:ident| $is_in_use:block, $probe:expr) => {
        $({
            let $level: u32 = $number;
            if $is_in_use {
                let found = $probe;
                if found != 0 {
                    return found;
                }
            }
        })*
    };
}

/// The chain for a source; 0 when no rule covers it.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, source: Source) -> u32 {
    match source.as_v4() {
        Some(addr) => find4(tables, addr),
        None => find6(tables, source),
    }
}

/// The chain for an IPv4 address; 0 when no rule covers it.
#[inline(always)]
pub fn find4<T: Tables>(tables: &T, addr: u32) -> u32 {
    let mut word = read(tables.tree4(addr >> 17), addr >> 16);
    if let Some(node) = word.node() {
        word = read(tables.node(node * NODE_WORDS + (addr >> 9 & 0x7f)), addr >> 8);
    }
    let levels = word.levels();
    if levels != 0 {
        // Level n is /(24 + n).
        first_hit!([8 7 6 5 4 3 2 1], |level| {
            levels & 1 << (level - 1) != 0
        }, line::probe4(tables, Slot4::new(addr & u32::MAX << (8 - level), level)));
    }
    word.chain()
}

/// The chain for an IPv6 address that is not IPv4-mapped; 0 when no rule covers it.
#[inline(always)]
pub fn find6<T: Tables>(tables: &T, source: Source) -> u32 {
    let Source { high, low } = source;
    let mut word = read(tables.tree6((high >> 49) as u32), (high >> 48) as u32);
    if let Some(node) = word.node() {
        word = read(tables.node(node * NODE_WORDS + ((high >> 41) as u32 & 0x7f)), (high >> 40) as u32);
        if let Some(node) = word.node() {
            word = read(tables.node(node * NODE_WORDS + ((high >> 33) as u32 & 0x7f)), (high >> 32) as u32);
        }
    }
    let levels = word.levels();
    if levels != 0 {
        // Level n is /(32 + 4n): a shorter prefix is kept as all of the next level's that it consists of.
        if levels & word::LEVELS_LONG != 0 {
            first_hit!([24 23 22 21 20 19 18 17 16 15 14 13 12 11 10 9], |level| {
                levels & word::level_bit6(level) != 0
            }, line::probe_long6(tables, SlotLong6::new(high, low & u64::MAX << (4 * (LEVEL_MAX6 - level)), level)));
        }
        first_hit!([8 7 6 5 4 3 2 1], |level| {
            levels & word::level_bit6(level) != 0
        }, line::probe6(tables, Slot6::new(high & u64::MAX << (4 * (LEVEL_SHORT6 - level)), level)));
    }
    word.chain()
}

/// Bit of a word's levels for an IPv6 level.
pub const fn level_bit6(level: u32) -> u32 {
    word::level_bit6(level)
}

#[inline(always)]
fn read(pair: Option<&AtomicU64>, index: u32) -> Word {
    match pair {
        Some(pair) => half(load(pair), index),
        None => Word::EMPTY,
    }
}
