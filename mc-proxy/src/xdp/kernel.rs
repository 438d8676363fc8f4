//! The kernel plane: generations of the program, and the interfaces that they are on.

use std::{os::fd::AsFd as _, sync::Arc};

use mc_proxy_common::user;

use super::{
    Dataplane, Events, Obstacle, Parameters, PlaneError, PlaneStatus, Repairs, TestRun,
    attach::{self, Attachment, Found, Program, Terms},
    events::Reader,
    object::{self, Loaded},
    pins::{self, Lock, Pins},
    probe, shared,
};
use crate::{
    config::{self, OnExit},
    firewall::{Generations, Sizes, TableMemory},
};

/// Program, maps and attachments.
#[derive(Debug)]
pub(super) struct KernelPlane {
    config: config::Xdp,
    parameters: Parameters,
    terms: Terms,
    attachments: Vec<Attachment>,
    // Links to interfaces that are no longer configured; gone with the first commit.
    leftovers: Vec<Found>,
    prepared: Option<Loaded>,
    running: Option<Loaded>,
    generation: u64,
    events: Reader,
    // Dropped last: until then the pins are this daemon's.
    _lock: Option<Lock>,
}

impl KernelPlane {
    /// Finds out whether there can be a kernel plane, and what an earlier daemon has left in force. Nothing is changed but,
    /// without interfaces, that what was left is removed.
    ///
    /// # Errors
    /// When there can be no kernel plane.
    pub(super) fn open(config: &config::Xdp, parameters: Parameters) -> Result<Self, PlaneError> {
        let pins = Pins::new(&config.pin_path);
        if config.interfaces.is_empty() {
            return Err(no_interfaces(&pins));
        }
        probe::prepare(&config.pin_path)
            .and_then(|()| pins.lock())
            .and_then(|lock| Self::open_locked(config, parameters, &pins, lock))
            .map_err(|error| still_in_force(&pins, error))
    }

    /// Whether a generation is in force.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn open_locked(
        config: &config::Xdp,
        parameters: Parameters,
        pins: &Pins,
        lock: Option<Lock>,
    ) -> Result<Self, PlaneError> {
        let mut found = attach::find(pins)?;
        // All questions before the first change: a link must not be taken for a leftover because the kernel did not answer.
        let mut attachments = Vec::new();
        for name in &config.interfaces {
            let position = attach::position(&found, name)?;
            attachments.push(Attachment::new(name, position.map(|position| found.swap_remove(position))));
        }
        Ok(Self {
            terms: Terms { mode: mode(config), pins: pins.clone() },
            config: config.clone(),
            parameters,
            attachments,
            leftovers: found,
            prepared: None,
            running: None,
            generation: 0,
            events: Reader::start()?,
            _lock: lock,
        })
    }

    /// The first commit: what was found in force gets the new program in place of its own, the rest is attached.
    fn start(&mut self, program: &Program) -> Result<(), PlaneError> {
        for attachment in &mut self.attachments {
            attachment.take_over(program, &self.terms);
        }
        if self.config.required
            && let Some(at) = self.attachments.iter().position(|attachment| attachment.trouble().is_some())
        {
            let error = incomplete(&self.attachments, at);
            self.withdraw();
            return Err(error);
        }
        // Nothing of this makes what is in force less so.
        if let Err(error) = self.clean_up() {
            tracing::warn!(error = error.chain(), "something of an earlier start could not be removed");
        }
        Ok(())
    }

    /// Removes what nobody needs any more: links to interfaces that are no longer configured, pins under names that
    /// interfaces had before, maps of earlier versions.
    fn clean_up(&mut self) -> Result<(), PlaneError> {
        // One that does not go keeps its pin, for the next start, and does not keep the others.
        let mut kept_on = Ok(());
        for found in self.leftovers.drain(..) {
            let detached = found.detach();
            kept_on = kept_on.and(detached);
        }
        kept_on?;
        let kept: Vec<_> = self.attachments.iter().filter(|it| it.has_link()).map(|it| it.name.as_str()).collect();
        for (name, path) in self.terms.pins.pinned_links()? {
            if !kept.contains(&name.as_str()) {
                pins::remove(&path)?;
            }
        }
        self.terms.pins.remove_stale(&shared::SHAPES.map(|shape| shape.name))
    }

    /// A start that fails leaves no program where there was none; where there was one, the rules stay in force.
    fn withdraw(&mut self) {
        for attachment in self.attachments.iter_mut().filter(|attachment| !attachment.is_adopted()) {
            if let Err(error) = attachment.remove(&self.terms.pins) {
                let error = error.chain();
                tracing::error!(interface = attachment.name, error, "the XDP program of a failed start stays attached");
            }
        }
    }

    /// Replaces the program on all interfaces or, when one refuses, on none.
    fn switch(&mut self, from: &Program, to: &Program) -> Result<(), PlaneError> {
        all_or_none(
            &self.attachments,
            // One that has lost its interface gets its program below.
            |attachment| attachment.replace(to).map(drop),
            |attachment| {
                if let Err(error) = attachment.replace(from) {
                    let error = error.chain();
                    tracing::error!(interface = attachment.name, error, "an interface keeps a generation given up");
                }
            },
        )?;
        for attachment in &mut self.attachments {
            // Kept in the attachment; the interface may be gone for now.
            let _ = attachment.ensure(to, &self.terms);
        }
        Ok(())
    }
}

