//! Who a connection is from. On a listener behind PROXY protocol that is what the header says, and the peer has to be
//! somebody whose header is believed; everywhere else it is the peer, and no header is looked for.
//!
//! Nobody is banned for what happens here: an untrusted peer may be the load balancer that is not in the list yet, a bad
//! header is a trusted peer's mistake, and one that is late says nothing of the client.

use tokio::time::Instant;

use super::{Outcome, pipeline, record::Record, told::Told};
use crate::{
    clock,
    desired::AcceptProxy,
    net::{addr::ClientAddr, memory::Anonymous, socket::Socket},
    proxy_header::{self, Endpoints, Header, Progress},
    telemetry::limit::LineLimit,
};

/// Mistakes of an operator's, which he is told of without a line for each connection.
static WARNINGS: LineLimit = LineLimit::per_second(1);

/// Makes the client known to the record. What was read behind the header comes back: it begins the client's stream.
pub(super) async fn identify(client: &mut Socket, record: &mut Record, place: &Anonymous) -> Result<Vec<u8>, Outcome> {
    let Some(accept) = record.permit().listener().proxy.clone() else { return Ok(Vec::new()) };
    // The kernel asks this of the peer's packets, where it can.
    let port = record.permit().listener().addr.socket().port();
    let judgement = record.edge().firewall.judge_peer(record.peer, port, clock::since_boot());
    record.group = judgement.group();
    if let Some(outcome) = pipeline::refusal(judgement) {
        return Err(outcome);
    }
    if !accept.believes(record.peer.ip()) {
        warn(record, "a peer that is not in proxy_trusted was refused");
        return Err(Outcome::ProxyUntrusted);
    }
    let (header, rest) = match read_header(client, record, place).await {
        Ok(read) => read,
        Err(outcome) => {
            if matches!(outcome, Outcome::Proxy(_)) {
                warn(record, outcome.reason());
            }
            return Err(outcome);
        }
    };
    let Header { endpoints, tlvs } = header;
    if let Endpoints::Inet { source, destination, .. } = endpoints {
        record.client = ClientAddr::from_header(source);
        record.destination = Some(destination);
    }
    // Bans are for clients. The peer's own connections, those of its fellows, and addresses that anybody may have written
    // into a header are not worth one.
    record.is_blameless = accept.trust_any || accept.believes(record.client.ip());
    record.told = Told::of(tlvs).map(Box::new);
    record.is_header_late = record.started_at().elapsed() > record.edge().proxy.handshake_timeout / 2;
    Ok(rest)
}

/// Reads the header, and not longer than the client may take for all of its handshake.
async fn read_header(client: &mut Socket, record: &Record, place: &Anonymous) -> Result<(Header, Vec<u8>), Outcome> {
    let deadline = record.started_at() + record.edge().proxy.handshake_timeout;
    let mut bytes = Vec::new();
    loop {
        pipeline::receive(client, &mut bytes, place, deadline, Outcome::ProxyTimeout).await?;
        match proxy_header::parse(&bytes) {
            Progress::Complete { header, consumed } => {
                bytes.drain(..consumed);
                pipeline::give_back(&mut bytes, place)?;
                return Ok((header, bytes));
            }
            Progress::Invalid(error) => return Err(Outcome::Proxy(error)),
            // No header is incomplete at `MAX_V2` bytes.
            Progress::Incomplete(_) => {}
        }
    }
}

fn warn(record: &Record, why: &'static str) {
    if let Some(suppressed) = WARNINGS.admit(Instant::now()) {
        let listener = &record.permit().listener().addr;
        tracing::warn!(peer = %record.peer, %listener, why, suppressed, "no PROXY header is accepted");
    }
}

impl AcceptProxy {
    /// Whether a header of this peer is believed.
    pub fn believes(&self, peer: std::net::IpAddr) -> bool {
        self.trust_any || self.trusted.iter().any(|net| net.contains(&peer))
    }
}
