//! Writes the tables for all addresses of a prefix, in one walk over the book's entries in order.
//!
//! Look-ups go on meanwhile. Each reads a word first, then slots from the longest prefix to the shortest, and must find
//! for its address either what was decided before the change or what is decided after it. An address is decided by its
//! longest prefix that has a slot, or else by the word. Prefixes that lose their rules keep their slot for a while, so
//! only new slots matter: as long as a look-up may miss a new slot, the slots of shorter prefixes around it and the word
//! must say what they said before. Writes are therefore made in stages, and between two of them all look-ups end that
//! began before; most changes need one stage only. A word is read before the slots, so it needs no such wait: it is
//! written after all slots of its granule, but its levels with the first of them.

use std::marker::PhantomData;

use mc_proxy_common::table::Word;

use super::{
    CompileError, Exhausted, Settle, Writer,
    lists::{Lists, Terms},
    slots::{Found, Slot},
};
use crate::firewall::{
    book::{RuleBook, is_ghost},
    prefix::{Family, Prefix},
};

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Empty tables that nothing reads: no stages, no ghosts.
    Fill,
    /// Tables in force.
    Change,
    /// Tables in force, after a change that failed half-way: only what is there already is written.
    Undo,
}

/// Writes that must wait.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// By stage.
    pub(super) slots: Vec<(u8, Slot, u32)>,
    /// After all stages: granule, list and levels.
    pub(super) words: Vec<(bool, u32, u32, u32)>,
}

pub(super) struct Sweep<'a, F> {
    writer: &'a mut Writer,
    lists: &'a mut Lists,
    book: &'a RuleBook,
    terms: &'a Terms,
    now: u64,
    purpose: Purpose,
    deferred: &'a mut Deferred,
    settle: Settle<'a>,
    /// Prefixes around the current one: the last address, the length, the list.
    open: Vec<(u128, u8, u32)>,
    neighbourhoods: Vec<Neighbourhood>,
    granule: Option<Granule>,
    /// The first granule that has no word yet.
    cursor: u64,
    /// Granules that will have the same word.
    run: Option<Run>,
    family: PhantomData<F>,
}

/// The slots of one level that have all but their last bits in common.
#[derive(Debug)]
struct Neighbourhood {
    level: u8,
    parent: Prefix,
    /// The list of each, if it has a slot.
    lists: [Option<u32>; 16],
    /// When they may be written: after the new ones inside them.
    stage: u8,
}

#[derive(Debug)]
struct Granule {
    number: u32,
    levels: u32,
    stage: u8,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
    list: u32,
}

impl<'a, F: Family> Sweep<'a, F> {
    pub(super) fn new(
        writer: &'a mut Writer,
        lists: &'a mut Lists,
        book: &'a RuleBook,
        terms: &'a Terms,
        (now, purpose): (u64, Purpose),
        deferred: &'a mut Deferred,
        settle: Settle<'a>,
    ) -> Self {
        Self {
            writer,
            lists,
            book,
            terms,
            now,
            purpose,
            deferred,
            settle,
            open: Vec::new(),
            neighbourhoods: Vec::new(),
            granule: None,
            cursor: 0,
            run: None,
            family: PhantomData,
        }
    }

