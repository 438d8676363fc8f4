//! The kernel program: embedded, and loaded once for every generation.

use std::{os::fd::AsFd as _, sync::Arc};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{ProgramError, Xdp},
};
use mc_proxy_common::{
    maps::Scope,
    table::NODE_WORDS,
    user::{self, MapInfo, Mapping},
};

use super::{
    Obstacle, Parameters, PlaneError,
    attach::Program,
    pins::Pins,
    probe,
    shared::{self, Shared},
};
use crate::{
    config,
    firewall::{Readers, Sizes, TableMemory, Words},
};

/// The object that `cargo xtask build-ebpf` makes of `mc-proxy-ebpf`; bytecode is the same on every architecture.
pub static PROGRAM: &[u8] = OBJECT;

const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/mc-proxy.bpf.o");

/// The same for kernels before 5.18, which do not know programs that take frames of more than one buffer.
static PLAIN: Aligned<{ OBJECT.len() }> = without_frags();

/// Section of the program; what stands behind the dot is what older kernels do not know.
const SECTION: &[u8] = b"xdp.frags";

/// Symbol of the program in the object.
const SYMBOL: &str = "mc_proxy";
/// The same program in the form for a process without `CAP_PERFMON`.
const GUARDED_SYMBOL: &str = "mc_proxy_guarded";

#[repr(C, align(32))]
struct Aligned<const N: usize>([u8; N]);

/// A loaded program with its maps.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) program: Program,
    pub(super) tables: Arc<TableMemory>,
    pub(super) shared: Shared,
    /// Of kernel memory, in all maps.
    pub(super) map_bytes: u64,
}

/// Loads the program with new tables, over the shared maps that are pinned; those that are missing are made.
///
/// # Errors
/// When the kernel refuses, or has no memory for the tables.
pub(super) fn load(
    config: &config::Xdp,
    parameters: &Parameters,
    sizes: &Sizes,
    pins: &Pins,
) -> Result<Loaded, PlaneError> {
    shared::remove_foreign(pins)?;
    let constants = Constants::new(config, parameters, sizes);
    let is_guarded = probe::is_guarded();
    try_load(&constants, sizes, pins, Form { is_modern: true, is_guarded })
        .or_else(|refusal| {
            let loaded =
                try_load(&constants, sizes, pins, Form { is_modern: false, is_guarded }).map_err(|_| refusal)?;
            tracing::debug!("this kernel does not tell the length of frames: bytes are not counted");
            Ok(loaded)
        })
        .or_else(|refusal: PlaneError| {
            if is_guarded {
                return Err(refusal);
            }
            // What is easy to follow for the verifier of a process without rights is so for an old one, too.
            let guarded = |is_modern| try_load(&constants, sizes, pins, Form { is_modern, is_guarded: true });
            let loaded = guarded(true).or_else(|_| guarded(false)).map_err(|_| refusal)?;
            tracing::debug!("this kernel takes the program in its guarded form only, which is slower");
            Ok(loaded)
        })
        .map_err(|error: PlaneError| match probe::old_kernel() {
            Some(release) if error.obstacle() == Obstacle::Other => {
                let context = format!("kernel {release} is too old for the XDP program; boot 5.15 or later");
                PlaneError::caused(context, error).because(Obstacle::KernelTooOld)
            }
            _ => error,
        })
}

/// What the verifier sees as constants.
struct Constants {
    scope: u32,
    masks: [u32; 3],
    seed: u64,
    rate: [u64; 2],
    rate_prefixes: [u8; 2],
}

impl Constants {
    fn new(config: &config::Xdp, parameters: &Parameters, sizes: &Sizes) -> Self {
        let scope = match config.scope {
            config::Scope::Listeners => Scope::Listeners,
            config::Scope::Host => Scope::Host,
        };
        let (geometry, rate) = (sizes.geometry(parameters.seed), parameters.rate);
        Self {
            scope: scope as u32,
            masks: [geometry.mask4, geometry.mask6, geometry.mask_long6],
            seed: geometry.seed,
            rate: [rate.interval, rate.window],
            rate_prefixes: [rate.prefix_v4, rate.prefix_v6],
        }
    }
}

/// One of the forms of the program.
#[derive(Clone, Copy)]
struct Form {
    /// For Linux 5.18 and later: takes frames of more than one buffer, and measures them.
    is_modern: bool,
    /// For a process without `CAP_PERFMON`.
    is_guarded: bool,
}