impl Generations for KernelPlane {
    fn prepare(&mut self, sizes: &Sizes) -> Result<Arc<TableMemory>, PlaneError> {
        if let Some(running) = &self.running {
            running.shared.repin(&self.terms.pins)?;
        }
        let loaded = object::load(&self.config, &self.parameters, sizes, &self.terms.pins);
        let loaded =
            loaded.map_err(|error| if self.is_running() { error } else { still_in_force(&self.terms.pins, error) })?;
        // An earlier daemon's program may read them already: ports of both are never missing.
        loaded.shared.set_ports(&self.parameters.ports);
        Ok(Arc::clone(&self.prepared.insert(loaded).tables))
    }

    fn commit(&mut self) -> Result<(), PlaneError> {
        let next = self.prepared.take().ok_or_else(|| PlaneError::new("no tables were prepared"))?;
        match self.running.take() {
            None => self.start(&next.program)?,
            Some(running) => {
                let switched = self.switch(&running.program, &next.program);
                if switched.is_err() {
                    self.running = Some(running);
                    return switched;
                }
            }
        }
        if let Err(error) = self.events.follow(&next.shared) {
            let error = error.chain();
            tracing::warn!(error, "drops are counted, but single ones are not told");
        }
        self.running = Some(next);
        self.generation += 1;
        Ok(())
    }

    fn discard(&mut self) {
        self.prepared = None;
    }

    fn settle(&mut self) -> Result<(), PlaneError> {
        user::settle().map_err(|error| PlaneError::caused("waiting for packets that are being judged", error))
    }
}

impl Dataplane for KernelPlane {
    fn keep_attached(&mut self) -> Result<Repairs, PlaneError> {
        let mut repairs = Repairs::default();
        let Some(running) = &self.running else { return Ok(repairs) };
        let mut trouble = None;
        for (at, attachment) in self.attachments.iter_mut().enumerate() {
            match attachment.ensure(&running.program, &self.terms) {
                Ok(is_new) => repairs.attached += u64::from(is_new),
                Err(_) => trouble = trouble.or(Some(at)),
            }
        }
        repairs.repinned = running.shared.repin(&self.terms.pins)?;
        trouble.map_or(Ok(repairs), |at| Err(incomplete(&self.attachments, at)))
    }

    fn clear_group(&mut self, group: u32) -> Result<(), PlaneError> {
        self.running.as_mut().map_or(Ok(()), |running| running.shared.clear_group(group))
    }

