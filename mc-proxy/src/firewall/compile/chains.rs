//! Decision lists in the table of clauses: every list is there once, and shares its tail with others.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering::Relaxed,
};

use mc_proxy_common::table::{CHAIN_MAX, Clause, Tables};

use super::{Exhausted, GRACE};
use crate::firewall::tables::TableMemory;

/// The clauses in use. A chain is named by its first clause; 0 is the empty one.
#[derive(Debug)]
pub(super) struct Chains {
    cells: Vec<Cell>,
    ids: HashMap<[u64; 2], u32>,
    capacity: usize,
    /// Clauses that nothing refers to, or did not at some moment of the current change.
    loose: Vec<u32>,
    /// Clauses that look-ups may still be at, and when no longer.
    cooling: VecDeque<(u64, u32)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    words: [u64; 2],
    /// Words of the tables and clauses that lead here.
    refs: u32,
    is_used: bool,
}

impl Chains {
    pub(super) fn new(capacity: u32) -> Self {
        let empty = Cell { is_used: true, ..Cell::default() };
        Self {
            cells: vec![empty],
            ids: HashMap::new(),
            capacity: capacity as usize,
            loose: Vec::new(),
            cooling: VecDeque::new(),
        }
    }

    /// The chain of these clauses, which is in the table when this returns. Something must refer to it before the next
    /// [`Self::collect`].
    pub(super) fn intern(&mut self, memory: &TableMemory, clauses: &[Clause], now: u64) -> Result<u32, Exhausted> {
        let mut id = 0;
        for clause in clauses.iter().rev() {
            let words = Clause { next: id, ..*clause }.words();
            id = match self.ids.get(&words) {
                Some(known) => *known,
                None => self.add(memory, words, id, now)?,
            };
        }
        Ok(id)
    }

    fn add(&mut self, memory: &TableMemory, words: [u64; 2], next: u32, now: u64) -> Result<u32, Exhausted> {
        let id = match self.cooling.pop_front_if(|(due, _)| *due <= now) {
            Some((_, id)) => id,
            None if self.cells.len() < self.capacity => {
                self.cells.push(Cell::default());
                (self.cells.len() - 1) as u32
            }
            None => return Err(Exhausted::Clauses),
        };
        let place = memory.clause(id).ok_or(Exhausted::Clauses)?;
        for (place, word) in place.iter().zip(words) {
            place.store(word, Relaxed);
        }
        if let Some(cell) = self.cells.get_mut(id as usize) {
            *cell = Cell { words, refs: 0, is_used: true };
        }
        self.ids.insert(words, id);
        self.loose.push(id);
        self.acquire(next, 1);
        Ok(id)
    }

    pub(super) fn acquire(&mut self, id: u32, count: u32) {
        if let Some(cell) = self.cells.get_mut(id as usize).filter(|_| id != 0) {
            cell.refs += count;
        }
    }

    pub(super) fn release(&mut self, id: u32, count: u32) {
        let Some(cell) = self.cells.get_mut(id as usize).filter(|_| id != 0) else { return };
        cell.refs -= count;
        if cell.refs == 0 {
            self.loose.push(id);
        }
    }

    /// Gives up what nothing refers to.
    pub(super) fn collect(&mut self, now: u64) {
        while let Some(id) = self.loose.pop() {
            let Some(cell) = self.cells.get_mut(id as usize).filter(|cell| cell.refs == 0 && cell.is_used) else {
                continue;
            };
            cell.is_used = false;
            let words = cell.words;
            self.ids.remove(&words);
            self.cooling.push_back((now.saturating_add(GRACE), id));
            self.release(words[1] as u32 & CHAIN_MAX, 1);
        }
    }

    pub(super) fn used(&self) -> usize {
        self.ids.len()
    }
}
