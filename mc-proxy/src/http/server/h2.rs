//! A connection of HTTP/2.

use crate::{conn::Outcome, http::site::Site, tls::TlsStream};

pub(super) async fn serve(_site: Site, _stream: TlsStream) -> (Outcome, u64, u64) {
    (Outcome::Closed, 0, 0)
}
