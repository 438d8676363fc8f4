//! Asking: `/etc/hosts`, then the name servers of `/etc/resolv.conf`. Both files are read anew when they have changed.
//!
//! The system's own resolver would not tell the TTL. Not asked are therefore what else `nsswitch.conf` may name: mDNS,
//! NIS, the names of containers.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ResolveHosts, ServerOrderingStrategy},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::time::timeout;

use super::answer::{Family, Heard, TTL, Unheard};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// How long an entry of `/etc/hosts` is used before the file is looked at again.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// How long the other family's answer is waited for after one has come. RFC 8305 §3 has 50 ms for a user who waits; here
/// the answer serves every connection of the next minutes.
const OTHER_FAMILY: Duration = Duration::from_millis(500);

/// All attempts at all servers and search domains together.
const LIMIT: Duration = Duration::from_secs(30);

/// The system's configuration, as it was last read.
#[derive(Debug, Default)]
pub(super) struct System(Arc<Mutex<Option<Arc<Loaded>>>>);

#[derive(Debug)]
struct Loaded {
    stamps: [Stamp; 2],
    hosts: Hosts,
    /// Without one, the reason.
    dns: Result<Dns, String>,
}

#[derive(Debug)]
struct Dns {
    resolver: TokioResolver,
    search: Vec<Name>,
    ndots: usize,
}

/// What tells a file from what it was before: device, inode, length, and time of change to the nanosecond.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl System {
    pub(super) async fn lookup(&self, host: &str) -> Result<Heard, Unheard> {
        let kept = Arc::clone(&self.0);
        // Small files, but files.
        let loaded = tokio::task::spawn_blocking(move || current(&kept))
            .await
            .map_err(|error| Unheard::Failed(error.to_string()))?;
        let name = Name::from_ascii(host).map_err(|error| Unheard::Failed(error.to_string()))?;
        if let Some(heard) = loaded.in_hosts(&name) {
            return Ok(heard);
        }
        let dns = loaded.dns.as_ref().map_err(|reason| Unheard::Failed(reason.clone()))?;
        match timeout(LIMIT, dns.lookup(name)).await {
            Ok(heard) => heard,
            Err(_) => Err(Unheard::Failed(format!("no answer within {LIMIT:?}"))),
        }
    }
}

fn current(kept: &Mutex<Option<Arc<Loaded>>>) -> Arc<Loaded> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let stamps = [RESOLV_CONF, HOSTS].map(stamp);
    match &*kept {
        Some(loaded) if loaded.stamps == stamps => Arc::clone(loaded),
        _ => Arc::clone(kept.insert(Arc::new(Loaded::read(stamps)))),
    }
}

fn stamp(path: &str) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

impl Loaded {
    fn read(stamps: [Stamp; 2]) -> Self {
        let hosts = Hosts::from_system().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "{HOSTS} could not be read");
            }
            Hosts::default()
        });
        Self { stamps, hosts, dns: Dns::read().map_err(|error| format!("{RESOLV_CONF}: {error}")) }
    }

    /// As the system's resolver does: a name that the file has is not asked for, in neither family.
    fn in_hosts(&self, name: &Name) -> Option<Heard> {
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [of(RecordType::A), of(RecordType::AAAA)];
        let ips: Vec<IpAddr> = found.iter().flatten().flat_map(addresses).collect();
        (!ips.is_empty()).then_some(Heard { ips, ttl: HOSTS_TTL, unheard: None })
    }
}

