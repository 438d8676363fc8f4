//! Hash tables of 64-byte lines: longer prefixes and addresses.

use core::sync::atomic::AtomicU64;

use super::{Geometry, Tables, word::CHAIN_MAX};
use crate::atomic::load;

/// What one look-up reads: a cache line.
pub type Line = [AtomicU64; 8];

/// Lines that may hold a prefix: its own and those that follow.
pub const LINES_PROBED: u32 = 4;
/// Slots of a line: IPv4.
pub const SLOTS4: usize = 8;
/// Slots of a line: IPv6 up to /64.
pub const SLOTS6: usize = 4;
/// Slots of a line: IPv6 beyond.
pub const SLOTS_LONG6: usize = 2;
/// The last IPv6 level that is kept by 64 bits: /64.
pub const LEVEL_SHORT6: u32 = 8;
/// The last IPv6 level: /128.
pub const LEVEL_MAX6: u32 = 24;

const LEVEL_SHIFT: u32 = 20;
/// Matches nothing and is not empty.
const DEAD: u64 = 31 << LEVEL_SHIFT;

/// An IPv4 prefix from /25 on, with its chain: `prefix << 32 | level << 20 | chain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot4(u64);

/// An IPv6 prefix up to /64: two words, the second `level << 20 | chain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot6 {
    prefix: u64,
    level: u64,
}

/// An IPv6 prefix beyond /64: four words, the third `level << 20 | chain`, the fourth unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLong6 {
    high: u64,
    low: u64,
    level: u64,
}

impl Slot4 {
    /// Of `prefix`, without host bits, and level 1 (/25) to 8 (/32).
    #[inline(always)]
    pub const fn new(prefix: u32, level: u32) -> Self {
        Self((prefix as u64) << 32 | (level as u64) << LEVEL_SHIFT)
    }

    /// The word that says so, with `chain` from 1 on.
    pub const fn word(self, chain: u32) -> u64 {
        self.0 | chain as u64
    }

    /// Whether a word is about this prefix.
    #[inline(always)]
    pub const fn is_in(self, word: u64) -> bool {
        word >> LEVEL_SHIFT == self.0 >> LEVEL_SHIFT
    }

    /// Its line, before overflow.
    #[inline(always)]
    pub const fn home(self, geometry: &Geometry) -> u32 {
        hash(self.0 >> LEVEL_SHIFT, geometry.seed) & geometry.mask4
    }
}

impl Slot6 {
    /// Of the upper half of an address, without host bits, and level 1 (/36) to 8 (/64).
    #[inline(always)]
    pub const fn new(prefix: u64, level: u32) -> Self {
        Self { prefix, level: level as u64 }
    }

    /// The first word.
    pub const fn key(self) -> u64 {
        self.prefix
    }

    /// The second word, with `chain` from 1 on.
    pub const fn meta(self, chain: u32) -> u64 {
        self.level << LEVEL_SHIFT | chain as u64
    }

    /// Whether two words are about this prefix.
    #[inline(always)]
    pub const fn is_in(self, key: u64, meta: u64) -> bool {
        key == self.prefix && meta >> LEVEL_SHIFT == self.level
    }

    /// Its line, before overflow.
    #[inline(always)]
    pub const fn home(self, geometry: &Geometry) -> u32 {
        hash(self.prefix | self.level, geometry.seed) & geometry.mask6
    }
}

impl SlotLong6 {
    /// Of both halves of an address, without host bits, and level 9 (/68) to 24 (/128).
    #[inline(always)]
    pub const fn new(high: u64, low: u64, level: u32) -> Self {
        Self { high, low, level: level as u64 }
    }

