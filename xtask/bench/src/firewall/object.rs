//! XDP programs of the benchmark, and of xdp-filter: compiled, loaded, filled, and timed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, PerCpuHashMap, PerCpuValues, ProgramArray};
use aya::programs::{ProgramInfo, TestRunAttrs, TestRunOptions, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader, TestRun};
use aya_obj::programs::XdpAttachType;
use rustix::time::{ClockId, Timespec};
use serde::{Deserialize, Serialize};

use super::super::process;
use super::table::Table;

const SOURCE: &str = include_str!("programs.c");
const FRAME_MAX: usize = 80;
/// The action, as the kernel numbers it.
const XDP_DROP: u32 = 1;
/// xdp-filter's mark of an entry that is looked up as a source.
const XDP_FILTER_SOURCE: u64 = 1;

/// Compiles the benchmark's own programs.
pub(crate) fn compile(dir: &Path) -> anyhow::Result<PathBuf> {
    let (source, object) = (dir.join("programs.c"), dir.join("programs.o"));
    std::fs::write(&source, SOURCE).with_context(|| format!("writing {}", source.display()))?;
    // Where Debian has the headers of the machine's architecture.
    let include = format!("-I/usr/include/{}-linux-gnu", rustix::system::uname().machine().to_string_lossy());
    let (from, to) = (source.to_string_lossy(), object.to_string_lossy());
    process::run("clang", &["-O2", "-g", "-target", "bpf", &include, "-c", "-o", &to, &from])?;
    Ok(object)
}

/// The packets of a table's sources, from a generator to a listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Packets {
    pub(crate) table: Table,
    /// From the table's sources, or from as many that no entry covers.
    pub(crate) is_blocked: bool,
    pub(crate) from: [u8; 6],
    pub(crate) to: [u8; 6],
    pub(crate) listener: SocketAddr,
}

/// A program in an object file, and the table to fill its maps with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) object: PathBuf,
    pub(crate) name: String,
    pub(crate) fill: Option<Table>,
    /// Where maps go that the object wants pinned.
    pub(crate) pins: PathBuf,
}

/// How long a program took for a packet.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// The same packet every time, by the CPU time of the thread, the shortest of some runs.
    pub(crate) hot_ns: f64,
    /// Another source every time, wrapper included; none if the kernel does not take the program into the wrapper.
    pub(crate) cold_ns: Option<f64>,
    pub(crate) is_dropped: bool,
}

/// As `struct setup` in `programs.c`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Setup {
    words: [u32; 8],
    frame: [u8; FRAME_MAX],
}

impl Setup {
    fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_ne_bytes()).chain(self.frame).collect()
    }
}

impl Packets {
    fn setup(&self, interface: u32) -> Setup {
        let mut frame = [0; FRAME_MAX];
        let tcp = match self.listener.ip() {
            IpAddr::V4(_) => 34,
            IpAddr::V6(_) => 54,
        };
        frame[..6].copy_from_slice(&self.to);
        frame[6..12].copy_from_slice(&self.from);
        let addresses = match self.listener.ip() {
            IpAddr::V4(to) => {
                frame[12..14].copy_from_slice(&[8, 0]);
                // Version and header length; total length; hop limit; TCP.
                (frame[14], frame[17], frame[22], frame[23]) = (0x45, 40, 64, 6);
                frame[30..34].copy_from_slice(&to.octets());
                30..34
            }
            IpAddr::V6(to) => {
                frame[12..14].copy_from_slice(&[0x86, 0xdd]);
                // Version; payload length; TCP; hop limit.
                (frame[14], frame[19], frame[20], frame[21]) = (0x60, 20, 6, 64);
                frame[38..54].copy_from_slice(&to.octets());
                38..54
            }
        };
        frame[tcp + 2..tcp + 4].copy_from_slice(&self.listener.port().to_be_bytes());
        // Sequence number 1; header of five words; SYN; window.
        (frame[tcp + 7], frame[tcp + 12], frame[tcp + 13]) = (1, 0x50, 2);
        frame[tcp + 14..tcp + 16].fill(0xff);
        let pseudo_header = sum(&frame[addresses]) + sum(&[0, 6, 0, 20]);
        let shape = self.table.shape;
        Setup {
            words: [
                if shape.is_ipv6 { 6 } else { 4 },
                shape.is_prefixes.into(),
                shape.is_spread.into(),
                self.is_blocked.into(),
                self.table.count.max(1),
                interface,
                sum(&frame[14..34]),
                sum(&frame[tcp..tcp + 20]) + pseudo_header,
            ],
            frame,
        }
    }

