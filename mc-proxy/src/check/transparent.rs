//! Transparent mode: whether the rules and routes are there that bring the answers of backends back, and whether a
//! connection from an address that is not this host's is answered in fact. What is missing is written as the command
//! that adds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::{Addrs, Checklist, Name, targets};
use crate::{
    config::Proxy,
    desired::Listener,
    net::{
        addr::{BackendAddr, ClientAddr, PeerAddr},
        fib, netlink,
        transparent::{self, TransparentError},
    },
    telemetry::describe,
};

/// Whom the test connections are from: addresses of documentation (RFC 5737, RFC 3849), which are nobody's.
const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// How long an answer is waited for; long enough for a SYN to be repeated once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Test connections at a time.
const AT_ONCE: usize = 32;

/// What transparent routes need.
#[derive(Debug)]
pub(super) struct Wanted {
    mark: u32,
    table: u32,
    backends: BTreeSet<SocketAddr>,
    is_used: bool,
}

/// How a test connection ended.
enum Knock {
    Answered,
    Refused,
    Silent,
    Failed(io::Error),
}

/// A backend, and how packets get there.
struct Backend {
    addr: SocketAddr,
    /// Index and name of the interface; `None` for a backend on this host.
    interface: Option<(u32, String)>,
}

impl Wanted {
    /// What the transparent routes of these listeners need, whose names have these addresses.
    pub(super) fn of(proxy: &Proxy, listeners: &[Listener], names: &BTreeMap<Name, Addrs>) -> Self {
        let mut backends = BTreeSet::new();
        let mut is_used = false;
        for target in targets(listeners).filter(|target| target.transparent) {
            is_used = true;
            for backend in &target.backends {
                match backend {
                    BackendAddr::Ip(addr) => drop(backends.insert(*addr)),
                    BackendAddr::Name { host, port } => {
                        backends.extend(names.get(&(host.to_string(), *port)).into_iter().flatten());
                    }
                    BackendAddr::Unix(_) => {}
                }
            }
        }
        Self { mark: proxy.transparent_mark, table: proxy.transparent_table, backends, is_used }
    }

    fn rule(&self, is_ipv4: bool) -> String {
        format!("{} rule add fwmark {:#x} lookup {}", ip(is_ipv4), self.mark, self.table)
    }

    fn rule_of(&self, backend: &Backend) -> String {
        let addr = backend.addr;
        let from = backend.interface.as_ref().map_or("lo", |(_, name)| name);
        format!(
            "{} rule add iif {from} from {} ipproto tcp sport {} lookup {}",
            ip(addr.is_ipv4()),
            addr.ip(),
            addr.port(),
            self.table
        )
    }

    fn route(&self, is_ipv4: bool) -> String {
        let all = if is_ipv4 { "0.0.0.0/0" } else { "::/0" };
        format!("{} route add local {all} dev lo table {}", ip(is_ipv4), self.table)
    }
}

/// `ip`, as the command of a family.
fn ip(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "ip" } else { "ip -6" }
}

fn client(is_ipv4: bool) -> IpAddr {
    if is_ipv4 { CLIENT_V4 } else { CLIENT_V6 }
}

/// Nothing is said where no route is transparent. A missing right keeps the daemon from starting; missing rules keep
/// connections from being made.
pub(super) fn check(list: &mut Checklist, wanted: &Wanted) {
    if !wanted.is_used {
        return;
    }
    let allowed = transparent::probe(wanted.mark);
    match &allowed {
        Ok(()) => verified(list, "CAP_NET_ADMIN: this process may connect from addresses that are not this host's"),
        Err(error @ TransparentError::Privilege(_)) => {
            list.bad(format!("transparent: {error}; add it to AmbientCapabilities of the unit, or run this as root"));
        }
        Err(error) => list.warn(format!("transparent: {}", describe(error))),
    }
    let mut backends = Vec::new();
    for addr in &wanted.backends {
        match locate(*addr) {
            Ok(backend) => backends.push(backend),
            Err(error) => list.warn(format!("transparent backend {addr}: {error}; see `ip route get {}`", addr.ip())),
        }
    }
    for is_ipv4 in [true, false] {
        let of_family = backends.iter().filter(|backend| backend.addr.is_ipv4() == is_ipv4).collect::<Vec<_>>();
        if of_family.is_empty() {
            continue;
        }
        let needs_mark = routing(list, wanted, is_ipv4, &of_family);
        // Rules without a mark may be about the port of a backend, which a listener of this check has not got.
        if allowed.is_ok() && needs_mark {
            own_listener(list, wanted, is_ipv4);
        }
    }
    if allowed.is_ok() {
        for (backend, text) in backends.iter().zip(knock_all(wanted, &backends)) {
            match text {
                Ok(()) => {
                    let from = client(backend.addr.is_ipv4());
                    verified(list, format!("backend {} answers a connection from {from}", backend.addr));
                }
                Err(text) => list.warn(text),
            }
        }
    }
}

