//! The stream verdict program and its maps, as the kernel has them.

use std::{
    os::fd::{AsFd as _, BorrowedFd, RawFd},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, RingBuf, SockMap},
    programs::{ProgramError, SkSkb},
};
use mc_proxy_common::{splice::SLOT_WORDS, user::Mapping};

/// The object that `cargo xtask build-ebpf` makes of `mc-proxy-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../bpf/mc-proxy-splice.bpf.o");

/// Why pairs cannot be spliced in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
    /// The maps cannot be made: no capability, or no memory.
    #[error("making the kernel's maps")]
    Maps(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel does not take the program.
    #[error("loading the stream verdict program")]
    Program(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Out of a local resource.
    #[error("{0}")]
    Resource(&'static str, #[source] std::io::Error),
}

/// What the kernel holds. The program is attached to the map of targets, so it is on every socket put there.
pub(super) struct Maps {
    routes: Mutex<Routes>,
    slots: Mapping,
    control: Mapping,
    // The attachment ends with it.
    _program: Ebpf,
}

struct Routes {
    targets: SockMap<MapData>,
    sources: HashMap<MapData, u64, u32>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Loads everything; the ring buffer of events is for its reader.
    pub(super) fn load() -> Result<(Self, RingBuf<MapData>), SpliceError> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(|error| SpliceError::Maps(error.into()))?;
        let targets = SockMap::try_from(take(&mut ebpf, "TARGETS")?).map_err(map_error)?;
        let sources = HashMap::try_from(take(&mut ebpf, "SOURCES")?).map_err(map_error)?;
        let events = RingBuf::try_from(take(&mut ebpf, "EVENTS")?).map_err(map_error)?;
        let program: &mut SkSkb = ebpf
            .program_mut("mc_proxy_splice")
            .ok_or_else(|| SpliceError::Program("the embedded object has no such program".into()))?
            .try_into()
            .map_err(program_error)?;
        program.load().map_err(program_error)?;
        program.attach(targets.fd()).map_err(program_error)?;
        // The program names its maps by their descriptors until it is loaded, and these do not outlive the mapping.
        let slots = mapping(&mut ebpf, "SLOTS")?;
        let control = mapping(&mut ebpf, "CONTROL")?;
        let routes = Mutex::new(Routes { targets, sources });
        Ok((Self { routes, slots, control, _program: ebpf }, events))
    }

    /// The words of a slot; empty when there is no such slot.
    pub(super) fn slot(&self, index: u32) -> &[std::sync::atomic::AtomicU64] {
        let start = index as usize * SLOT_WORDS;
        self.slots.get(start..start + SLOT_WORDS).unwrap_or_default()
    }

    /// The words that are about all slots.
    pub(super) fn control(&self) -> &[std::sync::atomic::AtomicU64] {
        &self.control
    }

    /// Sends what `source` receives by way of `slot`. Before the socket is a target itself, so that the program never
    /// meets a socket that it does not know.
    pub(super) fn add_source(&self, cookie: u64, slot: u32) -> Result<(), MapError> {
        self.routes().sources.insert(cookie, slot, 0)
    }

    /// Makes `socket` the target of `slot`; from here on the program judges what the socket receives.
    pub(super) fn add_target(&self, slot: u32, socket: BorrowedFd<'_>) -> Result<(), MapError> {
        self.routes().targets.set(slot, &AsRaw(socket), 0)
    }

    /// Takes the target of a slot away; a socket that is no target any more is a plain one.
    pub(super) fn remove_target(&self, slot: u32) -> Result<(), MapError> {
        self.routes().targets.clear_index(&slot)
    }

    /// Forgets a source.
    pub(super) fn remove_source(&self, cookie: u64) -> Result<(), MapError> {
        self.routes().sources.remove(&cookie)
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        // Each call below the lock is one system call: nothing is half done.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct AsRaw<'fd>(BorrowedFd<'fd>);

impl std::os::fd::AsRawFd for AsRaw<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, SpliceError> {
    ebpf.take_map(name).ok_or_else(|| SpliceError::Maps(format!("the embedded object has no map {name}").into()))
}

fn mapping(ebpf: &mut Ebpf, name: &str) -> Result<Mapping, SpliceError> {
    let Map::Array(map) = take(ebpf, name)? else {
        return Err(SpliceError::Maps(format!("the map {name} is not an array").into()));
    };
    Mapping::new(map.fd().as_fd()).map_err(|error| SpliceError::Resource("mapping a map of the kernel", error))
}

fn map_error(error: MapError) -> SpliceError {
    SpliceError::Maps(error.into())
}

fn program_error(error: ProgramError) -> SpliceError {
    SpliceError::Program(error.into())
}
