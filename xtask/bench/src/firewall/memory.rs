//! The memory that rules take: of the daemon, and of kernel maps and sets.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::Context;
use aya::maps::MapInfo;

use super::super::record::Metrics;
use super::object;

/// The bytes of kernel maps, by id.
pub(super) type Maps = BTreeMap<u32, u64>;

/// The maps that a process has open.
pub(super) fn open_maps(pid: i32) -> anyhow::Result<Maps> {
    let mut maps = Maps::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the descriptors of a process")? {
        // Descriptors are closed while one looks.
        let Ok(info) = fs::read_to_string(entry.context("the descriptors of a process")?.path()) else { continue };
        maps.extend(map_of(&info));
    }
    Ok(maps)
}

/// The maps that a program uses.
pub(super) fn maps_of_program(id: u32) -> anyhow::Result<Maps> {
    let mut maps = Maps::new();
    for map in object::find(id)?.map_ids().context("the program's maps")?.unwrap_or_default() {
        let descriptor = MapInfo::from_id(map).and_then(|info| info.fd()).context("opening a map")?;
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd());
        maps.extend(map_of(&fs::read_to_string(path).context("a map's descriptor")?));
    }
    Ok(maps)
}

fn map_of(fdinfo: &str) -> Option<(u32, u64)> {
    let id = field_of(fdinfo, "map_id:")?;
    Some((u32::try_from(id).ok()?, field_of(fdinfo, "memlock:")?))
}

/// The bytes of the sets in what `ipset list -terse` prints.
pub(super) fn ipset_bytes(printed: &str) -> u64 {
    let sizes = printed.lines().filter_map(|line| line.strip_prefix("Size in memory:")?.trim().parse::<u64>().ok());
    sizes.sum()
}

/// Resident memory of a process, now and at most so far.
pub(super) fn resident(pid: i32) -> anyhow::Result<Metrics> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the status of a process")?;
    let mut metrics = Metrics::new();
    for (field, name) in [("VmRSS:", "rss_mb"), ("VmHWM:", "rss_most_mb")] {
        let kb = field_of(&status, field).with_context(|| format!("/proc/{pid}/status has no {field}"))?;
        metrics.insert(name, kb as f64 / 1024.0);
    }
    Ok(metrics)
}

/// The number behind a field of a file in /proc.
fn field_of(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_found_among_descriptors() {
        let info = "pos:\t0\nmap_type:\t1\nmemlock:\t163840\nmap_id:\t42\nfrozen:\t0\n";
        assert_eq!(map_of(info), Some((42, 163_840)));
        assert_eq!(map_of("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn sets_are_summed() {
        let printed = "Name: a\nType: hash:ip\nSize in memory: 1208\nName: b\nSize in memory: 92\n";
        assert_eq!(ipset_bytes(printed), 1300);
    }

    #[test]
    fn this_process_has_memory_and_no_maps() {
        let me = std::process::id() as i32;
        let metrics = resident(me).unwrap();
        assert!(metrics["rss_mb"] > 0.0 && metrics["rss_most_mb"] >= metrics["rss_mb"]);
        assert!(open_maps(me).unwrap().is_empty());
    }
}
