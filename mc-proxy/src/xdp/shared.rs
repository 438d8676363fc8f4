//! The maps that all generations share, and that a restart and an upgrade keep: pinned below `<pin_path>/maps/`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
};
use mc_proxy_common::{
    maps::{
        CONTROL_WORDS, COUNTERS_MAX, Counter, EVENT_BYTES, GROUPS_MAX, GroupCounter, PORT_FLAG_WORDS, PortFlags,
        RATE_LINES,
    },
    reason::Reason,
    user::{self, MapInfo, Mapping},
};

use super::{
    GroupCount, PlaneError, ReasonCount, object,
    pins::{self, Pins},
};

/// What a pinned map must look like to be used again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const RING_BUFFER: u32 = 27;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// All shared maps.
pub(super) const SHAPES: [Shape; 6] = [
    shape("COUNTERS", PER_CPU_ARRAY, size_of::<Counter>(), COUNTERS_MAX, 0),
    shape("GROUPS", PER_CPU_ARRAY, size_of::<GroupCounter>(), GROUPS_MAX, 0),
    shape("RATES", ARRAY, 64, RATE_LINES, 0),
    shape("PORTS", ARRAY, size_of::<u64>(), PORT_FLAG_WORDS, MMAPABLE),
    shape("CONTROL", ARRAY, size_of::<u64>(), CONTROL_WORDS, MMAPABLE),
    Shape { key_size: 0, ..shape("EVENTS", RING_BUFFER, 0, EVENT_BYTES, 0) },
];

const fn shape(name: &'static str, kind: u32, value_size: usize, max_entries: u32, flags: u32) -> Shape {
    Shape { name, kind, key_size: 4, value_size: value_size as u32, max_entries, flags }
}

impl Shape {
    fn is_of(&self, info: &MapInfo) -> bool {
        let Self { kind, key_size, value_size, max_entries, flags, .. } = *self;
        (info.kind, info.key_size, info.value_size, info.max_entries, info.flags)
            == (kind, key_size, value_size, max_entries, flags)
    }
}

/// The shared maps of a loaded program.
#[derive(Debug)]
pub(super) struct Shared {
    counters: Map,
    groups: Map,
    rates: MapData,
    ports: (MapData, Mapping),
    control: MapData,
    events: MapData,
    map_bytes: u64,
}

/// Removes the pins of maps of another shape, so that loading makes them anew.
pub(super) fn remove_foreign(pins: &Pins) -> Result<(), PlaneError> {
    pins.make_maps()?;
    for shape in &SHAPES {
        let path = pins.map(shape.name);
        let context = |error| PlaneError::caused(format!("opening the pinned map {}", path.display()), error);
        match user::object(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(context(error)),
            // What is no map has no such information.
            Ok(map) => match MapInfo::of(map.as_fd()) {
                Ok(info) if shape.is_of(&info) => {}
                Ok(_) | Err(_) => {
                    tracing::info!(map = shape.name, "a map of another version is made anew");
                    pins::remove(&path)?;
                }
            },
        }
    }
    Ok(())
}

impl Shared {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, PlaneError> {
        let mut map_bytes = 0;
        let mut take = |name: &str| {
            let map = object::take(ebpf, name)?;
            map_bytes += object::memory(&map)?;
            Ok::<_, PlaneError>(map)
        };
        let (counters, groups) = (Map::PerCpuArray(take("COUNTERS")?), Map::PerCpuArray(take("GROUPS")?));
        let (rates, ports, control, events) = (take("RATES")?, take("PORTS")?, take("CONTROL")?, take("EVENTS")?);
        let words = mapped("PORTS", &ports)?;
        Ok(Self { counters, groups, rates, ports: (ports, words), control, events, map_bytes })
    }

    pub(super) fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// The ring buffer of events and the words that pace them, for one reader.
    pub(super) fn events(&self) -> Result<(MapData, Mapping), PlaneError> {
        let context = |error| PlaneError::caused("using the kernel's events", error);
        let fd = self.events.fd().as_fd().try_clone_to_owned().map_err(context)?;
        let events = MapData::from_fd(fd).map_err(|error| PlaneError::caused("using the kernel's events", error))?;
        Ok((events, mapped("CONTROL", &self.control)?))
    }

    /// The kernel's number of the ring buffer.
    pub(super) fn events_id(&self) -> Result<u32, PlaneError> {
        let info = MapInfo::of(self.events.fd().as_fd());
        info.map(|info| info.id).map_err(|error| PlaneError::caused("using the kernel's events", error))
    }

