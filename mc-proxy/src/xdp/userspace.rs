//! The plane that has no kernel: user space enforces every rule by itself, and status says why.

use std::sync::Arc;

use super::{Dataplane, Events, InterfaceStatus, Obstacle, PlaneError, PlaneStatus, Repairs, TestRun};
use crate::{
    config,
    firewall::{Generations, Sizes, TableMemory},
};

/// Tables in the memory of the daemon alone.
#[derive(Clone, Debug)]
pub(super) struct UserspacePlane {
    detail: String,
    obstacle: Obstacle,
    interfaces: Vec<String>,
    seed: u64,
    generation: u64,
}

impl UserspacePlane {
    pub(super) fn new(config: &config::Xdp, seed: u64) -> Self {
        let interfaces = config.interfaces.clone();
        Self { detail: String::new(), obstacle: Obstacle::Other, interfaces, seed, generation: 0 }
    }

    pub(super) fn because(config: &config::Xdp, seed: u64, why: &PlaneError) -> Self {
        let mut plane = Self::new(config, seed);
        plane.set_reason(why);
        plane
    }

    pub(super) fn set_reason(&mut self, why: &PlaneError) {
        (self.detail, self.obstacle) = (why.chain(), why.obstacle());
    }
}

impl Generations for UserspacePlane {
    fn prepare(&mut self, sizes: &Sizes) -> Result<Arc<TableMemory>, PlaneError> {
        Ok(Arc::new(TableMemory::heap(sizes, self.seed)))
    }

    fn commit(&mut self) -> Result<(), PlaneError> {
        self.generation += 1;
        Ok(())
    }

    fn discard(&mut self) {}
}

impl Dataplane for UserspacePlane {
    fn keep_attached(&mut self) -> Result<Repairs, PlaneError> {
        Ok(Repairs::default())
    }

    fn clear_group(&mut self, _group: u32) -> Result<(), PlaneError> {
        Ok(())
    }

    fn status(&self) -> PlaneStatus {
        let interface = |name: &String| InterfaceStatus {
            name: name.clone(),
            error: self.detail.clone(),
            obstacle: Some(self.obstacle),
            ..InterfaceStatus::default()
        };
        PlaneStatus {
            detail: self.detail.clone(),
            obstacle: Some(self.obstacle),
            interfaces: self.interfaces.iter().map(interface).collect(),
            generation: self.generation,
            ..PlaneStatus::default()
        }
    }

    fn events(&self) -> Option<Events> {
        None
    }

    fn test_run(&self, _frame: &[u8]) -> Result<TestRun, PlaneError> {
        Err(PlaneError::new(format!("no XDP program is in force: {}", self.detail)).because(self.obstacle))
    }

    fn shutdown(&mut self) -> Result<(), PlaneError> {
        Ok(())
    }
}
