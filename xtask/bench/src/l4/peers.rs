//! The proxies compared, and how each is told to do the same: route one server name to the backend by SNI.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use xtask::packages::NGINX_STREAM_MODULE;

use super::super::load::hello::SERVER_NAME;
use super::super::{MC_PROXY, packages, process};

/// Traffic without a proxy.
pub(super) const DIRECT: &str = "direct";
pub(super) const HAPROXY_SPLICE: &str = "haproxy-splice";
pub(super) const NGINX: &str = "nginx";
/// mc-proxy with `splice = "auto"`: what a user gets who says nothing.
pub(super) const AUTO: &str = MC_PROXY;
/// mc-proxy told how to move bytes.
pub(super) const FIXED: [&str; 2] = ["mc-proxy-sockmap", "mc-proxy-userspace"];
const ENVOY: &str = "envoy";

/// One proxy in one configuration.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    program: &'static str,
    /// Runs in the foreground with the configuration file `@CONFIG@`.
    args: &'static [&'static str],
    version_args: &'static [&'static str],
    template: &'static str,
    /// More words to replace in the template.
    words: &'static [(&'static str, &'static str)],
    pub(super) env: &'static [(&'static str, &'static str)],
}

/// All proxies a run can compare.
pub(super) const PEERS: [Peer; 8] = [
    Peer {
        name: "haproxy",
        program: "haproxy",
        args: &["-db", "-f", "@CONFIG@"],
        version_args: &["-v"],
        template: include_str!("templates/haproxy.cfg"),
        words: &[("@SPLICE@", ""), ("@PIPES@", "0")],
        env: &[],
    },
    // Forced both ways: `splice-auto` does not engage under this load.
    Peer {
        name: HAPROXY_SPLICE,
        program: "haproxy",
        args: &["-db", "-f", "@CONFIG@"],
        version_args: &["-v"],
        template: include_str!("templates/haproxy.cfg"),
        words: &[("@SPLICE@", "option splice-request\n    option splice-response"), ("@PIPES@", "190")],
        env: &[],
    },
    Peer {
        name: NGINX,
        program: NGINX,
        args: &["-c", "@CONFIG@", "-e", "@DIR@/early.log"],
        version_args: &["-v"],
        template: include_str!("templates/nginx.conf"),
        words: &[],
        env: &[],
    },
    Peer {
        name: "sniproxy",
        program: "sniproxy",
        args: &["-f", "-c", "@CONFIG@"],
        version_args: &["-V"],
        template: include_str!("templates/sniproxy.conf"),
        words: &[],
        env: &[],
    },
    Peer {
        name: ENVOY,
        program: ENVOY,
        args: &["-c", "@CONFIG@", "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
        version_args: &["--version"],
        template: include_str!("templates/envoy.yaml"),
        words: &[],
        env: &[],
    },
    ours(AUTO, &[("@SPLICE@", "auto")]),
    ours(FIXED[0], &[("@SPLICE@", "sockmap")]),
    ours(FIXED[1], &[("@SPLICE@", "userspace")]),
];

const fn ours(name: &'static str, words: &'static [(&'static str, &'static str)]) -> Peer {
    Peer {
        name,
        program: MC_PROXY,
        args: &["server", "-c", "@CONFIG@"],
        version_args: &["--version"],
        template: include_str!("templates/mc-proxy.toml"),
        words,
        env: &[("MCPROXY_LOG_LEVEL", "warn")],
    }
}

/// Whether a subject of this name is another project's proxy.
pub(super) fn is_rival(name: &str) -> bool {
    PEERS.iter().any(|peer| peer.name == name && !peer.is_ours())
}

/// The peers named, or all; an error for a name that is none.
pub(super) fn chosen(names: Option<&[String]>) -> anyhow::Result<Vec<&'static Peer>> {
    let Some(names) = names else { return Ok(PEERS.iter().collect()) };
    for name in names {
        if name != DIRECT && !PEERS.iter().any(|peer| peer.name == name) {
            let all: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
            bail!("no peer {name:?}; there are {}", all.join(", "));
        }
    }
    Ok(PEERS.iter().filter(|peer| names.iter().any(|name| name == peer.name)).collect())
}

/// Where a peer listens and what it dials.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) listen: SocketAddrV4,
    pub(super) backend: SocketAddrV4,
    /// The peer's own directory.
    pub(super) dir: PathBuf,
}

impl Peer {
    /// Whether this is mc-proxy, in one mode or another.
    pub(super) fn is_ours(&self) -> bool {
        self.program == MC_PROXY
    }