    /// Says which ports are listeners', and whether new connections to them are limited. A port that stays what it is
    /// never is anything else meanwhile.
    pub(super) fn set_ports(&self, ports: &BTreeMap<u16, bool>) {
        let words: &[AtomicU64] = &self.ports.1;
        let mut desired = vec![0_u64; words.len()];
        for (port, is_limited) in ports {
            let flags = if *is_limited { PortFlags::LIMITED } else { PortFlags::LISTENER };
            if let Some(word) = desired.get_mut(usize::from(*port) / 32) {
                *word = flags.set_in(*word, *port);
            }
        }
        for (word, desired) in words.iter().zip(desired) {
            word.store(desired, Relaxed);
        }
    }

    /// Packets and bytes by reason, summed over CPUs.
    pub(super) fn counters(&self) -> Result<Vec<ReasonCount>, PlaneError> {
        let counters = PerCpuArray::<&MapData, Counter>::try_from(&self.counters).map_err(unread)?;
        Reason::ALL
            .iter()
            .map(|reason| {
                let cpus = counters.get(&reason.index(), 0).map_err(unread)?;
                Ok(ReasonCount {
                    reason: reason.name(),
                    is_drop: reason.is_drop(),
                    packets: cpus.iter().map(|cpu| cpu.packets).sum(),
                    bytes: cpus.iter().map(|cpu| cpu.bytes).sum(),
                })
            })
            .collect()
    }

    /// The counters of the groups that have had a packet, summed over CPUs.
    pub(super) fn groups(&self) -> Result<Vec<GroupCount>, PlaneError> {
        let groups = PerCpuArray::<&MapData, GroupCounter>::try_from(&self.groups).map_err(unread)?;
        let mut counts = Vec::new();
        for group in 0..GROUPS_MAX {
            let cpus = groups.get(&group, 0).map_err(unread)?;
            let sum = |member: fn(&GroupCounter) -> u64| cpus.iter().map(member).sum::<u64>();
            let count = GroupCount {
                group,
                packets: sum(|cpu| cpu.packets),
                bytes: sum(|cpu| cpu.bytes),
                would_packets: sum(|cpu| cpu.would_packets),
                would_bytes: sum(|cpu| cpu.would_bytes),
            };
            if count.packets != 0 || count.would_packets != 0 {
                counts.push(count);
            }
        }
        Ok(counts)
    }

    pub(super) fn clear_group(&mut self, group: u32) -> Result<(), PlaneError> {
        let context = "clearing a group's counters";
        let failed = |error| PlaneError::caused(context, error);
        let mut groups = PerCpuArray::<&mut MapData, GroupCounter>::try_from(&mut self.groups).map_err(failed)?;
        let cpus = groups.get(&group, 0).map_err(failed)?.len();
        let zeros = PerCpuValues::try_from(vec![GroupCounter::default(); cpus])
            .map_err(|error| PlaneError::caused(context, error))?;
        groups.set(group, zeros, 0).map_err(failed)
    }

    /// Pins again what somebody unpinned; how many.
    pub(super) fn repin(&self, pins: &Pins) -> Result<u64, PlaneError> {
        let maps = [
            ("COUNTERS", data(&self.counters)),
            ("GROUPS", data(&self.groups)),
            ("RATES", Some(&self.rates)),
            ("PORTS", Some(&self.ports.0)),
            ("CONTROL", Some(&self.control)),
            ("EVENTS", Some(&self.events)),
        ];
        let mut repinned = 0;
        for (name, map) in maps {
            let path = pins.map(name);
            if let Some(map) = map.filter(|_| !path.exists()) {
                pins.make_maps()?;
                user::pin(map.fd().as_fd(), &path)
                    .map_err(|error| PlaneError::caused(format!("pinning the map {}", path.display()), error))?;
                repinned += 1;
            }
        }
        Ok(repinned)
    }
}

fn data(map: &Map) -> Option<&MapData> {
    if let Map::PerCpuArray(map) = map { Some(map) } else { None }
}

fn mapped(name: &str, map: &MapData) -> Result<Mapping, PlaneError> {
    Mapping::new(map.fd().as_fd())
        .map_err(|error| PlaneError::caused(format!("mapping the kernel's map {name}"), error))
}

fn unread(error: aya::maps::MapError) -> PlaneError {
    PlaneError::caused("reading the kernel's counters", error)
}
