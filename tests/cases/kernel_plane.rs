//! The kernel plane on real interfaces: generations replaced, taken over, repaired, shared with others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "kernel_support/mod.rs"]
mod kernel_support;
#[path = "kernel_support/lab.rs"]
mod lab;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use aya::{
    EbpfLoader,
    maps::MapData,
    programs::{Xdp, XdpMode as AyaMode},
};
use mc_proxy::{
    config::{self, OnExit, Scope, XdpMode},
    firewall::{Sizes, TableMemory},
    xdp::{self, Dataplane, Obstacle, Parameters, PlaneError, PlaneStatus},
};
use mc_proxy_common::{
    maps::COUNTERS_MAX,
    rate::RateLimit,
    reason::Reason,
    table::{Clause, ClauseAction, ClauseScope, Word, with_half},
    user::{self, MapInfo, Mapping},
};

use crate::kernel_support::become_nobody;
use crate::lab::{EDGE, INTERFACE, Lab, OUTSIDE, SECOND};

const PORT: u16 = 4433;
const GROUP: u16 = 7;
const SIZES: Sizes = Sizes { nodes: 4, lines4: 16, lines6: 16, lines_long6: 16, clauses: 16 };
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn config(lab: &Lab) -> config::Xdp {
    config::Xdp {
        interfaces: vec![INTERFACE.to_owned()],
        mode: XdpMode::Auto,
        required: true,
        require_native: false,
        scope: Scope::Host,
        on_exit: OnExit::Keep,
        pin_path: lab.pin_path(),
    }
}

fn open(config: &config::Xdp) -> Result<Box<dyn Dataplane>, PlaneError> {
    let parameters = Parameters { ports: BTreeMap::from([(PORT, false)]), rate: RateLimit::OFF, seed: 42 };
    xdp::open(config, parameters)
}

/// As the daemon starts: the tables are full before they are in force.
fn start(config: &config::Xdp, is_blocked: bool) -> Result<(Box<dyn Dataplane>, Arc<TableMemory>), PlaneError> {
    let mut plane = open(config)?;
    let tables = next(&mut *plane, is_blocked)?;
    Ok((plane, tables))
}

/// Puts a new generation in force.
fn next(plane: &mut dyn Dataplane, is_blocked: bool) -> Result<Arc<TableMemory>, PlaneError> {
    let tables = plane.prepare(&SIZES)?;
    block(&tables, is_blocked);
    plane.commit()?;
    Ok(tables)
}

/// Blocks, or no longer blocks, the /16 of each address outside, by one store each.
fn block(tables: &TableMemory, is_blocked: bool) {
    let clause = Clause {
        expires_at: 0,
        action: ClauseAction::Drop,
        scope: ClauseScope::Default,
        reason: Reason::BlockedPrefix,
        group: GROUP,
        next: 0,
    };
    for (word, value) in tables.clauses[2..4].iter().zip(clause.words()) {
        word.store(value, Ordering::Relaxed);
    }
    let leaf = if is_blocked { Word::leaf(1, 0) } else { Word::EMPTY };
    for addr in OUTSIDE {
        let (root, top) = match addr.parse().unwrap() {
            IpAddr::V4(addr) => (&tables.tree4, addr.to_bits() >> 16),
            IpAddr::V6(addr) => (&tables.tree6, (addr.to_bits() >> 112) as u32),
        };
        let pair = &root[top as usize / 2];
        pair.store(with_half(pair.load(Ordering::Relaxed), top, leaf), Ordering::Relaxed);
    }
}

fn packets(status: &PlaneStatus, reason: &str) -> u64 {
    status.counters.iter().find(|count| count.reason == reason).unwrap().packets
}

