//! How long a call may take, from the first byte of its request to the beginning of its answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tonic::{Status, body::Body};
use tower::{Layer, Service};

/// A call with one message.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A list of 2,000,000 entries is 10 MB: this is a slow disk, a slow terminal and a slow daemon together.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The only call whose request is a stream that somebody else may be slow to write.
const UPLOAD: &str = "/mc_proxy.v1.ProxyAdminService/ReplaceFirewallGroup";

/// Ends calls that take too long with DEADLINE_EXCEEDED. A shorter `grpc-timeout` of the caller is kept by tonic.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Deadline<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Deadline<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let limit = if request.uri().path() == UPLOAD { UPLOAD_TIMEOUT } else { CALL_TIMEOUT };
        let call = self.inner.call(request);
        Box::pin(async move {
            tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
                let problem =
                    format!("the call took longer than {} s; list to see what it has changed", limit.as_secs());
                Ok(Status::deadline_exceeded(problem).into_http())
            })
        })
    }
}
