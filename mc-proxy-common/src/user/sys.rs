//! bpf(2), one function a command. The structures follow `union bpf_attr` and the info structures of
//! `include/uapi/linux/bpf.h`; the kernel takes shorter ones than its own and treats the rest as zero.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const MAP_DELETE_BATCH: libc::c_long = 27;

/// `MEMBARRIER_CMD_GLOBAL`.
const MEMBARRIER_GLOBAL: libc::c_int = 1;
const SETTLE_MILLISECONDS: libc::c_int = 50;

/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;

/// `BPF_LINK_TYPE_XDP`.
pub(super) const LINK_TYPE_XDP: u32 = 6;

/// The head of `struct bpf_map_info`.
#[derive(Default)]
#[repr(C)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// The head of `struct bpf_prog_info`.
#[derive(Default)]
#[repr(C)]
pub(super) struct ProgramInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
}

/// The head of `struct bpf_link_info` with the XDP member of its union.
#[derive(Default)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    id: u32,
    pub(super) program_id: u32,
    _padding: u32,
    pub(super) interface: u32,
    _union: [u32; 3],
}

/// An info structure: integers only, so that the kernel may write any bytes.
///
/// # Safety
/// Every bit pattern must be a value of the type.
pub(super) unsafe trait Info: Default {}

// SAFETY: integers.
unsafe impl Info for MapInfo {}
// SAFETY: integers.
unsafe impl Info for LinkInfo {}
// SAFETY: integers.
unsafe impl Info for ProgramInfo {}

#[repr(C)]
struct ElementAttr {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[derive(Default)]
#[repr(C)]
struct TestRunAttr {
    program: u32,
    answer: u32,
    bytes_in: u32,
    bytes_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_bytes_in: u32,
    context_bytes_out: u32,
    context_in: u64,
    context_out: u64,
}

/// Which entries an update is for.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(super) enum Update {
    /// `BPF_ANY`.
    Any = 0,
    /// `BPF_NOEXIST`.
    New = 1,
}

/// What a batch did before it ended: an error with `done` elements through is a partial batch.
pub(super) struct Batch {
    pub(super) done: usize,
    pub(super) result: io::Result<()>,
}

pub(super) fn info<T: Info>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr { fd: raw(object), length: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is valid with any bytes.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

pub(super) fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attr)? };
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(object), file_flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

pub(super) fn link_create(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr { program: raw(program), interface, attach_type: ATTACH_XDP, flags };
    // SAFETY: integers.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr)? };
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: integers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// The program's return value and the nanoseconds of one run.
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<(u32, u32)> {
    let bytes_in = u32::try_from(frame.len()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut attr = TestRunAttr {
        program: raw(program),
        bytes_in,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..TestRunAttr::default()
    };
    // SAFETY: the frame is readable for its length, and nothing is asked to be written.
    unsafe { bpf(PROG_TEST_RUN, &mut attr)? };
    Ok((attr.answer, attr.duration))
}

/// Programs run in read-side critical sections of RCU, whose end the kernel waits for here.
pub(super) fn settle() -> io::Result<()> {
    // SAFETY: integers.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // CPUs without a tick (`nohz_full`) are not waited for. A program runs for microseconds, and nothing preempts it.
    // SAFETY: no descriptors.
    unsafe { libc::poll(std::ptr::null_mut(), 0, SETTLE_MILLISECONDS) };
    Ok(())
}

pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    // SAFETY: the attribute is the descriptor and nothing else.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// # Safety
/// `key` and `value` must be readable for the map's key and value size.
pub(super) unsafe fn update(map: BorrowedFd<'_>, key: *const u8, value: *const u8, update: Update) -> io::Result<()> {
    let mut attr = ElementAttr { flags: update as u64, ..element(map, key, value) };
    // SAFETY: the caller's promise.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// # Safety
/// `key` must be readable for the map's key size and `value` writable for its value size.
pub(super) unsafe fn lookup(map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> io::Result<()> {
    let mut attr = element(map, key, value);
    // SAFETY: the caller's promise.
    unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }.map(drop)
}

/// # Safety
/// `key` must be readable for the map's key size.
pub(super) unsafe fn delete(map: BorrowedFd<'_>, key: *const u8) -> io::Result<()> {
    let mut attr = element(map, key, std::ptr::null());
    // SAFETY: the caller's promise.
    unsafe { bpf(MAP_DELETE_ELEM, &mut attr) }.map(drop)
}

/// # Safety
/// `key` must be null or readable, and `next` writable, for the map's key size.
pub(super) unsafe fn next_key(map: BorrowedFd<'_>, key: *const u8, next: *mut u8) -> io::Result<()> {
    let mut attr = element(map, key, next);
    // SAFETY: the caller's promise.
    unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) }.map(drop)
}

/// # Safety
/// `keys` and `values` must be readable for `count` keys and values of the map.
pub(super) unsafe fn update_batch(map: BorrowedFd<'_>, keys: *const u8, values: *const u8, count: usize) -> Batch {
    let attr = batch(map, keys as u64, values as u64, count);
    // SAFETY: the caller's promise.
    unsafe { run_batch(MAP_UPDATE_BATCH, attr) }
}

/// # Safety
/// `keys` must be readable for `count` keys of the map.
pub(super) unsafe fn delete_batch(map: BorrowedFd<'_>, keys: *const u8, count: usize) -> Batch {
    let attr = batch(map, keys as u64, 0, count);
    // SAFETY: the caller's promise.
    unsafe { run_batch(MAP_DELETE_BATCH, attr) }
}

/// # Safety
/// `keys` and `values` must be writable for `count` keys and values of the map; `position` must be null or what an
/// earlier call wrote to `next`, and `next` writable, both for at least four bytes and the map's key size.
pub(super) unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    position: *const u8,
    next: *mut u8,
    (keys, values): (*mut u8, *mut u8),
    count: usize,
) -> Batch {
    let mut attr = batch(map, keys as u64, values as u64, count);
    (attr.in_batch, attr.out_batch) = (position as u64, next as u64);
    // SAFETY: the caller's promise.
    unsafe { run_batch(MAP_LOOKUP_BATCH, attr) }
}

fn element(map: BorrowedFd<'_>, key: *const u8, value: *const u8) -> ElementAttr {
    ElementAttr { map: raw(map), _padding: 0, key: key as u64, value: value as u64, flags: 0 }
}

fn batch(map: BorrowedFd<'_>, keys: u64, values: u64, count: usize) -> BatchAttr {
    let count = u32::try_from(count).expect("batches are cut to a few thousand elements");
    BatchAttr { in_batch: 0, out_batch: 0, keys, values, count, map: raw(map), element_flags: 0, flags: 0 }
}

/// # Safety
/// As for the command.
unsafe fn run_batch(command: libc::c_long, mut attr: BatchAttr) -> Batch {
    let asked = attr.count;
    // SAFETY: the caller's promise.
    let result = unsafe { bpf(command, &mut attr) }.map(drop);
    // The kernel writes the count back whether it fails or not, except where it refuses before it begins (bad
    // arguments, a map without batches, no memory for its buffer): then it is untouched, and nothing was done. A look-up
    // that reaches the end of the map fails too, and may just have filled the buffer.
    let done = match &result {
        Err(error) if attr.count == asked && error.kind() != io::ErrorKind::NotFound => 0,
        Ok(()) | Err(_) => attr.count.min(asked) as usize,
    };
    Batch { done, result }
}

/// # Safety
/// `attr` must be the structure that the command takes, and its pointers valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is valid for its own size, which the kernel is told; the rest is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