fn verified(list: &mut Checklist, what: impl std::fmt::Display) {
    list.good(format!("VERIFIED {what}"));
}

fn missing(list: &mut Checklist, command: impl std::fmt::Display) {
    list.warn(format!("missing: {command}"));
}

fn locate(addr: SocketAddr) -> io::Result<Backend> {
    let hop = fib::toward(addr.ip())?;
    let interface = if hop.is_local { None } else { Some((hop.interface, netlink::interface_name(hop.interface)?)) };
    Ok(Backend { addr, interface })
}

/// The rules and the route of one family, and what else the kernel has to be told. Returns whether there are backends on
/// this host whose answers are told by their mark.
fn routing(list: &mut Checklist, wanted: &Wanted, is_ipv4: bool, backends: &[&Backend]) -> bool {
    match fib::takes_everything(is_ipv4, wanted.table) {
        Ok(true) => verified(list, wanted.route(is_ipv4)),
        Ok(false) => missing(list, wanted.route(is_ipv4)),
        Err(error) => list.warn(format!("the routes of table {} cannot be read: {error}", wanted.table)),
    }
    let (here, elsewhere): (Vec<&Backend>, Vec<_>) = backends.iter().partition(|backend| backend.interface.is_none());
    // Answers of a backend on this host may have a rule of their own that asks for no mark.
    let marked = here.iter().filter(|backend| !comes_back(backend).unwrap_or(false)).count();
    if marked < here.len() {
        verified(list, format!("answers of {} backends on this host come back without a mark", here.len() - marked));
    }
    if marked > 0 {
        match fib::rules(is_ipv4) {
            Ok(rules) if rules.iter().any(|rule| rule.leads(wanted.mark, wanted.table)) => {
                verified(list, wanted.rule(is_ipv4));
            }
            Ok(_) => missing(list, wanted.rule(is_ipv4)),
            Err(error) => list.warn(format!("the rules cannot be read (`{} rule`): {error}", ip(is_ipv4))),
        }
        // The first is for both families.
        sysctl(list, "net.ipv4.tcp_fwmark_accept", "");
        let family = if is_ipv4 { "ipv4" } else { "ipv6" };
        let effect = " (or a backend that is down is noticed by proxy.connect_timeout only)";
        sysctl(list, &format!("net.{family}.fwmark_reflect"), effect);
    }
    for backend in elsewhere {
        match comes_back(backend) {
            Ok(true) => verified(list, wanted.rule_of(backend)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => {
                let name = backend.interface.as_ref().map_or("all", |(_, name)| name);
                missing(list, format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"));
            }
            Ok(false) | Err(_) => missing(list, wanted.rule_of(backend)),
        }
    }
    marked > 0
}

/// Whether the kernel takes an unmarked answer of a backend for this host's own.
fn comes_back(backend: &Backend) -> io::Result<bool> {
    let interface = backend.interface.as_ref().map(|(index, _)| *index);
    Ok(fib::of_answer(backend.addr, client(backend.addr.is_ipv4()), interface)?.is_local)
}

fn sysctl(list: &mut Checklist, key: &str, effect: &str) {
    let command = format!("sysctl -w {key}=1");
    match fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))) {
        Ok(value) if value.trim() == "1" => verified(list, command),
        Ok(_) => missing(list, format!("{command}{effect}")),
        Err(error) => list.warn(format!("sysctl {key} cannot be read: {error}; should be 1{effect}")),
    }
}

/// A listener of this check stands in for backends: whatever state they are in, this tells about the host.
fn own_listener(list: &mut Checklist, wanted: &Wanted, is_ipv4: bool) {
    let loopback = if is_ipv4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
    let from = client(is_ipv4);
    let bound = TcpListener::bind((loopback, 0)).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (addr, _listener) = match bound {
        Ok(bound) => bound,
        Err(error) => return list.warn(format!("transparent: no test listener on {loopback}: {error}")),
    };
    match knock(addr, from, wanted.mark) {
        Knock::Answered => verified(list, format!("a listener on {loopback} answers a connection from {from}")),
        Knock::Refused | Knock::Silent => list.warn(format!(
            "a listener of this check on {loopback} is not reached by a connection from {from}; add what is missing, or \
             look for a rule or a packet filter that is in the way"
        )),
        Knock::Failed(error) => list.warn(format!("transparent: a connection from {from} to {loopback}: {error}")),
    }
}

