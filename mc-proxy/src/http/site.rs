//! What is known of a client's connection to everything that is served on it.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    fields::forwarded::Written,
    upstream::{Backends, pool::Idle},
};
use crate::{
    conn::{Announced, Edge, Listening, Local, Shared, Shown},
    firewall::OffenceKind,
    net::addr::ClientAddr,
    route::Destination,
    tls::{AlpnOffer, ServerName},
};

/// One client's connection, shared by the requests on it.
#[derive(Debug)]
pub struct Site {
    /// The daemon, by way of the worker.
    pub local: Arc<Local>,
    /// The listener.
    pub listening: Arc<Listening>,
    /// The socket's peer, or whom a PROXY header named.
    pub client: ClientAddr,
    /// Whether the client is a proxy that tells whom it asks for.
    pub is_trusted: bool,
    /// Whether offences of the client are reported.
    pub is_blameless: bool,
    /// The name in the handshake.
    pub server_name: Option<ServerName>,
    /// What the client offered by ALPN.
    pub alpn: AlpnOffer,
    /// The client's, where records tell it.
    pub country: Option<Box<str>>,
    /// `TLSv1.3` or `TLSv1.2`; none without TLS.
    pub tls: Option<&'static str>,
    /// What PROXY headers for the client's own connections to backends tell; none where there are no such connections.
    pub announced: Option<Announced>,
    /// What the connection's record tells of the requests.
    pub shared: Arc<Shared>,
    /// Connections to backends that are the client's own, with the backends that they belong to.
    own: Mutex<Option<(Arc<Backends>, Arc<Idle>)>>,
    /// What backends are told of the client.
    pub written: Mutex<Option<Written>>,
}

impl Site {
    /// A connection that nothing has been served on.
    #[expect(clippy::too_many_arguments, reason = "each is another fact, and all are public")]
    pub fn new(
        local: Arc<Local>,
        listening: Arc<Listening>,
        client: ClientAddr,
        is_trusted: bool,
        is_blameless: bool,
        server_name: Option<ServerName>,
        alpn: AlpnOffer,
        country: Option<Box<str>>,
        tls: Option<&'static str>,
        announced: Option<Announced>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            local,
            listening,
            client,
            is_trusted,
            is_blameless,
            server_name,
            alpn,
            country,
            tls,
            announced,
            shared,
            own: Mutex::default(),
            written: Mutex::default(),
        }
    }

    /// The daemon.
    pub fn edge(&self) -> &Edge {
        &self.local.edge
    }

    /// Where the connection's requests go at the moment; none when its route is gone.
    pub fn destination(&self) -> Option<Arc<Destination>> {
        let routes = self.listening.routes.load();
        routes.lookup(self.server_name.as_ref(), &self.alpn).map(|found| Arc::clone(found.target))
    }

    /// Where the client's own connections to `backends` are, on routes where it has such.
    pub fn own(&self, backends: &Arc<Backends>) -> Option<Arc<Idle>> {
        if !backends.is_clients_own() {
            return None;
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Some((known, idle)) if Arc::ptr_eq(known, backends) => Some(Arc::clone(idle)),
            Some(_) | None => {
                let idle = backends.own();
                if let Some((_, old)) = own.replace((Arc::clone(backends), Arc::clone(&idle))) {
                    old.clear();
                }
                Some(idle)
            }
        }
    }

    /// Tells what the client may be banned for.
    pub fn report(&self, kind: OffenceKind) {
        if !self.is_blameless {
            self.edge().offences.report(self.client.ip(), kind);
        }
    }

    /// Who the client is, as far as logs may tell.
    pub fn shown_client(&self) -> Shown {
        Shown::new(self.client, self.edge().redact_clients)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((_, idle)) = self.own.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            idle.clear();
        }
    }
}
