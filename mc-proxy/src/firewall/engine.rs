//! Keeps the tables in force equal to the rules, whatever happens: every change is made wholly or not at all.
//!
//! The tables of a generation have fixed sizes. When one of them gets too full, the next generation is prepared, filled
//! as a whole and put in force in one step; see [`Generations`].

mod error;
mod sizes;

#[cfg(test)]
mod tests;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

pub use self::error::EngineError;
use super::{
    CountryCode, Rule, RuleKey,
    book::{Applied, Covering, GroupIds, RuleBook, RuleChange},
    compile::{CompileError, Compiler, Exhausted, GRACE, Usage, everything},
    tables::{Sizes, TableMemory},
};
use crate::xdp::PlaneError;

/// Attempts at a generation that is large enough; each doubles what was too small.
const ATTEMPTS_MAX: usize = 8;
/// Longest wait for look-ups of this process that are under way.
const READERS_LIMIT: Duration = Duration::from_secs(2);
/// A change that takes longer is followed by a wait for the look-ups that were under way.
const LONG_CHANGE: Duration = Duration::from_millis(500);
/// From so many changed prefixes on it may be quicker to write everything.
const SWEEP_FROM: usize = 1_000;

/// A moment by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds of `CLOCK_BOOTTIME`, the kernel's for expiries.
    pub boot: u64,
    /// Milliseconds since the Unix epoch.
    pub wall: u64,
}

/// Makes the tables of the next generation and puts them in force.
pub trait Generations {
    /// Tables of these sizes, empty, which nothing reads yet.
    ///
    /// # Errors
    /// When the kernel refuses; what is in force stays.
    fn prepare(&mut self, sizes: &Sizes) -> Result<Arc<TableMemory>, PlaneError>;

    /// From now on packets are judged by the tables that were prepared last.
    ///
    /// # Errors
    /// When the kernel refuses; what was in force before is again.
    fn commit(&mut self) -> Result<(), PlaneError>;

    /// Forgets the tables that were prepared and not committed.
    fn discard(&mut self);

    /// Returns when every packet that was being judged has been: what is stored from then on cannot be mixed up with
    /// what was read before. Called rarely, for changes of prefixes inside each other. The kernel's programs run in
    /// read-side critical sections of RCU, whose end `membarrier(MEMBARRIER_CMD_GLOBAL)` waits for.
    ///
    /// # Errors
    /// When it cannot be waited for; the change is not made then.
    fn settle(&mut self) -> Result<(), PlaneError> {
        Ok(())
    }
}

/// What does not change while the daemon runs.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Whether `xdp.scope` is `host`.
    pub is_host_scope: bool,
    /// Bans at a time; one more ends the one that would end soonest.
    pub bans_max: usize,
    /// Numbers that groups have already.
    pub groups: GroupIds,
}

/// How the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineStats {
    /// Rules; a country's is one.
    pub rules: u64,
    /// Prefixes with rules, the countries' included.
    pub prefixes: u64,
    /// Generations so far.
    pub generation: u64,
    /// What there is.
    pub sizes: Sizes,
    /// What is used of it.
    pub usage: Usage,
    /// Memory of the tables, in bytes.
    pub bytes: u64,
}

/// Rules and tables.
#[derive(Debug)]
pub struct Engine {
    book: RuleBook,
    compiler: Compiler,
    is_host: bool,
    generation: u64,
    /// Whether the tables may say something else than the book, after an undo that failed.
    is_torn: bool,
}

impl Engine {
    /// The first generation, in force.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing is in force then that was not before.
    pub fn new(
        rules: impl IntoIterator<Item = Rule>,
        countries: impl IntoIterator<Item = (IpNet, CountryCode)>,
        config: EngineConfig,
        generations: &mut dyn Generations,
        now: Moment,
    ) -> Result<Self, EngineError> {
        let mut book = RuleBook::build(rules, config.groups, config.bans_max)?;
        book.set_countries(countries);
        book.settle(now.boot);
        let compiler = generate(&book, config.is_host_scope, None, generations, now)?;
        Ok(Self { book, compiler, is_host: config.is_host_scope, generation: 1, is_torn: false })
    }