    fn status(&self) -> PlaneStatus {
        let interfaces: Vec<_> = self.attachments.iter().map(Attachment::status).collect();
        let mut detail: Vec<_> = interfaces.iter().map(|interface| interface.error.clone()).collect();
        let mut status = PlaneStatus { generation: self.generation, ..PlaneStatus::default() };
        if let Some(running) = &self.running {
            status.map_bytes = running.map_bytes;
            match running.shared.counters().and_then(|counters| Ok((counters, running.shared.groups()?))) {
                Ok((counters, groups)) => (status.counters, status.groups) = (counters, groups),
                Err(error) => detail.push(error.chain()),
            }
        }
        detail.retain(|text| !text.is_empty());
        status.is_active = self.is_running() && interfaces.iter().any(|interface| !interface.mode.is_empty());
        status.detail = detail.join("; ");
        status.interfaces = interfaces;
        status
    }

    fn events(&self) -> Option<Events> {
        Some(self.events.events())
    }

    fn test_run(&self, frame: &[u8]) -> Result<TestRun, PlaneError> {
        let running = self.running.as_ref().ok_or_else(|| PlaneError::new("no XDP program is in force"))?;
        user::test_run(running.program.fd.as_fd(), frame, 1)
            .map_err(|error| PlaneError::caused("running the XDP program on a frame", error))
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        match self.config.on_exit {
            OnExit::Keep => Ok(()),
            OnExit::Detach => {
                self.attachments.clear();
                remove_everything(&self.terms.pins)
            }
        }
    }
}

/// With `xdp.require_native` an interface has native mode or none.
fn mode(config: &config::Xdp) -> config::XdpMode {
    match (config.require_native, config.mode) {
        (true, config::XdpMode::Auto) => config::XdpMode::Native,
        (_, mode) => mode,
    }
}

/// Takes the step for all items; when it fails for one, takes it back for those before.
fn all_or_none<T, E>(items: &[T], step: impl Fn(&T) -> Result<(), E>, undo: impl Fn(&T)) -> Result<(), E> {
    for (done, item) in items.iter().enumerate() {
        if let Err(error) = step(item) {
            items.iter().take(done).for_each(undo);
            return Err(error);
        }
    }
    Ok(())
}

/// What is wrong with one interface, as an error of the whole.
fn incomplete(attachments: &[Attachment], at: usize) -> PlaneError {
    let all: Vec<_> = attachments.iter().filter_map(Attachment::trouble).map(PlaneError::chain).collect();
    let obstacle = attachments.get(at).and_then(Attachment::trouble).map_or(Obstacle::Other, PlaneError::obstacle);
    PlaneError::new(format!("the kernel plane is incomplete: {}", all.join("; "))).because(obstacle)
}

/// Detaches and unpins everything below the pin path.
fn remove_everything(pins: &Pins) -> Result<(), PlaneError> {
    for found in attach::find(pins)? {
        pins::remove(&found.path)?;
        found.detach()?;
    }
    pins.remove_all()
}

/// Without interfaces nothing of an earlier configuration may go on dropping.
fn no_interfaces(pins: &Pins) -> PlaneError {
    let nothing = "xdp.interfaces is empty";
    match pins.lock() {
        Ok(None) => PlaneError::new(nothing).because(Obstacle::Off),
        Ok(Some(_lock)) => match remove_everything(pins) {
            Ok(()) => PlaneError::new(nothing).because(Obstacle::Off),
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_step_that_fails_takes_back_those_before() {
        let items = [Cell::new(0), Cell::new(1), Cell::new(2)];
        let step = |limit| {
            move |item: &Cell<i32>| {
                if item.get() == limit {
                    return Err(limit);
                }
                item.set(item.get() + 10);
                Ok(())
            }
        };
        let undo = |item: &Cell<i32>| item.set(item.get() - 10);
        let values = || items.each_ref().map(Cell::get);
        assert_eq!(all_or_none(&items, step(1), undo), Err(1));
        assert_eq!(values(), [0, 1, 2]);
        assert_eq!(all_or_none(&items, step(0), undo), Err(0));
        assert_eq!(values(), [0, 1, 2]);
        assert_eq!(all_or_none(&items, step(9), undo), Ok(()));
        assert_eq!(values(), [10, 11, 12]);
    }
}
