//! What only one daemon may have at a time: the database, the kernel's pins, the admin socket, and the socket on which a
//! successor asks.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use mc_proxy_common::rate::RateLimit;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Failure, sockets,
    takeover::{Doorbell, Successor},
};
use crate::{
    admin::{self, AdminSocket},
    config::{self, Config},
    conn::Edge,
    control::{self, Control, ControlError, Countries, Owned, Released, moment},
    desired::Desired,
    exit::Exit,
    firewall::{Engine, EngineConfig, EngineError, GroupIds, OffenceKind},
    telemetry::describe,
    worker::Shutdown,
    xdp::{self, Dataplane, Events, PlaneError},
};

/// The control thread, and who speaks with it.
pub(super) struct ControlPlane {
    control: Control,
    thread: std::thread::JoinHandle<()>,
    events: Option<Events>,
    doors: Doors,
    admin: Option<tokio::task::JoinHandle<()>>,
    admin_stop: CancellationToken,
    /// Those who pass on what the kernel tells; it would never tell them that it has ended.
    telling: Vec<AbortOnDropHandle<()>>,
}

/// Where operators and a successor knock.
pub(super) struct Doors {
    admin: Option<AdminSocket>,
    doorbell: Option<Doorbell>,
}

/// Rules that are in force.
pub(super) struct Enforced {
    pub(super) plane: Box<dyn Dataplane>,
    pub(super) engine: Engine,
}

/// What no rule but the rate limit drops is counted for number 0. The other groups of bans have theirs from the beginning
/// too: operators' groups must not leave bans without.
pub(super) fn ban_groups() -> GroupIds {
    let mut groups = GroupIds::default();
    groups.insert(OffenceKind::Rate.group(), 0);
    let others = OffenceKind::ALL.into_iter().filter(|kind| *kind != OffenceKind::Rate);
    for (id, kind) in (1..).zip(others) {
        groups.insert(kind.group(), id);
    }
    groups
}

/// Puts the rules in force, in the kernel where that is possible.
pub(super) fn enforce(
    config: &Config,
    desired: &Desired,
    geoip: Option<&Countries>,
    groups: GroupIds,
) -> Result<Enforced, Failure> {
    let rate = config.firewall.rate_limit.map_or(RateLimit::OFF, RateLimit::from);
    let ports = sockets::ports(&desired.listeners, config.firewall.rate_limit.is_some());
    let parameters = xdp::Parameters { ports, rate, seed: RandomState::new().hash_one(0) };
    let mut plane = xdp::open(&config.xdp, parameters).map_err(|error| plane_failure(&error))?;
    let engine_config = EngineConfig {
        is_host_scope: config.xdp.scope == config::Scope::Host,
        bans_max: config.firewall.max_bans as usize,
        groups,
    };
    let prefixes = geoip.map(|countries| countries.prefixes_for(&desired.rules)).unwrap_or_default();
    let engine = Engine::new(desired.rules.iter().copied(), prefixes, engine_config, &mut *plane, moment())
        .map_err(|error| engine_failure(&error))?;
    let kernel = plane.status();
    if !kernel.is_active && !config.xdp.interfaces.is_empty() {
        tracing::warn!(why = kernel.detail, "rules are enforced in user space only");
    }
    Ok(Enforced { plane, engine })
}

fn plane_failure(error: &PlaneError) -> Failure {
    let exit = if error.is_privilege() { Exit::NoPermission } else { Exit::Failure };
    Failure::because(exit, "xdp.required is set, and the kernel plane cannot be had", error)
}

fn engine_failure(error: &EngineError) -> Failure {
    if let EngineError::Prepare(plane) | EngineError::Commit(plane) = error {
        return plane_failure(plane);
    }
    Failure::because(Exit::Failure, "putting the firewall rules in force", error)
}

impl Doors {
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let doorbell = sockets::doorbell(&config.database);
        let admin = config.grpc.as_ref().map(sockets::admin).transpose()?;
        Ok(Self { admin, doorbell })
    }
}

impl ControlPlane {
    pub(super) fn start(owned: Owned, doors: Doors) -> Result<Self, Failure> {
        let events = owned.plane.events();
        owned.edge.firewall.limiter.set_second(owned.plane.status().is_active);
        let drops = owned.edge.drops.clone();
        let (control, thread) = control::start(owned, drops)
            .map_err(|error| Failure::because(Exit::Failure, "starting the control thread", &error))?;
        let admin_stop = CancellationToken::new();
        Ok(Self { control, thread, events, doors, admin: None, admin_stop, telling: Vec::new() })
    }

    /// Serves the admin API from now on, and passes on what the kernel tells.
    pub(super) fn serve(&mut self, config: &Config, edge: &Arc<Edge>, shutdown: &Shutdown) {
        self.admin = self.doors.admin.take().map(|socket| {
            let draining = shutdown.drain.token().clone();
            let serving = admin::serve(socket, self.control.clone(), draining, self.admin_stop.clone());
            tokio::task::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(error = describe(&error), "the admin API has ended");
                }
            })
        });
        if let Some(events) = self.events.take() {
            let tell = control::tell_drops(events.clone(), self.control.drops().clone(), Arc::clone(edge));
            self.telling.push(AbortOnDropHandle::new(tokio::task::spawn(tell)));
            if config.firewall.auto_ban.is_some() {
                let report = control::report_violations(events, Arc::clone(edge));
                self.telling.push(AbortOnDropHandle::new(tokio::task::spawn(report)));
            }
        }
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    pub(super) fn thread(&self) -> &std::thread::JoinHandle<()> {
        &self.thread
    }

    /// Waits for a successor.
    pub(super) async fn rung(this: Option<&Self>) -> Successor {
        match this.and_then(|this| this.doors.doorbell.as_ref()) {
            Some(doorbell) => doorbell.rung().await,
            None => std::future::pending().await,
        }
    }

    /// No successor may ask any more.
    pub(super) fn close_doorbell(&mut self) {
        if let Some(doorbell) = self.doors.doorbell.take() {
            doorbell.remove();
        }
    }

    /// A clean stop, as `xdp.on_exit` wants it.
    pub(super) async fn stop(self) -> Result<(), ControlError> {
        let (control, thread) = self.close().await;
        let stopped = control.stop().await;
        drop(thread.join());
        stopped
    }

    /// Makes room for another daemon.
    pub(super) async fn release(self) -> Result<Released, ControlError> {
        let (control, thread) = self.close().await;
        let released = control.release().await;
        drop(thread.join());
        released
    }

    /// The doorbell goes first: while the lock on the database is held, no other daemon has one.
    async fn close(mut self) -> (Control, std::thread::JoinHandle<()>) {
        self.close_doorbell();
        self.admin_stop.cancel();
        if let Some(admin) = self.admin {
            drop(admin.await);
        }
        (self.control, self.thread)
    }
}
