//! Words that are read while somebody writes them, and what the BPF target needs for it.

use core::sync::atomic::AtomicU64;

/// Reads a word whole. Words that belong together have a protocol of their own; see [`crate::table`].
#[inline(always)]
pub fn load(word: &AtomicU64) -> u64 {
    #[cfg(not(target_arch = "bpf"))]
    return word.load(core::sync::atomic::Ordering::Acquire);
    // LLVM selects no instruction for an atomic load below version 4 of the BPF instruction set, which needs Linux 6.18.
    // SAFETY: the word is valid and aligned; a 64-bit load is one instruction, and volatile keeps it one.
    #[cfg(target_arch = "bpf")]
    return unsafe { word.as_ptr().read_volatile() };
}

/// Writes a word whole.
#[inline(always)]
pub fn store(word: &AtomicU64, value: u64) {
    #[cfg(not(target_arch = "bpf"))]
    word.store(value, core::sync::atomic::Ordering::Release);
    // SAFETY: as for reading; other programs write the same words, each of them whole.
    #[cfg(target_arch = "bpf")]
    unsafe {
        word.as_ptr().write_volatile(value);
    }
}
