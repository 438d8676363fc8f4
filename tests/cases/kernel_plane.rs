//! The kernel plane on real interfaces: taken over, replaced, repaired, shared with others, filled to the brim.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "kernel_support/mod.rs"]
mod kernel_support;
#[path = "kernel_support/lab.rs"]
mod lab;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    maps::MapData,
    programs::{Xdp, XdpMode as AyaMode},
};
use mc_proxy::{
    config::{self, OnExit, Scope, XdpMode},
    firewall::{Action, Rule, RuleSet},
    xdp::{self, Change, Dataplane, PlaneError, PlaneStatus},
};
use mc_proxy_common::{
    maps::{ADDRESSES_MAX, Address4, BLOCK4, MAPS, RuleValue},
    user::{self, MapInfo, Table, TableError},
};

use crate::kernel_support::become_nobody;
use crate::lab::{INTERFACE, Lab, OUTSIDE, SECOND};

const PORT: u16 = 4433;

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

fn open(config: &config::Xdp, rules: &RuleSet) -> Result<Box<dyn Dataplane>, PlaneError> {
    xdp::open(config, &BTreeSet::from([PORT]), rules)
}

fn block(text: &str) -> Rule {
    Rule::permanent(Action::Block, text.parse().unwrap()).unwrap()
}

fn allow(text: &str) -> Rule {
    Rule::permanent(Action::Allow, text.parse().unwrap()).unwrap()
}

fn rules(rules: &[Rule]) -> RuleSet {
    rules.iter().copied().collect()
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
fn a_rule_is_in_force_when_apply_returns() {
    lab::run(|lab| {
        let mut plane = open(&config(lab), &RuleSet::default()).unwrap();
        let status = plane.status();
        assert!(status.is_active, "{status:?}");
        assert_eq!((status.detail.as_str(), status.interfaces[0].mode), ("", "native"));
        for family in [0, 1] {
            let (rule, mut set) = (block(OUTSIDE[family]), RuleSet::default());
            let (sender, receiver, to) = lab.sockets(family, PORT);
            receiver.set_nonblocking(true).unwrap();
            for _ in 0..100 {
                sender.send_to(b"before", to).unwrap();
                assert_eq!(wait_for(&receiver), Some(6));
                set.insert(rule);
                plane.apply(Change::Added(rule), &set).unwrap();
                for _ in 0..10 {
                    sender.send_to(b"after", to).unwrap();
                }
                assert!(receiver.recv(&mut [0; 16]).is_err(), "a packet of a blocked source arrived");
                set.remove(&rule);
                plane.apply(Change::Removed(rule), &set).unwrap();
            }
        }
        assert_eq!(packets(&plane.status(), "blocked_address"), 2000);
        assert_eq!(plane.status().rules, 0);
    });
}

#[test]
fn prefixes_allow_rules_and_scope() {
    lab::run(|lab| {
        let set = rules(&[block("192.0.2.0/24"), block("2001:db8:2::/64"), allow("192.0.2.2")]);
        let mut plane = open(&config(lab), &set).unwrap();
        assert_eq!(plane.status().rules, 3);
        assert!(arrives(lab, 0), "allow beats block");
        let set = rules(&[block("192.0.2.0/24"), block("2001:db8:2::/64")]);
        let repairs = plane.reconcile(&set).unwrap();
        assert_eq!((repairs.upserted, repairs.removed, repairs.reattached), (0, 1, 0));
        assert!(!arrives(lab, 0));
        assert!(packets(&plane.status(), "blocked_prefix") >= 1);
        drop(plane);
        // UDP is never for a listener.
        let plane = open(&config::Xdp { scope: Scope::Listeners, ..config(lab) }, &set).unwrap();
        assert!(arrives(lab, 0));
        assert!(packets(&plane.status(), "out_of_scope") >= 1);
    });
}

#[test]
fn a_block_holds_without_the_daemon_and_is_taken_over() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0])]);
        let plane = open(&config(lab), &set).unwrap();
        let first = plane.status();
        assert!(!first.interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        let dropped = packets(&plane.status(), "blocked_address");
        // What the kernel sees of kill -9: descriptors close, pins stay.
        drop(plane);
        assert!(!arrives(lab, 0), "the block ended with the daemon");
        let mut plane = open(&config(lab), &set).unwrap();
        let status = plane.status();
        assert!(status.interfaces[0].is_adopted, "{status:?}");
        assert_ne!(status.interfaces[0].program_id, first.interfaces[0].program_id, "the program is a new one");
        assert!(packets(&status, "blocked_address") > dropped, "counters go on over a restart");
        assert!(!arrives(lab, 0));
        plane.reconcile(&RuleSet::default()).unwrap();
        assert!(arrives(lab, 0));
    });
}

