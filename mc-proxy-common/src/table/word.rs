//! Words of the trees.

/// Bits of a chain id.
pub const CHAIN_BITS: u32 = 20;
/// Greatest chain id.
pub const CHAIN_MAX: u32 = (1 << CHAIN_BITS) - 1;
/// 64-bit words of a root: it has one word for each value of 16 bits, and two of them share 64 bits.
pub const TREE_WORDS: u32 = 1 << 15;
/// 64-bit words of a node: it has one word for each value of 8 bits.
pub const NODE_WORDS: u32 = 1 << 7;

const NODE_FLAG: u32 = 1 << 31;
const LEVELS_SHIFT: u32 = CHAIN_BITS;
const LEVELS_MASK: u32 = 0x7ff;

/// Levels of IPv6 beyond /64.
pub(super) const LEVELS_LONG: u32 = 0b111 << 8;

/// A word of a tree: a leaf with its chain and the levels of longer prefixes below, or a reference to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word(u32);

impl Word {
    /// No rule, nothing below.
    pub const EMPTY: Self = Self(0);

    /// A leaf. `chain` is at most [`CHAIN_MAX`]; `levels` has a bit for each level in use, at most eleven.
    pub const fn leaf(chain: u32, levels: u32) -> Self {
        debug_assert!(chain <= CHAIN_MAX && levels <= LEVELS_MASK);
        Self(chain | levels << LEVELS_SHIFT)
    }

    /// A reference to a node, which is below 2^24.
    pub const fn to_node(node: u32) -> Self {
        debug_assert!(node < 1 << 24);
        Self(NODE_FLAG | node)
    }

    /// The node that it refers to, unless it is a leaf.
    #[inline(always)]
    pub const fn node(self) -> Option<u32> {
        // The mask tells the verifier that an index made of it does not wrap.
        if self.0 & NODE_FLAG != 0 { Some(self.0 & 0x00ff_ffff) } else { None }
    }

    /// The chain of a leaf; 0 = no rule.
    #[inline(always)]
    pub const fn chain(self) -> u32 {
        self.0 & CHAIN_MAX
    }

    /// The levels of a leaf below which there is something.
    #[inline(always)]
    pub const fn levels(self) -> u32 {
        self.0 >> LEVELS_SHIFT & LEVELS_MASK
    }
}

/// The word with an even or odd index of a pair.
#[inline(always)]
pub const fn half(pair: u64, index: u32) -> Word {
    Word((pair >> ((index & 1) * 32)) as u32)
}

/// The pair with one of its words replaced.
pub const fn with_half(pair: u64, index: u32, word: Word) -> u64 {
    let shift = (index & 1) * 32;
    pair & !((u32::MAX as u64) << shift) | (word.0 as u64) << shift
}

/// IPv6 levels 1 to 8 are /36 to /64 and have a bit each; /68 to /96 share one, /100 to /124 share one, /128 has its own.
#[inline(always)]
pub(super) const fn level_bit6(level: u32) -> u32 {
    match level {
        1..=8 => 1 << (level - 1),
        9..=16 => 1 << 8,
        17..=23 => 1 << 9,
        _ => 1 << 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_from_pairs() {
        let leaf = Word::leaf(CHAIN_MAX, LEVELS_MASK);
        assert_eq!((leaf.chain(), leaf.levels(), leaf.node()), (CHAIN_MAX, LEVELS_MASK, None));
        let node = Word::to_node(0x00ff_ffff);
        assert_eq!(node.node(), Some(0x00ff_ffff));
        let pair = with_half(with_half(u64::MAX, 6, leaf), 7, node);
        assert_eq!((half(pair, 0), half(pair, 1)), (leaf, node));
    }

    #[test]
    fn levels_beyond_64_have_bits_of_their_own() {
        let long = (9..=24).fold(0, |bits, level| bits | level_bit6(level));
        let short = (1..=8).fold(0, |bits, level| bits | level_bit6(level));
        assert_eq!((long, short), (LEVELS_LONG, 0xff));
    }
}