fn try_load(constants: &Constants, sizes: &Sizes, pins: &Pins, form: Form) -> Result<Loaded, PlaneError> {
    let Form { is_modern, is_guarded } = form;
    let mut loader = EbpfLoader::new();
    let measures_frames = u8::from(is_modern);
    loader
        .override_global("SCOPE", &constants.scope, true)
        .override_global("MASK4", &constants.masks[0], true)
        .override_global("MASK6", &constants.masks[1], true)
        .override_global("MASK_LONG6", &constants.masks[2], true)
        .override_global("SEED", &constants.seed, true)
        .override_global("RATE_INTERVAL", &constants.rate[0], true)
        .override_global("RATE_WINDOW", &constants.rate[1], true)
        .override_global("RATE_PREFIX_V4", &constants.rate_prefixes[0], true)
        .override_global("RATE_PREFIX_V6", &constants.rate_prefixes[1], true)
        .override_global("MEASURES_FRAMES", &measures_frames, true)
        .map_max_entries("NODES", sizes.nodes.saturating_mul(NODE_WORDS))
        .map_max_entries("LINES4", sizes.lines4)
        .map_max_entries("LINES6", sizes.lines6)
        .map_max_entries("LONG6", sizes.lines_long6)
        .map_max_entries("CLAUSES", sizes.clauses);
    for shape in shared::SHAPES {
        loader.map_pin_path(shape.name, pins.map(shape.name));
    }
    let object = if is_modern { OBJECT } else { &PLAIN.0 };
    let mut ebpf = loader.load(object).map_err(|error| PlaneError::caused("making the kernel's maps", error))?;
    let program = program(&mut ebpf, is_guarded)?;
    program.load().map_err(explain)?;
    let context = |error| PlaneError::caused("using the XDP program", error);
    let fd = program.fd().map_err(|error| PlaneError::caused("using the XDP program", error))?;
    let fd = fd.as_fd().try_clone_to_owned().map_err(context)?;
    let id = user::program_id(fd.as_fd()).map_err(context)?;
    let has_frags = is_modern && has_frags();

    let mut map_bytes = 0;
    let mut table = |name: &str| {
        let map = take(&mut ebpf, name)?;
        map_bytes += memory(&map)?;
        let words = Mapping::new(map.fd().as_fd()).map(Words::Mapped);
        words.map_err(|error| PlaneError::caused(format!("mapping the kernel's map {name}"), error))
    };
    let tables = TableMemory {
        tree4: table("TREE4")?,
        tree6: table("TREE6")?,
        nodes: table("NODES")?,
        lines4: table("LINES4")?,
        lines6: table("LINES6")?,
        lines_long6: table("LONG6")?,
        clauses: table("CLAUSES")?,
        geometry: sizes.geometry(constants.seed),
        readers: Readers::default(),
    };
    let shared = Shared::take(&mut ebpf)?;
    map_bytes += shared.map_bytes();
    Ok(Loaded { program: Program { fd, id, has_frags }, tables: Arc::new(tables), shared, map_bytes })
}

/// Takes a map, of whichever type, out of the object.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<MapData, PlaneError> {
    match ebpf.take_map(name) {
        Some(Map::Array(map) | Map::PerCpuArray(map) | Map::RingBuf(map)) => Ok(map),
        Some(_) => Err(PlaneError::new(format!("the map {name} of the program is not of the type it should be"))),
        None => Err(PlaneError::new(format!("the program has no map {name}"))),
    }
}

/// Bytes of kernel memory for the values of a map.
pub(super) fn memory(map: &MapData) -> Result<u64, PlaneError> {
    const PER_CPU_ARRAY: u32 = 6;
    let info = MapInfo::of(map.fd().as_fd()).map_err(|error| PlaneError::caused("asking for a map's size", error))?;
    let copies = if info.kind == PER_CPU_ARRAY {
        let cpus =
            aya::util::nr_cpus().map_err(|(path, error)| PlaneError::caused(format!("reading {path}"), error))?;
        cpus as u64
    } else {
        1
    };
    // A ring buffer has no values, and its size in bytes for entries.
    let value = u64::from(info.value_size.max(1));
    Ok(u64::from(info.max_entries) * value * copies)
}

fn explain(error: ProgramError) -> PlaneError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let said = verdict(&verifier_log.to_string());
        tracing::debug!(log = %verifier_log, "the verifier's log");
        let context = format!("the kernel does not load the XDP program; its verifier says: {said}");
        return PlaneError::caused(context, io_error);
    }
    PlaneError::caused("loading the XDP program", error)
}

/// What a verifier's log ends with: it has a line for every instruction, and the last ones say what is wrong.
fn verdict(log: &str) -> String {
    let is_statistic = |line: &&str| {
        ["verification time", "stack depth", "processed "].iter().any(|start| line.starts_with(start))
            || line.is_empty()
    };
    let mut lines: Vec<_> = log.lines().rev().filter(|line| !is_statistic(line)).take(3).collect();
    lines.reverse();
    lines.join("; ").chars().take(500).collect()
}

fn program(ebpf: &mut Ebpf, is_guarded: bool) -> Result<&mut Xdp, PlaneError> {
    let symbol = if is_guarded { GUARDED_SYMBOL } else { SYMBOL };
    ebpf.program_mut(symbol)
        .ok_or_else(|| PlaneError::new("the embedded object has no XDP program"))?
        .try_into()
        .map_err(|error| PlaneError::caused("the embedded object's program is not XDP", error))
}

fn has_frags() -> bool {
    OBJECT.windows(SECTION.len()).any(|window| window == SECTION)
}

/// The object with its section called `xdp`: the dot ends the name.
const fn without_frags() -> Aligned<{ OBJECT.len() }> {
    let mut bytes = [0; OBJECT.len()];
    bytes.copy_from_slice(OBJECT);
    let mut at = 0;
    while at + SECTION.len() <= bytes.len() {
        let mut matching = 0;
        while matching < SECTION.len() && bytes[at + matching] == SECTION[matching] {
            matching += 1;
        }
        if matching == SECTION.len() {
            bytes[at + 3] = 0;
        }
        at += 1;
    }
    Aligned(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_verifiers_log_is_quoted() {
        let log = format!("{}1: (95) exit\nR0 !read_ok\nprocessed 2 insns (limit 1000000)\n\n", "0: nop\n".repeat(9));
        assert_eq!(verdict(&log), "0: nop; 1: (95) exit; R0 !read_ok");
        assert_eq!(verdict(""), "");
        assert_eq!(verdict(&"x".repeat(9000)).len(), 500);
    }

    #[test]
    fn the_plain_object_differs_in_the_section_only() {
        let different = OBJECT.iter().zip(&PLAIN.0).filter(|(one, other)| one != other).count();
        assert_eq!(different > 0, has_frags());
        assert!(different <= 2, "{different}");
        assert!(!PLAIN.0.windows(SECTION.len()).any(|window| window == SECTION));
    }
}