/// Both rule sets block the source, each by another entry; under a flood it is replaced many times.
#[test]
fn nothing_passes_while_programs_maps_and_rules_are_replaced() {
    lab::run(|lab| {
        let sets = [rules(&[block(OUTSIDE[0])]), rules(&[block("192.0.2.0/24")]), rules(&[block("0.0.0.0/0")])];
        let mut plane = open(&config(lab), &sets[0]).unwrap();
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
                let set = &sets[round % sets.len()];
                plane.reconcile(set).unwrap();
                drop(plane);
                if round % 4 == 3 {
                    make_maps_foreign(lab);
                }
                plane = open(&config(lab), set).unwrap();
                assert!(plane.status().interfaces[0].is_adopted);
            }
        });
        assert!(sent.load(Ordering::Relaxed) > 1000, "{sent:?}");
        assert!(receiver.recv(&mut [0; 16]).is_err(), "of {sent:?} packets some arrived");
        assert!(!lab.pin_path().join("maps-new").exists());
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
fn maps_of_another_shape_are_not_used() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0])]);
        drop(open(&config(lab), &set).unwrap());
        make_maps_foreign(lab);
        let plane = open(&config(lab), &set).unwrap();
        assert!(plane.status().interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        for shape in MAPS {
            let map = user::object(&lab.pin_path().join("maps").join(shape.name)).unwrap();
            assert!(MapInfo::of(map.as_fd()).unwrap().has_shape(&shape), "{}", shape.name);
        }
        drop(plane);
        // Of another version, though the shapes are the same.
        let settings = user::object(&lab.pin_path().join("maps/SETTINGS")).unwrap();
        Table::<u32, [u32; 2]>::new(settings.as_fd()).unwrap().upsert(&0, &[99, 1]).unwrap();
        let plane = open(&config(lab), &set).unwrap();
        assert!(plane.status().interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        let settings = user::object(&lab.pin_path().join("maps/SETTINGS")).unwrap();
        assert_eq!(Table::<u32, [u32; 2]>::new(settings.as_fd()).unwrap().lookup(&0).unwrap().unwrap()[0], 1);
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
                interfaces: vec![INTERFACE.to_owned(), SECOND.to_owned()],
                required: false,
                mode,
                ..config(lab)
            };
            let error = open(&config::Xdp { required: true, ..two.clone() }, &RuleSet::default()).err().unwrap();
            assert!(error.to_string().contains(&format!("id {id}")), "{error}");
            let mut plane = open(&two, &RuleSet::default()).unwrap();
            let status = plane.status();
            assert!(status.is_active);
            let [first, second] = &status.interfaces[..] else { panic!("{status:?}") };
            assert!(first.error.contains(&format!("bpftool prog show id {id}")), "{}", first.error);
            assert_eq!((second.error.as_str(), second.mode), ("", "native"));
            assert!(plane.reconcile(&RuleSet::default()).is_err());
            foreign.detach(link).unwrap();
            assert_eq!(plane.reconcile(&RuleSet::default()).unwrap().reattached, 1);
            assert_eq!(plane.status().detail, "");
            plane.shutdown().unwrap();
            drop(plane);
            // And without interfaces nothing is left in force.
            let none = config::Xdp { interfaces: Vec::new(), required: false, ..config(lab) };
            assert!(!open(&none, &RuleSet::default()).unwrap().status().is_active);
            assert!(!lab.pin_path().join("links").exists());
        }
    });
}

#[test]
fn modes_are_what_was_asked_for_and_can_be_changed() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0])]);
        let mode = |mode| config::Xdp { mode, ..config(lab) };
        for (wanted, obtained, is_adopted) in [
            (XdpMode::Generic, "generic", false),
            (XdpMode::Auto, "generic", true),
            (XdpMode::Native, "native", false),
            (XdpMode::Auto, "native", true),
            (XdpMode::Generic, "generic", false),
        ] {
            let status = open(&mode(wanted), &set).unwrap().status();
            assert_eq!(
                (status.interfaces[0].mode, status.interfaces[0].is_adopted),
                (obtained, is_adopted),
                "{wanted:?}"
            );
            assert!(!arrives(lab, 0), "{wanted:?}");
        }
        let none = config::Xdp { interfaces: Vec::new(), required: false, ..config(lab) };
        drop(open(&none, &set).unwrap());
        assert!(arrives(lab, 0));
        // The loopback has no native XDP.
        let lo = |mode| config::Xdp { interfaces: vec!["lo".to_owned()], mode, ..config(lab) };
        let error = open(&lo(XdpMode::Native), &set).err().unwrap();
        assert!(error.to_string().contains("native mode") && error.to_string().contains("generic"), "{error}");
        let plane = open(&lo(XdpMode::Auto), &set).unwrap();
        assert_eq!(plane.status().interfaces[0].mode, "generic");
    });
}

