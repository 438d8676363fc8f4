//! What the kernel has in the buffers of TCP sockets: for show, since it is not ours to limit.

use std::{fs, io};

/// Bytes in the buffers of all TCP sockets of this host, of whatever process. The kernel limits them (`net.ipv4.tcp_mem`),
/// and makes each socket's buffers smaller when they come near.
///
/// # Errors
/// When /proc is not there or says something else than it has since Linux 2.6.
pub fn socket_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let pages = tcp_pages(&text).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// `TCP: inuse 55 orphan 0 tw 0 alloc 73 mem 1405`
fn tcp_pages(text: &str) -> Option<u64> {
    let figures = text.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = figures.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_tcp() {
        let text = "sockets: used 113\nTCP: inuse 55 orphan 0 tw 0 alloc 73 mem 1405\nUDP: inuse 0 mem 3\n";
        assert_eq!(tcp_pages(text), Some(1405));
        for end in 0..text.find("1405").unwrap() {
            assert_eq!(tcp_pages(&text[..end]), None, "{end}");
        }
        for bad in ["UDP: inuse 0 mem 3", "TCP: mem", "TCP: mem x"] {
            assert_eq!(tcp_pages(bad), None);
        }
    }

    #[test]
    fn this_host_has_it() {
        socket_bytes().unwrap();
    }
}