    /// Walks over `range`.
    pub(super) fn run(mut self, range: Prefix) -> Result<(), CompileError> {
        let is_long = range.length > F::GRANULE;
        let (mut list, mut around) = (0, None);
        for (prefix, own) in self.book.above::<F>(range) {
            list = self.compose(list, prefix, own)?;
            if is_long && prefix.length > F::GRANULE && F::level(prefix.length) == F::level(range.length) {
                around = Some(list);
            }
        }
        self.open.push((range.last(), range.length, list));
        if is_long {
            self.granule = Some(Granule { number: F::granule(range.first), levels: 0, stage: 0 });
            if let Some(list) = around {
                // A shorter prefix of the same level has slots here too.
                self.mark(range, list);
            }
        } else {
            self.cursor = F::granule(range.first).into();
        }
        let book = self.book;
        for (prefix, own) in book.entries.inside::<F>(range) {
            if self.purpose == Purpose::Fill && is_ghost(own) {
                continue;
            }
            self.leave(prefix)?;
            let (_, _, list) = self.open.last().copied().unwrap_or((0, 0, 0));
            let inner = self.compose(list, prefix, own)?;
            if prefix.length > F::GRANULE {
                if self.granule.is_none() {
                    let number = F::granule(prefix.first);
                    self.write_until(number.into(), list)?;
                    self.granule = Some(Granule { number, levels: 0, stage: 0 });
                }
                self.mark(prefix, inner);
            } else {
                self.write_until(F::granule(prefix.first).into(), list)?;
            }
            self.open.push((prefix.last(), prefix.length, inner));
        }
        if is_long {
            self.leave_neighbourhoods(None)?;
            return self.finish_levels();
        }
        self.leave_granule()?;
        while let Some((last, _, list)) = self.open.pop() {
            self.write_until(u64::from(F::granule(last)) + 1, list)?;
        }
        self.flush_run()
    }

    fn compose(&mut self, list: u32, prefix: Prefix, own: u32) -> Result<u32, CompileError> {
        let is_address = prefix.length == F::BITS;
        self.lists
            .compose(list, own, is_address, &self.book.own, self.terms)
            .map_err(|_| CompileError::TooLong(F::net(prefix)))
    }

    /// Finishes everything that does not contain `next`.
    fn leave(&mut self, next: Prefix) -> Result<(), CompileError> {
        self.leave_neighbourhoods(Some(next))?;
        // The base of a walk inside a granule contains everything.
        if let Some(granule) = &self.granule
            && granule.number != F::granule(next.first)
        {
            self.leave_granule()?;
        }
        while let Some((last, length, list)) = self.open.last().copied()
            && last < next.first
        {
            if length <= F::GRANULE {
                self.write_until(u64::from(F::granule(last)) + 1, list)?;
            }
            self.open.pop();
        }
        Ok(())
    }

    fn leave_neighbourhoods(&mut self, next: Option<Prefix>) -> Result<(), CompileError> {
        while let Some(inner) = self.neighbourhoods.pop_if(|last| next.is_none_or(|next| !last.parent.contains(next))) {
            let stage = self.write_slots(&inner)?;
            let outer = self.neighbourhoods.last_mut().map(|outer| &mut outer.stage);
            if let Some(outer) = outer {
                *outer = stage.max(*outer);
            }
            if let Some(granule) = &mut self.granule {
                granule.stage = granule.stage.max(stage);
            }
        }
        Ok(())
    }

    /// Remembers the slots of a prefix.
    fn mark(&mut self, prefix: Prefix, list: u32) {
        let level = F::level(prefix.length);
        let parent = prefix.parent(F::parent_length(level));
        if self.neighbourhoods.last().is_none_or(|last| last.level != level) {
            self.neighbourhoods.push(Neighbourhood { level, parent, lists: [None; 16], stage: 0 });
        }
        let shift = 128 - u32::from(parent.length) - u32::from(F::STEP);
        let count = 1_usize << (u32::from(parent.length + F::STEP) - u32::from(prefix.length));
        let start = ((prefix.first ^ parent.first) >> shift) as usize;
        let lists = self.neighbourhoods.last_mut().and_then(|last| last.lists.get_mut(start..start + count));
        lists.into_iter().for_each(|lists| lists.fill(Some(list)));
    }