    /// The first two words.
    pub const fn key(self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// The third word, with `chain` from 1 on.
    pub const fn meta(self, chain: u32) -> u64 {
        self.level << LEVEL_SHIFT | chain as u64
    }

    /// Whether three words are about this prefix.
    #[inline(always)]
    pub const fn is_in(self, high: u64, low: u64, meta: u64) -> bool {
        low == self.low && high == self.high && meta >> LEVEL_SHIFT == self.level
    }

    /// Its line, before overflow.
    #[inline(always)]
    pub const fn home(self, geometry: &Geometry) -> u32 {
        let mixed = (self.low ^ self.level).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash(self.high ^ mixed ^ mixed >> 29, geometry.seed) & geometry.mask_long6
    }
}

/// The word of a slot that was emptied though something may have overflowed past it.
pub const fn dead() -> u64 {
    DEAD
}

/// Whether a slot can take a prefix: it is empty or dead.
pub const fn is_free(meta: u64) -> bool {
    meta == 0 || meta == DEAD
}

/// The chain in a word of a slot.
#[inline(always)]
pub const fn chain(meta: u64) -> u32 {
    meta as u32 & CHAIN_MAX
}

/// Multiplicative hashing; the seed keeps who chooses addresses from choosing lines.
#[inline(always)]
const fn hash(key: u64, seed: u64) -> u32 {
    let key = key ^ key >> 32 ^ seed;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// The chain of an IPv4 prefix, or 0.
#[inline(always)]
pub(super) fn probe4<T: Tables>(tables: &T, wanted: Slot4) -> u32 {
    let geometry = tables.geometry();
    let home = wanted.home(&geometry);
    let look = |step| probe4_line(tables.line4((home + step) & geometry.mask4)?, wanted);
    // Not a loop: without `CAP_PERFMON` the verifier finds no end of one.
    const { assert!(LINES_PROBED == 4) };
    look(0).or_else(|| look(1)).or_else(|| look(2)).or_else(|| look(3)).unwrap_or(0)
}

/// The chain, or 0 when nothing can have overflowed from the line; nothing when it may be in the next.
#[inline(always)]
fn probe4_line(line: &Line, wanted: Slot4) -> Option<u32> {
    let [a, b, c, d, e, f, g, h] = line;
    let last = load(h);
    for slot in [a, b, c, d, e, f, g] {
        let word = load(slot);
        if wanted.is_in(word) {
            return Some(chain(word));
        }
    }
    if wanted.is_in(last) || last == 0 { Some(chain(last)) } else { None }
}

/// The chain of an IPv6 prefix up to /64, or 0.
#[inline(always)]
pub(super) fn probe6<T: Tables>(tables: &T, wanted: Slot6) -> u32 {
    let geometry = tables.geometry();
    let home = wanted.home(&geometry);
    let look = |step| probe6_line(tables.line6((home + step) & geometry.mask6)?, wanted);
    // Not a loop: without `CAP_PERFMON` the verifier finds no end of one.
    const { assert!(LINES_PROBED == 4) };
    look(0).or_else(|| look(1)).or_else(|| look(2)).or_else(|| look(3)).unwrap_or(0)
}

/// The chain, or 0 when nothing can have overflowed from the line; nothing when it may be in the next.
#[inline(always)]
fn probe6_line(line: &Line, wanted: Slot6) -> Option<u32> {
    let [k0, m0, k1, m1, k2, m2, k3, m3] = line;
    let last = load(m3);
    for (key, meta) in [(k0, m0), (k1, m1), (k2, m2), (k3, m3)] {
        let word = load(meta);
        // Not compared with a second reading: the chain may change meanwhile, but the prefix does not. A slot is given to
        // another one only when no reader can be at it.
        if wanted.is_in(load(key), word) {
            return Some(chain(word));
        }
    }
    if last == 0 { Some(0) } else { None }
}

/// The chain of an IPv6 prefix beyond /64, or 0.
#[inline(always)]
pub(super) fn probe_long6<T: Tables>(tables: &T, wanted: SlotLong6) -> u32 {
    let geometry = tables.geometry();
    let home = wanted.home(&geometry);
    let look = |step| probe_long6_line(tables.line_long6((home + step) & geometry.mask_long6)?, wanted);
    // Not a loop: without `CAP_PERFMON` the verifier finds no end of one.
    const { assert!(LINES_PROBED == 4) };
    look(0).or_else(|| look(1)).or_else(|| look(2)).or_else(|| look(3)).unwrap_or(0)
}

/// The chain, or 0 when nothing can have overflowed from the line; nothing when it may be in the next.
#[inline(always)]
fn probe_long6_line(line: &Line, wanted: SlotLong6) -> Option<u32> {
    let [h0, l0, m0, _, h1, l1, m1, _] = line;
    let last = load(m1);
    for (high, low, meta) in [(h0, l0, m0), (h1, l1, m1)] {
        let word = load(meta);
        if wanted.is_in(load(high), load(low), word) {
            return Some(chain(word));
        }
    }
    if last == 0 { Some(0) } else { None }
}
