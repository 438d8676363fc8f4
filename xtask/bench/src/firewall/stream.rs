//! A steady stream of TCP SYNs from one source, and when the last of them was answered.
//!
//! An answer is what a source notices of getting in, and does not depend on where a filter stands.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use rustix::time::{ClockId, Timespec};
use serde::{Deserialize, Serialize};

const SYN_ACK: u8 = 0x12;
/// Less than packets are apart.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000 };

/// What a stream saw.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// When the last answer came, by the monotonic clock.
    pub(crate) last_ns: u64,
}

/// The monotonic clock, which all processes share.
pub(crate) fn now_ns() -> u64 {
    let Timespec { tv_sec, tv_nsec } = rustix::time::clock_gettime(ClockId::Monotonic);
    u64::try_from(tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(tv_nsec).unwrap_or(0)
}

/// Sends `a_second` SYNs a second for `length`.
pub(crate) fn run(from: Ipv4Addr, to: SocketAddrV4, a_second: u32, length: Duration) -> anyhow::Result<Seen> {
    let raw = |protocol| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(protocol)).context("a raw socket")
    };
    // Raw sockets of that protocol send whole packets and receive nothing.
    let (sender, receiver) = (raw(ipproto::RAW)?, raw(ipproto::TCP)?);
    let mut seen = Seen { sent: 0, answered: 0, last_ns: 0 };
    let mut answer = [0; 256];
    let began = Instant::now();
    while began.elapsed() < length {
        let due = (began.elapsed().as_secs_f64() * f64::from(a_second)) as u64;
        while seen.sent < due {
            let packet = syn(from, to, seen.sent as u32);
            match rustix::net::sendto(&sender, &packet, SendFlags::empty(), &to) {
                Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => seen.sent += 1,
                Err(error) => return Err(error).context("sending"),
            }
        }
        loop {
            match rustix::net::recv(&receiver, &mut answer, RecvFlags::empty()) {
                Ok((_, length)) if is_answer(&answer[..length.min(answer.len())], to) => {
                    seen.answered += 1;
                    seen.last_ns = now_ns();
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error).context("receiving"),
            }
        }
        match rustix::event::poll(&mut [PollFd::new(&receiver, PollFlags::IN)], Some(&NAP)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting"),
        }
    }
    Ok(seen)
}

/// An IPv4 packet; the kernel fills in the header's checksum.
fn syn(from: Ipv4Addr, to: SocketAddrV4, number: u32) -> [u8; 40] {
    let mut packet = [0; 40];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 40, 64, 6);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    // Another port each time: a new connection, not the same again.
    packet[20..22].copy_from_slice(&(1024 + (number % 60_000) as u16).to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..28].copy_from_slice(&number.to_be_bytes());
    (packet[32], packet[33]) = (0x50, 2);
    packet[34..36].fill(0xff);
    let (words, _) = packet[12..].as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>() + 6 + 20;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    packet[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

fn is_answer(packet: &[u8], from: SocketAddrV4) -> bool {
    packet.len() >= 40
        && packet[12..16] == from.ip().octets()
        && packet[20..22] == from.port().to_be_bytes()
        && packet[33] & SYN_ACK == SYN_ACK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_valid() {
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 443);
        for number in [0, 1, 59_999, u32::MAX] {
            let packet = syn(Ipv4Addr::new(10, 77, 0, 3), to, number);
            let (words, _) = packet[12..].as_chunks::<2>();
            let mut sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>() + 26;
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff, "{number}");
        }
    }

    #[test]
    fn only_answers_of_the_listener_count() {
        let listener = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 443);
        let mut packet = syn(*listener.ip(), SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 3), 1024), 0);
        packet[20..22].copy_from_slice(&443_u16.to_be_bytes());
        assert!(!is_answer(&packet, listener), "a SYN");
        packet[33] = SYN_ACK;
        assert!(is_answer(&packet, listener));
        assert!(!is_answer(&packet[..39], listener));
        packet[12] = 9;
        assert!(!is_answer(&packet, listener));
    }
}