/// What came of a connection to each backend, in their order.
fn knock_all(wanted: &Wanted, backends: &[Backend]) -> Vec<Result<(), String>> {
    let mut texts = Vec::new();
    for some in backends.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let threads = some.iter().map(|backend| scope.spawn(|| knock_at(wanted, backend))).collect::<Vec<_>>();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err("a test connection has ended with a panic".to_owned()))
            });
            texts.extend(ended);
        });
    }
    texts
}

fn knock_at(wanted: &Wanted, backend: &Backend) -> Result<(), String> {
    let addr = backend.addr;
    let from = client(addr.is_ipv4());
    let name = format!("backend {addr}");
    match knock(addr, from, wanted.mark) {
        Knock::Answered => Ok(()),
        Knock::Refused => Err(format!(
            "{name} refuses a connection from {from}, and the refusal came back as it should; start the backend"
        )),
        Knock::Silent if TcpStream::connect_timeout(&addr, PATIENCE).is_err() => {
            Err(format!("{name} does not answer a connection from {from}, nor one from this host; start the backend"))
        }
        Knock::Silent if backend.interface.is_some() => Err(format!(
            "{name} answers this host, but not a connection from {from}; add what is missing, and see that the backend's \
             route to its clients leads through this host"
        )),
        Knock::Silent => Err(format!(
            "{name} answers this host, but not a connection from {from}; add what is missing, or look for a rule or a \
             packet filter that is in the way"
        )),
        Knock::Failed(error) => Err(format!("{name}: a connection from {from} is not possible: {error}")),
    }
}

fn knock(addr: SocketAddr, from: IpAddr, mark: u32) -> Knock {
    let client = ClientAddr::from_peer(PeerAddr::new(SocketAddr::new(from, 0)));
    let result = Socket::new(Domain::for_address(addr), Type::STREAM, None).and_then(|socket| {
        transparent::bind(socket.as_fd(), addr, client, Some(mark))?;
        socket.connect_timeout(&addr.into(), PATIENCE)?;
        // There is nothing to say: a reset leaves no state at the other end.
        socket.set_linger(Some(Duration::ZERO))
    });
    match result {
        Ok(()) => Knock::Answered,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Knock::Silent,
        Err(error) => Knock::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands() {
        let wanted = Wanted { mark: 0x6d70, table: 28_016, backends: BTreeSet::new(), is_used: true };
        assert_eq!(wanted.rule(true), "ip rule add fwmark 0x6d70 lookup 28016");
        assert_eq!(wanted.rule(false), "ip -6 rule add fwmark 0x6d70 lookup 28016");
        assert_eq!(wanted.route(true), "ip route add local 0.0.0.0/0 dev lo table 28016");
        assert_eq!(wanted.route(false), "ip -6 route add local ::/0 dev lo table 28016");
        let backend = |addr: &str, interface| Backend { addr: addr.parse().unwrap(), interface };
        assert_eq!(
            wanted.rule_of(&backend("10.0.0.5:8443", Some((3, "eth1".to_owned())))),
            "ip rule add iif eth1 from 10.0.0.5 ipproto tcp sport 8443 lookup 28016"
        );
        assert_eq!(
            wanted.rule_of(&backend("[fd00::5]:22", Some((4, "br0".to_owned())))),
            "ip -6 rule add iif br0 from fd00::5 ipproto tcp sport 22 lookup 28016"
        );
    }

    #[test]
    fn without_transparent_routes_nothing_is_said() {
        let mut list = Checklist::default();
        check(&mut list, &Wanted { mark: 1, table: 1, backends: BTreeSet::new(), is_used: false });
        assert_eq!(list, Checklist::default());
    }

    #[test]
    fn a_host_without_rules_is_told_all_commands() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut list = Checklist::default();
        // A mark and a table that no host has.
        let wanted = Wanted {
            mark: 0x7f00_1234,
            table: 0x7f00_1234,
            backends: [listener.local_addr().unwrap()].into(),
            is_used: true,
        };
        check(&mut list, &wanted);
        let text = list.to_string();
        for command in [wanted.rule(true), wanted.route(true)] {
            assert!(text.contains(&format!("[~] missing: {command}\n")), "{text}");
        }
        assert!(text.contains("sysctl -w net.ipv4.tcp_fwmark_accept=1"), "{text}");
        assert!(!text.contains("-6"), "{text}");
        match transparent::probe(wanted.mark) {
            Ok(()) => assert!(text.contains("not a connection from 198.51.100.1"), "{text}"),
            Err(_) => assert!(text.contains("[!] transparent: transparent mode needs CAP_NET_ADMIN"), "{text}"),
        }
    }
}