/// Sends one datagram and says whether it arrives.
fn arrives(lab: &Lab, family: usize) -> bool {
    let (sender, receiver, to) = lab.sockets(family, PORT);
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    sender.send_to(b"hello", to).unwrap();
    receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn a_change_is_in_force_when_it_is_stored() {
    lab::run(|lab| {
        let (plane, tables) = start(&config(lab), false).unwrap();
        let status = plane.status();
        assert!(status.is_active, "{status:?}");
        let interface = &status.interfaces[0];
        assert_eq!((status.detail.as_str(), interface.mode, interface.driver.as_str()), ("", "native", "veth"));
        assert_eq!((interface.mtu, interface.obstacle, status.generation), (1500, None, 1));
        assert!(status.map_bytes > 2 * 256 * 1024, "{status:?}");
        for family in [0, 1] {
            let (sender, receiver, to) = lab.sockets(family, PORT);
            receiver.set_nonblocking(true).unwrap();
            for _ in 0..100 {
                sender.send_to(b"before", to).unwrap();
                assert_eq!(wait_for(&receiver), Some(6));
                block(&tables, true);
                for _ in 0..10 {
                    sender.send_to(b"after", to).unwrap();
                }
                assert!(receiver.recv(&mut [0; 16]).is_err(), "a packet of a blocked source arrived");
                block(&tables, false);
            }
        }
        let status = plane.status();
        assert_eq!(packets(&status, "blocked_prefix"), 2000);
        let [group] = status.groups[..] else { panic!("{:?}", status.groups) };
        assert_eq!((group.group, group.packets, group.would_packets), (GROUP.into(), 2000, 0));
    });
}

#[test]
fn groups_start_from_zero_when_they_are_cleared() {
    lab::run(|lab| {
        let (mut plane, _tables) = start(&config(lab), true).unwrap();
        assert!(!arrives(lab, 0));
        assert_eq!(plane.status().groups.len(), 1);
        plane.clear_group(GROUP.into()).unwrap();
        assert_eq!(plane.status().groups, []);
        assert!(plane.clear_group(u32::MAX).is_err());
    });
}

#[test]
fn a_block_holds_without_the_daemon_and_is_taken_over() {
    lab::run(|lab| {
        let (plane, tables) = start(&config(lab), true).unwrap();
        let first = plane.status();
        assert!(!first.interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        let dropped = packets(&plane.status(), "blocked_prefix");
        // What the kernel sees of kill -9: descriptors close, pins stay.
        drop((plane, tables));
        assert!(!arrives(lab, 0), "the block ended with the daemon");
        let mut plane = open(&config(lab)).unwrap();
        let tables = plane.prepare(&SIZES).unwrap();
        assert!(!arrives(lab, 0), "the earlier program goes on until the tables are full");
        block(&tables, true);
        plane.commit().unwrap();
        let status = plane.status();
        assert!(status.interfaces[0].is_adopted, "{status:?}");
        assert_ne!(status.interfaces[0].program_id, first.interfaces[0].program_id, "the program is a new one");
        assert!(packets(&status, "blocked_prefix") > dropped, "counters go on over a restart");
        assert!(!arrives(lab, 0));
        block(&tables, false);
        assert!(arrives(lab, 0));
    });
}

/// Every generation blocks the source; under a flood generations and daemons follow each other.
#[test]
fn nothing_passes_while_generations_and_daemons_are_replaced() {
    lab::run(|lab| {
        let (mut plane, _) = start(&config(lab), true).unwrap();
        let (sender, receiver, to) = lab.sockets(0, PORT);
        receiver.set_nonblocking(true).unwrap();
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    sender.send_to(b"flood", to).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            for round in 0..12 {
                next(&mut *plane, true).unwrap();
                plane.prepare(&SIZES).unwrap();
                plane.discard();
                drop(plane);
                if round % 4 == 3 {
                    make_maps_foreign(lab);
                }
                plane = start(&config(lab), true).unwrap().0;
                assert!(plane.status().interfaces[0].is_adopted);
            }
        });
        assert!(sent.load(Ordering::Relaxed) > 1000, "{sent:?}");
        assert!(receiver.recv(&mut [0; 16]).is_err(), "of {sent:?} packets some arrived");
    });
}