    /// A whole frame from the table's first source.
    fn frame(&self) -> Vec<u8> {
        let mut frame = self.setup(0).frame;
        // The sources between the entries of a dense table, and behind those of a spread one.
        let (shape, index) = (self.table.shape, if self.is_blocked { 0 } else { super::table::ENTRIES_MAX });
        let source = self.table.entry(if shape.is_spread { index } else { 0 }).0;
        let between = u8::from(!self.is_blocked && !shape.is_spread);
        match source {
            IpAddr::V4(source) => {
                frame[26..30].copy_from_slice(&source.octets());
                frame[29] |= 2 * between;
            }
            IpAddr::V6(source) => {
                frame[22..38].copy_from_slice(&source.octets());
                let (last, bit) = if shape.is_prefixes { (29, 1) } else { (37, 2) };
                frame[last] |= bit * between;
            }
        }
        frame.to_vec()
    }
}

/// The sum of 16-bit words in memory order, as checksums need it.
fn sum(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum()
}

/// Loads a program of the benchmark that is set up for these packets.
fn load_own(object: &Path, name: &str, packets: &Packets, interface: u32) -> anyhow::Result<Ebpf> {
    let setup = packets.setup(interface).bytes();
    let mut loader = EbpfLoader::new();
    loader.override_global("setup", &setup[..], true);
    let mut loaded = loader.load_file(object).with_context(|| format!("loading {}", object.display()))?;
    xdp(&mut loaded, name)?.load().with_context(|| format!("loading {name}"))?;
    Ok(loaded)
}

fn xdp<'a>(loaded: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = loaded.program_mut(name).with_context(|| format!("no program {name}"))?;
    program.try_into().with_context(|| format!("{name} is no XDP program"))
}

/// Loads a program that judges packets, with its maps made to measure and filled.
pub(crate) fn load(program: &Program, packets: &Packets) -> anyhow::Result<Ebpf> {
    let most = program.fill.map_or(1, |table| table.count.max(1));
    let setup = packets.setup(0).bytes();
    let mut loader = EbpfLoader::new();
    loader.override_global("setup", &setup[..], false).default_map_pin_directory(&program.pins);
    let wanted = program.fill.map(|table| map_names(table.shape.is_ipv6)).unwrap_or_default();
    for name in wanted {
        loader.map_max_entries(name, most);
    }
    let object = &program.object;
    let mut loaded = loader.load_file(object).with_context(|| format!("loading {}", object.display()))?;
    if let Some(table) = program.fill {
        for name in wanted {
            if let Some(map) = loaded.map_mut(name) {
                fill(map, table).with_context(|| format!("filling {name}"))?;
            }
        }
    }
    xdp(&mut loaded, &program.name)?.load().with_context(|| format!("loading {}", program.name))?;
    Ok(loaded)
}

/// The maps of the controls and of xdp-filter, which are filled as far as they can hold a table.
fn map_names(is_ipv6: bool) -> [&'static str; 3] {
    if is_ipv6 { ["hash6", "lpm6", "filter_ipv6"] } else { ["hash4", "lpm4", "filter_ipv4"] }
}

/// Fills the map that xdp-filter has pinned.
pub(crate) fn fill_pinned(path: &Path, table: Table) -> anyhow::Result<()> {
    let data = MapData::from_pin(path).with_context(|| format!("opening {}", path.display()))?;
    fill(&mut Map::PerCpuHashMap(data), table)
}

fn fill(map: &mut Map, table: Table) -> anyhow::Result<()> {
    let entries = table.entries();
    if table.shape.is_ipv6 {
        insert(
            map,
            entries.filter_map(|(address, length)| match address {
                IpAddr::V6(address) => Some((address.octets(), length)),
                IpAddr::V4(_) => None,
            }),
        )
    } else {
        insert(
            map,
            entries.filter_map(|(address, length)| match address {
                IpAddr::V4(address) => Some((address.octets(), length)),
                IpAddr::V6(_) => None,
            }),
        )
    }
}

