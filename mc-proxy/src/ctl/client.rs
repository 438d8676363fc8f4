//! One connection to the daemon, with a deadline on everything.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mc_proxy_proto::v1::proxy_admin_service_client::ProxyAdminServiceClient;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Request, Response, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::health_client::HealthClient;

use crate::{exit::Exit, firewall::list::ListErrors};

/// For the connection, and for each call.
const DEADLINE: Duration = Duration::from_secs(10);

/// For a list, which the daemon takes 5 minutes for at most.
pub(super) const UPLOAD_DEADLINE: Duration = Duration::from_secs(5 * 60 + 10);

/// 100,000 rules are some 30 MB; more than this is not an answer of mc-proxy.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

type Timed = InterceptedService<Channel, Deadline>;

/// The services of one daemon.
pub(super) struct Client {
    pub(super) admin: ProxyAdminServiceClient<Timed>,
    pub(super) health: HealthClient<Timed>,
}

/// Why a command failed. Displays as what the operator reads.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// There is no daemon behind the socket, or not for this user.
    #[error("cannot reach mc-proxy at {}: {source}; {}", .path.display(), remedy(.source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What connect(2) said.
        source: io::Error,
    },
    /// The daemon refused, or failed.
    #[error("{}", describe(.0))]
    Call(Box<Status>),
    /// Some of several changes were made.
    #[error("{subject}: {source} ({done} of {of} done before)")]
    Partly {
        /// What was being changed.
        subject: String,
        /// Changes in force.
        done: usize,
        /// Changes asked for.
        of: usize,
        /// Why the others are not.
        #[source]
        source: Box<Self>,
    },
    /// The list cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The list has lines that cannot be read.
    #[error("{list}: nothing has been changed\n{errors}")]
    BadList {
        /// File, or stdin.
        list: String,
        /// Line by line.
        errors: ListErrors,
    },
    /// The list would empty its group.
    #[error("{0} has no entries; nothing has been changed (--allow-empty empties the group)")]
    EmptyList(String),
    /// More than the daemon takes.
    #[error("{list} has {entries} entries, of which a group takes {max}; nothing has been changed")]
    LongList {
        /// File, or stdin.
        list: String,
        /// After aggregation.
        entries: usize,
        /// What the daemon takes.
        max: usize,
    },
    /// The daemon is there and does not answer.
    #[error(
        "mc-proxy did not answer within {} s; whether a change was made is not known, list to find out",
        .0.as_secs()
    )]
    NoAnswer(Duration),
    /// The daemon says that it is not serving.
    #[error("the daemon is not serving: {0}")]
    NotServing(&'static str),
    /// Some certificates are still the old ones.
    #[error("{0} certificates could not be loaded; the old ones stay in use")]
    NotReloaded(usize),
    /// Stdout cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// The process cannot start.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

impl Client {
    /// Connects to the socket at `path`.
    pub(super) async fn connect(path: &Path) -> Result<Self, CtlError> {
        let failed = |source| CtlError::Connect { path: path.to_owned(), source };
        let stream = timeout(DEADLINE, UnixStream::connect(path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        // Connecting here rather than in tonic keeps the kernel's error as it was.
        let stream = Arc::new(Mutex::new(Some(stream)));
        let connector = tower::service_fn(move |_| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)) }
        });
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(DEADLINE);
        let channel =
            endpoint.connect_with_connector(connector).await.map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self {
            admin: ProxyAdminServiceClient::with_interceptor(channel.clone(), Deadline)
                .max_decoding_message_size(ANSWER_MAX),
            health: HealthClient::with_interceptor(channel, Deadline),
        })
    }
}

/// Awaits a call and takes the message out of its answer.
pub(super) async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CtlError> {
    answer_within(DEADLINE, call).await
}

/// The same for a call that may take longer.
pub(super) async fn answer_within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CtlError> {
    // The server keeps the same deadline; this one is for a server that does not, and for the body of the answer.
    match timeout(deadline + Duration::from_secs(1), call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(status, deadline)),
        Err(_) => Err(CtlError::NoAnswer(deadline)),
    }
}

/// The next message of a stream, however long that takes; `None` at the end.
pub(super) async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, CtlError> {
    stream.message().await.map_err(|status| failure(status, DEADLINE))
}

fn failure(status: Status, deadline: Duration) -> CtlError {
    if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
        CtlError::NoAnswer(deadline)
    } else {
        CtlError::Call(Box::new(status))
    }
}

/// An answer in pages, with a deadline on each.
pub(super) struct Pages<T>(Streaming<T>);

impl<T> Pages<T> {
    pub(super) async fn new(
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Self, CtlError> {
        answer(call).await.map(Self)
    }

    pub(super) async fn next(&mut self) -> Result<Option<T>, CtlError> {
        timeout(DEADLINE, next(&mut self.0)).await.unwrap_or(Err(CtlError::NoAnswer(DEADLINE)))
    }
}

impl CtlError {
    /// Says how far a command with several subjects came.
    pub(super) fn at(self, subject: &str, done: usize, of: usize) -> Self {
        if of == 1 { self } else { Self::Partly { subject: subject.to_owned(), done, of, source: Box::new(self) } }
    }

    /// The code that the program ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::NoPermission,
            Self::Connect { .. } => Exit::Unavailable,
            Self::Call(status) if status.code() == Code::Unavailable => Exit::Unavailable,
            Self::Call(_)
            | Self::File { .. }
            | Self::BadList { .. }
            | Self::EmptyList(_)
            | Self::LongList { .. }
            | Self::NotServing(_)
            | Self::NotReloaded(_)
            | Self::Output(_) => Exit::Failure,
            Self::Partly { source, .. } => source.exit(),
            Self::NoAnswer(_) => Exit::TryLater,
            Self::Runtime(_) => Exit::Internal,
        }
    }
}

/// Sends `grpc-timeout` with every request that has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline;

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !request.metadata().contains_key("grpc-timeout") {
            request.set_timeout(DEADLINE);
        }
        Ok(request)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "of a foreign, open list, three kinds have a remedy of their own")]
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root or as a member of the socket's group (grpc.socket_group)",
        io::ErrorKind::NotFound => {
            "is the daemon running (systemctl status mc-proxy), and is this its grpc.addr? (mcproxyctl: --socket or \
             MCPROXYCTL_SOCKET; mc-proxy: the configuration)"
        }
        io::ErrorKind::ConnectionRefused => "the daemon is not running; start it with: systemctl start mc-proxy",
        _ => "see systemctl status mc-proxy",
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is not a refusal is a failure, whatever codes gRPC adds")]
fn describe(status: &Status) -> String {
    let text = status.message();
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted => text.to_owned(),
        Code::Unimplemented => "the daemon does not know this call: it is of another version".to_owned(),
        code => format!("the daemon failed: {text} ({code:?})"),
    }
}