/// Ends the flood also when an assertion fails; the scope would wait for it for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_another_version_has_left_is_not_used_and_goes() {
    lab::run(|lab| {
        drop(start(&config(lab), true).unwrap());
        make_maps_foreign(lab);
        // The layout of the first release.
        let maps = lab.pin_path().join("maps");
        let counters = user::object(&maps.join("RATES")).unwrap();
        for old in ["SETTINGS", "BLOCK4", "NET6"] {
            user::pin(counters.as_fd(), &maps.join(old)).unwrap();
        }
        fs::create_dir(lab.pin_path().join("maps-new")).unwrap();
        user::pin(counters.as_fd(), &lab.pin_path().join("maps-new/BLOCK4")).unwrap();
        let (plane, _) = start(&config(lab), true).unwrap();
        assert!(plane.status().interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        let names = |directory| {
            let mut names: Vec<_> =
                fs::read_dir(lab.pin_path().join(directory)).unwrap().map(|pin| pin.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(""), ["links", "maps"]);
        assert_eq!(names("maps"), ["CONTROL", "COUNTERS", "EVENTS", "GROUPS", "PORTS", "RATES"]);
        let counters = user::object(&maps.join("COUNTERS")).unwrap();
        assert_eq!(MapInfo::of(counters.as_fd()).unwrap().max_entries, COUNTERS_MAX);
    });
}

/// With counters and sizes of every shape the maps in the object are those that are looked for at the next start.
#[test]
fn shared_maps_are_used_again_as_they_are() {
    lab::run(|lab| {
        let ids = || {
            ["CONTROL", "COUNTERS", "EVENTS", "GROUPS", "PORTS", "RATES"].map(|name| {
                let map = user::object(&lab.pin_path().join("maps").join(name)).unwrap();
                MapInfo::of(map.as_fd()).unwrap().id
            })
        };
        let (mut plane, _) = start(&config(lab), true).unwrap();
        let first = ids();
        next(&mut *plane, true).unwrap();
        assert_eq!(plane.status().generation, 2);
        drop(plane);
        drop(start(&config(lab), true).unwrap());
        assert_eq!(ids(), first);
    });
}

#[test]
fn only_words_that_the_kernel_shares_are_mapped() {
    lab::run(|lab| {
        let (_plane, _tables) = start(&config(lab), false).unwrap();
        let open = |name| user::object(&lab.pin_path().join("maps").join(name)).unwrap();
        let ports = Mapping::new(open("PORTS").as_fd()).unwrap();
        assert_eq!(ports.len(), 65_536 / 32);
        assert_eq!(ports[usize::from(PORT) / 32].load(Ordering::Relaxed), 1 << (PORT % 32 * 2));
        for (name, length) in [("COUNTERS", COUNTERS_MAX), ("EVENTS", 256 * 1024), ("RATES", 65_536)] {
            let map = open(name);
            assert_eq!(MapInfo::of(map.as_fd()).unwrap().max_entries, length);
            assert_eq!(Mapping::new(map.as_fd()).unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "{name}");
        }
    });
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    lab::run(|lab| {
        lab.add_second();
        let mut ebpf = EbpfLoader::new().load(xdp::PROGRAM).unwrap();
        let foreign: &mut Xdp = ebpf.program_mut("mc_proxy").unwrap().try_into().unwrap();
        foreign.load().unwrap();
        let id = foreign.info().unwrap().id();
        for (foreign_mode, mode) in [(AyaMode::Driver, XdpMode::Auto), (AyaMode::Skb, XdpMode::Native)] {
            let link = foreign.attach(INTERFACE, foreign_mode).unwrap();
            let two = config::Xdp {
                interfaces: vec![SECOND.to_owned(), INTERFACE.to_owned()],
                required: false,
                mode,
                ..config(lab)
            };
            let survey = xdp::survey(&two, INTERFACE).unwrap();
            assert!(matches!(survey.program, Some((seen, _, Some(false))) if seen == id), "{survey:?}");
            let error = start(&config::Xdp { required: true, ..two.clone() }, true).err().unwrap();
            assert!(error.to_string().contains(&format!("id {id}")), "{error}");
            assert_eq!(error.obstacle(), Obstacle::ForeignProgram);
            let survey = xdp::survey(&two, SECOND).unwrap();
            assert_eq!(survey.program, None, "a start that fails leaves nothing behind");
            assert!(fs::read_dir(lab.pin_path().join("links")).unwrap().next().is_none());
            let (mut plane, _) = start(&two, false).unwrap();
            let status = plane.status();
            assert!(status.is_active);
            let [second, first] = &status.interfaces[..] else { panic!("{status:?}") };
            assert!(first.error.contains(&format!("bpftool prog show id {id}")), "{}", first.error);
            assert_eq!((first.foreign_program_id, first.obstacle), (id, Some(Obstacle::ForeignProgram)));
            assert_eq!((second.error.as_str(), second.mode), ("", "native"));
            assert!(plane.keep_attached().is_err());
            foreign.detach(link).unwrap();
            // The kernel lets go of a link when it finds the time.
            let begun = Instant::now();
            while plane.keep_attached().is_err() {
                assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", plane.status());
            }
            assert_eq!(plane.status().interfaces[1].mode, "native");
            assert_eq!(plane.status().detail, "");
            plane.shutdown().unwrap();
            drop(plane);
            // And without interfaces nothing is left in force.
            let none = config::Xdp { interfaces: Vec::new(), required: false, ..config(lab) };
            let status = open(&none).unwrap().status();
            assert_eq!((status.is_active, status.obstacle), (false, Some(Obstacle::Off)));
            assert!(!lab.pin_path().join("links").exists());
        }
    });
}

#[test]
fn modes_are_what_was_asked_for_and_can_be_changed() {
    lab::run(|lab| {
        let mode = |mode| config::Xdp { mode, ..config(lab) };
        for (wanted, obtained, is_adopted) in [
            (XdpMode::Generic, "generic", false),
            (XdpMode::Auto, "generic", true),
            (XdpMode::Native, "native", false),
            (XdpMode::Auto, "native", true),
            (XdpMode::Generic, "generic", false),
        ] {
            let status = start(&mode(wanted), true).unwrap().0.status();
            assert_eq!(
                (status.interfaces[0].mode, status.interfaces[0].is_adopted),
                (obtained, is_adopted),
                "{wanted:?}"
            );
            assert!(!arrives(lab, 0), "{wanted:?}");
        }
        let none = config::Xdp { interfaces: Vec::new(), required: false, ..config(lab) };
        drop(open(&none).unwrap());
        assert!(arrives(lab, 0));
        // The loopback has no native XDP.
        let lo = |mode| config::Xdp { interfaces: vec!["lo".to_owned()], mode, ..config(lab) };
        let error = start(&lo(XdpMode::Native), true).err().unwrap();
        assert!(error.to_string().contains("no native mode on lo"), "{error}");
        assert_eq!(error.obstacle(), Obstacle::NoNative);
        let only = config::Xdp { require_native: true, required: false, ..lo(XdpMode::Auto) };
        let status = start(&only, true).unwrap().0.status();
        assert_eq!((status.is_active, status.interfaces[0].obstacle), (false, Some(Obstacle::NoNative)));
        assert!(start(&config::Xdp { required: true, ..only }, true).is_err());
        let (plane, _) = start(&lo(XdpMode::Auto), false).unwrap();
        let status = plane.status();
        let interface = &status.interfaces[0];
        assert_eq!((interface.mode, status.detail.as_str()), ("generic", ""));
        assert!(interface.note.contains("no native mode on lo"), "{interface}");
        drop(plane);
        // A mode that cannot be had does not cost the one that is there.
        let error = start(&lo(XdpMode::Native), true).err().unwrap();
        assert!(error.to_string().contains("no native mode on lo"), "{error}");
        let survey = xdp::survey(&lo(XdpMode::Auto), "lo").unwrap();
        assert!(matches!(survey.program, Some((_, "generic", Some(true)))), "{survey:?}");
    });
}

/// A program that takes frames of several buffers is taken by drivers that split large ones; this one's driver does.
#[test]
fn a_large_mtu_costs_no_more_than_it_must() {
    lab::run(|lab| {
        lab.set_mtu(9000);
        let takes_frags = xdp::PROGRAM.windows(9).any(|window| window == b"xdp.frags");
        let native = config::Xdp { mode: XdpMode::Native, ..config(lab) };
        if takes_frags {
            let status = start(&native, true).unwrap().0.status();
            assert_eq!((status.interfaces[0].mode, status.interfaces[0].mtu), ("native", 9000));
        } else {
            let error = start(&native, true).err().unwrap();
            assert_eq!(error.obstacle(), Obstacle::MtuTooLarge);
            assert!(error.to_string().contains("mtu 9000") && error.to_string().contains("<= 3498"), "{error}");
            let status = start(&config(lab), true).unwrap().0.status();
            let interface = &status.interfaces[0];
            assert_eq!((interface.mode, interface.obstacle), ("generic", Some(Obstacle::MtuTooLarge)));
            assert!(interface.note.contains("lower it to <= 3498"), "{interface}");
        }
        assert!(!arrives(lab, 0));
    });
}

#[test]
fn an_interface_that_comes_back_gets_its_program_back() {
    lab::run(|lab| {
        let (mut plane, _tables) = start(&config(lab), true).unwrap();
        lab.edge(&format!("link delete {INTERFACE}"));
        let status = plane.status();
        assert!(!status.is_active && !status.interfaces[0].error.is_empty(), "{status:?}");
        assert_eq!(status.interfaces[0].obstacle, Some(Obstacle::NoInterface));
        let error = plane.keep_attached().unwrap_err();
        assert!(error.to_string().ends_with(&format!("interface {INTERFACE} does not exist")), "{error}");
        // A generation that comes meanwhile is no less in force.
        let _tables = next(&mut *plane, true).unwrap();
        lab.add_pair(INTERFACE);
        let back = Instant::now();
        // As the daemon does, once a second.
        while plane.keep_attached().unwrap().attached == 0 {
            pause(Duration::from_secs(1));
        }
        println!("attached {:?} after the interface came back", back.elapsed());
        assert!(back.elapsed() < Duration::from_secs(2));
        assert!(!arrives(lab, 0));
        assert_eq!(plane.status().detail, "");
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(plane.keep_attached().unwrap(), xdp::Repairs::default());
        }
        println!("nothing to do: {:?}", begun.elapsed() / 100);
        let begun = Instant::now();
        plane.settle().unwrap();
        println!("settled after {:?}", begun.elapsed());
        // The same while no daemon runs.
        drop(plane);
        lab.edge(&format!("link delete {INTERFACE}"));
        lab.add_pair(INTERFACE);
        let (plane, _) = start(&config(lab), true).unwrap();
        assert!(!plane.status().interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        // Renamed: the link goes along with the new name.
        lab.edge(&format!("link set {INTERFACE} name wan0.5"));
        drop(plane);
        let renamed = config::Xdp { interfaces: vec!["wan0.5".to_owned()], ..config(lab) };
        let (plane, _) = start(&renamed, true).unwrap();
        assert!(plane.status().interfaces[0].is_adopted, "{:?}", plane.status());
        let pins: Vec<_> =
            fs::read_dir(lab.pin_path().join("links")).unwrap().map(|pin| pin.unwrap().file_name()).collect();
        assert_eq!(pins, ["wan0%2E5"]);
    });
}

#[test]
fn names_that_are_exchanged_keep_their_programs() {
    lab::run(|lab| {
        lab.add_second();
        let two = config::Xdp { interfaces: vec![INTERFACE.to_owned(), SECOND.to_owned()], ..config(lab) };
        let (plane, _) = start(&two, true).unwrap();
        drop(plane);
        for names in [[INTERFACE, "other0"], [SECOND, INTERFACE], ["other0", SECOND]] {
            lab.edge(&format!("link set {} name {}", names[0], names[1]));
        }
        let (plane, _) = start(&two, true).unwrap();
        assert!(plane.status().interfaces.iter().all(|interface| interface.is_adopted), "{:?}", plane.status());
        drop(plane);
        assert!(!arrives(lab, 0));
        let (plane, _) = start(&two, true).unwrap();
        assert!(plane.status().interfaces.iter().all(|interface| interface.is_adopted), "{:?}", plane.status());
    });
}

#[test]
fn pins_that_were_removed_are_made_again() {
    lab::run(|lab| {
        let (mut plane, _tables) = start(&config(lab), true).unwrap();
        assert_eq!(plane.keep_attached().unwrap(), xdp::Repairs::default(), "nothing to do");
        fs::remove_file(lab.pin_path().join("maps/COUNTERS")).unwrap();
        fs::remove_dir_all(lab.pin_path().join("links")).unwrap();
        let repairs = plane.keep_attached().unwrap();
        assert_eq!((repairs.repinned, repairs.attached), (1, 0));
        assert!(!arrives(lab, 0));
        let dropped = packets(&plane.status(), "blocked_prefix");
        drop(plane);
        assert!(!arrives(lab, 0), "the pins are back");
        let status = start(&config(lab), true).unwrap().0.status();
        assert!(status.interfaces[0].is_adopted && packets(&status, "blocked_prefix") > dropped, "{status:?}");
    });
}

#[test]
fn a_clean_stop_keeps_or_removes() {
    lab::run(|lab| {
        let (mut plane, _) = start(&config(lab), true).unwrap();
        plane.shutdown().unwrap();
        drop(plane);
        assert!(!arrives(lab, 0));
        let (mut plane, _) = start(&config::Xdp { on_exit: OnExit::Detach, ..config(lab) }, true).unwrap();
        plane.shutdown().unwrap();
        assert!(arrives(lab, 0), "detached when shutdown returns");
        drop(plane);
        assert!(fs::read_dir(lab.pin_path()).unwrap().next().is_none());
    });
}

/// What keeps the plane away is found out, named and, where it is not required, lived with.
#[test]
fn without_rights_or_file_system_user_space_goes_on_alone() {
    lab::run(|lab| {
        let elsewhere = config::Xdp { pin_path: "/proc/mc-proxy".into(), ..config(lab) };
        let error = open(&elsewhere).err().unwrap();
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
        assert_eq!(error.obstacle(), Obstacle::FileSystem);
        let (plane, tables) = start(&config::Xdp { required: false, ..elsewhere }, true).unwrap();
        let status = plane.status();
        assert!(!status.is_active && status.detail.contains("mount -t bpf bpf"), "{status:?}");
        assert_eq!((status.obstacle, status.generation), (Some(Obstacle::FileSystem), 1));
        assert_eq!(tables.sizes(), SIZES);
        assert!(plane.events().is_none());
        assert!(plane.test_run(&frame()).unwrap_err().to_string().contains("mount -t bpf bpf"));

        // Capabilities are a thread's own.
        use rustix::thread::{CapabilitySet, CapabilitySets};
        let (config, optional) = (config(lab), config::Xdp { required: false, ..config(lab) });
        let all = rustix::thread::capabilities(None).unwrap();
        let (bpf, admin, perfmon) = (CapabilitySet::BPF, CapabilitySet::NET_ADMIN, CapabilitySet::PERFMON);
        for (effective, missing) in [
            (CapabilitySet::empty(), Some("lacks CAP_BPF and CAP_NET_ADMIN")),
            (bpf | perfmon, Some("lacks CAP_NET_ADMIN")),
            (admin | perfmon, Some("lacks CAP_BPF")),
            (bpf | admin | CapabilitySet::DAC_OVERRIDE, None),
        ] {
            rustix::thread::set_capabilities(None, CapabilitySets { effective, ..all }).unwrap();
            match missing {
                Some(missing) => {
                    let error = open(&config).err().unwrap();
                    assert!(error.is_privilege() && error.to_string().contains(missing), "{error}");
                    let status = open(&optional).unwrap().status();
                    assert_eq!((status.is_active, status.obstacle), (false, Some(Obstacle::Privilege)));
                }
                None => assert!(start(&config, true).unwrap().0.status().is_active),
            }
        }
        rustix::thread::set_capabilities(None, all).unwrap();
    });
}

/// As the systemd unit runs it: a user of its own, a directory of its own, two capabilities.
#[test]
fn two_capabilities_and_an_own_directory_are_enough() {
    lab::run(|lab| {
        fs::set_permissions(lab.bpffs(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(lab.pin_path()).unwrap();
        std::os::unix::fs::chown(lab.pin_path(), Some(65534), Some(65534)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_nobody();
                let foreign_directory = config::Xdp { pin_path: lab.bpffs().join("not-ours"), ..config(lab) };
                let error = open(&foreign_directory).err().unwrap();
                assert!(error.is_privilege() && error.to_string().contains("install -d -o 65534"), "{error}");
                drop(start(&config(lab), true).unwrap());
                let detach = config::Xdp { on_exit: OnExit::Detach, ..config(lab) };
                let (mut plane, _) = start(&detach, true).unwrap();
                let status = plane.status();
                assert!(status.interfaces[0].is_adopted && status.detail.is_empty(), "{status:?}");
                assert_eq!(plane.test_run(&frame()).unwrap().action, XDP_DROP);
                next(&mut *plane, false).unwrap();
                assert_eq!(plane.test_run(&frame()).unwrap().action, XDP_PASS);
                let mut events = plane.events().unwrap().subscribe();
                next(&mut *plane, true).unwrap();
                plane.keep_attached().unwrap();
                plane.test_run(&frame()).unwrap();
                plane.shutdown().unwrap();
                while events.try_recv().is_err() {
                    std::thread::yield_now();
                }
            });
            thread.join().unwrap();
        });
    });
}

