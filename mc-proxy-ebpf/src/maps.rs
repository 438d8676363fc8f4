//! The maps, and how they answer for the verdict.
//!
//! The daemon sizes the tables when it loads the program, and maps them into its memory: there is no other way in which
//! they are written.

use core::{cell::Cell, sync::atomic::AtomicU64};

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_ktime_get_boot_ns, bpf_map_lookup_elem, bpf_xdp_get_buff_len},
    macros::map,
    maps::Array,
    programs::XdpContext,
};
use mc_proxy_common::{
    atomic,
    maps::{PORT_FLAG_WORDS, PortFlags, RATE_LINES, Scope},
    rate::{self, Admission, RateLimit},
    source::Source,
    table::{self, ClauseWords, Geometry, Line, NODE_WORDS, TREE_WORDS, Tables},
    verdict::{self, Host},
};

use crate::report;

#[map]
static TREE4: Array<u64> = Array::with_max_entries(TREE_WORDS, BPF_F_MMAPABLE);
#[map]
static TREE6: Array<u64> = Array::with_max_entries(TREE_WORDS, BPF_F_MMAPABLE);
#[map]
static NODES: Array<u64> = Array::with_max_entries(NODE_WORDS, BPF_F_MMAPABLE);
#[map]
static LINES4: Array<[u64; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LINES6: Array<[u64; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LONG6: Array<[u64; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static CLAUSES: Array<[u64; 2]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_FLAG_WORDS, BPF_F_MMAPABLE);
#[map]
static RATES: Array<[u64; 8]> = Array::with_max_entries(RATE_LINES, 0);

// Set by the daemon before the program is loaded: to the verifier they are constants.
#[unsafe(no_mangle)]
static SCOPE: Global<u32> = Global::new(Scope::Listeners as u32);
#[unsafe(no_mangle)]
static MASK4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MASK6: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MASK_LONG6: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SEED: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static RATE_INTERVAL: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static RATE_WINDOW: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static RATE_PREFIX_V4: Global<u8> = Global::new(32);
#[unsafe(no_mangle)]
static RATE_PREFIX_V6: Global<u8> = Global::new(64);
/// Whether the kernel has `bpf_xdp_get_buff_len` (Linux 5.18), so that the verifier never sees a call that the kernel
/// lacks. Frames cannot be measured in another way without `CAP_PERFMON`.
#[unsafe(no_mangle)]
static MEASURES_FRAMES: Global<u8> = Global::new(0);

// Functions of their own: nothing of the packet lives on their stacks, where without `CAP_PERFMON` a pointer that was
// spilled must not be overwritten in part. Their names are fixed, because mangled ones depend on where the sources are.

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn mc_proxy_find4(host: &KernelHost<'_, true>, addr: u32) -> u32 {
    table::find4(host, addr)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn mc_proxy_find6(host: &KernelHost<'_, true>, high: u64, low: u64) -> u32 {
    table::find6(host, Source { high, low })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn mc_proxy_decide(host: &KernelHost<'_, true>, chain: u32, packet: u32) -> u64 {
    verdict::decide(host, chain, packet)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn mc_proxy_admit(host: &KernelHost<'_, true>, high: u64, low: u64) -> bool {
    spend(host, Source { high, low })
}

#[inline(always)]
fn spend<const GUARDED: bool>(host: &KernelHost<'_, GUARDED>, source: Source) -> bool {
    let limit = RateLimit {
        interval: RATE_INTERVAL.load(),
        window: RATE_WINDOW.load(),
        prefix_v4: RATE_PREFIX_V4.load(),
        prefix_v6: RATE_PREFIX_V6.load(),
    };
    let key = limit.key(source);
    match host.shared(&RATES, rate::home(key, SEED.load()) & (RATE_LINES - 1)) {
        Some(line) => rate::spend(&limit, line, key, host.now()) != Admission::Limited,
        None => true,
    }
}

/// The maps, for one run of the program.
pub(crate) struct KernelHost<'ctx, const GUARDED: bool> {
    ctx: &'ctx XdpContext,
    key: Key,
}

/// The key of every look-up. Without `CAP_PERFMON` a write to the stack costs a speculation barrier, unless the verifier
/// takes what was there for arbitrary bytes; so it does from the second write on to the upper half of eight bytes.
#[repr(C, align(8))]
struct Key {
    _lower: u32,
    index: Cell<u32>,
}

impl<'ctx, const GUARDED: bool> KernelHost<'ctx, GUARDED> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'ctx XdpContext) -> Self {
        Self { ctx, key: Key { _lower: 0, index: Cell::new(0) } }
    }

    /// Bytes of the frame, or 0 where the kernel does not tell.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> u64 {
        if MEASURES_FRAMES.load() == 0 {
            return 0;
        }
        // SAFETY: the context is the one that the kernel passed to the program.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) }
    }

    /// The same; called where `GUARDED` is `true` only.
    #[inline(always)]
    fn guarded(&self) -> &KernelHost<'ctx, true> {
        const { assert!(size_of::<Self>() == size_of::<KernelHost<'ctx, true>>()) }
        // SAFETY: the parameter is in no field: both are one type in memory, and here even by name.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// An element of a map.
    #[inline(always)]
    pub(crate) fn element<M, A>(&self, map: &'static M, index: u32) -> *mut A {
        self.key.index.set(index);
        // SAFETY: `M` is one of aya's maps with keys of 32 bits, whose address is what the loader replaces by the map.
        let element =
            unsafe { bpf_map_lookup_elem(core::ptr::from_ref(map).cast_mut().cast(), self.key.index.as_ptr().cast()) };
        element.cast()
    }

    /// An element of a table as atomics.
    #[inline(always)]
    fn shared<T, A>(&self, map: &'static Array<T>, index: u32) -> Option<&'static A> {
        const { assert!(size_of::<T>() == size_of::<A>() && align_of::<T>() == align_of::<A>()) }
        // SAFETY: map values live as long as the program and are never moved; `A` is `T` with atomics for integers, and
        // nobody in the program refers to the element in another way.
        unsafe { self.element::<_, A>(map, index).as_ref() }
    }
}

impl<const GUARDED: bool> Tables for KernelHost<'_, GUARDED> {
    #[inline(always)]
    fn tree4(&self, index: u32) -> Option<&AtomicU64> {
        self.shared(&TREE4, index)
    }

    #[inline(always)]
    fn tree6(&self, index: u32) -> Option<&AtomicU64> {
        self.shared(&TREE6, index)
    }

    #[inline(always)]
    fn node(&self, index: u32) -> Option<&AtomicU64> {
        self.shared(&NODES, index)
    }

    #[inline(always)]
    fn line4(&self, index: u32) -> Option<&Line> {
        self.shared(&LINES4, index)
    }

    #[inline(always)]
    fn line6(&self, index: u32) -> Option<&Line> {
        self.shared(&LINES6, index)
    }

    #[inline(always)]
    fn line_long6(&self, index: u32) -> Option<&Line> {
        self.shared(&LONG6, index)
    }

    #[inline(always)]
    fn clause(&self, id: u32) -> Option<&ClauseWords> {
        self.shared(&CLAUSES, id)
    }

    #[inline(always)]
    fn geometry(&self) -> Geometry {
        Geometry { mask4: MASK4.load(), mask6: MASK6.load(), mask_long6: MASK_LONG6.load(), seed: SEED.load() }
    }
}

impl<const GUARDED: bool> Host for KernelHost<'_, GUARDED> {
    const IS_GUARDED: bool = GUARDED;

    #[inline(always)]
    fn find4(&self, addr: u32) -> u32 {
        if GUARDED { mc_proxy_find4(self.guarded(), addr) } else { table::find4(self, addr) }
    }

    #[inline(always)]
    fn find6(&self, source: Source) -> u32 {
        if GUARDED { mc_proxy_find6(self.guarded(), source.high, source.low) } else { table::find6(self, source) }
    }

    #[inline(always)]
    fn decide(&self, chain: u32, packet: u32) -> u64 {
        if GUARDED { mc_proxy_decide(self.guarded(), chain, packet) } else { verdict::decide(self, chain, packet) }
    }

    #[inline(always)]
    fn scope(&self) -> Scope {
        if SCOPE.load() == Scope::Host as u32 { Scope::Host } else { Scope::Listeners }
    }

    #[inline(always)]
    fn port(&self, port: u16) -> PortFlags {
        match self.shared::<_, AtomicU64>(&PORTS, u32::from(port) / 32) {
            Some(word) => PortFlags::in_word(atomic::load(word), port),
            None => PortFlags::NONE,
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn would_drop(&self, group: u32) {
        report::would_drop(self, group);
    }

    #[inline(always)]
    fn limits(&self) -> bool {
        RATE_INTERVAL.load() != 0
    }

    #[inline(always)]
    fn admit(&self, source: Source) -> bool {
        if GUARDED { mc_proxy_admit(self.guarded(), source.high, source.low) } else { spend(self, source) }
    }
}