    /// The program's path, for mc-proxy that of `binary`; an error says why it cannot run here.
    pub(super) fn program(&self, binary: &Path) -> anyhow::Result<PathBuf> {
        if self.is_ours() {
            anyhow::ensure!(binary.is_file(), "{} is not built", binary.display());
            return Ok(binary.to_owned());
        }
        if self.name == ENVOY
            && let Some(path) = std::env::var_os("ENVOY")
        {
            let path = PathBuf::from(path);
            anyhow::ensure!(path.is_file(), "$ENVOY names {}, which is not there", path.display());
            return Ok(path);
        }
        if self.name == NGINX && !Path::new(NGINX_STREAM_MODULE).exists() {
            bail!("nginx's stream module is not installed");
        }
        packages::find(self.program).with_context(|| format!("{} is not installed", self.program))
    }

    /// The first line that the program prints about its version.
    pub(super) fn version(&self, program: &Path) -> anyhow::Result<String> {
        process::version(program, self.version_args)
    }

    /// The configuration for a site.
    pub(super) fn configuration(&self, site: &Site) -> String {
        let nowhere = SocketAddrV4::new(*site.backend.ip(), 1);
        let mut text = self.template.to_owned();
        for (word, value) in self.words {
            text = text.replace(word, value);
        }
        text.replace("@LISTEN@", &site.listen.to_string())
            .replace("@BACKEND@", &site.backend.to_string())
            .replace("@NOWHERE@", &nowhere.to_string())
            .replace("@LISTEN_IP@", &site.listen.ip().to_string())
            .replace("@LISTEN_PORT@", &site.listen.port().to_string())
            .replace("@BACKEND_IP@", &site.backend.ip().to_string())
            .replace("@BACKEND_PORT@", &site.backend.port().to_string())
            .replace("@SERVER_NAME@", SERVER_NAME)
            .replace("@DIR@", &site.dir.to_string_lossy())
    }

    /// Writes the configuration and returns the command line.
    pub(super) fn prepare(&self, program: &Path, site: &Site) -> anyhow::Result<Vec<String>> {
        // Envoy looks at the end of the name.
        let config = site.dir.join(if self.name == ENVOY { "config.yaml" } else { "config" });
        fs::create_dir_all(&site.dir)
            .and_then(|()| fs::write(&config, self.configuration(site)))
            .with_context(|| format!("writing {}", config.display()))?;
        let words = |arg: &&str| {
            arg.replace("@CONFIG@", &config.to_string_lossy()).replace("@DIR@", &site.dir.to_string_lossy())
        };
        Ok(std::iter::once(program.to_string_lossy().into_owned()).chain(self.args.iter().map(words)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        Site {
            listen: "127.0.0.1:8400".parse().unwrap(),
            backend: "127.0.0.2:9000".parse().unwrap(),
            dir: PathBuf::from("/nonexistent"),
        }
    }

    #[test]
    fn configurations_are_complete() {
        for peer in &PEERS {
            let text = peer.configuration(&site());
            let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            assert!(!text.split('@').any(is_word), "{}: a word is left in\n{text}", peer.name);
            for needed in ["127.0.0.1", "8400", "127.0.0.2", "9000", "bench"] {
                assert!(text.contains(needed), "{}: no {needed} in\n{text}", peer.name);
            }
        }
    }

    #[test]
    fn only_one_haproxy_splices() {
        let of = |name: &str| PEERS.iter().find(|peer| peer.name == name).unwrap().configuration(&site());
        assert!(!of("haproxy").contains("splice-"));
        assert!(of(HAPROXY_SPLICE).contains("option splice-request\n    option splice-response"));
    }

    #[test]
    fn ours_differ_in_how_they_move_bytes() {
        let ours: Vec<&Peer> = PEERS.iter().filter(|peer| peer.is_ours()).collect();
        assert_eq!(ours.iter().map(|peer| peer.name).collect::<Vec<_>>(), [AUTO, FIXED[0], FIXED[1]]);
        for (peer, mode) in ours.iter().zip(["auto", "sockmap", "userspace"]) {
            assert!(peer.configuration(&site()).contains(&format!("splice = \"{mode}\"")));
            assert!(!is_rival(peer.name));
        }
        assert!(is_rival(NGINX) && !is_rival(DIRECT));
    }

    #[test]
    fn peers_are_chosen_by_name() {
        assert_eq!(chosen(None).unwrap().len(), PEERS.len());
        let names = ["direct".to_owned(), "nginx".to_owned()];
        let chosen_names: Vec<&str> = chosen(Some(&names)).unwrap().iter().map(|peer| peer.name).collect();
        assert_eq!(chosen_names, ["nginx"]);
        let error = chosen(Some(&["ngnix".to_owned()])).unwrap_err().to_string();
        assert!(error.contains("\"ngnix\"") && error.contains("sniproxy"), "{error}");
    }
}