#[test]
fn an_interface_that_comes_back_gets_its_program_back() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0])]);
        let mut plane = open(&config(lab), &set).unwrap();
        lab.edge(&format!("link delete {INTERFACE}"));
        let status = plane.status();
        assert!(!status.is_active && !status.interfaces[0].error.is_empty(), "{status:?}");
        let error = plane.reconcile(&set).unwrap_err();
        assert_eq!(error.to_string(), format!("interface {INTERFACE} does not exist"));
        lab.add_pair(INTERFACE);
        assert!(arrives(lab, 0));
        assert_eq!(plane.reconcile(&set).unwrap().reattached, 1);
        assert!(!arrives(lab, 0));
        assert_eq!(plane.status().detail, "");
        // The same while no daemon runs.
        drop(plane);
        lab.edge(&format!("link delete {INTERFACE}"));
        lab.add_pair(INTERFACE);
        let mut plane = open(&config(lab), &set).unwrap();
        assert!(!plane.status().interfaces[0].is_adopted);
        assert!(!arrives(lab, 0));
        // Renamed: the link goes along with the new name.
        lab.edge(&format!("link set {INTERFACE} name wan0.5"));
        drop(plane);
        let renamed = config::Xdp { interfaces: vec!["wan0.5".to_owned()], ..config(lab) };
        plane = open(&renamed, &set).unwrap();
        assert!(plane.status().interfaces[0].is_adopted, "{:?}", plane.status());
        let pins: Vec<_> =
            fs::read_dir(lab.pin_path().join("links")).unwrap().map(|pin| pin.unwrap().file_name()).collect();
        assert_eq!(pins, ["wan0%2E5"]);
    });
}

#[test]
fn whatever_was_done_to_maps_and_pins_is_repaired() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0]), block("198.51.100.0/24"), block("2001:db8::1"), allow("203.0.113.0/24")]);
        let mut plane = open(&config(lab), &set).unwrap();
        assert_eq!(plane.reconcile(&set).unwrap(), xdp::Repairs::default(), "nothing to do");
        let blocked = user::object(&lab.pin_path().join("maps/BLOCK4")).unwrap();
        let table = Table::<Address4, RuleValue>::new(blocked.as_fd()).unwrap();
        assert!(table.remove(&"192.0.2.2".parse::<Ipv4Addr>().unwrap().into()).unwrap());
        table.upsert(&"192.0.2.77".parse::<Ipv4Addr>().unwrap().into(), &RuleValue::PERMANENT).unwrap();
        fs::remove_file(lab.pin_path().join("maps/NET6")).unwrap();
        fs::remove_dir_all(lab.pin_path().join("links")).unwrap();
        assert!(arrives(lab, 0));
        let repairs = plane.reconcile(&set).unwrap();
        assert_eq!((repairs.upserted, repairs.removed, repairs.reattached), (1, 1, 0));
        assert!(!arrives(lab, 0));
        drop(plane);
        assert!(!arrives(lab, 0), "the pins are back");
        assert!(open(&config(lab), &set).unwrap().status().interfaces[0].is_adopted);
    });
}

#[test]
fn a_clean_stop_keeps_or_removes() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0])]);
        let mut plane = open(&config(lab), &set).unwrap();
        plane.shutdown().unwrap();
        drop(plane);
        assert!(!arrives(lab, 0));
        let mut plane = open(&config::Xdp { on_exit: OnExit::Detach, ..config(lab) }, &set).unwrap();
        plane.shutdown().unwrap();
        assert!(arrives(lab, 0), "detached when shutdown returns");
        drop(plane);
        assert!(fs::read_dir(lab.pin_path()).unwrap().next().is_none());
    });
}

#[test]
fn without_rights_or_file_system_user_space_goes_on_alone() {
    lab::run(|lab| {
        let set = rules(&[block(OUTSIDE[0])]);
        let elsewhere = config::Xdp { pin_path: "/proc/mc-proxy".into(), ..config(lab) };
        let error = open(&elsewhere, &set).err().unwrap();
        assert!(error.to_string().contains("mount -t bpf bpf") && !error.is_privilege(), "{error}");
        let status = open(&config::Xdp { required: false, ..elsewhere }, &set).unwrap().status();
        assert!(!status.is_active && status.detail.contains("mount -t bpf bpf"), "{status:?}");

        // Capabilities are a thread's own.
        let (config, optional) = (config(lab), config::Xdp { required: false, ..config(lab) });
        let none = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            ..rustix::thread::capabilities(None).unwrap()
        };
        rustix::thread::set_capabilities(None, none).unwrap();
        let error = open(&config, &set).err().unwrap();
        assert!(error.is_privilege() && error.to_string().contains("lacks CAP_BPF and CAP_NET_ADMIN"), "{error}");
        assert!(!open(&optional, &set).unwrap().status().is_active);
        rustix::thread::set_capabilities(None, rustix::thread::CapabilitySets { effective: none.permitted, ..none })
            .unwrap();
        assert!(open(&config, &set).unwrap().status().is_active);
    });
}

