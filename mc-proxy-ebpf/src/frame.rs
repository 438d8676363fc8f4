//! The bytes of a frame by direct packet access, in the form that the verifier follows from Linux 5.15 on and without
//! `CAP_PERFMON`.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use mc_proxy_common::packet::Cursor;

/// A position in the frame of one program run.
#[derive(Clone, Copy)]
pub(crate) struct XdpCursor {
    at: usize,
    end: usize,
}

impl XdpCursor {
    #[inline(always)]
    pub(crate) fn start(ctx: &XdpContext) -> Self {
        Self { at: ctx.data(), end: ctx.data_end() }
    }
}

impl Cursor for XdpCursor {
    #[inline(always)]
    fn load<const OFFSET: usize, const N: usize>(self) -> Option<[u8; N]> {
        // Opaque, because the compiler would turn `at + 1 > end` into `at >= end`, from which the verifier does not
        // conclude that a byte can be read.
        if opaque(self.at + OFFSET + N) > self.end {
            return None;
        }
        // SAFETY: the kernel keeps everything up to `end` readable while the program runs, and `at` is not before the
        // frame's start. A byte array has no alignment, and every bit pattern is one.
        Some(unsafe { ((self.at + OFFSET) as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn advance<const N: usize>(self) -> Self {
        // Opaque, because the compiler would join several ways to get here into one addition of a variable.
        Self { at: opaque(self.at + N), end: self.end }
    }
}

/// The same address, of which the compiler no longer knows how it came about. The verifier still does.
#[inline(always)]
fn opaque(mut address: usize) -> usize {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags)) };
    address
}
