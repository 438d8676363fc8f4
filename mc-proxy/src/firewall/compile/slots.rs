//! The lines: slots of prefixes longer than a granule's.

use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, Release},
    },
};

use mc_proxy_common::table::{LEVEL_SHORT6, LINES_PROBED, Slot4, Slot6, SlotLong6, Tables, chain, dead, is_free};

use super::{Exhausted, GRACE, Writer};
use crate::firewall::prefix::Prefix;

/// What a slot is about: all of a level's prefixes are as long as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    V4(Slot4),
    V6(Slot6),
    Long6(SlotLong6),
}

/// Slots in use, and those of several words that look-ups may still be reading.
#[derive(Debug, Default)]
pub(super) struct Lines {
    used4: u64,
    used6: u64,
    used_long6: u64,
    cooling: VecDeque<(u64, Place)>,
    is_cooling: HashSet<Place>,
}

/// Where a slot is: the table, its line, and which word of it is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    table: Table,
    line: u32,
    word: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Table {
    V4,
    V6,
    Long6,
}

/// What became of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Absent,
    With(u32),
}

impl Slot {
    pub(super) fn new(is_v6: bool, prefix: Prefix, level: u8) -> Self {
        let (high, low, level) = ((prefix.first >> 64) as u64, prefix.first as u64, u32::from(level));
        if !is_v6 {
            Self::V4(Slot4::new((prefix.first >> 96) as u32, level))
        } else if level <= LEVEL_SHORT6 {
            Self::V6(Slot6::new(high, level))
        } else {
            Self::Long6(SlotLong6::new(high, low, level))
        }
    }

    fn table(self) -> Table {
        match self {
            Self::V4(_) => Table::V4,
            Self::V6(_) => Table::V6,
            Self::Long6(_) => Table::Long6,
        }
    }
}

impl Table {
    /// Words of a slot, and which of them has the chain.
    const fn layout(self) -> (usize, usize) {
        match self {
            Self::V4 => (1, 0),
            Self::V6 => (2, 1),
            Self::Long6 => (4, 2),
        }
    }
}

impl Lines {
    /// Slots in use of the three tables.
    pub(super) fn used(&self) -> [u64; 3] {
        [self.used4, self.used6, self.used_long6]
    }

    fn count(&mut self, table: Table) -> &mut u64 {
        match table {
            Table::V4 => &mut self.used4,
            Table::V6 => &mut self.used6,
            Table::Long6 => &mut self.used_long6,
        }
    }

    /// Lets slots be taken that nobody can be reading any more.
    pub(super) fn cool(&mut self, now: u64) {
        while let Some((_, place)) = self.cooling.pop_front_if(|(due, _)| *due <= now) {
            self.is_cooling.remove(&place);
        }
    }
}

impl Writer {
    /// The chain of a slot.
    pub(super) fn slot(&self, slot: Slot) -> Found {
        let (_, chain_word) = slot.table().layout();
        let found =
            self.find(slot).and_then(|place| self.slot_words(place)?.get(chain_word)).map(|word| word.load(Relaxed));
        found.map_or(Found::Absent, |word| Found::With(chain(word)))
    }

    /// Sets the chain of a slot, which takes a place if it has none.
    pub(super) fn set_slot(&mut self, slot: Slot, id: u32) -> Result<(), Exhausted> {
        let (place, is_new) = match self.find(slot) {
            Some(place) => (place, false),
            None => (self.place(slot).ok_or_else(|| Exhausted::from(slot))?, true),
        };
        let words = self.slot_words(place).ok_or_else(|| Exhausted::from(slot))?;
        let (_, chain_word) = place.table.layout();
        let meta = match (slot, words) {
            (Slot::V4(slot), _) => slot.word(id),
            (Slot::V6(slot), [key, ..]) => {
                key.store(slot.key(), Relaxed);
                slot.meta(id)
            }
            (Slot::Long6(slot), [high, low, ..]) => {
                let key = slot.key();
                high.store(key.0, Relaxed);
                low.store(key.1, Relaxed);
                slot.meta(id)
            }
            (Slot::V6(_) | Slot::Long6(_), _) => return Err(Exhausted::from(slot)),
        };
        let Some(word) = words.get(chain_word) else { return Err(Exhausted::from(slot)) };
        let old = word.load(Relaxed);
        word.store(meta, Release);
        self.chains.acquire(id, 1);
        if is_new {
            *self.lines.count(place.table) += 1;
        } else {
            self.chains.release(chain(old), 1);
        }
        Ok(())
    }

