//! The single checks of the host.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::{
    fs::{Access, AtFlags, CWD},
    io::Errno,
    thread::CapabilitySet,
};
use socket2::{Domain, Socket, Type};

use super::{Checklist, Grade};
use crate::{
    config::{Grpc, Xdp, XdpMode},
    desired::Listener,
    firewall::GeoIp,
    telemetry,
    tls::certs::{CertFiles, Expiry, Pair, roots},
    xdp::{self, Obstacle},
};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// The first kernel whose verifier takes the program.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Countries move; a database older than this is worth a word.
const GEOIP_AGE_DAYS: u64 = 60;

pub(super) fn database(list: &mut Checklist, path: &Path) {
    let name = format!("database {}", path.display());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    // SQLite makes its journal beside the file.
    if let Err(error) = access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        let remedy = format!("`install -d -o mc-proxy -g mc-proxy -m 0750 {}`", dir.display());
        list.bad(format!("{name}: its directory cannot be written to: {error}; {remedy}"));
        return;
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            list.good(format!("{name}: does not exist yet and can be made"));
            return;
        }
        Err(error) => return list.bad(format!("{name}: {error}; give the daemon's user access to it")),
    };
    if let Err(error) = access(path, Access::READ_OK | Access::WRITE_OK) {
        return list.bad(format!("{name}: {error}; `chown mc-proxy:mc-proxy {}`", path.display()));
    }
    match is_sqlite(path) {
        Ok(true) => {}
        Ok(false) => {
            return list.bad(format!("{name}: not an SQLite database; restore a backup, or name another file"));
        }
        Err(error) => return list.bad(format!("{name}: {error}; give the daemon's user access to it")),
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return list.warn(format!("{name}: others have access to it; `chmod 600 {}`", path.display()));
    }
    list.good(format!("{name}: readable and writable"));
}

/// By the header (SQLite file format §1.3); an empty file is an empty database.
fn is_sqlite(path: &Path) -> io::Result<bool> {
    let mut header = Vec::new();
    fs::File::open(path)?.take(16).read_to_end(&mut header)?;
    Ok(header.is_empty() || header == b"SQLite format 3\0")
}

pub(super) fn certificate(list: &mut Checklist, files: &CertFiles) {
    let pair = match Pair::load(files) {
        Ok(pair) => pair,
        Err(error) => return list.bad(format!("certificate {error}")),
    };
    let now = SystemTime::now();
    let name = format!("certificate {files} ({})", pair.leaf.names.join(", "));
    if pair.is_key_exposed {
        let key = files.key.display();
        list.warn(format!("key {key}: every user of this host can read it; `chmod o= {key}`"));
    }
    match Expiry::of(&pair.leaf, now) {
        Some(expiry) => list.warn(format!("{name}: {expiry}; renew it")),
        None => list.good(format!("{name}: its key is the right one, {} days left", pair.leaf.days_left(now))),
    }
}

/// What backends' certificates are verified against.
pub(super) fn backend_ca(list: &mut Checklist, path: &Path) {
    match roots(path) {
        Ok(roots) => list.good(format!("backend_ca {}: {} authorities", path.display(), roots.len())),
        Err(error) => list.bad(format!("backend_ca {error}; name a PEM file with the backend's certificate authority")),
    }
}

pub(super) fn geoip(list: &mut Checklist, path: &Path) {
    let name = format!("firewall.geoip_db {}", path.display());
    let geoip = match GeoIp::open(path) {
        Ok(geoip) => geoip,
        Err(error) => {
            let error = telemetry::describe(&error);
            return list.bad(format!("{name}: {error}; put a MaxMind country database (.mmdb) there"));
        }
    };
    let days = geoip.age(SystemTime::now()).as_secs() / 86_400;
    let text = format!("{name}: {}, {days} days old", geoip.database_type());
    if days > GEOIP_AGE_DAYS {
        list.warn(format!("{text}; replace it and send SIGHUP"));
    } else {
        list.good(text);
    }
}