/// As the systemd unit runs it: a user of its own, a directory of its own, two capabilities.
#[test]
fn two_capabilities_and_an_own_directory_are_enough() {
    lab::run(|lab| {
        fs::set_permissions(lab.bpffs(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(lab.pin_path()).unwrap();
        std::os::unix::fs::chown(lab.pin_path(), Some(65534), Some(65534)).unwrap();
        let set = rules(&[block(OUTSIDE[0])]);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_nobody();
                let foreign_directory = config::Xdp { pin_path: lab.bpffs().join("not-ours"), ..config(lab) };
                let error = open(&foreign_directory, &set).err().unwrap();
                assert!(error.is_privilege() && error.to_string().contains("install -d -o 65534"), "{error}");
                drop(open(&config(lab), &set).unwrap());
                let mut plane = open(&config::Xdp { on_exit: OnExit::Detach, ..config(lab) }, &set).unwrap();
                let status = plane.status();
                assert!(status.interfaces[0].is_adopted && status.detail.is_empty(), "{status:?}");
                plane.reconcile(&set).unwrap();
                plane.apply(Change::Added(block("192.0.2.3")), &set).unwrap();
                assert_eq!(plane.status().rules, 2);
                plane.shutdown().unwrap();
            });
            thread.join().unwrap();
        });
    });
}

/// A million entries, the map full, a batch that ends early.
#[test]
fn a_million_addresses() {
    lab::run(|lab| {
        let mut plane = open(&config(lab), &rules(&[block(OUTSIDE[0])])).unwrap();
        let map = user::object(&lab.pin_path().join("maps/BLOCK4")).unwrap();
        let table = Table::<Address4, RuleValue>::new(map.as_fd()).unwrap();
        let keys: Vec<Address4> = (0..ADDRESSES_MAX).map(|low| Ipv4Addr::from_bits(0x0b00_0000 + low).into()).collect();
        let values = vec![RuleValue::PERMANENT; keys.len()];
        let started = Instant::now();
        table.upsert_all(&keys[1..], &values[1..]).unwrap();
        let filled = started.elapsed();
        let error = table.upsert_all(&keys[..1], &values[..1]).unwrap_err();
        assert!(matches!(error, TableError::Full { max_entries: ADDRESSES_MAX, .. }), "{error:?}");
        let rule = block("198.51.100.1");
        let error = plane.apply(Change::Added(rule), &rules(&[rule])).unwrap_err();
        assert!(error.to_string().contains("blocked IPv4 addresses is full: it holds 1048576"), "{error}");
        // Adding again what is there needs no room.
        plane.apply(Change::Added(block(OUTSIDE[0])), &rules(&[rule])).unwrap();

        let started = Instant::now();
        assert_eq!(table.entries().unwrap().len(), ADDRESSES_MAX as usize);
        let read = started.elapsed();
        // Every third is missing, so every batch ends early.
        for key in keys[1..30_000].iter().step_by(3) {
            assert!(table.remove(key).unwrap());
        }
        let started = Instant::now();
        table.remove_all(&keys).unwrap();
        let removed = started.elapsed();
        assert_eq!(table.entries().unwrap().len(), 1);
        println!("a million addresses: filled in {filled:?}, read in {read:?}, removed in {removed:?}");
        for time in [filled, read, removed] {
            assert!(time < Duration::from_secs(30), "{time:?}");
        }
    });
}

#[test]
fn tables_of_the_wrong_shape_are_refused() {
    lab::run(|lab| {
        drop(open(&config(lab), &RuleSet::default()).unwrap());
        let open_map = |name| user::object(&lab.pin_path().join("maps").join(name)).unwrap();
        let blocked = open_map(BLOCK4.name);
        assert!(Table::<Address4, u64>::new(blocked.as_fd()).is_err());
        assert!(Table::<u64, RuleValue>::new(blocked.as_fd()).is_err());
        let counters = open_map("COUNTERS");
        assert!(Table::<u32, [u64; 2]>::new(counters.as_fd()).is_err(), "per-CPU values are longer than they say");
    });
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
    let path = lab.pin_path().join("maps/BLOCK4");
    fs::remove_file(&path).unwrap();
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.map_max_entries(BLOCK4.name, 16).load(xdp::PROGRAM).unwrap();
    let Some(aya::maps::Map::HashMap(map)) = ebpf.take_map(BLOCK4.name) else { panic!("no map") };
    MapData::pin(&map, &path).unwrap();
}
