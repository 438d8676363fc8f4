//! The bytes of a frame by direct packet access, in the form that the verifier follows from Linux 5.15 on.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use mc_proxy_common::packet::Frame;

/// Bytes from the start of a frame that can be looked at: beyond the longest chain of headers that is walked, and within
/// what the verifier allows as an offset into a packet (64 KiB).
const OFFSET_MAX: usize = 0x7fff;

/// The frame of one program run.
pub(crate) struct XdpFrame {
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn len(&self) -> u64 {
        (self.end - self.start) as u64
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > OFFSET_MAX {
            return None;
        }
        let at = self.start + offset;
        let mut limit = at + N;
        // SAFETY: no instruction. It hides from the compiler how `limit` came about, which would otherwise turn
        // `at + 1 > end` into `at >= end`; of that the verifier does not conclude that a byte can be read.
        unsafe { asm!("/* {0} */", inout(reg) limit, options(pure, nomem, nostack, preserves_flags)) };
        if limit > self.end {
            return None;
        }
        // SAFETY: the kernel keeps `start..end` readable while the program runs, and `at..at + N` lies within it.
        // A byte array has no alignment, and every bit pattern is one.
        Some(unsafe { (at as *const [u8; N]).read() })
    }
}