    /// The tables in force.
    pub fn memory(&self) -> Arc<TableMemory> {
        Arc::clone(self.compiler.memory())
    }

    /// The rules.
    pub fn book(&self) -> &RuleBook {
        &self.book
    }

    /// The rules about an address in the order of evaluation, whether or not they hold at the moment.
    pub fn covering(&self, address: IpAddr) -> Vec<Covering> {
        self.book.covering(address)
    }

    /// How the tables are.
    pub fn stats(&self) -> EngineStats {
        let sizes = self.compiler.memory().sizes();
        EngineStats {
            rules: self.book.len(),
            prefixes: self.book.prefixes() as u64,
            generation: self.generation,
            sizes,
            usage: self.compiler.usage(),
            bytes: sizes.bytes(),
        }
    }

    /// Makes all changes, or none. When it returns they are in force.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn apply(
        &mut self,
        changes: &[RuleChange],
        now: Moment,
        generations: &mut dyn Generations,
    ) -> Result<Applied, EngineError> {
        self.tidy(now)?;
        let applied = match self.book.apply(changes) {
            Ok(applied) => applied,
            Err(error) => {
                self.book.undo(None);
                return Err(error.into());
            }
        };
        self.carry_out(now, generations)?;
        Ok(applied)
    }

    /// Replaces the prefixes of all countries.
    ///
    /// # Errors
    /// See [`EngineError`]; the old ones stay then.
    pub fn set_countries(
        &mut self,
        prefixes: impl IntoIterator<Item = (IpNet, CountryCode)>,
        now: Moment,
        generations: &mut dyn Generations,
    ) -> Result<(), EngineError> {
        self.tidy(now)?;
        self.book.set_countries(prefixes);
        self.carry_out(now, generations)
    }

    /// Removes the rules that have expired, which hold no longer anyway, and returns the keys of what went. To be called about every
    /// second: it also gives up what earlier changes have left, and follows the wall clock when that is set.
    ///
    /// # Errors
    /// See [`EngineError`]; to be tried again.
    pub fn expire(&mut self, now: Moment, generations: &mut dyn Generations) -> Result<Vec<RuleKey>, EngineError> {
        let keys = self.book.expired(now.wall);
        if keys.is_empty() && !self.needs_clock(now) && !self.is_torn {
            self.tidy(now)?;
            return Ok(keys);
        }
        let changes: Vec<RuleChange> = keys.iter().map(|key| RuleChange::Remove(*key)).collect();
        let applied = self.apply(&changes, now, generations)?;
        Ok(keys.into_iter().chain(applied.evicted).collect())
    }

    /// Puts a new generation in force, with tables as large as the rules need.
    ///
    /// # Errors
    /// See [`EngineError`]; what was in force stays.
    pub fn regenerate(&mut self, now: Moment, generations: &mut dyn Generations) -> Result<(), EngineError> {
        self.renew(None, now, generations)
    }

    fn needs_clock(&self, now: Moment) -> bool {
        self.book.has_expiries() && !self.compiler.is_on_time(now)
    }

    /// Takes away the slots that no look-up can be at any more.
    fn tidy(&mut self, now: Moment) -> Result<(), EngineError> {
        let gone = self.book.exorcise(now.boot);
        if gone.is_empty() {
            return Ok(());
        }
        // The book knows of them no more: what is left of them in the tables would not be found again.
        self.compiler.remove(&self.book, &gone, now).map_err(|error| {
            self.is_torn = true;
            explain(&self.book, error)
        })
    }

    /// Makes the tables say what the book says, or else the book what it said before.
    fn carry_out(&mut self, now: Moment, generations: &mut dyn Generations) -> Result<(), EngineError> {
        let touched = self.book.touched();
        let is_late = self.needs_clock(now);
        if touched.is_empty() && !is_late && !self.is_torn {
            self.book.settle(now.boot.saturating_add(GRACE));
            return Ok(());
        }
        if self.is_torn || !sizes::fit(&self.book.slots(), &self.compiler.memory().sizes()) {
            return self.renew(None, now, generations).inspect_err(|_| self.book.undo(None));
        }
        let is_many = touched.len() >= SWEEP_FROM && touched.len() >= self.book.prefixes() / 4;
        let nets = if is_late || is_many { everything().to_vec() } else { touched };
        if is_late {
            self.compiler.set_clock(now);
        }
        let memory = self.memory();
        let settle = |generations: &mut dyn Generations| {
            // A look-up that does not end in so long a time belongs to a thread that is stopped.
            memory.readers.wait(READERS_LIMIT);
            generations.settle()
        };
        let began = Instant::now();
        let changed = self.compiler.change(&self.book, &nets, now, &mut || settle(generations));
        // What the change has freed counts as cold from a moment after its beginning on: after a long one nobody may be
        // reading it any more.
        if began.elapsed() >= LONG_CHANGE && settle(generations).is_err() {
            outlast_readers();
        }
        let error = match changed {
            Ok(()) => {
                self.book.settle(now.boot.saturating_add(GRACE));
                return Ok(());
            }
            Err(CompileError::Exhausted(what)) => match self.renew(Some(what), now, generations) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            Err(error) => self.explain(error),
        };
        self.book.undo(Some(now.boot.saturating_add(GRACE)));
        let undone = self.compiler.undo(&self.book, &nets, now, &mut || settle(generations));
        self.is_torn = undone.is_err();
        Err(error)
    }

    /// The next generation.
    fn renew(
        &mut self,
        exhausted: Option<Exhausted>,
        now: Moment,
        generations: &mut dyn Generations,
    ) -> Result<(), EngineError> {
        let larger = exhausted.map(|what| (what, self.compiler.memory().sizes()));
        self.compiler = generate(&self.book, self.is_host, larger, generations, now)?;
        self.generation += 1;
        self.is_torn = false;
        self.book.settle(now.boot);
        // Nothing of them is in the new tables.
        self.book.exorcise(u64::MAX);
        Ok(())
    }

    fn explain(&self, error: CompileError) -> EngineError {
        explain(&self.book, error)
    }
}

