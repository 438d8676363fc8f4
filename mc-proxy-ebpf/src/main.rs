//! The XDP program: judges every frame that an interface receives, and counts what it decided.
//!
//! What is decided lives in `mc-proxy-common`, where it is tested on the host; here is only what the kernel gives:
//! the bytes of a frame ([`frame`]), the maps ([`maps`]) and the records of what was dropped ([`report`]).

#![no_std]
#![no_main]
// Inline assembly for BPF; the compiler is one that takes unstable features anyway, for `-Z build-std`.
#![feature(asm_experimental_arch)]

mod frame;
mod maps;
mod report;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use mc_proxy_common::verdict::judge_packet;

use crate::{frame::XdpCursor, maps::KernelHost};

/// Passes or drops a frame.
#[xdp(frags)]
#[inline(always)]
pub fn mc_proxy(ctx: XdpContext) -> u32 {
    run::<false>(&ctx)
}

/// The same for a daemon without `CAP_PERFMON`: what [`mc_proxy`] does, in a form that the verifier accepts then.
#[xdp(frags)]
#[inline(always)]
pub fn mc_proxy_guarded(ctx: XdpContext) -> u32 {
    run::<true>(&ctx)
}

#[inline(always)]
fn run<const GUARDED: bool>(ctx: &XdpContext) -> u32 {
    let host = KernelHost::<GUARDED>::new(ctx);
    let verdict = judge_packet(&host, || XdpCursor::start(ctx));
    let bytes = host.bytes();
    report::count(&host, verdict.reason, bytes);
    if !verdict.is_drop() {
        return xdp_action::XDP_PASS;
    }
    report::dropped(&host, ctx, verdict, bytes);
    xdp_action::XDP_DROP
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
