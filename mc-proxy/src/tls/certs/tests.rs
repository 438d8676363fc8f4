//! Certificates in real files, made for the test.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
};

use super::*;

/// A self-signed certificate with its key, both as PEM.
pub(crate) struct Made {
    pub(crate) cert: String,
    pub(crate) key: String,
}

pub(crate) fn make(name: &str) -> Made {
    make_with(name, &PKCS_ECDSA_P256_SHA256)
}

fn make_with(name: &str, algorithm: &'static SignatureAlgorithm) -> Made {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    Made { cert: cert.pem(), key: key.serialize_pem() }
}

impl Made {
    pub(crate) fn write(&self, dir: &Path) -> CertFiles {
        let files = CertFiles { cert: dir.join("chain.pem"), key: dir.join("key.pem") };
        fs::write(&files.cert, &self.cert).unwrap();
        fs::write(&files.key, &self.key).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        files
    }
}

fn problem(files: &CertFiles) -> String {
    Pair::load(files).unwrap_err().to_string()
}

#[test]
fn every_kind_of_key() {
    let dir = tempfile::tempdir().unwrap();
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
        let pair = Pair::load(&make_with("a.example", algorithm).write(dir.path())).unwrap();
        assert_eq!(pair.leaf.names, ["a.example"]);
        assert!(pair.leaf.not_before < pair.leaf.not_after && !pair.is_key_exposed);
        assert!(!pair.leaf.serial.is_empty() && pair.leaf.issuer.contains("rcgen"));
        server_config(&pair).unwrap();
    }
}

#[test]
fn what_is_wrong_is_said_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (made, other) = (make("a.example"), make("b.example"));
    let files = made.write(dir.path());
    let (cert, key) = (files.cert.display().to_string(), files.key.display().to_string());
    let cases = [
        (&files.cert, String::new(), format!("{cert}: there is no PEM certificate in it")),
        (&files.cert, made.key.clone(), format!("{cert}: there is no PEM certificate in it")),
        (
            &files.cert,
            made.cert.replace("-----END CERTIFICATE-----", ""),
            format!("{cert}: a PEM block in it is damaged"),
        ),
        (
            &files.cert,
            format!("{}-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n", made.cert),
            format!("{cert}: certificate 2 in it: it is no X.509 certificate"),
        ),
        (&files.cert, made.cert.repeat(17), format!("{cert}: it has more than 16 certificates")),
        (&files.cert, "x".repeat((1 << 20) + 1), format!("{cert}: it is longer than 1 MiB")),
        (&files.key, other.key.clone(), format!("{key}: it is not the key of the first certificate in {cert}")),
        (&files.key, made.cert.clone(), format!("{key}: there is no PEM private key in it")),
        (
            &files.key,
            made.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            format!("{key}: the key has a passphrase; write it without, as by `openssl pkey -in FILE -out FILE`"),
        ),
        (
            &files.key,
            "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n".to_owned(),
            format!("{key}: it is none of an RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) or Ed25519 key"),
        ),
    ];
    for (file, content, expected) in cases {
        made.write(dir.path());
        fs::write(file, content).unwrap();
        assert_eq!(problem(&files), expected);
    }
    made.write(dir.path());
    fs::remove_file(&files.key).unwrap();
    assert!(problem(&files).starts_with(&format!("{key}: No such file")));
    rustix::fs::mknodat(rustix::fs::CWD, &files.key, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert_eq!(problem(&files), format!("{key}: it is not a regular file"));
}

#[test]
fn a_key_that_others_can_read_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let files = make("a.example").write(dir.path());
    for (mode, is_exposed) in [(0o640, false), (0o644, true)] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(Pair::load(&files).unwrap().is_key_exposed, is_exposed);
    }
}

#[test]
fn debug_has_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let made = make("a.example");
    let files = made.write(dir.path());
    let mut certificates = Certificates::new(Instant::now());
    certificates.open(&files, SystemTime::now()).unwrap();
    let staged = certificates.stage(&files).unwrap();
    let text = format!("{certificates:?} {:?} {staged:?} {:?}", certificates.get(&files), Pair::load(&files));
    let body = made.key.lines().nth(1).unwrap();
    assert!(!text.contains(&body[..16]) && !text.contains("config"), "{text}");
}

