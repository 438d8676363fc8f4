//! The kernel plane: program, maps and attachments, and how they are brought and kept in line with the rules.

use std::{collections::BTreeSet, path::PathBuf};

use aya::Ebpf;
use mc_proxy_common::maps::Scope;

use super::{
    Change, Dataplane, PlaneError, PlaneStatus, Repairs,
    attach::{self, Attachment},
    entries::{Entries, Entry},
    maps::Maps,
    object,
    pins::{Lock, Pins},
    probe,
};
use crate::{
    config::{self, OnExit},
    firewall::RuleSet,
};

/// Program, maps and attachments.
#[derive(Debug)]
pub(super) struct KernelPlane {
    config: config::Xdp,
    ports: BTreeSet<u16>,
    pins: Pins,
    maps_directory: PathBuf,
    ebpf: Ebpf,
    maps: Maps,
    attachments: Vec<Attachment>,
    rules: u64,
    // Why the maps do not hold every rule; empty when they do.
    trouble: String,
    // Dropped last: until then the pins are this daemon's.
    _lock: Option<Lock>,
}

impl KernelPlane {
    /// Loads the program, fills its maps, and only then puts it on the interfaces, in place of an earlier daemon's.
    ///
    /// # Errors
    /// When there can be no kernel plane. A rule or an interface that fails is told by status.
    pub(super) fn open(config: &config::Xdp, ports: &BTreeSet<u16>, rules: &RuleSet) -> Result<Self, PlaneError> {
        let pins = Pins::new(&config.pin_path);
        if config.interfaces.is_empty() {
            return Err(no_interfaces(&pins));
        }
        probe::prepare(&config.pin_path)
            .and_then(|()| pins.lock())
            .and_then(|lock| Self::open_locked(config, ports, rules, &pins, lock))
            .map_err(|error| still_in_force(&pins, error))
    }

    fn open_locked(
        config: &config::Xdp,
        ports: &BTreeSet<u16>,
        rules: &RuleSet,
        pins: &Pins,
        lock: Option<Lock>,
    ) -> Result<Self, PlaneError> {
        let maps_directory = object::choose_maps(pins)?;
        let mut ebpf = object::load(&maps_directory)?;
        let maps = Maps::take(&mut ebpf)?;
        let entries = Entries::of(rules);
        let (repairs, synced) = maps.sync(&entries, ports, scope(config.scope));
        tracing::info!(
            rules = entries.len(),
            added = repairs.upserted,
            removed = repairs.removed,
            "kernel maps hold the rules"
        );
        let attachments = attach::attach_all(object::program(&mut ebpf)?, config, pins)?;
        if maps_directory == pins.new_maps() {
            pins.promote_new_maps()?;
        }
        Ok(Self {
            config: config.clone(),
            ports: ports.clone(),
            maps_directory: pins.maps(),
            pins: pins.clone(),
            ebpf,
            maps,
            attachments,
            rules: entries.len(),
            trouble: trouble(&synced),
            _lock: lock,
        })
    }
}

impl Dataplane for KernelPlane {
    fn apply(&mut self, change: Change, _rules: &RuleSet) -> Result<(), PlaneError> {
        match change {
            Change::Added(rule) => {
                if let Some(entry) = Entry::of(&rule) {
                    self.rules += u64::from(self.maps.insert(entry)?);
                }
            }
            Change::Removed(rule) => {
                if let Some(entry) = Entry::of(&rule) {
                    self.rules -= u64::from(self.maps.remove(entry)?).min(self.rules);
                }
            }
        }
        Ok(())
    }

    fn reconcile(&mut self, rules: &RuleSet) -> Result<Repairs, PlaneError> {
        let entries = Entries::of(rules);
        let (mut repairs, synced) = self.maps.sync(&entries, &self.ports, scope(self.config.scope));
        self.rules = entries.len();
        self.trouble = trouble(&synced);
        let repinned = self.maps.repin(&self.maps_directory);
        let mut result = synced.and(repinned);
        let program = object::program(&mut self.ebpf)?;
        for attachment in &mut self.attachments {
            match attachment.ensure(program, self.config.mode, &self.pins) {
                Ok(is_new) => repairs.reattached += u64::from(is_new),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| repairs)
    }

    fn status(&self) -> PlaneStatus {
        let interfaces: Vec<_> = self.attachments.iter().map(Attachment::status).collect();
        let counters = self.maps.counters();
        let errors = interfaces.iter().map(|interface| interface.error.clone());
        let unread = counters.as_ref().err().map(PlaneError::chain).unwrap_or_default();
        let detail: Vec<_> = errors.chain([self.trouble.clone(), unread]).filter(|text| !text.is_empty()).collect();
        PlaneStatus {
            is_active: interfaces.iter().any(|interface| !interface.mode.is_empty()),
            detail: detail.join("; "),
            interfaces,
            rules: self.rules,
            counters: counters.unwrap_or_default(),
            ..PlaneStatus::default()
        }
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        match self.config.on_exit {
            OnExit::Keep => Ok(()),
            OnExit::Detach => {
                self.attachments.clear();
                attach::detach_all(&self.pins)?;
                self.pins.remove_all()
            }
        }
    }
}

fn scope(scope: config::Scope) -> Scope {
    match scope {
        config::Scope::Listeners => Scope::Listeners,
        config::Scope::Host => Scope::Host,
    }
}

fn trouble(synced: &Result<(), PlaneError>) -> String {
    synced.as_ref().err().map(PlaneError::chain).unwrap_or_default()
}

/// Without interfaces nothing of an earlier configuration may go on dropping.
fn no_interfaces(pins: &Pins) -> PlaneError {
    let nothing = "xdp.interfaces is empty";
    match pins.lock() {
        Ok(None) => PlaneError::new(nothing),
        Ok(Some(_lock)) => match attach::detach_all(pins).and_then(|()| pins.remove_all()) {
            Ok(()) => PlaneError::new(nothing),
            Err(error) => {
                let context = format!("{nothing}, but what an earlier start attached could not be removed");
                let error = PlaneError::caused(context, error);
                tracing::warn!(error = error.chain(), "rules of an earlier start stay in force in the kernel");
                error
            }
        },
        // Another daemon's, or another user's.
        Err(error) => PlaneError::caused(format!("{nothing}; what may be in force is left alone"), error),
    }
}

/// Adds to an error what the operator must know: rules that this daemon does not change are in force.
fn still_in_force(pins: &Pins, error: PlaneError) -> PlaneError {
    match pins.pinned_links() {
        Ok(links) if !links.is_empty() => {
            let names: Vec<_> = links.into_iter().map(|(name, _)| name).collect();
            let context =
                format!("the rules of an earlier start, or of another mc-proxy, stay in force on {}", names.join(", "));
            PlaneError::caused(context, error)
        }
        _ => error,
    }
}