pub(super) fn port(list: &mut Checklist, listener: &Listener, capabilities: CapabilitySet) {
    let addr = &listener.addr;
    let socket = addr.socket();
    let name = format!("listener {addr}");
    let bound = Socket::new(Domain::for_address(socket), Type::STREAM, None).and_then(|probe| {
        if socket.is_ipv6() {
            probe.set_only_v6(!addr.is_dual_stack())?;
        }
        // Connections in TIME_WAIT do not hold the port; a listener does.
        probe.set_reuse_address(true)?;
        probe.bind(&socket.into())
    });
    let Err(error) = bound else { return list.good(format!("{name}: can be bound")) };
    let port = socket.port();
    match Errno::from_io_error(&error) {
        Some(Errno::ADDRINUSE) => list.warn(format!(
            "{name}: in use, perhaps by a running mc-proxy; if not, see `ss -tlnp 'sport = :{port}'` and stop the other"
        )),
        Some(Errno::ACCESS) if !capabilities.contains(CapabilitySet::NET_BIND_SERVICE) => list.bad(format!(
            "{name}: ports below 1024 need CAP_NET_BIND_SERVICE; add it to AmbientCapabilities of the unit"
        )),
        Some(Errno::ADDRNOTAVAIL) => list.bad(format!("{name}: not an address of this host; see `ip address`")),
        Some(_) | None => list.bad(format!("{name}: {error}; write another addr")),
    }
}

/// Where access records are appended.
pub(super) fn access_log(list: &mut Checklist, path: &Path) {
    let name = format!("log.access {}", path.display());
    let dir = path.parent().unwrap_or(path);
    let (writable, what) = if path.exists() {
        (access(path, Access::WRITE_OK), "it")
    } else {
        (access(dir, Access::WRITE_OK | Access::EXEC_OK), "its directory")
    };
    match writable {
        Ok(()) if path.is_dir() => list.bad(format!("{name}: it is a directory; name a file")),
        Ok(()) => list.good(format!("{name}: can be written to")),
        Err(error) => {
            list.bad(format!(
                "{name}: {what} cannot be written to: {error}; give it to the daemon's user, or name another path"
            ));
        }
    }
}

pub(super) fn admin_socket(list: &mut Checklist, grpc: &Grpc) {
    let path = &grpc.path;
    let name = format!("grpc.addr {}", path.display());
    let dir = path.parent().unwrap_or(path);
    if let Err(error) = access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        let remedy = format!("`install -d -o mc-proxy -g mc-proxy -m 0750 {}`", dir.display());
        return list.bad(format!("{name}: its directory cannot be written to: {error}; {remedy}"));
    }
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        return list.bad(format!("{name}: something that is not a socket is there; remove it, or name another path"));
    }
    if let Some(group) = grpc.group.as_deref().filter(|group| !has_group(group)) {
        let remedy = format!("`groupadd --system {group}`, unless a directory service has it");
        return list.warn(format!("grpc.socket_group {group}: not in /etc/group; {remedy}"));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return list.warn(format!("{name}: in use, perhaps by a running mc-proxy; if not, name another path"));
    }
    list.good(format!("{name}: can be made"));
}

fn has_group(group: &str) -> bool {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    groups.lines().any(|line| line.split(':').next() == Some(group))
}

pub(super) fn backend_socket(list: &mut Checklist, path: &Path) {
    let name = format!("backend unix:{}", path.display());
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => list.good(format!("{name}: is a socket")),
        Ok(_) => list.warn(format!("{name}: is not a socket; correct the path")),
        Err(error) => list.warn(format!("{name}: {error}; start the backend, or correct the path")),
    }
}

/// With `xdp.required` whatever is missing keeps the daemon from starting; otherwise user space does the work.
pub(super) fn kernel_plane(list: &mut Checklist, xdp: &Xdp, capabilities: CapabilitySet) {
    if xdp.interfaces.is_empty() {
        return list.good("xdp: off, blocked sources are refused in user space");
    }
    let missing = if xdp.required { Grade::Bad } else { Grade::Warning };
    kernel(list, missing, &release());
    // CAP_SYS_ADMIN contains CAP_BPF, to the daemon too.
    let bpf = CapabilitySet::BPF | CapabilitySet::SYS_ADMIN;
    for (name, either) in [("CAP_BPF", bpf), ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN)] {
        if capabilities.intersects(either) {
            list.good(format!("{name}: this process has it"));
        } else {
            let text = format!("{name}: this process lacks it; add it to AmbientCapabilities of the unit");
            list.push(missing, text);
        }
    }
    for name in &xdp.interfaces {
        interface(list, missing, xdp, name);
    }
    pin_path(list, missing, &xdp.pin_path);
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn kernel(list: &mut Checklist, missing: Grade, release: &str) {
    let (major, minor) = KERNEL_MIN;
    match version(release) {
        Some(version) if version >= KERNEL_MIN => list.good(format!("kernel {release}")),
        Some(_) => list.push(missing, format!("kernel {release}: too old for XDP; boot {major}.{minor} or later")),
        None => list.warn(format!("kernel {release}: not a known version; {major}.{minor} or later is needed")),
    }
}

