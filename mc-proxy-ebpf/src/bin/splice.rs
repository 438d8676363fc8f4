//! The stream verdict program: sends what one socket of a pair has received out of the other, without waking the daemon.
//!
//! What is decided, and how the memory of a pair stays bounded, is in `mc_proxy_common::splice`.

#![no_std]
#![no_main]

use core::sync::atomic::AtomicU64;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, sk_action},
    helpers::{bpf_get_socket_cookie, bpf_sk_redirect_map},
    macros::{map, stream_verdict},
    maps::{Array, HashMap, RingBuf, SockMap},
    programs::SkBuffContext,
};
use mc_proxy_common::{
    atomic,
    splice::{self, CONTROL_WORDS, EVENT_BYTES, LOST, SLOT_WORDS, SLOTS_MAX, Slot},
};

/// The target of each slot.
#[map]
static TARGETS: SockMap = SockMap::with_max_entries(SLOTS_MAX, 0);
/// The slot of the direction that begins at a socket, by the socket's cookie.
#[map]
static SOURCES: HashMap<u64, u32> = HashMap::with_max_entries(SLOTS_MAX, BPF_F_NO_PREALLOC);
#[map]
static SLOTS: Array<[u64; SLOT_WORDS]> = Array::with_max_entries(SLOTS_MAX, BPF_F_MMAPABLE);
#[map]
static CONTROL: Array<u64> = Array::with_max_entries(CONTROL_WORDS, BPF_F_MMAPABLE);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// Redirects what a socket has received, or leaves it there.
#[stream_verdict]
pub fn mc_proxy_splice(ctx: SkBuffContext) -> u32 {
    // SAFETY: the context is the kernel's, for this run.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: entries are whole words that only the daemon writes, and not while their sockets are spliced.
    let Some(index) = (unsafe { SOURCES.get(&cookie) }).copied() else { return sk_action::SK_PASS };
    let Some(slot) = SLOTS.get_ptr(index) else { return sk_action::SK_PASS };
    // SAFETY: a map value lives as long as the program, is aligned to eight bytes, and its words are written whole.
    let slot = unsafe { &*slot.cast::<Slot>() };
    let verdict = splice::judge(slot, ctx.len());
    if verdict.is_event && EVENTS.output::<u64>(u64::from(index), 0).is_err() {
        count_lost();
    }
    if !verdict.is_redirect {
        return sk_action::SK_PASS;
    }
    // SAFETY: context and map are the kernel's. Flags 0: out of the target, not into its receive queue.
    unsafe { bpf_sk_redirect_map(ctx.as_ptr().cast(), (&raw const TARGETS).cast_mut().cast(), index, 0) as u32 }
}

/// Not exact when two CPUs count at once, but it grows all the same, and that is what is looked at.
fn count_lost() {
    if let Some(word) = CONTROL.get_ptr(LOST) {
        // SAFETY: as for a slot.
        let word = unsafe { &*word.cast::<AtomicU64>() };
        atomic::store(word, atomic::load(word).wrapping_add(1));
    }
}

/// Nothing here can panic, and the kernel would refuse a program that could; the compiler asks for it all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The helpers that are called here need no GPL, but what the kernel calls a compatible licence must be stated.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
