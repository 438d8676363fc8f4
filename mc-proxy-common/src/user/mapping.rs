//! A map's values in this process's memory.

use std::{
    io,
    ops::Deref,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use super::MapInfo;

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// The values of an array map, shared with the programs that use it: what is stored here is what they read, from the next
/// packet on. The map lives as long as this, whoever else lets go of it.
#[derive(Debug)]
pub struct Mapping {
    words: NonNull<AtomicU64>,
    count: usize,
    bytes: usize,
}

// SAFETY: the memory belongs to no thread, and everything in it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all of it, to be read and written.
    ///
    /// # Errors
    /// `InvalidInput` when the map is not an array of words made with `BPF_F_MMAPABLE`; otherwise what the kernel says.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let info = MapInfo::of(map)?;
        let value_size = info.value_size as usize;
        if info.kind != ARRAY
            || info.flags & MMAPABLE == 0
            || value_size == 0
            || !value_size.is_multiple_of(size_of::<u64>())
        {
            let message = format!("not an array of words that can be mapped: {info:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let length = value_size * info.max_entries as usize;
        let bytes = length.next_multiple_of(page_size());
        // SAFETY: the kernel chooses where, so nothing of ours is covered.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("the kernel mapped a map at 0"))?;
        Ok(Self { words, count: length / size_of::<u64>(), bytes })
    }
}

impl Deref for Mapping {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the memory is mapped, page-aligned and `count` words long until drop; it began as zeros, and every bit
        // pattern is a word. Kernel and daemon write to it while it is shared, which is what atomics are for.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping, and no reference to it outlives `self`.
        let result = unsafe { libc::munmap(self.words.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

fn page_size() -> usize {
    // SAFETY: a question without arguments that point anywhere.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // The kernel tells it to every process when it starts.
    usize::try_from(size).unwrap_or(4096)
}
