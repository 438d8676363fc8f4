//! What the record of a connection has in common with the requests that are served on it.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::announce;

/// Written while requests are served, and read when the connection's record is: also when it is cut off.
#[derive(Debug, Default)]
pub struct Shared {
    from_client: AtomicU64,
    from_backends: AtomicU64,
    unique_id: OnceLock<Box<[u8]>>,
}

impl Shared {
    /// With the name that a PROXY header has brought, if it has.
    pub(super) fn new(unique_id: Option<Box<[u8]>>) -> Self {
        Self { unique_id: unique_id.map(OnceLock::from).unwrap_or_default(), ..Self::default() }
    }

    /// How many bytes have come from the client by now, without TLS: heads and frames as well as content.
    pub fn set_from_client(&self, bytes: u64) {
        self.from_client.store(bytes, Relaxed);
    }

    /// So many more bytes of content have come from backends.
    pub fn add_from_backends(&self, bytes: u64) {
        self.from_backends.fetch_add(bytes, Relaxed);
    }

    /// Bytes from the client, and bytes of content from backends.
    pub fn bytes(&self) -> (u64, u64) {
        (self.from_client.load(Relaxed), self.from_backends.load(Relaxed))
    }

    /// The connection's name in logs and PROXY headers; made when it is first asked for.
    pub(super) fn unique_id(&self) -> &[u8] {
        self.unique_id.get_or_init(announce::unique_id)
    }

    /// The same, if it has been asked for.
    pub(super) fn known_id(&self) -> Option<&[u8]> {
        self.unique_id.get().map(AsRef::as_ref)
    }
}