    /// Empties a slot, if there is one.
    pub(super) fn clear_slot(&mut self, slot: Slot, now: u64) {
        let Some(place) = self.find(slot) else { return };
        let (width, chain_word) = place.table.layout();
        let Some(words) = self.slot_words(place) else { return };
        let Some(word) = words.get(chain_word) else { return };
        let old = word.load(Relaxed);
        let is_last = place.word + width == 8;
        word.store(if is_last { dead() } else { 0 }, Release);
        // The program's loads have no order among themselves on every machine: an old key must not be found beside the
        // chain of who gets the place next. No source is in a prefix of ones alone.
        for key in words.iter().take(chain_word) {
            key.store(u64::MAX, Relaxed);
        }
        self.chains.release(chain(old), 1);
        *self.lines.count(place.table) -= 1;
        if width > 1 {
            // A look-up may have read one word of its key and not the others.
            self.lines.cooling.push_back((now.saturating_add(GRACE), place));
            self.lines.is_cooling.insert(place);
        }
    }

    fn find(&self, slot: Slot) -> Option<Place> {
        let table = slot.table();
        let (width, chain_word) = table.layout();
        for line in self.neighbours(slot) {
            let words = self.line(table, line)?;
            for (index, words) in words.chunks_exact(width).enumerate() {
                let is_here = match (slot, words) {
                    (Slot::V4(slot), [word]) => slot.is_in(word.load(Relaxed)),
                    (Slot::V6(slot), [key, meta]) => slot.is_in(key.load(Relaxed), meta.load(Relaxed)),
                    (Slot::Long6(slot), [high, low, meta, _]) => {
                        slot.is_in(high.load(Relaxed), low.load(Relaxed), meta.load(Relaxed))
                    }
                    (Slot::V4(_) | Slot::V6(_) | Slot::Long6(_), _) => false,
                };
                if is_here {
                    return Some(Place { table, line, word: index * width });
                }
            }
            let last = words.get(8 - width + chain_word)?;
            if last.load(Relaxed) == 0 {
                return None;
            }
        }
        None
    }

    /// The first place that a slot can take.
    fn place(&self, slot: Slot) -> Option<Place> {
        let table = slot.table();
        let (width, chain_word) = table.layout();
        self.neighbours(slot).find_map(|line| {
            let words = self.line(table, line)?;
            let places = words.chunks_exact(width).enumerate();
            let free =
                places.filter(|(_, words)| words.get(chain_word).is_some_and(|word| is_free(word.load(Relaxed))));
            let mut free = free.map(|(index, _)| Place { table, line, word: index * width });
            free.find(|place| self.lines.is_cooling.is_empty() || !self.lines.is_cooling.contains(place))
        })
    }

    fn neighbours(&self, slot: Slot) -> impl Iterator<Item = u32> + use<> {
        let geometry = self.memory.geometry;
        let (home, mask) = match slot {
            Slot::V4(slot) => (slot.home(&geometry), geometry.mask4),
            Slot::V6(slot) => (slot.home(&geometry), geometry.mask6),
            Slot::Long6(slot) => (slot.home(&geometry), geometry.mask_long6),
        };
        (0..LINES_PROBED).map(move |step| home.wrapping_add(step) & mask)
    }

    fn line(&self, table: Table, line: u32) -> Option<&[AtomicU64; 8]> {
        match table {
            Table::V4 => self.memory.line4(line),
            Table::V6 => self.memory.line6(line),
            Table::Long6 => self.memory.line_long6(line),
        }
    }

    fn slot_words(&self, place: Place) -> Option<&[AtomicU64]> {
        let (width, _) = place.table.layout();
        self.line(place.table, place.line)?.get(place.word..place.word + width)
    }
}

impl From<Slot> for Exhausted {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::V4(_) => Self::Lines4,
            Slot::V6(_) => Self::Lines6,
            Slot::Long6(_) => Self::LinesLong6,
        }
    }
}