#[test]
fn drops_are_told_to_who_listens_and_to_nobody_else() {
    lab::run(|lab| {
        let (mut plane, _tables) = start(&config(lab), true).unwrap();
        let events = plane.events().unwrap();
        let (sender, _receiver, to) = lab.sockets(0, PORT);
        for _ in 0..100 {
            sender.send_to(b"unheard", to).unwrap();
        }
        assert!(events.received() == 0);
        let mut receiver = events.subscribe();
        let mut violations = events.subscribe_violations();
        // The budget takes a moment to be there.
        let begun = Instant::now();
        let first = loop {
            sender.send_to(b"heard", to).unwrap();
            pause(Duration::from_millis(1));
            match receiver.try_recv() {
                Ok(event) => break event,
                Err(_) => assert!(begun.elapsed() < Duration::from_secs(5), "no event"),
            }
        };
        println!("the first event came after {:?}", begun.elapsed());
        assert_eq!(first.source, OUTSIDE[0].parse::<IpAddr>().unwrap());
        assert_eq!((&*first.interface, first.reason, first.group), (INTERFACE, Reason::BlockedPrefix, GROUP.into()));
        assert!(first.at.elapsed().unwrap() < Duration::from_secs(5) && first.at <= SystemTime::now());
        // The next generation tells through the same ring.
        let _tables = next(&mut *plane, true).unwrap();
        // A flood is a sample: at most what the budgets of the epochs allow.
        let (begun, before) = (Instant::now(), events.received());
        let mut sent = 0;
        while begun.elapsed() < Duration::from_millis(500) {
            sender.send_to(b"flood", to).unwrap();
            sent += 1;
        }
        let told = events.received() - before;
        println!("{told} of {sent} drops were told in {:?}", begun.elapsed());
        assert!((50..=1000).contains(&told), "{told} of {sent}");
        assert!(violations.try_recv().is_err(), "no rate limit is set");
        assert_eq!(events.malformed(), 0);
        drop((receiver, violations));
        pause(Duration::from_millis(300));
        let before = events.received();
        for _ in 0..1000 {
            sender.send_to(b"unheard", to).unwrap();
        }
        pause(Duration::from_millis(300));
        assert_eq!(events.received(), before);
    });
}

