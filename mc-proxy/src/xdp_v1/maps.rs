//! The kernel's maps, typed, and how they are made to hold what the rules say.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    hash::Hash,
    os::fd::AsFd,
    path::Path,
};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData, PerCpuArray},
};
use mc_proxy_common::{
    maps::{
        ALLOW4, ALLOW6, BLOCK4, BLOCK6, COUNTERS, Counter, MAPS, MapShape, NET4, NET6, PORT_WORDS, PORTS, RuleValue,
        SETTINGS, Scope, Settings, port_bit,
    },
    reason::Reason,
    user::{Table, TableError},
};

use super::{
    PlaneError, ReasonCount, Repairs,
    entries::{Diff, Entries, Entry},
};

/// The maps of a loaded program.
#[derive(Debug)]
pub(super) struct Maps {
    by_name: HashMap<&'static str, Map>,
}

impl Maps {
    /// Takes them from the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, PlaneError> {
        let by_name = MAPS
            .iter()
            .map(|shape| {
                let map = ebpf.take_map(shape.name);
                Ok((shape.name, map.ok_or_else(|| PlaneError::new(format!("no map {} in the program", shape.name)))?))
            })
            .collect::<Result<_, PlaneError>>()?;
        Ok(Self { by_name })
    }

    /// Makes every map hold what `rules`, `ports` and `scope` say: what is missing is added everywhere before anything
    /// is removed anywhere, so a source that is blocked before and after is blocked throughout.
    pub(super) fn sync(
        &self,
        rules: &Entries,
        ports: &BTreeSet<u16>,
        scope: Scope,
    ) -> (Repairs, Result<(), PlaneError>) {
        let mut errors = Vec::new();
        let plans: Vec<_> = [
            self.plan(&BLOCK4, &rules.block4),
            self.plan(&BLOCK6, &rules.block6),
            self.plan(&NET4, &rules.net4),
            self.plan(&NET6, &rules.net6),
            self.plan(&ALLOW4, &rules.allow4),
            self.plan(&ALLOW6, &rules.allow6),
        ]
        .into_iter()
        .filter_map(|plan| plan.map_err(|error| errors.push(error)).ok())
        .collect();
        // Allow rules first: a source that is let in before and after must not meet a new block alone.
        let mut added: Vec<_> = plans.iter().rev().map(|plan| plan.upsert()).collect();
        added.reverse();
        errors.extend(self.write_settings(ports, scope).err());
        let mut repairs = Repairs::default();
        for (plan, added) in plans.iter().zip(added) {
            let removed = plan.remove();
            let added = match added {
                // There may be room now.
                Err(TableError::Full { .. }) if removed.is_ok() => plan.upsert(),
                other => other,
            };
            let (upserted, stale) = plan.counts();
            repairs.upserted += if added.is_ok() { upserted } else { 0 };
            repairs.removed += if removed.is_ok() { stale } else { 0 };
            errors.extend(added.and(removed).err().map(|error| explain(plan.shape(), error)));
        }
        (repairs, errors.into_iter().next().map_or(Ok(()), Err))
    }

    /// Adds an entry; `false` if it was there.
    pub(super) fn insert(&self, entry: Entry) -> Result<bool, PlaneError> {
        match entry {
            Entry::Allow4(key) => self.insert_into(&ALLOW4, key),
            Entry::Allow6(key) => self.insert_into(&ALLOW6, key),
            Entry::Block4(key) => self.insert_into(&BLOCK4, key),
            Entry::Block6(key) => self.insert_into(&BLOCK6, key),
            Entry::Net4(key) => self.insert_into(&NET4, key),
            Entry::Net6(key) => self.insert_into(&NET6, key),
        }
    }

    /// Removes an entry; `false` if it was not there.
    pub(super) fn remove(&self, entry: Entry) -> Result<bool, PlaneError> {
        match entry {
            Entry::Allow4(key) => self.remove_from(&ALLOW4, key),
            Entry::Allow6(key) => self.remove_from(&ALLOW6, key),
            Entry::Block4(key) => self.remove_from(&BLOCK4, key),
            Entry::Block6(key) => self.remove_from(&BLOCK6, key),
            Entry::Net4(key) => self.remove_from(&NET4, key),
            Entry::Net6(key) => self.remove_from(&NET6, key),
        }
    }

    /// Packets and bytes by reason, summed over CPUs.
    pub(super) fn counters(&self) -> Result<Vec<ReasonCount>, PlaneError> {
        let context = "reading the kernel's counters";
        let map = self.by_name.get(COUNTERS.name).ok_or_else(|| PlaneError::new("no counters"))?;
        let counters =
            PerCpuArray::<&MapData, Counter>::try_from(map).map_err(|error| PlaneError::caused(context, error))?;
        Reason::ALL
            .iter()
            .map(|reason| {
                let cpus = counters.get(&reason.index(), 0).map_err(|error| PlaneError::caused(context, error))?;
                Ok(ReasonCount {
                    reason: reason.name(),
                    is_drop: reason.is_drop(),
                    packets: cpus.iter().map(|cpu| cpu.packets).sum(),
                    bytes: cpus.iter().map(|cpu| cpu.bytes).sum(),
                })
            })
            .collect()
    }

    /// Pins again what somebody unpinned.
    pub(super) fn repin(&self, directory: &Path) -> Result<(), PlaneError> {
        for shape in &MAPS {
            let path = directory.join(shape.name);
            if !path.exists() {
                let context = || format!("pinning the map {}", path.display());
                fs::create_dir_all(directory).map_err(|error| PlaneError::caused(context(), error))?;
                self.data(shape)?.pin(&path).map_err(|error| PlaneError::caused(context(), error))?;
            }
        }
        Ok(())
    }

    fn write_settings(&self, ports: &BTreeSet<u16>, scope: Scope) -> Result<(), PlaneError> {
        let mut desired = vec![0_u64; PORT_WORDS as usize];
        for port in ports {
            let (word, bit) = port_bit(*port);
            desired[word as usize] |= bit;
        }
        let failed = |error| explain(&PORTS, error);
        let words = self.table::<u32, u64>(&PORTS)?;
        let current: HashMap<u32, u64> = words.entries().map_err(failed)?.into_iter().collect();
        for (word, bits) in (0_u32..).zip(desired) {
            if current.get(&word) != Some(&bits) {
                words.upsert(&word, &bits).map_err(failed)?;
            }
        }
        // Last: with these the program begins to judge.
        let settings = self.table::<u32, Settings>(&SETTINGS)?;
        settings.upsert(&0, &Settings::new(scope)).map(drop).map_err(|error| explain(&SETTINGS, error))
    }

    fn plan<'maps, K: Pod + Eq + Hash>(
        &'maps self,
        shape: &'static MapShape,
        desired: &HashMap<K, RuleValue>,
    ) -> Result<Box<dyn Step + 'maps>, PlaneError> {
        let table = self.table::<K, RuleValue>(shape)?;
        let current = table.entries().map_err(|error| explain(shape, error))?;
        Ok(Box::new(Plan { shape, table, diff: Diff::between(&current, desired) }))
    }

    fn insert_into<K: Pod>(&self, shape: &'static MapShape, key: K) -> Result<bool, PlaneError> {
        self.table::<K, RuleValue>(shape)?.upsert(&key, &RuleValue::PERMANENT).map_err(|error| explain(shape, error))
    }

    fn remove_from<K: Pod>(&self, shape: &'static MapShape, key: K) -> Result<bool, PlaneError> {
        self.table::<K, RuleValue>(shape)?.remove(&key).map_err(|error| explain(shape, error))
    }

    fn table<K: Pod, V: Pod>(&self, shape: &MapShape) -> Result<Table<'_, K, V>, PlaneError> {
        Table::new(self.data(shape)?.fd().as_fd())
            .map_err(|error| PlaneError::caused(format!("using the kernel's map {}", shape.name), error))
    }

    fn data(&self, shape: &MapShape) -> Result<&MapData, PlaneError> {
        match self.by_name.get(shape.name) {
            Some(Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data)) => Ok(data),
            _ => Err(PlaneError::new(format!("the kernel's map {} is not of the type it should be", shape.name))),
        }
    }
}