/// No look-up takes so long.
#[expect(clippy::disallowed_methods, reason = "this is the control thread, which has no connections")]
fn outlast_readers() {
    std::thread::sleep(Duration::from_nanos(GRACE));
}

/// Prepares, fills and commits tables for a book; with `larger`, of more than these sizes in one respect.
fn generate(
    book: &RuleBook,
    is_host: bool,
    larger: Option<(Exhausted, Sizes)>,
    generations: &mut dyn Generations,
    now: Moment,
) -> Result<Compiler, EngineError> {
    let mut sizes = sizes::of(book)?;
    if let Some((what, old)) = larger {
        sizes::grow(&mut sizes, what, &old)?;
    }
    for _ in 0..ATTEMPTS_MAX {
        let memory = generations.prepare(&sizes).map_err(EngineError::Prepare)?;
        let mut compiler = Compiler::new(memory, is_host, now);
        match compiler.fill(book, now) {
            Ok(()) => {
                if let Err(error) = generations.commit() {
                    generations.discard();
                    return Err(EngineError::Commit(error));
                }
                return Ok(compiler);
            }
            Err(CompileError::Exhausted(what)) => {
                generations.discard();
                let old = sizes;
                sizes::grow(&mut sizes, what, &old)?;
            }
            Err(error) => {
                generations.discard();
                return Err(explain(book, error));
            }
        }
    }
    Err(EngineError::TooLarge)
}

fn explain(book: &RuleBook, error: CompileError) -> EngineError {
    match error {
        CompileError::TooLong(net) => {
            let rules = book.covering(net.addr()).into_iter().filter(|covering| covering.net.contains(&net));
            EngineError::TooManyRules { net, rules: rules.map(|covering| covering.rule.key).collect() }
        }
        CompileError::Unsettled(error) => EngineError::Settle(error),
        CompileError::Exhausted(_) => EngineError::TooLarge,
    }
}
