//! The proxies compared, and how each is told to do the same: terminate TLS, and ask one backend in plaintext.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::super::load::hello::SERVER_NAME;
use super::super::{MC_PROXY, packages, process};

pub(super) const OURS: &str = MC_PROXY;
pub(super) const NGINX: &str = "nginx";
pub(super) const HAPROXY: &str = "haproxy";
pub(super) const ENVOY: &str = "envoy";
pub(super) const SOZU: &str = "sozu";

/// One proxy.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    comes_from: Origin,
    /// Runs in the foreground with the configuration file `@CONFIG@`.
    args: &'static [&'static str],
    version_args: &'static [&'static str],
    /// What the configuration file is called: some look at the end of the name.
    file: &'static str,
    template: &'static str,
    pub(super) env: &'static [(&'static str, &'static str)],
}

/// Where a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Here,
    /// The Debian package of the same name.
    Debian,
    /// An environment variable names it, or it is on the `PATH`.
    Variable(&'static str),
}

/// All proxies a run can compare.
pub(super) const PEERS: [Peer; 6] = [
    Peer {
        name: NGINX,
        comes_from: Origin::Debian,
        args: &["-c", "@CONFIG@", "-e", "@DIR@/early.log"],
        version_args: &["-v"],
        file: "nginx.conf",
        template: include_str!("templates/nginx.conf"),
        env: &[],
    },
    Peer {
        name: HAPROXY,
        comes_from: Origin::Debian,
        args: &["-db", "-f", "@CONFIG@"],
        version_args: &["-v"],
        file: "haproxy.cfg",
        template: include_str!("templates/haproxy.cfg"),
        env: &[],
    },
    Peer {
        name: "caddy",
        comes_from: Origin::Debian,
        args: &["run", "--config", "@CONFIG@", "--adapter", "caddyfile"],
        version_args: &["version"],
        file: "Caddyfile",
        template: include_str!("templates/Caddyfile"),
        // What it keeps stays with the run.
        env: &[("HOME", "@DIR@"), ("XDG_DATA_HOME", "@DIR@"), ("XDG_CONFIG_HOME", "@DIR@")],
    },
    Peer {
        name: ENVOY,
        comes_from: Origin::Variable("ENVOY"),
        args: &["-c", "@CONFIG@", "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
        version_args: &["--version"],
        file: "envoy.yaml",
        template: include_str!("templates/envoy.yaml"),
        env: &[],
    },
    Peer {
        name: SOZU,
        comes_from: Origin::Variable("SOZU"),
        args: &["--config", "@CONFIG@", "start"],
        version_args: &["--version"],
        file: "sozu.toml",
        template: include_str!("templates/sozu.toml"),
        env: &[],
    },
    Peer {
        name: OURS,
        comes_from: Origin::Here,
        args: &["server", "-c", "@CONFIG@"],
        version_args: &["--version"],
        file: "mc-proxy.toml",
        template: include_str!("templates/mc-proxy.toml"),
        env: &[("MCPROXY_LOG_LEVEL", "warn")],
    },
];

/// The peers named, or all; an error for a name that is none.
pub(super) fn chosen(names: Option<&[String]>) -> anyhow::Result<Vec<&'static Peer>> {
    let Some(names) = names else { return Ok(PEERS.iter().collect()) };
    for name in names {
        if !PEERS.iter().any(|peer| peer.name == name) {
            let all: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
            bail!("no peer {name:?}; there are {}", all.join(", "));
        }
    }
    Ok(PEERS.iter().filter(|peer| names.iter().any(|name| name == peer.name)).collect())
}

/// The certificate that every proxy has, in files.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    /// Both in one file.
    pub(super) both: PathBuf,
}

impl Certificate {
    /// Makes one with an ECDSA key on P-256, signed by itself.
    pub(super) fn make(dir: &Path) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).context("making a certificate")?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let path = |name: &str| dir.join(name);
        let files = Self { chain: path("cert.pem"), key: path("key.pem"), both: path("both.pem") };
        for (path, text) in [(&files.chain, chain.clone()), (&files.key, key.clone()), (&files.both, chain + &key)] {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(files)
    }
}

/// Where a peer listens and what it dials.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) listen: SocketAddrV4,
    /// For gRPC.
    pub(super) grpc_listen: SocketAddrV4,
    pub(super) backend: SocketAddrV4,
    pub(super) grpc_backend: SocketAddrV4,
    pub(super) certificate: Certificate,
    /// The peer's own directory.
    pub(super) dir: PathBuf,
}

impl Peer {
    /// Whether this is mc-proxy.
    pub(super) fn is_ours(&self) -> bool {
        self.comes_from == Origin::Here
    }

