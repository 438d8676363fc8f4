//! The trees: one word for each granule, or for many with nothing between them.

use std::{
    collections::VecDeque,
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, Release},
    },
};

use mc_proxy_common::table::{NODE_WORDS, Tables, Word, half, with_half};

use super::{Exhausted, GRACE, Writer};

/// Words of a node.
const FAN_OUT: u32 = NODE_WORDS * 2;
const FAN_OUT_BITS: u32 = 8;

/// The nodes in use.
#[derive(Debug)]
pub(super) struct Nodes {
    next: u32,
    capacity: u32,
    /// Nodes that look-ups may still be in, and when no longer.
    cooling: VecDeque<(u64, u32)>,
}

/// Where a word is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Root { is_v6: bool, index: u32 },
    Node { node: u32, index: u32 },
}

impl Nodes {
    pub(super) fn new(capacity: u32) -> Self {
        Self { next: 0, capacity, cooling: VecDeque::new() }
    }

    fn allocate(&mut self, now: u64) -> Result<u32, Exhausted> {
        if let Some((_, node)) = self.cooling.pop_front_if(|(due, _)| *due <= now) {
            return Ok(node);
        }
        if self.next == self.capacity {
            return Err(Exhausted::Nodes);
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    pub(super) fn used(&self) -> usize {
        self.next as usize - self.cooling.len()
    }
}

/// Bits of a granule's number that the nodes stand for.
fn depth(is_v6: bool) -> u32 {
    if is_v6 { 2 * FAN_OUT_BITS } else { FAN_OUT_BITS }
}

impl Writer {
    /// Sets the word of the granules `start..end`.
    pub(super) fn fill(&mut self, is_v6: bool, start: u64, end: u64, word: Word, now: u64) -> Result<(), Exhausted> {
        let bits = depth(is_v6);
        let mut at = start;
        while at < end {
            let index = (at >> bits) as u32;
            let base = u64::from(index) << bits;
            let until = end.min(base + (1 << bits));
            self.fill_below(is_v6, Place::Root { is_v6, index }, bits, base, at, until, word, now)?;
            at = until;
        }
        Ok(())
    }

    /// The same below one word, which stands for `1 << bits` granules from `base` on.
    #[expect(clippy::too_many_arguments, reason = "where, which part of it, and what")]
    fn fill_below(
        &mut self,
        is_v6: bool,
        place: Place,
        bits: u32,
        base: u64,
        start: u64,
        end: u64,
        word: Word,
        now: u64,
    ) -> Result<(), Exhausted> {
        let old = self.word(place);
        let node = match old.node() {
            Some(node) => node,
            None if old == word => return Ok(()),
            None if end - start == 1 << bits => {
                self.set_word(place, word);
                return Ok(());
            }
            None => self.expand(place, old, now)?,
        };
        let bits = bits - FAN_OUT_BITS;
        self.written.push((is_v6, start as u32));
        let mut at = start;
        while at < end {
            let index = ((at - base) >> bits) as u32;
            let base = base + (u64::from(index) << bits);
            let until = end.min(base + (1 << bits));
            self.fill_below(is_v6, Place::Node { node, index }, bits, base, at, until, word, now)?;
            at = until;
        }
        Ok(())
    }

    /// Puts a node in the place of a leaf; every granule keeps its word.
    fn expand(&mut self, place: Place, leaf: Word, now: u64) -> Result<u32, Exhausted> {
        let node = self.nodes.allocate(now)?;
        let pair = with_half(with_half(0, 0, leaf), 1, leaf);
        for index in 0..NODE_WORDS {
            self.memory.node(node * NODE_WORDS + index).ok_or(Exhausted::Nodes)?.store(pair, Relaxed);
        }
        self.chains.acquire(leaf.chain(), FAN_OUT);
        self.set_word(place, Word::to_node(node));
        Ok(node)
    }

    /// The word of a granule.
    pub(super) fn granule(&self, is_v6: bool, granule: u32) -> Word {
        self.path(is_v6, granule).last().map_or(Word::EMPTY, |(_, word)| *word)
    }

    /// Makes leaves of the nodes on the way to a granule that say the same everywhere.
    pub(super) fn collapse(&mut self, is_v6: bool, granule: u32, now: u64) {
        let path = self.path(is_v6, granule);
        for (place, word) in path.into_iter().rev() {
            let Some(node) = word.node() else { continue };
            let Some(leaf) = self.uniform(node) else { return };
            self.set_word(place, leaf);
            self.chains.release(leaf.chain(), FAN_OUT);
            self.nodes.cooling.push_back((now.saturating_add(GRACE), node));
        }
    }

    /// The words from the root to a granule.
    fn path(&self, is_v6: bool, granule: u32) -> Vec<(Place, Word)> {
        let mut bits = depth(is_v6);
        let mut place = Place::Root { is_v6, index: granule >> bits };
        let mut path = Vec::with_capacity(3);
        loop {
            let word = self.word(place);
            path.push((place, word));
            let Some(node) = word.node().filter(|_| bits > 0) else { return path };
            bits -= FAN_OUT_BITS;
            place = Place::Node { node, index: granule >> bits & (FAN_OUT - 1) };
        }
    }

    /// The leaf that a node could be replaced with.
    fn uniform(&self, node: u32) -> Option<Word> {
        let first = self.memory.node(node * NODE_WORDS)?.load(Relaxed);
        let leaf = half(first, 0);
        let is_leaf = half(first, 1) == leaf && leaf.node().is_none() && leaf.levels() == 0;
        let mut others = (1..NODE_WORDS).map(|index| self.memory.node(node * NODE_WORDS + index));
        let is_uniform = is_leaf && others.all(|pair| pair.is_some_and(|pair| pair.load(Relaxed) == first));
        is_uniform.then_some(leaf)
    }

    fn word(&self, place: Place) -> Word {
        self.pair(place).map_or(Word::EMPTY, |(pair, index)| half(pair.load(Relaxed), index))
    }

    fn set_word(&mut self, place: Place, word: Word) {
        let Some((pair, index)) = self.pair(place) else { return };
        let pairs = pair.load(Relaxed);
        pair.store(with_half(pairs, index, word), Release);
        let old = half(pairs, index);
        // A reference to a node has bits where a leaf has its chain.
        if word.node().is_none() {
            self.chains.acquire(word.chain(), 1);
        }
        if old.node().is_none() {
            self.chains.release(old.chain(), 1);
        }
    }

    fn pair(&self, place: Place) -> Option<(&AtomicU64, u32)> {
        let (pair, index) = match place {
            Place::Root { is_v6: false, index } => (self.memory.tree4(index / 2), index),
            Place::Root { is_v6: true, index } => (self.memory.tree6(index / 2), index),
            Place::Node { node, index } => (self.memory.node(node * NODE_WORDS + index / 2), index),
        };
        Some((pair?, index))
    }
}
