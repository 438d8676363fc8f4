//! What the kernel tells of a TCP connection.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `TCP_ESTABLISHED` of `enum tcp_state`: neither side has ended.
pub const ESTABLISHED: u8 = 1;
/// `TCP_CLOSE`: there is no connection (any more).
pub const CLOSE: u8 = 7;

/// Figures of a connection, of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// `enum tcp_state`.
    pub state: u8,
    /// Milliseconds since something was received.
    pub last_data_recv: u32,
    /// Milliseconds since something was sent.
    pub last_data_sent: u32,
    /// Milliseconds since the peer acknowledged something, be it again.
    pub last_ack_recv: u32,
    /// Bytes that the peer has acknowledged; SYN and FIN count as one each.
    pub bytes_acked: u64,
    /// Bytes received in order; the peer's FIN counts as one.
    pub bytes_received: u64,
}

/// The head of `struct tcp_info` (Linux 4.6) of `include/uapi/linux/tcp.h`.
#[derive(Default)]
#[repr(C)]
struct Raw {
    state: u8,
    _bytes: [u8; 7],
    _before: [u32; 9],
    last_data_sent: u32,
    _last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    _after: [u32; 11],
    _pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
}

impl TcpInfo {
    /// Asks the kernel (`TCP_INFO`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the socket is not TCP's; `Unsupported` from a kernel that tells less.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut raw = Raw::default();
        let mut length = size_of::<Raw>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `raw`, which is integers only, and the new length.
        let result = unsafe {
            let value = (&raw mut raw).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut length)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if (length as usize) < size_of::<Raw>() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel does not count a connection's bytes"));
        }
        Ok(Self {
            state: raw.state,
            last_data_recv: raw.last_data_recv,
            last_data_sent: raw.last_data_sent,
            last_ack_recv: raw.last_ack_recv,
            bytes_acked: raw.bytes_acked,
            bytes_received: raw.bytes_received,
        })
    }
}

/// Bytes that a socket takes before a writer has to wait, as far as one can tell: half of the memory that its send buffer has
/// left (`SO_MEMINFO`, Linux 4.12), since that counts what the kernel spends on a byte and not the byte.
///
/// # Errors
/// When the descriptor is not a socket's.
pub fn send_room(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SNDBUF: usize = 3;
    const WMEM_QUEUED: usize = 5;
    let mut info = [0_u32; 9];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is integers, and the new length.
    let result = unsafe {
        let value = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, value, &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(info[SNDBUF].saturating_sub(info[WMEM_QUEUED]) / 2))
}

/// Bytes in the send queue that the peer has not acknowledged (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// `EINVAL` when the socket listens.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn bytes_are_counted_where_the_kernel_counts_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let before = TcpInfo::of(client.as_fd()).unwrap();
        assert_eq!(before.state, ESTABLISHED);
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(TcpInfo::of(server.as_fd()).unwrap().bytes_received, 1000);
        let after = TcpInfo::of(client.as_fd()).unwrap();
        let written = after.bytes_acked + unacknowledged(client.as_fd()).unwrap();
        assert_eq!(written - before.bytes_acked, 1000);
    }

    #[test]
    fn a_socket_whose_peer_does_not_read_has_no_room_in_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, _) = listener.accept().unwrap();
        assert!(send_room(client.as_fd()).unwrap() > 4096);
        client.set_nonblocking(true).unwrap();
        while client.write(&[7; 65_536]).is_ok() {}
        assert!(send_room(client.as_fd()).unwrap() < 64 * 1024);
    }

    #[test]
    fn what_is_not_tcp_has_no_figures() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(TcpInfo::of(one.as_fd()).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
