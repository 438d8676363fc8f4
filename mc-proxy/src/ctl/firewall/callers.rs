//! From where the operator has come, so that the daemon can refuse to lock him out.

use std::{fs, net::IpAddr};

/// Ancestors that are asked; a shell in a terminal multiplexer under sudo has six.
const ANCESTORS: usize = 16;

/// Addresses that the daemon takes; the nearest ones come first.
const CALLERS_MAX: usize = 16;

/// The addresses in `SSH_CONNECTION` and `SSH_CLIENT` of this process and of its ancestors, without repetitions: sudo
/// takes the variables away, but the shell above it has them.
pub(super) fn of_this_process() -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut pid = "self".to_owned();
    for _ in 0..ANCESTORS {
        // What cannot be read belongs to somebody else, or has ended.
        if let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) {
            collect(&environment, &mut found);
        }
        match fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| parent(&stat)) {
            Some(parent) if parent > 1 => pid = parent.to_string(),
            Some(_) | None => break,
        }
    }
    found.truncate(CALLERS_MAX);
    found
}

/// `environ` of proc(5): variables that end with NUL.
fn collect(environment: &[u8], found: &mut Vec<IpAddr>) {
    for variable in environment.split(|byte| *byte == 0) {
        let Ok(variable) = str::from_utf8(variable) else { continue };
        let value = ["SSH_CONNECTION=", "SSH_CLIENT="].iter().find_map(|name| variable.strip_prefix(name));
        let address = value.and_then(|value| value.split(' ').next()).and_then(address);
        if let Some(address) = address.filter(|address| !found.contains(address)) {
            found.push(address);
        }
    }
}

/// The zone of a link-local address is not part of what a packet shows.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.split_once('%').map_or(text, |(address, _)| address);
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The fourth field of `stat` of proc(5); the second is a name in parentheses that may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_ssh() {
        let mut found = Vec::new();
        collect(
            b"PATH=/bin\0SSH_CONNECTION=203.0.113.9 50000 192.0.2.1 22\0SSH_CLIENT=203.0.113.9 50000 22\0",
            &mut found,
        );
        collect(b"SSH_CLIENT=fe80::1%eth0 1 22\0XSSH_CLIENT=10.0.0.1 1 22\0\xff\0SSH_CONNECTION=\0", &mut found);
        collect(b"SSH_CONNECTION=::ffff:10.0.0.7 1 ::ffff:10.0.0.1 22", &mut found);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.9", "fe80::1", "10.0.0.7"]);
    }

    #[test]
    fn a_process_has_a_parent_whatever_its_name() {
        assert_eq!(parent("4242 (a) b (c) S 4200 4242 4200 34816"), Some(4200));
        assert_eq!(parent(""), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(parent(&own), Some(std::os::unix::process::parent_id()));
    }
}
