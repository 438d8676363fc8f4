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

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

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
