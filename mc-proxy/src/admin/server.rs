//! The server that the service runs in.
//!
//! h2 answers an `:authority` that is no host with PROTOCOL_ERROR, before this code sees the request. Clients that put
//! the path of a Unix socket there (gRPC's C core from 1.57, grpcurl before 1.9) have to be told what to say instead:
//! `grpc.default_authority=localhost`, `grpcurl -authority localhost`.

use std::time::Duration;

use mc_proxy_proto::{FILE_DESCRIPTOR_SET, v1::proxy_admin_service_server::ProxyAdminServiceServer};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_reflection::server::Builder as ReflectionBuilder;

use super::{
    AdminSocket,
    deadline::DeadlineLayer,
    incoming::{GRACE, Incoming, LIFETIME},
    service::Admin,
};
use crate::control::Control;

/// A route with a policy or two is a kilobyte; lists come in chunks.
const REQUEST_MAX: usize = 256 * 1024;
const STREAMS_PER_CONNECTION: u32 = 16;
const CALLS_PER_CONNECTION: usize = 8;
const HEADERS_MAX: u32 = 16 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for calls in flight.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves the API until `shutdown` is cancelled; then the socket file is removed, and calls in flight have five seconds
/// to end. From the moment that `draining` is cancelled the health service says that connections are not served any more.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub async fn serve(
    socket: AdminSocket,
    control: Control,
    draining: CancellationToken,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let (listener, file) = socket.into_parts();
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let force_close = CancellationToken::new();
    let incoming = Incoming::new(listener, force_close.clone());

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ProxyAdminServiceServer<Admin>>().await;
    let reflection = || {
        ReflectionBuilder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let admin = Admin::new(control, shutdown.clone());
    let router = Server::builder()
        .layer(DeadlineLayer)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_connection_age(LIFETIME - GRACE)
        .add_service(ProxyAdminServiceServer::new(admin).max_decoding_message_size(REQUEST_MAX))
        .add_service(health_service.max_decoding_message_size(REQUEST_MAX))
        .add_service(reflection().build_v1().map_err(std::io::Error::other)?)
        // What older versions of grpcurl and the Python client ask for.
        .add_service(reflection().build_v1alpha().map_err(std::io::Error::other)?);

    let stop = async {
        // Who makes room for another daemon stops the API, and goes on serving connections.
        tokio::select! {
            () = draining.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        health.set_not_serving::<ProxyAdminServiceServer<Admin>>().await;
        shutdown.cancelled().await;
        drop(file);
    };
    let serving = router.serve_with_incoming_shutdown(incoming, stop);
    let force = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
        force_close.cancel();
        std::future::pending().await
    };
    tokio::select! {
        result = serving => result.map_err(std::io::Error::other),
        () = force => Ok(()),
    }
}
