//! Hellos of real clients: `mc-proxy/testdata`, each named after its tool, what was asked of it, and the day; and what
//! the linked rustls sends today.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mc_proxy::tls::{HelloError, Progress, ServerNameError};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
};

use crate::{
    check::{self, client_hello::Oracle},
    wire::SIGNATURE_ALGORITHMS,
};

fn files(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).expect("a folder of the repository");
    let mut paths = entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file of the repository"))).collect()
}

#[test]
fn captured() {
    let files = files("testdata");
    assert!(files.len() >= 16, "{}", files.len());
    for (path, wire) in files {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap();
        let progress = check::client_hello::check(&wire);
        let expected = match file {
            _ if file.contains("noservername") || file.contains("-ip-") => Ok(None),
            _ if file.contains("ipliteral") => Err(HelloError::ServerName(ServerNameError::IpLiteral)),
            _ if file.contains("plain-http") || file.contains("banner") => Err(HelloError::NotTls),
            _ => Ok(Some("a.example")),
        };
        match (&progress, expected) {
            (Progress::Complete(hello), Ok(name)) => {
                assert_eq!(hello.server_name.as_ref().map(|name| name.as_str()), name, "{file}");
                let (offer, versions) = offered(file);
                assert!(hello.alpn.to_string().starts_with(offer), "{file}: {}", hello.alpn);
                assert_eq!(hello.alpn.is_empty(), offer.is_empty(), "{file}");
                assert_eq!(hello.versions.to_string(), versions, "{file}");
                for len in 0..wire.len() {
                    assert_eq!(check::client_hello::check(&wire[..len]), Progress::Incomplete, "{file} to {len}");
                }
            }
            (Progress::Invalid(error), Err(reason)) => assert_eq!(*error, reason, "{file}"),
            (progress, expected) => panic!("{file}: {progress:?}, not {expected:?}"),
        }
        // TLS 1.0 has no signature_algorithms, which rustls wants and routing does not.
        let is_old = !wire.windows(2).any(|bytes| bytes == SIGNATURE_ALGORITHMS.to_be_bytes());
        if matches!(progress, Progress::Complete(_)) && !is_old {
            assert!(matches!(check::client_hello::acceptor(&wire), Oracle::Accepted(_)), "{file}: a vacuous oracle");
        }
    }
}

/// What the tool offered by ALPN, or the beginning of it, and its versions.
fn offered(file: &str) -> (&str, &str) {
    let all = "1.3,1.2,1.1,1.0";
    match file {
        _ if file.starts_with("curl") && file.contains("http11") => ("http/1.1", all),
        _ if file.starts_with("curl") => ("h2,http/1.1", all),
        _ if file.starts_with("java") => ("", "1.3,1.2"),
        _ if file.starts_with("python") && file.contains("tls12") => ("", "1.2"),
        _ if file.starts_with("node") || file.starts_with("python") => ("h2,http/1.1", "1.3,1.2"),
        _ if file.contains("tls10") => ("", "1.0"),
        _ if file.contains("tls12") => ("h2,http/1.1", "1.2"),
        // More than is kept.
        _ if file.contains("maxfrag512") => ("protocol-00,protocol-01,", all),
        _ => ("", all),
    }
}

#[test]
fn rustls_client() {
    for (group, fragment) in [
        (aws_lc_rs::kx_group::X25519, None),
        (aws_lc_rs::kx_group::X25519MLKEM768, None),
        (aws_lc_rs::kx_group::X25519MLKEM768, Some(512)),
        (aws_lc_rs::kx_group::X25519MLKEM768, Some(32)),
    ] {
        let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.max_fragment_size = fragment;
        let mut client = ClientConnection::new(Arc::new(config), "A.example".try_into().unwrap()).unwrap();
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let Progress::Complete(hello) = check::client_hello::check(&wire) else { panic!("{group:?} {fragment:?}") };
        assert_eq!(hello.server_name.unwrap().as_str(), "a.example");
        assert_eq!(wire.len() > 1200, group.name() == rustls::NamedGroup::X25519MLKEM768, "{}", wire.len());
    }
}

#[test]
fn fuzz_corpora() {
    let hellos = files("fuzz/corpus/client_hello");
    let patterns = files("fuzz/corpus/route_pattern");
    let lists = files("fuzz/corpus/list");
    assert!(!hellos.is_empty() && !patterns.is_empty() && !lists.is_empty());
    for (_, bytes) in hellos {
        check::client_hello::check(&bytes);
    }
    for (_, bytes) in patterns {
        check::route_pattern::check(&bytes);
    }
    for (_, bytes) in lists {
        check::list::check(&bytes);
    }
}