/// `6.1.0-18-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn interface(list: &mut Checklist, missing: Grade, xdp: &Xdp, name: &str) {
    let survey = match xdp::survey(xdp, name) {
        Ok(survey) => survey,
        Err(error) if error.obstacle() == Obstacle::NoInterface => {
            return list.push(missing, format!("{error}; write one that `ip link` shows"));
        }
        Err(error) => return list.push(missing, format!("{}; write one that `ip link` shows", error.chain())),
    };
    let driver = if survey.driver.is_empty() { "unknown" } else { &survey.driver };
    let about = format!("interface {name}: driver {driver}, mtu {}", survey.mtu);
    match survey.program {
        None => list.good(about),
        Some((id, mode, Some(true))) => list.good(format!("{about}, has mc-proxy's program (id {id}, {mode})")),
        Some((id, mode, Some(false))) => list.push(
            missing,
            format!(
                "{about}: another XDP program (id {id}, {mode}) is on it and will be left alone; `bpftool prog show id \
                 {id}` tells what it is, `ip link set dev {name} xdp off` removes it"
            ),
        ),
        Some((id, mode, None)) => list.warn(format!(
            "{about}: an XDP program (id {id}, {mode}) is on it, perhaps a running mc-proxy's; with CAP_BPF this check \
             can tell"
        )),
    }
    if survey.has_large_frames() && xdp.mode != XdpMode::Generic {
        list.warn(format!(
            "interface {name}: mtu {} is too large for native XDP on many drivers; if status then says generic, lower it: \
             `ip link set dev {name} mtu 3498`",
            survey.mtu
        ));
    }
}

fn pin_path(list: &mut Checklist, missing: Grade, path: &Path) {
    let name = format!("xdp.pin_path {}", path.display());
    let existing = existing_ancestor(path);
    let shown = existing.display();
    match rustix::fs::statfs(&existing) {
        // Width and sign of `f_type` differ between architectures; the magic has 32 bits on all of them.
        Ok(stat) if stat.f_type as u32 == BPF_FS_MAGIC => {}
        Ok(_) => {
            let text = format!("{name}: {shown} is not on a BPF file system; `mount -t bpf bpf /sys/fs/bpf`");
            return list.push(missing, text);
        }
        Err(error) => {
            let text = format!("{name}: {shown}: {error}; `chmod 711 /sys/fs/bpf` lets the daemon's user through");
            return list.push(missing, text);
        }
    }
    if let Err(error) = access(&existing, Access::WRITE_OK | Access::EXEC_OK) {
        let remedy = format!("`chmod 711 /sys/fs/bpf; install -d -o mc-proxy -m 0700 {}`", path.display());
        return list.push(missing, format!("{name}: {shown} cannot be written to: {error}; {remedy}"));
    }
    list.good(format!("{name}: on a BPF file system and writable"));
}

/// The path itself or the nearest directory above it. What cannot be looked at counts as existing.
fn existing_ancestor(path: &Path) -> PathBuf {
    let exists = |path: &&Path| match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    path.ancestors().find(exists).map_or_else(|| "/".into(), Path::to_owned)
}

