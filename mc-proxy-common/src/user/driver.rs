//! Which driver an interface has (`SIOCETHTOOL`).

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

const GET_DRIVER_INFO: u32 = 3;
const SIOCETHTOOL: u64 = 0x8946;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    _rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The name of the interface's driver, such as `virtio_net`; empty when it has none. No right is needed.
///
/// # Errors
/// `NotFound` or `ENODEV` without such an interface in the thread's network namespace, `EOPNOTSUPP` when the driver does
/// not tell.
pub fn driver(interface: &str) -> io::Result<String> {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut info = DriverInfo { command: GET_DRIVER_INFO, driver: [0; 32], _rest: [0; 160] };
    // SAFETY: integers and a union of integers and pointers, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of the interface is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request is the structure that the call takes; what it points to is as long as the command says, and
    // valid with any bytes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::driver;

    #[test]
    fn an_interface_that_is_not_there_has_no_driver() {
        assert!(driver("absent0").is_err());
        assert!(driver("a-name-that-is-too-long").is_err());
        // A kernel that knows of no driver for the loopback says so, or an empty name.
        assert_eq!(driver("lo").unwrap_or_default(), "");
    }
}