/// What one map needs.
struct Plan<'maps, K> {
    shape: &'static MapShape,
    table: Table<'maps, K, RuleValue>,
    diff: Diff<K>,
}

/// A [`Plan`] for keys of any type.
trait Step {
    fn shape(&self) -> &'static MapShape;
    fn upsert(&self) -> Result<(), TableError>;
    fn remove(&self) -> Result<(), TableError>;
    /// Entries to add and to remove.
    fn counts(&self) -> (u64, u64);
}

impl<K: Pod + Eq + Hash> Step for Plan<'_, K> {
    fn shape(&self) -> &'static MapShape {
        self.shape
    }

    fn upsert(&self) -> Result<(), TableError> {
        self.table.upsert_all(&self.diff.upsert, &self.diff.values)
    }

    fn remove(&self) -> Result<(), TableError> {
        self.table.remove_all(&self.diff.stale)
    }

    fn counts(&self) -> (u64, u64) {
        (self.diff.upsert.len() as u64, self.diff.stale.len() as u64)
    }
}

fn explain(shape: &MapShape, error: TableError) -> PlaneError {
    let what = match shape.name {
        "ALLOW4" => "allowed IPv4 prefixes",
        "ALLOW6" => "allowed IPv6 prefixes",
        "BLOCK4" => "blocked IPv4 addresses",
        "BLOCK6" => "blocked IPv6 addresses",
        "NET4" => "blocked IPv4 prefixes",
        "NET6" => "blocked IPv6 prefixes",
        other => other,
    };
    match error {
        TableError::Full { max_entries, source } => PlaneError::caused(
            format!(
                "the kernel's map of {what} is full: it holds {max_entries}; remove rules, or join them into shorter prefixes"
            ),
            source,
        ),
        error @ TableError::Refused { .. } => PlaneError::caused(format!("writing the kernel's map of {what}"), error),
    }
}