/// A generation for a million addresses, made and given up.
#[test]
fn large_generations_are_made_and_given_back() {
    lab::run(|lab| {
        let (mut plane, _tables) = start(&config(lab), true).unwrap();
        let small = plane.status().map_bytes;
        let large = Sizes { nodes: 65_536, lines4: 262_144, lines6: 262_144, lines_long6: 262_144, clauses: 65_536 };
        let begun = Instant::now();
        let tables = plane.prepare(&large).unwrap();
        println!("{} MB of tables were made in {:?}", large.bytes() >> 20, begun.elapsed());
        assert_eq!(tables.sizes(), large);
        block(&tables, true);
        plane.commit().unwrap();
        assert!(plane.status().map_bytes > small + (100 << 20));
        assert!(!arrives(lab, 0));
        drop(tables);
        next(&mut *plane, true).unwrap();
        assert_eq!(plane.status().map_bytes, small);
        // More than there is memory for: what is in force stays.
        let absurd = Sizes { lines4: 1 << 31, ..large };
        let error = plane.prepare(&absurd).expect_err("no such memory");
        println!("{}", error.chain());
        assert!(!arrives(lab, 0));
        assert!(plane.commit().is_err(), "nothing is prepared");
    });
}

/// An Ethernet frame with an IPv4 datagram from outside.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    for addr in [OUTSIDE[0], EDGE[0]] {
        frame.extend(addr.parse::<Ipv4Addr>().unwrap().octets());
    }
    frame.extend([0x30, 0x39, 0x11, 0x51, 0, 8, 0, 0]);
    frame.resize(60, 0);
    frame
}

#[expect(clippy::disallowed_methods, reason = "what is waited for is time itself")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn wait_for(receiver: &UdpSocket) -> Option<usize> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match receiver.recv(&mut [0; 16]) {
            Ok(bytes) => return Some(bytes),
            Err(_) if Instant::now() < deadline => std::thread::yield_now(),
            Err(_) => return None,
        }
    }
}

/// Puts a smaller map where an earlier version might have left one.
fn make_maps_foreign(lab: &Lab) {
    let path = lab.pin_path().join("maps/COUNTERS");
    fs::remove_file(&path).unwrap();
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.map_max_entries("COUNTERS", 16).load(xdp::PROGRAM).unwrap();
    let Some(aya::maps::Map::PerCpuArray(map)) = ebpf.take_map("COUNTERS") else { panic!("no map") };
    MapData::pin(&map, &path).unwrap();
}