/// Prefixes go into a trie only: a hash is not asked for them.
fn insert<K: aya::Pod>(map: &mut Map, entries: impl Iterator<Item = (K, u8)>) -> anyhow::Result<()> {
    if matches!(map, Map::LpmTrie(_)) {
        let mut trie = LpmTrie::<_, K, u64>::try_from(map)?;
        for (address, length) in entries {
            trie.insert(&Key::new(length.into(), address), 1, 0)?;
        }
    } else if matches!(map, Map::HashMap(_)) {
        let mut hash = HashMap::<_, K, u64>::try_from(map)?;
        for (address, _) in entries {
            hash.insert(address, 1, 0)?;
        }
    } else {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::new(error).context(path))?;
        let mut hash = PerCpuHashMap::<_, K, u64>::try_from(map)?;
        for (address, _) in entries {
            hash.insert(address, PerCpuValues::try_from(vec![XDP_FILTER_SOURCE; cpus])?, 0)?;
        }
    }
    Ok(())
}

/// Sends packets out of an interface of this namespace until killed or for `lifetime`.
pub(crate) fn generate(object: &Path, packets: &Packets, interface: &str, lifetime: Duration) -> anyhow::Result<()> {
    let index = rustix::net::netdevice::name_to_index(
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
        interface,
    )
    .with_context(|| format!("finding {interface}"))?;
    let mut loaded = load_own(object, "generate", packets, index)?;
    let program = xdp(&mut loaded, "generate")?;
    let frame = [0; FRAME_MAX];
    let deadline = Instant::now() + lifetime;
    while Instant::now() < deadline {
        // Long calls: the setup and the end of each sleep for tens of milliseconds.
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = 1 << 28;
        options.attrs = TestRunAttrs::new().xdp_live_frames(64);
        program.test_run(options).context("sending live frames")?;
    }
    Ok(())
}

/// Times the program with this id.
pub(crate) fn time(object: &Path, id: u32, packets: &Packets, repeat: u32) -> anyhow::Result<Timing> {
    let info = find(id)?;
    let program = Xdp::from_program_info(info, "timed".into(), XdpAttachType::Interface)?;
    let frame = packets.frame();
    let (hot_ns, action) = shortest(&program, &frame, repeat)?;
    let cold_ns = match wrapped(object, &program, packets)? {
        Some(mut wrapper) => Some(shortest(xdp(&mut wrapper.loaded, wrapper.name)?, &frame, repeat)?.0),
        None => None,
    };
    Ok(Timing { hot_ns, cold_ns, is_dropped: action == XDP_DROP })
}

/// The program with this id.
pub(super) fn find(id: u32) -> anyhow::Result<ProgramInfo> {
    for info in loaded_programs() {
        let info = info.context("listing programs")?;
        if info.id() == id {
            return Ok(info);
        }
    }
    bail!("no program has the id {id}")
}

/// A program that gives the packet another source and goes on in the program under test.
struct Wrapper {
    loaded: Ebpf,
    name: &'static str,
    /// The kernel empties it when it is closed.
    _next: ProgramArray<MapData>,
}

/// The wrapper that takes this program: one for programs that take packets in fragments, one for others.
fn wrapped(object: &Path, program: &Xdp, packets: &Packets) -> anyhow::Result<Option<Wrapper>> {
    for (name, map) in [("vary", "next"), ("vary_frags", "next_frags")] {
        let mut loaded = load_own(object, name, packets, 0)?;
        let mut next = ProgramArray::try_from(loaded.take_map(map).context("no program array")?)?;
        if next.set(0, program.fd()?, 0).is_ok() {
            return Ok(Some(Wrapper { loaded, name, _next: next }));
        }
    }
    Ok(None)
}

/// What this thread has used of a CPU: finer than the kernel's own figure, which is in whole nanoseconds.
fn cpu_ns() -> f64 {
    let Timespec { tv_sec, tv_nsec } = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    tv_sec as f64 * 1e9 + tv_nsec as f64
}

fn shortest(program: &Xdp, frame: &[u8], repeat: u32) -> anyhow::Result<(f64, u32)> {
    let mut best = f64::INFINITY;
    let mut action = 0;
    for _ in 0..5 {
        let mut out = [0; 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.repeat = repeat;
        let began = cpu_ns();
        action = program.test_run(options).context("running the program")?.return_value;
        best = best.min((cpu_ns() - began) / f64::from(repeat));
    }
    Ok((best, action))
}
