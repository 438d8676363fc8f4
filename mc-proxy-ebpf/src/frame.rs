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
    fn has<const N: usize>(self) -> bool {
        // Opaque, because the compiler would turn `at + 1 > end` into `at >= end`, from which the verifier does not
        // conclude that a byte can be read.
        opaque(self.at + N) <= self.end
    }

    // In assembly, because to the compiler none of this is aligned, and it would read byte by byte.
    #[inline(always)]
    fn u8<const OFFSET: usize>(self) -> u8 {
        let value: u64;
        // SAFETY: as for `has`, without which the verifier refuses the program.
        unsafe {
            asm!("{value} = *(u8 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                options(nostack, preserves_flags, readonly));
        }
        value as u8
    }

    #[inline(always)]
    fn u16<const OFFSET: usize>(self) -> u16 {
        let value: u64;
        // SAFETY: as for `has`, without which the verifier refuses the program.
        unsafe {
            asm!("{value} = *(u16 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                options(nostack, preserves_flags, readonly));
        }
        u16::from_be(value as u16)
    }

    #[inline(always)]
    fn u32<const OFFSET: usize>(self) -> u32 {
        let value: u64;
        // SAFETY: as for `has`, without which the verifier refuses the program.
        unsafe {
            asm!("{value} = *(u32 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                options(nostack, preserves_flags, readonly));
        }
        u32::from_be(value as u32)
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