    /// Writes or defers slots; returns from which stage on shorter prefixes around them may be written.
    fn write_slots(&mut self, inner: &Neighbourhood) -> Result<u8, CompileError> {
        let shift = 128 - u32::from(inner.parent.length) - u32::from(F::STEP);
        let mut has_new = false;
        for (number, list) in (0_u128..).zip(inner.lists) {
            let Some(list) = list else { continue };
            let length = inner.parent.length + F::STEP;
            let prefix = Prefix { first: inner.parent.first | number << shift, length };
            let slot = Slot::new(F::IS_V6, prefix, inner.level);
            let found = if self.purpose == Purpose::Fill { Found::Absent } else { self.writer.slot(slot) };
            if found == Found::Absent && self.purpose == Purpose::Undo {
                continue;
            }
            if let Some(granule) = &mut self.granule {
                granule.levels |= F::level_bit(inner.level);
            }
            let chain = self.chain(list)?;
            if found == Found::With(chain) {
                continue;
            }
            if self.writer.recent.is_inside(F::IS_V6, prefix) {
                self.writer.settle(self.settle)?;
            }
            if found == Found::Absent && self.purpose != Purpose::Fill {
                has_new = true;
                self.writer.recent.add(F::IS_V6, prefix);
            }
            if inner.stage == 0 {
                self.writer.set_slot(slot, chain)?;
            } else {
                self.deferred.slots.push((inner.stage, slot, chain));
            }
        }
        Ok(inner.stage.saturating_add(u8::from(has_new)))
    }

    fn chain(&mut self, list: u32) -> Result<u32, Exhausted> {
        self.writer.chain(self.lists, list, self.now)
    }

    /// Writes the word of the current granule.
    fn leave_granule(&mut self) -> Result<(), CompileError> {
        let Some(Granule { number, .. }) = self.granule else { return Ok(()) };
        self.leave_neighbourhoods(None)?;
        let Some(Granule { mut levels, stage, .. }) = self.granule.take() else { return Ok(()) };
        while self.open.pop_if(|(_, length, _)| *length > F::GRANULE).is_some() {}
        let list = self.open.last().map_or(0, |(_, _, list)| *list);
        let old = if self.purpose == Purpose::Fill { Word::EMPTY } else { self.writer.granule(F::IS_V6, number) };
        if self.purpose == Purpose::Undo {
            // Those before the change, and perhaps some of the change, which do no harm.
            levels = old.levels();
        }
        if levels == 0 {
            return self.write_until(u64::from(number) + 1, list);
        }
        self.flush_run()?;
        self.cursor = u64::from(number) + 1;
        let is_deferred = self.purpose != Purpose::Fill && stage > 1;
        let word = if is_deferred {
            self.deferred.words.push((F::IS_V6, number, list, levels));
            Word::leaf(old.chain(), old.levels() | levels)
        } else {
            Word::leaf(self.chain(list)?, levels)
        };
        Ok(self.writer.fill(F::IS_V6, number.into(), u64::from(number) + 1, word, self.now)?)
    }

    /// Adds the levels of a walk inside a granule to its word, which is otherwise as it was.
    fn finish_levels(&mut self) -> Result<(), CompileError> {
        let Some(Granule { number, levels, .. }) = self.granule.take() else { return Ok(()) };
        let old = self.writer.granule(F::IS_V6, number);
        if self.purpose == Purpose::Undo || old.levels() | levels == old.levels() {
            return Ok(());
        }
        let word = Word::leaf(old.chain(), old.levels() | levels);
        Ok(self.writer.fill(F::IS_V6, number.into(), u64::from(number) + 1, word, self.now)?)
    }

    /// Gives all granules before `end` that have no word yet a list's.
    fn write_until(&mut self, end: u64, list: u32) -> Result<(), CompileError> {
        let start = self.cursor;
        if end <= start {
            return Ok(());
        }
        self.cursor = end;
        match &mut self.run {
            Some(run) if run.list == list => run.end = end,
            Some(_) | None => {
                self.flush_run()?;
                self.run = Some(Run { start, end, list });
            }
        }
        Ok(())
    }

    fn flush_run(&mut self) -> Result<(), CompileError> {
        let Some(Run { start, end, list }) = self.run.take() else { return Ok(()) };
        let word = Word::leaf(self.chain(list)?, 0);
        Ok(self.writer.fill(F::IS_V6, start, end, word, self.now)?)
    }
}
