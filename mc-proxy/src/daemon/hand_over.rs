//! The daemon that runs makes room for a successor, and comes back when that one does not get there.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    ControlPlane, Doors, Enforced, Failure, Opened, Running, Signals, control_plane, notify::Notifier, open_store,
    takeover::Successor,
};
use crate::{
    config,
    control::{Owned, Released},
    desired::Desired,
    store::Store,
};

/// A successor that has failed may take a moment to die, and its locks with it.
const RETRY: Duration = Duration::from_secs(1);

/// How a hand-over has ended.
pub(super) enum HandOver {
    /// The successor has the place.
    Done,
    /// It does not come, and everything is as before.
    Failed,
    /// This daemon is to end. There may be nobody else.
    Signal,
}

/// What was regained of what a successor had.
struct Regained {
    store: Store,
    doors: Doors,
    enforced: Enforced,
}

impl Running {
    /// Gives the successor everything, and waits for it. The workers go on accepting all the time.
    pub(super) async fn hand_over(
        &mut self,
        mut successor: Successor,
        signals: &mut Signals,
        notifier: &mut Notifier,
    ) -> HandOver {
        tracing::info!("another daemon asks for the place of this one");
        if let Err(error) = successor.pass(&self.sockets).await {
            tracing::warn!(%error, "the successor has gone; this daemon goes on");
            return HandOver::Failed;
        }
        let Some(control_plane) = self.control_plane.take() else { return HandOver::Failed };
        let released = control_plane.release().await;
        let accepts = {
            let mut accepts = pin!(async {
                successor.release().await?;
                successor.accepts().await
            });
            loop {
                tokio::select! {
                    () = signals.stop() => return HandOver::Signal,
                    () = notifier.watch(&self.workers, None) => {}
                    accepts = &mut accepts => break accepts,
                }
            }
        };
        let went = match accepts {
            Ok(()) => successor.go().await,
            Err(error) => {
                successor.send_away().await;
                Err(error)
            }
        };
        let Err(error) = went else {
            tracing::info!("another daemon takes over");
            return HandOver::Done;
        };
        tracing::warn!(%error, "the successor has not come up; this daemon goes on");
        match released {
            Ok(released) => self.take_back(released, signals, notifier).await,
            Err(error) => {
                tracing::error!(%error, "the control thread had been lost before; connections are served as they were");
                signals.stop().await;
                HandOver::Signal
            }
        }
    }

    /// Tries until it succeeds. Connections are served meanwhile by what is in memory.
    async fn take_back(&mut self, released: Released, signals: &mut Signals, notifier: &mut Notifier) -> HandOver {
        let mut trouble = String::new();
        let regained = loop {
            match self.regain(&released) {
                Ok(regained) => break regained,
                Err(error) if error.message != trouble => {
                    tracing::error!(%error, "what the successor had cannot be taken back yet; trying again");
                    trouble = error.message;
                }
                Err(_) => {}
            }
            let mut pause = pin!(sleep(RETRY));
            loop {
                tokio::select! {
                    () = signals.stop() => return HandOver::Signal,
                    () = notifier.watch(&self.workers, None) => {}
                    () = &mut pause => break,
                }
            }
        };
        match self.resume(regained, released) {
            Ok(control_plane) => {
                self.control_plane = Some(control_plane);
                tracing::info!("everything has been taken back");
                HandOver::Failed
            }
            Err(error) => {
                tracing::error!(%error, "there will be no changes until a restart; connections are served");
                signals.stop().await;
                HandOver::Signal
            }
        }
    }

    fn regain(&self, released: &Released) -> Result<Regained, Failure> {
        let Opened { store, desired, .. } = open_store(&self.config.database, &self.config.seed)?;
        let doors = Doors::open(&self.config)?;
        // A successor serves no admin API before it has the place: the listeners are what they were.
        let desired = Desired { listeners: released.listeners.clone(), ..desired };
        let geoip = released.geoip.as_ref();
        let enforced = control_plane::enforce(&self.config, &desired, geoip, released.groups.clone())?;
        Ok(Regained { store, doors, enforced })
    }

    fn resume(&self, regained: Regained, released: Released) -> Result<ControlPlane, Failure> {
        let Regained { store, doors, enforced: Enforced { plane, engine } } = regained;
        let owned = Owned {
            store,
            plane,
            engine,
            is_host_scope: self.config.xdp.scope == config::Scope::Host,
            bans_max: self.config.firewall.max_bans as usize,
            listeners: released.listeners,
            listening: self.listening.clone(),
            edge: Arc::clone(&self.edge),
            geoip: released.geoip,
            certificates: released.certificates,
            bans: released.bans,
        };
        let mut control_plane = ControlPlane::start(owned, doors)?;
        control_plane.serve(&self.config, &self.edge, &self.shutdown);
        Ok(control_plane)
    }
}