    /// The program's path, for mc-proxy that of `binary`; an error says why it cannot run here.
    pub(super) fn program(&self, binary: &Path) -> anyhow::Result<PathBuf> {
        match self.comes_from {
            Origin::Here => {
                anyhow::ensure!(binary.is_file(), "{} is not built", binary.display());
                Ok(binary.to_owned())
            }
            Origin::Debian => {
                packages::find(self.name).with_context(|| format!("apt-get install {} has it", self.name))
            }
            Origin::Variable(variable) => match std::env::var_os(variable).map(PathBuf::from) {
                Some(path) => {
                    anyhow::ensure!(path.is_file(), "${variable} names {}, which is not there", path.display());
                    Ok(path)
                }
                None => {
                    packages::find(self.name).with_context(|| format!("it is not installed; ${variable} may name it"))
                }
            },
        }
    }

    /// The first line that the program prints about its version.
    pub(super) fn version(&self, program: &Path) -> anyhow::Result<String> {
        process::version(program, self.version_args)
    }

    /// The configuration for a site.
    pub(super) fn configuration(&self, site: &Site) -> String {
        self.template
            .replace("@LISTEN@", &site.listen.to_string())
            .replace("@LISTEN_IP@", &site.listen.ip().to_string())
            .replace("@LISTEN_PORT@", &site.listen.port().to_string())
            .replace("@GRPC_LISTEN@", &site.grpc_listen.to_string())
            .replace("@GRPC_PORT@", &site.grpc_listen.port().to_string())
            .replace("@BACKEND@", &site.backend.to_string())
            .replace("@BACKEND_IP@", &site.backend.ip().to_string())
            .replace("@BACKEND_PORT@", &site.backend.port().to_string())
            .replace("@GRPC_BACKEND@", &site.grpc_backend.to_string())
            .replace("@GRPC_BACKEND_PORT@", &site.grpc_backend.port().to_string())
            .replace("@CERT@", &site.certificate.chain.to_string_lossy())
            .replace("@KEY@", &site.certificate.key.to_string_lossy())
            .replace("@PEM@", &site.certificate.both.to_string_lossy())
            .replace("@SERVER_NAME@", SERVER_NAME)
            .replace("@DIR@", &site.dir.to_string_lossy())
    }

    /// Writes the configuration and returns the command line.
    pub(super) fn prepare(&self, program: &Path, site: &Site) -> anyhow::Result<Vec<String>> {
        let config = site.dir.join(self.file);
        fs::create_dir_all(&site.dir)
            .and_then(|()| fs::write(&config, self.configuration(site)))
            .with_context(|| format!("writing {}", config.display()))?;
        let words = |arg: &&str| site.in_dir(&arg.replace("@CONFIG@", &config.to_string_lossy()));
        Ok(std::iter::once(program.to_string_lossy().into_owned()).chain(self.args.iter().map(words)).collect())
    }
}

impl Site {
    /// A word in which `@DIR@` is the peer's own directory.
    pub(super) fn in_dir(&self, word: &str) -> String {
        word.replace("@DIR@", &self.dir.to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_complete() {
        let dir = PathBuf::from("/nonexistent");
        let path = |name: &str| dir.join(name);
        let certificate = Certificate { chain: path("chain"), key: path("key"), both: path("both") };
        let site = Site {
            listen: "127.0.0.1:8500".parse().unwrap(),
            grpc_listen: "127.0.0.1:8501".parse().unwrap(),
            backend: "127.0.0.2:9100".parse().unwrap(),
            grpc_backend: "127.0.0.2:9101".parse().unwrap(),
            certificate,
            dir: dir.clone(),
        };
        for peer in &PEERS {
            let text = peer.configuration(&site);
            let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            assert!(!text.split('@').any(is_word), "{}: a word is left in\n{text}", peer.name);
            for needed in ["127.0.0.1", "8500", "8501", "127.0.0.2", "9100", "9101"] {
                assert!(text.contains(needed), "{}: no {needed} in\n{text}", peer.name);
            }
            let certificates = ["/nonexistent/chain", "/nonexistent/both"];
            assert!(certificates.iter().any(|path| text.contains(path)), "{}: no certificate", peer.name);
        }
    }

    #[test]
    fn peers_are_chosen_by_name() {
        assert_eq!(chosen(None).unwrap().len(), PEERS.len());
        let names = ["haproxy".to_owned(), "nginx".to_owned()];
        let chosen_names: Vec<&str> = chosen(Some(&names)).unwrap().iter().map(|peer| peer.name).collect();
        assert_eq!(chosen_names, [NGINX, HAPROXY]);
        let error = chosen(Some(&["ngnix".to_owned()])).unwrap_err().to_string();
        assert!(error.contains("\"ngnix\"") && error.contains("sozu"), "{error}");
    }
}
