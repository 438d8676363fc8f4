//! What backends' certificates are verified against: a file of certificates of authorities, or the system's.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::pair::read;

/// Authorities, shared by the connections that are verified against them.
pub type Roots = Arc<RootCertStore>;

/// Why a file of authorities cannot be used. Displays on one line, with the name of the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct RootsError {
    path: PathBuf,
    problem: String,
}

/// Reads the authorities of a PEM file, of which there is at least one. Blocks as long as the file system does, on regular
/// files only.
///
/// # Errors
/// When it cannot be read, or something in it is no certificate: one that is passed over would be missed when a backend's
/// certificate is renewed.
pub fn roots(path: &Path) -> Result<RootCertStore, RootsError> {
    let error = |problem: String| RootsError { path: path.to_owned(), problem };
    let (pem, _) = read(path).map_err(|problem| error(problem.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| error("a PEM block in it is damaged".to_owned()))?;
        let position = roots.len() + 1;
        roots.add(certificate).map_err(|_| error(format!("certificate {position} in it is no X.509 certificate")))?;
    }
    if roots.is_empty() { Err(error("there is no PEM certificate in it".to_owned())) } else { Ok(roots) }
}

/// Those of the system, read once for the whole process, which blocks; none when the system has none, which the next call finds
/// out anew.
pub fn system_roots() -> Option<Roots> {
    static SYSTEM: OnceLock<Roots> = OnceLock::new();
    if let Some(known) = SYSTEM.get() {
        return Some(Arc::clone(known));
    }
    let mut roots = RootCertStore::empty();
    // Some systems have roots that are none; the others are good.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        tracing::error!(
            "the system has no root certificates, and backends cannot be verified; install ca-certificates or set backend_ca"
        );
        return None;
    }
    Some(Arc::clone(SYSTEM.get_or_init(|| Arc::new(roots))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::tests::make, *};

    #[test]
    fn authorities() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let (one, two) = (make("a.example"), make("b.example"));
        fs::write(&path, format!("# both\n{}{}", one.cert, two.cert)).unwrap();
        assert_eq!(roots(&path).unwrap().len(), 2);
        let problem = |text: &str| {
            fs::write(&path, text).unwrap();
            let text = roots(&path).unwrap_err().to_string();
            text.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
        };
        for none in ["", "nothing", &one.key] {
            assert_eq!(problem(none), "there is no PEM certificate in it");
        }
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(problem(&format!("{}{broken}", one.cert)), "certificate 2 in it is no X.509 certificate");
        assert_eq!(problem("-----BEGIN CERTIFICATE-----\n!\n"), "a PEM block in it is damaged");
        assert!(roots(dir.path()).unwrap_err().to_string().ends_with("it is not a regular file"));
        assert!(roots(&dir.path().join("absent")).is_err());
    }
}