impl Dns {
    fn read() -> Result<Self, NetError> {
        let (config, mut options) = read_system_conf()?;
        let ndots = options.ndots;
        // The host's own domain stands in for a search list, as in resolv.conf(5).
        let search = if config.search().is_empty() {
            config.domain().into_iter().cloned().collect()
        } else {
            config.search().to_vec()
        };
        options.use_hosts_file = ResolveHosts::Never;
        // Answers are kept by whoever asks.
        options.cache_size = 0;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        // The CNAMEs on the way have TTLs too.
        options.preserve_intermediates = true;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { resolver: builder.build()?, search, ndots })
    }

    /// Both families of the first name of the search list that has one.
    async fn lookup(&self, name: Name) -> Result<Heard, Unheard> {
        let mut worst = Unheard::NoSuchName;
        for name in candidates(name, self.ndots, &self.search) {
            match self.lookup_one(&name).await {
                Ok(heard) => return Ok(heard),
                Err(Missing::NoSuchName) => {}
                // A search domain whose servers are broken must not hide the next.
                Err(Missing::ServerFailed(message)) => worst = Unheard::Failed(message),
                Err(Missing::Unreachable(message)) => return Err(Unheard::Failed(message)),
            }
        }
        Err(worst)
    }

    async fn lookup_one(&self, name: &Name) -> Result<Heard, Missing> {
        let ask = async |kind| found(self.resolver.lookup(name.clone(), kind).await);
        let (mut v4, mut v6) = (pin!(ask(RecordType::A)), pin!(ask(RecordType::AAAA)));
        let late = || Err(Missing::Unreachable("no answer".to_owned()));
        let (v4, v6) = tokio::select! {
            v4 = &mut v4 => {
                let v6 = if v4.is_ok() { timeout(OTHER_FAMILY, v6).await.unwrap_or_else(|_| late()) } else { v6.await };
                (v4, v6)
            }
            v6 = &mut v6 => {
                let v4 = if v6.is_ok() { timeout(OTHER_FAMILY, v4).await.unwrap_or_else(|_| late()) } else { v4.await };
                (v4, v6)
            }
        };
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => Ok(Heard { ips: [v4.ips, v6.ips].concat(), ttl: v4.ttl.min(v6.ttl), unheard: None }),
            (Ok(heard), Err(Missing::NoSuchName)) | (Err(Missing::NoSuchName), Ok(heard)) => Ok(heard),
            (Ok(heard), Err(_)) => Ok(Heard { unheard: Some(Family::V6), ..heard }),
            (Err(_), Ok(heard)) => Ok(Heard { unheard: Some(Family::V4), ..heard }),
            (Err(Missing::NoSuchName), Err(missing)) | (Err(missing), Err(_)) => Err(missing),
        }
    }
}

/// Why one name has no address.
#[derive(Debug)]
enum Missing {
    NoSuchName,
    ServerFailed(String),
    Unreachable(String),
}

fn found(answer: Result<Lookup, NetError>) -> Result<Heard, Missing> {
    let lookup = match answer {
        Ok(lookup) => lookup,
        Err(NetError::Dns(DnsError::NoRecordsFound(_))) => return Err(Missing::NoSuchName),
        Err(error @ NetError::Dns(_)) => return Err(Missing::ServerFailed(error.to_string())),
        Err(error) => return Err(Missing::Unreachable(error.to_string())),
    };
    let ips: Vec<IpAddr> = addresses(&lookup).collect();
    if ips.is_empty() {
        return Err(Missing::NoSuchName);
    }
    let ttl = lookup.answers().iter().map(|record| record.ttl).min();
    let ttl = ttl.map_or(*TTL.start(), |seconds| Duration::from_secs(seconds.into()));
    Ok(Heard { ips, ttl, unheard: None })
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

/// The names that are asked for in turn (resolv.conf(5), `search` and `ndots`), every one to its final dot.
fn candidates(name: Name, ndots: usize, search: &[Name]) -> Vec<Name> {
    if name.is_fqdn() {
        return vec![name];
    }
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    // One that would be too long is not a name.
    let mut names: Vec<Name> = search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
    for name in &mut names {
        name.set_fqdn(true);
    }
    let mut itself = name;
    itself.set_fqdn(true);
    let at = if dots >= ndots { 0 } else { names.len() };
    names.insert(at, itself);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn asked(host: &str, ndots: usize) -> Vec<String> {
        let search = [name("cluster.local"), name("example.com.")];
        candidates(name(host), ndots, &search).iter().map(Name::to_ascii).collect()
    }

    #[test]
    fn names_without_enough_dots_are_searched_for_first() {
        assert_eq!(asked("app.", 1), ["app."]);
        assert_eq!(asked("app", 1), ["app.cluster.local.", "app.example.com.", "app."]);
        assert_eq!(asked("app.net", 1), ["app.net.", "app.net.cluster.local.", "app.net.example.com."]);
        assert_eq!(asked("a_b.app.net", 5)[2], "a_b.app.net.");
        assert_eq!(candidates(name("app"), 1, &[]), [name("app.")]);
    }

    #[test]
    fn a_file_that_is_written_anew_has_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let path = path.to_str().unwrap();
        assert_eq!(stamp(path), None);
        fs::write(path, "127.0.0.1 a").unwrap();
        let first = stamp(path);
        assert!(first.is_some());
        assert_eq!(stamp(path), first);
        fs::write(path, "127.0.0.1 ab").unwrap();
        assert_ne!(stamp(path), first);
    }
}
