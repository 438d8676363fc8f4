//! The stage in which TLS is terminated.

use super::{Outcome, record::Record};
use crate::{
    net::{
        memory::{self, Anonymous, Charge},
        socket::Socket,
    },
    route::Destination,
    tls::{HandshakeError, TlsFacts, TlsStream, terminate},
};

/// Bytes that a connection is charged for its TLS beyond [`memory::CONNECTION`]: keys, transcript and a record each way.
const TLS: usize = 24 * 1024;

/// Bytes beyond that while the handshake lasts: records that have come, and the certificate that waits to be taken.
const HANDSHAKE: usize = 32 * 1024;

/// A client whose TLS is terminated here, and what its connection is charged.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) stream: TlsStream,
    pub(super) facts: TlsFacts,
    pub(super) charge: Charge,
}

/// Makes the handshake that `hello` has begun, within what is left of the time for it. As long as it lasts the connection
/// may be given up for the sake of others.
pub(super) async fn secure(
    client: Socket,
    hello: Vec<u8>,
    destination: &Destination,
    record: &Record,
    place: Anonymous,
) -> Result<Secured, Outcome> {
    if !place.hold(2 * hello.capacity() + TLS + HANDSHAKE) {
        return Err(Outcome::OverMemory);
    }
    let config = destination.certificate.as_ref().and_then(|certificate| certificate.config());
    let Some(config) = config else { return Err(Outcome::Tls(HandshakeError::NoCertificate)) };
    let deadline = record.started_at() + record.edge().proxy.handshake_timeout;
    let terminated = tokio::select! {
        biased;
        () = place.shed() => return Err(Outcome::OverMemory),
        terminated = terminate(client, hello, config, deadline) => terminated,
    };
    let (stream, facts) = terminated.map_err(Outcome::Tls).inspect_err(|outcome| record.report(*outcome))?;
    // Both have read the same hello; the route was chosen by what the one of them made of it.
    if facts.server_name != record.server_name {
        let outcome = Outcome::Tls(HandshakeError::Malformed);
        record.report(outcome);
        return Err(outcome);
    }
    let charge = place.known().ok_or(Outcome::OverMemory)?;
    charge.resize(memory::CONNECTION + TLS as u64);
    Ok(Secured { stream, facts, charge })
}