#[test]
fn the_old_one_stays_until_both_files_are_good() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (make("a.example"), make("a.example"));
    let files = old.write(dir.path());
    let (begun, wall) = (Instant::now(), SystemTime::now());
    let mut certificates = Certificates::new(begun);
    certificates.open(&files, wall).unwrap();
    certificates.retain(|_| true, |_| true);
    let certificate = certificates.get(&files).unwrap();
    let first = certificate.config().unwrap();
    let is_first = |certificate: &Certificate| std::sync::Arc::ptr_eq(&certificate.config().unwrap(), &first);

    assert_eq!(certificates.reload(wall), Reloaded { unchanged: 1, ..Reloaded::default() });
    assert!(is_first(&certificate), "tickets outlive a reload that changes nothing");

    fs::write(&files.cert, &new.cert).unwrap();
    let reloaded = certificates.reload(wall);
    assert_eq!((reloaded.failed.len(), reloaded.replaced), (1, 0));
    assert!(is_first(&certificate));
    let figures = certificates.figures();
    assert_eq!((figures.count, figures.failing, figures.failures), (1, 1, 1));
    assert!(certificates.list()[0].error.as_ref().unwrap().contains("it is not the key"));

    fs::write(&files.key, &new.key).unwrap();
    let second = Duration::from_secs(1);
    certificates.tick(begun + second, wall);
    assert!(is_first(&certificate), "hinted, and not quiet yet");
    certificates.tick(begun + 3 * second, wall);
    assert!(!is_first(&certificate));
    let figures = certificates.figures();
    assert_eq!((figures.failing, figures.failures), (0, 1));
    assert!(figures.earliest_expiry.is_some());
    certificates.retain(|_| false, |_| false);
    assert!(certificates.get(&files).is_none() && certificate.config().is_some());
}

#[test]
fn a_certificate_that_is_bad_at_the_start_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let made = make("a.example");
    let files = made.write(dir.path());
    fs::remove_file(&files.cert).unwrap();
    let (begun, wall) = (Instant::now(), SystemTime::now());
    let mut certificates = Certificates::new(begun);
    certificates.open(&files, wall).unwrap_err();
    let certificate = certificates.get(&files).unwrap();
    assert!(certificate.config().is_none());
    made.write(dir.path());
    // By the poll alone: nothing is watched.
    certificates.tick(begun + Duration::from_secs(59), wall);
    assert!(certificate.config().is_none());
    certificates.tick(begun + Duration::from_secs(60), wall);
    assert!(certificate.config().is_some());
}

#[test]
fn a_directory_that_is_swapped_by_a_link_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    for (name, made) in [("..1", make("a.example")), ("..2", make("b.example"))] {
        fs::create_dir(dir.path().join(name)).unwrap();
        made.write(&dir.path().join(name));
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/chain.pem", dir.path().join("tls.crt")).unwrap();
    symlink("..data/key.pem", dir.path().join("tls.key")).unwrap();
    let files = CertFiles { cert: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
    let (begun, wall) = (Instant::now(), SystemTime::now());
    let mut certificates = Certificates::new(begun);
    certificates.open(&files, wall).unwrap();
    certificates.retain(|_| true, |_| true);
    symlink("..2", dir.path().join("..new")).unwrap();
    fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    certificates.tick(begun + Duration::from_secs(1), wall);
    certificates.tick(begun + Duration::from_secs(2), wall);
    assert_eq!(certificates.list()[0].leaf.as_ref().unwrap().names, ["b.example"]);
}

#[test]
fn the_end_is_told_from_thirty_days() {
    let day = Duration::from_secs(24 * 3600);
    let begun = SystemTime::UNIX_EPOCH + 1_000 * day;
    let leaf = Leaf {
        names: Vec::new(),
        not_before: begun,
        not_after: begun + 90 * day,
        issuer: String::new(),
        serial: String::new(),
    };
    let at = |days: u32| Expiry::of(&leaf, begun + days * day);
    assert_eq!(
        [at(0), at(59), at(60), at(90), at(91)],
        [None, None, Some(Expiry::Soon(30)), Some(Expiry::Soon(0)), Some(Expiry::Expired)]
    );
    assert_eq!(Expiry::of(&leaf, begun - day), Some(Expiry::NotYet));
}
