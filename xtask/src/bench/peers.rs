//! The proxies compared, and how each is told to do the same: route one server name to the backend by SNI.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::load::hello::SERVER_NAME;
use super::packages;

/// Traffic without a proxy.
pub(super) const DIRECT: &str = "direct";
pub(super) const HAPROXY_SPLICE: &str = "haproxy-splice";
pub(super) const MC_PROXY: &str = "mc-proxy";

pub(super) const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

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
pub(super) const PEERS: [Peer; 5] = [
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
        name: "nginx",
        program: "nginx",
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
        name: MC_PROXY,
        program: MC_PROXY,
        args: &["server", "-c", "@CONFIG@"],
        version_args: &["--version"],
        template: include_str!("templates/mc-proxy.toml"),
        words: &[],
        env: &[("MCPROXY_LOG_LEVEL", "warn")],
    },
];

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
    /// The program's path; an error says why it cannot run here.
    pub(super) fn program(&self, release_dir: &Path) -> anyhow::Result<PathBuf> {
        if self.name == MC_PROXY {
            let program = release_dir.join(self.program);
            anyhow::ensure!(program.is_file(), "{} is not built", program.display());
            return Ok(program);
        }
        if self.name == "nginx" && !Path::new(NGINX_STREAM_MODULE).exists() {
            bail!("nginx's stream module is not installed");
        }
        packages::find(self.program).with_context(|| format!("{} is not installed", self.program))
    }

    /// The first line that the program prints about its version.
    pub(super) fn version(&self, program: &Path) -> anyhow::Result<String> {
        let output = Command::new(program).args(self.version_args).output().context("asking for the version")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        Ok(said.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown").trim().to_owned())
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
            .replace("@SERVER_NAME@", SERVER_NAME)
            .replace("@DIR@", &site.dir.to_string_lossy())
    }

    /// Writes the configuration and returns the command line.
    pub(super) fn prepare(&self, program: &Path, site: &Site) -> anyhow::Result<Vec<String>> {
        let config = site.dir.join("config");
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
            assert!(!text.contains('@'), "{}: a word is left in\n{text}", peer.name);
            for needed in ["127.0.0.1:8400", "127.0.0.2:9000", "bench"] {
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
    fn peers_are_chosen_by_name() {
        assert_eq!(chosen(None).unwrap().len(), PEERS.len());
        let names = ["direct".to_owned(), "nginx".to_owned()];
        let chosen_names: Vec<&str> = chosen(Some(&names)).unwrap().iter().map(|peer| peer.name).collect();
        assert_eq!(chosen_names, ["nginx"]);
        let error = chosen(Some(&["ngnix".to_owned()])).unwrap_err().to_string();
        assert!(error.contains("\"ngnix\"") && error.contains("sniproxy"), "{error}");
    }
}
