//! One stream, from its head to its end.

use ::h2::{Reason, RecvStream, server::SendResponse};
use ::http::{Method, Version};
use tokio::time::Instant;

use super::{
    request::request,
    stream::{Kind, Stream},
};
use crate::{
    firewall::OffenceKind,
    http::{
        authority::AuthorityError,
        deadline::Deadline,
        error::{Asked, HttpError},
        exchange::{self, Left, Seen, exchange},
        h1::HeadError,
        h2::chunk::Chunk,
        site::Site,
    },
};

/// Serves one request.
pub(super) async fn serve_stream(site: &Site, head: ::http::Request<RecvStream>, send: SendResponse<Chunk>) {
    let begun_at = Instant::now();
    let limits = &site.edge().http;
    let (head, body) = head.into_parts();
    let mut deadline = Deadline::new(begun_at + limits.header_timeout);
    let max_fields = limits.max_fields as usize;
    let asked = Asked::of(&head.method, &head.headers);
    let method = head.method.clone();
    let of_head = if head.method == Method::HEAD { Kind::Head } else { Kind::Other };
    let (mut stream, left) = match request(head, body.is_end_stream(), limits) {
        Ok((mut request, kind)) => {
            let mut stream = Stream::new(body, send, kind, max_fields);
            let left = exchange(site, &mut stream, &mut request, &mut deadline, begun_at).await;
            (stream, left)
        }
        Err(error) => {
            site.edge().http_counters.count_malformed(error);
            site.report(OffenceKind::Http);
            tracing::debug!(client = %site.shown_client(), reason = error.reason(), "a request was malformed");
            let mut stream = Stream::new(body, send, of_head, max_fields);
            let seen = Seen::method(method, Version::HTTP_2);
            let Some(error) = answer(error) else {
                exchange::ignore(site, seen, begun_at);
                stream.reset(Reason::PROTOCOL_ERROR);
                return;
            };
            let left = exchange::refuse(site, &mut stream, error, asked, seen, &mut deadline, begun_at).await;
            (stream, left)
        }
    };
    match left {
        // With content unread the end of the stream is RST_STREAM with NO_ERROR behind the response (RFC 9113 §8.1); of a
        // stream that is dropped the crate sends that by itself. It would overtake the response if it were asked to.
        Left::Whole | Left::Unread => {}
        Left::Broken => stream.reset(Reason::INTERNAL_ERROR),
    }
}

/// What a client is told of a head that is not forwarded; nothing if it is malformed (RFC 9113 §8.1.1).
fn answer(error: HeadError) -> Option<HttpError> {
    let is_malformed = if let HeadError::Host(error) = error {
        error != AuthorityError::Missing
    } else {
        matches!(error, HeadError::FieldName | HeadError::FieldValue | HeadError::ContentLength)
    };
    let known = HttpError::ALL.into_iter().find(|known| known.status() == error.status());
    (!is_malformed).then(|| known.unwrap_or(HttpError::BadRequest))
}