/// For the effective user, whose capabilities count; `access(2)` would ask for the real one.
fn access(path: &Path, access: Access) -> io::Result<()> {
    Ok(rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::geoip_fixture::{asn, countries, iso};

    fn grades(list: &Checklist) -> Vec<Grade> {
        list.findings.iter().map(|finding| finding.grade).collect()
    }

    #[test]
    fn kernel_versions() {
        for (release, expected) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.15.0", Some((5, 15))),
            ("5.4.0-rc1+", Some((5, 4))),
            ("10.0", Some((10, 0))),
            ("six", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn an_old_kernel_is_as_bad_as_the_plane_is_required() {
        for missing in [Grade::Warning, Grade::Bad] {
            let mut list = Checklist::default();
            kernel(&mut list, missing, "5.10.0-9");
            assert_eq!(grades(&list), [missing], "{list}");
        }
        let mut list = Checklist::default();
        kernel(&mut list, Grade::Bad, "5.15.1");
        assert_eq!(grades(&list), [Grade::Good], "{list}");
    }

    #[test]
    fn interfaces_are_described() {
        let xdp = Xdp {
            interfaces: vec!["lo".into()],
            mode: XdpMode::Auto,
            required: false,
            require_native: false,
            scope: crate::config::Scope::Host,
            on_exit: crate::config::OnExit::Keep,
            pin_path: "/sys/fs/bpf/mc-proxy-absent".into(),
        };
        let mut list = Checklist::default();
        interface(&mut list, Grade::Bad, &xdp, "lo");
        assert_eq!(grades(&list), [Grade::Good, Grade::Warning], "{list}");
        assert!(list.findings[1].text.contains("too large for native XDP"), "{list}");
        let mut list = Checklist::default();
        interface(&mut list, Grade::Bad, &Xdp { mode: XdpMode::Generic, ..xdp.clone() }, "lo");
        interface(&mut list, Grade::Bad, &xdp, "absent0");
        assert_eq!(grades(&list), [Grade::Good, Grade::Bad], "{list}");
        assert!(list.findings[1].text.starts_with("interface absent0 does not exist; "), "{list}");
    }

    #[test]
    fn databases() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let check = |path: &Path| {
            let mut list = Checklist::default();
            database(&mut list, path);
            assert_eq!(list.findings.len(), 1, "{list}");
            list.findings.remove(0)
        };
        assert!(check(&path).text.ends_with("can be made"));
        fs::write(&path, b"SQLite format 3\0and more").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(check(&path).grade, Grade::Warning);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(check(&path).grade, Grade::Good);
        fs::write(&path, b"something else").unwrap();
        assert!(check(&path).text.contains("not an SQLite database"));
        assert_eq!(check(&dir.path().join("absent/a.db")).grade, Grade::Bad);
    }

    #[test]
    fn a_pin_path_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Checklist::default();
        pin_path(&mut list, Grade::Bad, &dir.path().join("not/yet/there"));
        assert!(list.findings[0].text.contains("is not on a BPF file system; `mount"), "{list}");
        assert_eq!(existing_ancestor(&dir.path().join("not/yet/there")), dir.path());
    }

    #[test]
    fn admin_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &Path, group: Option<&str>| {
            let mut list = Checklist::default();
            let group = group.map(str::to_owned);
            admin_socket(&mut list, &Grpc { path: path.to_owned(), mode: 0o660, group });
            list.findings.remove(0)
        };
        let path = dir.path().join("a.sock");
        assert_eq!(check(&path, Some("root")).grade, Grade::Good);
        assert_eq!(check(&path, Some("no-such-group")).grade, Grade::Warning);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(check(&path, None).text.contains("in use"));
        drop(listener);
        assert_eq!(check(&path, None).grade, Grade::Good, "a stale socket is replaced");
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(check(&dir.path().join("file"), None).grade, Grade::Bad);
        assert_eq!(check(&dir.path().join("absent/a.sock"), None).grade, Grade::Bad);
    }

    #[test]
    fn geoip_databases() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mmdb");
        let check = || {
            let mut list = Checklist::default();
            geoip(&mut list, &path);
            list.findings.remove(0)
        };
        assert_eq!(check().grade, Grade::Bad);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mmdb = |built| countries(built, iso("RU"));
        fs::write(&path, mmdb(now)).unwrap();
        let finding = check();
        assert_eq!(finding.grade, Grade::Good, "{finding}");
        assert!(finding.text.ends_with("Test-Country, 0 days old"), "{finding}");
        fs::write(&path, mmdb(now - 61 * 86_400)).unwrap();
        assert_eq!(check().grade, Grade::Warning);
        fs::write(&path, &mmdb(now)[..40]).unwrap();
        assert_eq!(check().grade, Grade::Bad);
        // What the daemon would not take either.
        fs::write(&path, countries(now, asn())).unwrap();
        assert!(check().text.contains("has no countries"), "{}", check());
    }
}
