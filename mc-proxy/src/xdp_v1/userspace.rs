//! The plane that has no kernel: user space enforces every rule by itself, and status says why.

use super::{Change, Dataplane, InterfaceStatus, PlaneError, PlaneStatus, Repairs};
use crate::{config, firewall::RuleSet};

/// Nothing to keep in step with the rules.
#[derive(Clone, Debug)]
pub(super) struct UserspacePlane {
    detail: String,
    interfaces: Vec<String>,
}

impl UserspacePlane {
    pub(super) fn new(config: &config::Xdp, why: &PlaneError) -> Self {
        Self { detail: why.chain(), interfaces: config.interfaces.clone() }
    }
}

impl Dataplane for UserspacePlane {
    fn apply(&mut self, _change: Change, _rules: &RuleSet) -> Result<(), PlaneError> {
        Ok(())
    }

    fn reconcile(&mut self, _rules: &RuleSet) -> Result<Repairs, PlaneError> {
        Ok(Repairs::default())
    }

    fn status(&self) -> PlaneStatus {
        let interface = |name: &String| InterfaceStatus {
            name: name.clone(),
            error: self.detail.clone(),
            ..InterfaceStatus::default()
        };
        PlaneStatus {
            detail: self.detail.clone(),
            interfaces: self.interfaces.iter().map(interface).collect(),
            ..PlaneStatus::default()
        }
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        Ok(())
    }
}
