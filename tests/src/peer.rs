//! Other proxies to speak with: HAProxy and nginx as Debian has them, each with a configuration of the test's.

use std::{
    env, fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::{
    log::Log,
    privilege::{find_program, skip},
    wait::{SOON, until},
};

/// With this set to `1`, a test whose peer is not installed fails instead of being skipped.
pub const REQUIRE_VARIABLE: &str = "MC_PROXY_REQUIRE_PEERS";

const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// HAProxy.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
}

/// A running proxy, killed on drop.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    log: Log,
    _directory: TempDir,
}

impl Program {
    /// `true` when it is installed. Otherwise says that `test` is skipped, and which package is missing.
    ///
    /// # Errors
    /// When it is missing and [`REQUIRE_VARIABLE`] forbids to skip.
    pub fn is_there(self, test: &str) -> Result<bool> {
        let missing = match self {
            Self::Haproxy => find_program("haproxy").is_none().then_some("haproxy"),
            Self::Nginx if find_program("nginx").is_none() => Some("nginx"),
            Self::Nginx => (!Path::new(NGINX_STREAM_MODULE).exists()).then_some("libnginx-mod-stream"),
        };
        let Some(package) = missing else { return Ok(true) };
        let reason = format!("the package {package} is not installed");
        if env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1") {
            bail!("{test} may not be skipped ({REQUIRE_VARIABLE}=1), but {reason}");
        }
        skip(test, &reason)?;
        Ok(false)
    }

    /// Starts it with `body` for a configuration (HAProxy's sections behind `defaults`, nginx's `stream` block) and waits
    /// until it listens on all of `addrs`.
    pub fn start(self, body: &str, addrs: &[SocketAddr]) -> Result<Peer> {
        let directory = TempDir::with_prefix("mc-proxy-peer-").context("making a directory for a peer")?;
        let config = directory.path().join("peer.conf");
        let mut command = match self {
            Self::Haproxy => {
                fs::write(&config, format!("{HAPROXY}\n{body}\n"))?;
                let mut command = Command::new(find_program("haproxy").context("no haproxy")?);
                command.arg("-db").arg("-f").arg(&config);
                command
            }
            Self::Nginx => {
                let pid = directory.path().join("pid");
                fs::write(
                    &config,
                    format!(
                        "load_module {NGINX_STREAM_MODULE};\ndaemon off;\nmaster_process off;\npid {};\n\
                         error_log stderr notice;\nevents {{}}\nstream {{\n{body}\n}}\n",
                        pid.display()
                    ),
                )?;
                let mut command = Command::new(find_program("nginx").context("no nginx")?);
                command.arg("-p").arg(directory.path()).args(["-e", "stderr", "-c"]).arg(&config);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {self:?}"))?;
        let log = Log::default();
        // The readers end with the process.
        let outputs = (child.stdout.take().map(|o| log.collect(o)), child.stderr.take().map(|o| log.collect(o)));
        drop(outputs);
        let mut peer = Peer { child, log, _directory: directory };
        until("a peer to listen", SOON, || {
            if let Some(status) = peer.child.try_wait()? {
                bail!("{self:?} ended with {status}:\n{}", peer.log.lines().join("\n"));
            }
            let table = fs::read_to_string("/proc/net/tcp")?;
            Ok(addrs.iter().all(|addr| is_listening(&table, *addr)))
        })?;
        Ok(peer)
    }
}

const HAPROXY: &str = "global
  log stdout format raw local0
defaults
  mode tcp
  timeout connect 10s
  timeout client 30s
  timeout server 30s
";

impl Peer {
    /// What it writes.
    pub fn log(&self) -> &Log {
        &self.log
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that has ended already is none to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `/proc/net/tcp` has a socket that listens on an IPv4 address.
fn is_listening(table: &str, addr: SocketAddr) -> bool {
    let SocketAddr::V4(addr) = addr else { return false };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port());
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(1) == Some(local.as_str()) && words.nth(1) == Some("0A")
    })
}
