//! The maps, and how they answer for the verdict.

use core::net::IpAddr;

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_ktime_get_boot_ns, bpf_xdp_get_buff_len},
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::XdpContext,
};
use mc_proxy_common::{
    maps::{
        ADDRESSES_MAX, ALLOWED_MAX, Address4, Address6, COUNTERS_MAX, Counter, PORT_WORDS, PREFIXES_MAX, Prefix4,
        Prefix6, RuleValue, Scope, Settings, port_bit,
    },
    reason::Reason,
    verdict::Lookup,
};

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);
#[map]
static ALLOW4: LpmTrie<[u8; 4], RuleValue> = LpmTrie::with_max_entries(ALLOWED_MAX, BPF_F_NO_PREALLOC);
#[map]
static ALLOW6: LpmTrie<[u8; 16], RuleValue> = LpmTrie::with_max_entries(ALLOWED_MAX, BPF_F_NO_PREALLOC);
#[map]
static BLOCK4: HashMap<Address4, RuleValue> = HashMap::with_max_entries(ADDRESSES_MAX, BPF_F_NO_PREALLOC);
#[map]
static BLOCK6: HashMap<Address6, RuleValue> = HashMap::with_max_entries(ADDRESSES_MAX, BPF_F_NO_PREALLOC);
#[map]
static NET4: LpmTrie<[u8; 4], RuleValue> = LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);
#[map]
static NET6: LpmTrie<[u8; 16], RuleValue> = LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);

/// Whether the kernel has `bpf_xdp_get_buff_len` (Linux 5.18); set by the daemon before the program is loaded, so that the
/// verifier never sees a call that the kernel lacks. Frames cannot be measured in another way without `CAP_PERFMON`.
#[unsafe(no_mangle)]
static MEASURES_FRAMES: Global<u8> = Global::new(0);

// The daemon writes these keys as `Prefix4` and `Prefix6`.
const _: () = assert!(size_of::<Key<[u8; 4]>>() == size_of::<Prefix4>());
const _: () = assert!(size_of::<Key<[u8; 16]>>() == size_of::<Prefix6>());

/// The scope that the daemon has set, unless the maps belong to another version.
#[inline(always)]
pub(crate) fn scope() -> Option<Scope> {
    SETTINGS.get(0)?.scope()
}

/// Counts a frame.
#[inline(always)]
pub(crate) fn count(reason: Reason, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason.index()) {
        // SAFETY: the element is this CPU's own, XDP programs do not interrupt each other on a CPU, and map values live
        // as long as the program.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}

/// Bytes of the frame, or 0 where the kernel does not tell.
#[inline(always)]
pub(crate) fn frame_bytes(ctx: &XdpContext) -> u64 {
    if MEASURES_FRAMES.load() == 0 {
        return 0;
    }
    // SAFETY: the context is the one that the kernel passed to the program.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}

/// The rule maps.
pub(crate) struct KernelMaps;

impl Lookup for KernelMaps {
    #[inline(always)]
    fn allowed(&self, source: IpAddr) -> Option<RuleValue> {
        match source {
            IpAddr::V4(addr) => ALLOW4.get(&Key::new(32, addr.octets())).copied(),
            IpAddr::V6(addr) => ALLOW6.get(&Key::new(128, addr.octets())).copied(),
        }
    }

    #[inline(always)]
    fn blocked_address(&self, source: IpAddr) -> Option<RuleValue> {
        // SAFETY: a value that is replaced or removed meanwhile stays readable until the program ends (RCU). The daemon
        // replaces elements whole, and a torn read could at worst mix two values of the same rule.
        unsafe {
            match source {
                IpAddr::V4(addr) => BLOCK4.get(Address4::from(addr)).copied(),
                IpAddr::V6(addr) => BLOCK6.get(Address6::from(addr)).copied(),
            }
        }
    }

    #[inline(always)]
    fn blocked_prefix(&self, source: IpAddr) -> Option<RuleValue> {
        match source {
            IpAddr::V4(addr) => NET4.get(&Key::new(32, addr.octets())).copied(),
            IpAddr::V6(addr) => NET6.get(&Key::new(128, addr.octets())).copied(),
        }
    }

    #[inline(always)]
    fn is_listener_port(&self, port: u16) -> bool {
        let (word, bit) = port_bit(port);
        PORTS.get(word).is_some_and(|bits| bits & bit != 0)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}
