//! A chain and its key, read from their files and checked as a pair.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    Error, InconsistentKeys,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::{Leaf, config::provider};

/// Bytes of a file that are read: a hundred chains' worth. More is some other file.
const FILE_MAX: u64 = 1 << 20;

/// Certificates of a chain; more than ten are never looked at by a client.
const CHAIN_MAX: usize = 16;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertFiles {
    /// PEM: the leaf first, then who issued it.
    pub cert: PathBuf,
    /// PEM: PKCS #8, PKCS #1 or SEC1; without a passphrase.
    pub key: PathBuf,
}

/// A chain with its key, of which it is known that they belong together.
#[derive(Clone)]
pub struct Pair {
    pub(super) certified: Arc<CertifiedKey>,
    /// Of the chain's first certificate.
    pub leaf: Leaf,
    /// Users who are neither the owner of the key's file nor of its group can read it.
    pub is_key_exposed: bool,
    /// Of the files that were read.
    pub(super) stamps: [Option<Stamp>; 2],
}

/// Why a certificate cannot be used. Displays on one line, with the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The chain's file.
    #[error("{}: {problem}", .path.display())]
    Cert {
        /// Its name.
        path: PathBuf,
        /// In words.
        problem: String,
    },
    /// The key's file.
    #[error("{}: {problem}", .path.display())]
    Key {
        /// Its name.
        path: PathBuf,
        /// In words.
        problem: String,
    },
}

impl Pair {
    /// Reads both files. Blocks as long as the file system does, on regular files only.
    ///
    /// # Errors
    /// When one of them cannot be read or used, or the key is not that of the chain's first certificate.
    pub fn load(files: &CertFiles) -> Result<Self, CertError> {
        let cert_error = |problem: String| CertError::Cert { path: files.cert.clone(), problem };
        let key_error = |problem: String| CertError::Key { path: files.key.clone(), problem };

        let (pem, cert_meta) = read(&files.cert).map_err(|error| cert_error(error.to_string()))?;
        let chain = chain(&pem).map_err(cert_error)?;
        let leaf = chain.first().map(|leaf| Leaf::parse(leaf));
        let Some(Ok(leaf)) = leaf else {
            return Err(cert_error("its first certificate is no X.509 certificate".into()));
        };

        let (pem, key_meta) = read(&files.key).map_err(|error| key_error(error.to_string()))?;
        let key = key(&pem).map_err(key_error)?;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the others all mean that it is no key of a kind that is known"
        )]
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                key_error(format!("it is not the key of the first certificate in {}", files.cert.display()))
            }
            Error::InvalidCertificate(error) => cert_error(format!("its first certificate cannot be used: {error:?}")),
            // What is said of a key does not quote it.
            _ => {
                key_error("it is none of an RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) or Ed25519 key".into())
            }
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            leaf,
            is_key_exposed: key_meta.mode() & 0o004 != 0,
            stamps: [&cert_meta, &key_meta].map(|meta| Some(Stamp::from(meta))),
        })
    }

    /// Whether both are the same certificate: then their keys are the same too, however they are written.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl fmt::Display for CertFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cert.display().fmt(f)
    }
}

/// What distinguishes one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The present one; none of a file that cannot be looked at.
    pub(super) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(meta: &fs::Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl CertFiles {
    /// Of both files.
    pub(super) fn stamps(&self) -> [Option<Stamp>; 2] {
        [Stamp::of(&self.cert), Stamp::of(&self.key)]
    }
}

pub(super) fn read(path: &Path) -> io::Result<(Vec<u8>, fs::Metadata)> {
    // A pipe in the place of a file would hold up whoever opens it.
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > FILE_MAX {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1);
    file.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok((bytes, metadata))
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "a PEM block in it is damaged".to_owned())?;
        if chain.len() == CHAIN_MAX {
            return Err(format!("it has more than {CHAIN_MAX} certificates"));
        }
        let position = chain.len() + 1;
        Leaf::parse(&certificate).map_err(|error| format!("certificate {position} in it: {error}"))?;
        chain.push(certificate);
    }
    if chain.is_empty() { Err("there is no PEM certificate in it".to_owned()) } else { Ok(chain) }
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let has = |words: &str| pem.windows(words.len()).any(|window| window == words.as_bytes());
    if has("ENCRYPTED") {
        return Err("the key has a passphrase; write it without, as by `openssl pkey -in FILE -out FILE`".to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "there is no PEM private key in it".to_owned())
}
