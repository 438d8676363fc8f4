//! The tables of one generation in this process's memory, and who is reading them.

use std::{
    ops::Deref,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

use mc_proxy_common::{
    table::{CHAIN_MAX, ClauseWords, Geometry, Line, NODE_WORDS, TREE_WORDS, Tables},
    user::Mapping,
};

/// Words of a table, in memory of this process alone or shared with the kernel.
#[derive(Debug)]
pub enum Words {
    /// Of this process.
    Heap(Box<[AtomicU64]>),
    /// Of the kernel.
    Mapped(Mapping),
}

/// How much the tables of a generation hold: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Nodes of both trees.
    pub nodes: u32,
    /// Lines of IPv4.
    pub lines4: u32,
    /// Lines of IPv6 up to /64.
    pub lines6: u32,
    /// Lines of longer IPv6.
    pub lines_long6: u32,
    /// Clauses.
    pub clauses: u32,
}

/// The tables of one generation. Look-ups of this process go through [`TableMemory::reading`].
#[derive(Debug)]
pub struct TableMemory {
    /// Root of IPv4.
    pub tree4: Words,
    /// Root of IPv6.
    pub tree6: Words,
    /// Nodes.
    pub nodes: Words,
    /// Lines of IPv4.
    pub lines4: Words,
    /// Lines of IPv6 up to /64.
    pub lines6: Words,
    /// Lines of longer IPv6.
    pub lines_long6: Words,
    /// Clauses.
    pub clauses: Words,
    /// Masks and seed.
    pub geometry: Geometry,
    /// Who reads at the moment.
    pub readers: Readers,
}

/// Counts the look-ups under way, so that a writer can wait for those that began before a change.
#[derive(Debug, Default)]
pub struct Readers {
    epoch: AtomicUsize,
    counts: [AtomicUsize; 2],
}

/// A look-up under way. It must be short: a writer may be waiting for its end.
#[derive(Debug)]
pub struct Reading<'tables> {
    memory: &'tables TableMemory,
    count: &'tables AtomicUsize,
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Self::Heap(words) => words,
            Self::Mapped(words) => words,
        }
    }
}

impl Words {
    /// Zeros.
    pub fn heap(count: usize) -> Self {
        Self::Heap((0..count).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Sizes {
    /// What the look-ups need to know. `seed` is random.
    pub fn geometry(&self, seed: u64) -> Geometry {
        Geometry { mask4: self.lines4 - 1, mask6: self.lines6 - 1, mask_long6: self.lines_long6 - 1, seed }
    }

    /// Memory of tables of these sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        let words = 2 * u64::from(TREE_WORDS)
            + u64::from(self.nodes) * u64::from(NODE_WORDS)
            + (u64::from(self.lines4) + u64::from(self.lines6) + u64::from(self.lines_long6)) * 8
            + u64::from(self.clauses) * 2;
        words * 8
    }
}

impl TableMemory {
    /// Empty tables of this process alone. `seed` is random.
    pub fn heap(sizes: &Sizes, seed: u64) -> Self {
        Self {
            tree4: Words::heap(TREE_WORDS as usize),
            tree6: Words::heap(TREE_WORDS as usize),
            nodes: Words::heap(sizes.nodes as usize * NODE_WORDS as usize),
            lines4: Words::heap(sizes.lines4 as usize * 8),
            lines6: Words::heap(sizes.lines6 as usize * 8),
            lines_long6: Words::heap(sizes.lines_long6 as usize * 8),
            clauses: Words::heap(sizes.clauses as usize * 2),
            geometry: sizes.geometry(seed),
            readers: Readers::default(),
        }
    }

    /// Begins a look-up; it ends when the value is dropped.
    pub fn reading(&self) -> Reading<'_> {
        let epoch = self.readers.epoch.load(SeqCst);
        let [even, odd] = &self.readers.counts;
        let count = if epoch & 1 == 0 { even } else { odd };
        // The writer's stores before its wait are seen by whoever it does not wait for.
        count.fetch_add(1, SeqCst);
        Reading { memory: self, count }
    }

    /// How much fits in.
    pub fn sizes(&self) -> Sizes {
        let count = |words: &Words, each: usize| u32::try_from(words.len() / each).unwrap_or(u32::MAX);
        Sizes {
            nodes: count(&self.nodes, NODE_WORDS as usize),
            lines4: count(&self.lines4, 8),
            lines6: count(&self.lines6, 8),
            lines_long6: count(&self.lines_long6, 8),
            clauses: count(&self.clauses, 2).min(CHAIN_MAX + 1),
        }
    }
}

impl Readers {
    /// Returns when every look-up that was under way has ended: `true`; or after `limit`: `false`.
    pub fn wait(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        // Two turns: a reader that saw the old epoch may have counted itself only after the first.
        for _ in 0..2 {
            let old = self.epoch.fetch_add(1, SeqCst) & 1;
            let [even, odd] = &self.counts;
            let count = if old == 0 { even } else { odd };
            while count.load(SeqCst) != 0 {
                if begun.elapsed() > limit {
                    return false;
                }
                std::thread::yield_now();
            }
        }
        true
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, SeqCst);
    }
}

impl Tables for TableMemory {
    fn tree4(&self, index: u32) -> Option<&AtomicU64> {
        self.tree4.get(index as usize)
    }

    fn tree6(&self, index: u32) -> Option<&AtomicU64> {
        self.tree6.get(index as usize)
    }

    fn node(&self, index: u32) -> Option<&AtomicU64> {
        self.nodes.get(index as usize)
    }

    fn line4(&self, index: u32) -> Option<&Line> {
        element(&self.lines4, index)
    }

    fn line6(&self, index: u32) -> Option<&Line> {
        element(&self.lines6, index)
    }

    fn line_long6(&self, index: u32) -> Option<&Line> {
        element(&self.lines_long6, index)
    }

    fn clause(&self, id: u32) -> Option<&ClauseWords> {
        element(&self.clauses, id)
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }
}

impl Tables for Reading<'_> {
    fn tree4(&self, index: u32) -> Option<&AtomicU64> {
        self.memory.tree4(index)
    }

    fn tree6(&self, index: u32) -> Option<&AtomicU64> {
        self.memory.tree6(index)
    }

    fn node(&self, index: u32) -> Option<&AtomicU64> {
        self.memory.node(index)
    }

    fn line4(&self, index: u32) -> Option<&Line> {
        self.memory.line4(index)
    }

    fn line6(&self, index: u32) -> Option<&Line> {
        self.memory.line6(index)
    }

    fn line_long6(&self, index: u32) -> Option<&Line> {
        self.memory.line_long6(index)
    }

    fn clause(&self, id: u32) -> Option<&ClauseWords> {
        self.memory.clause(id)
    }

    fn geometry(&self) -> Geometry {
        self.memory.geometry
    }
}

fn element<const N: usize>(words: &[AtomicU64], index: u32) -> Option<&[AtomicU64; N]> {
    words.get(index as usize * N..)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_waits_for_who_is_reading() {
        let sizes = Sizes { nodes: 1, lines4: 1, lines6: 1, lines_long6: 1, clauses: 2 };
        let memory = TableMemory::heap(&sizes, 1);
        assert_eq!(memory.sizes(), sizes);
        assert!(memory.readers.wait(Duration::ZERO));
        let reading = memory.reading();
        assert!(!memory.readers.wait(Duration::ZERO));
        drop(reading);
        assert!(memory.readers.wait(Duration::ZERO));
    }
}
