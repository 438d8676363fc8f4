//! `mcproxyctl routes`.

use clap::Subcommand;
use mc_proxy_proto::v1;
use serde_json::{Value, json};

use super::{
    CtlError,
    client::{Client, answer},
    json,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Routes of one listener, or of all.
    List {
        /// As in the configuration, such as `:443`.
        listener: Option<String>,
    },
    /// Adds a route, or replaces the one with the same hostname and ALPN names.
    Add(Box<Route>),
    /// Removes routes.
    Remove {
        /// As in the configuration, such as `:443`.
        listener: String,
        /// Of the routes, as listed.
        #[arg(required = true)]
        hostnames: Vec<String>,
        /// ALPN names of the routes, as listed; without them the routes for any client are meant.
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        alpn: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Route {
    /// As in the configuration, such as `:443`.
    listener: String,
    /// A name, or `*.example.com`.
    hostname: String,
    /// `host:port`, `[v6]:port` or `unix:/path`; of several, each connection begins with the next.
    #[arg(required = true)]
    backends: Vec<String>,
    /// `l4` passes TLS through, `l7` terminates it and proxies HTTP.
    #[arg(long, default_value = "l4")]
    mode: String,
    /// PEM chain.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// PEM key.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// TLS towards the backend.
    #[arg(long)]
    backend_tls: bool,
    /// What the backend's certificate is verified against instead of the system's roots, PEM.
    #[arg(long, value_name = "FILE")]
    backend_ca: Option<String>,
    /// The name in the backend's certificate, if it is not the client's.
    #[arg(long, value_name = "NAME")]
    backend_server_name: Option<String>,
    /// Takes any certificate of the backend.
    #[arg(long)]
    backend_insecure: bool,
    /// What is spoken with the backend.
    #[arg(long, value_name = "PROTOCOL", value_parser = ["auto", "http1", "h2"])]
    backend_protocol: Option<String>,
    /// A PROXY header towards the backend.
    #[arg(long, value_name = "VERSION", value_parser = ["v1", "v2"])]
    send_proxy: Option<String>,
    /// As `--send-proxy v2`.
    #[arg(long, conflicts_with = "send_proxy")]
    send_proxy_protocol: bool,
    /// For clients that offer one of these application protocols, such as `h2,http/1.1`; they come first.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alpn: Vec<String>,
    /// The backend sees the connection come from the client's address.
    #[arg(long)]
    transparent: bool,
    /// How bytes are moved, if not as the daemon is set.
    #[arg(long, value_name = "MODE", value_parser = ["auto", "sockmap", "userspace"])]
    splice: Option<String>,
}

pub(super) async fn run(command: Command, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        Command::List { listener } => list(listener, client, out).await,
        Command::Add(route) => add(*route, client, out).await,
        Command::Remove { listener, hostnames, alpn } => {
            for (done, hostname) in hostnames.iter().enumerate() {
                let request = v1::RemoveRouteRequest {
                    listener_addr: listener.clone(),
                    hostname: hostname.clone(),
                    alpn: alpn.clone(),
                };
                let removed = answer(client.admin.remove_route(request)).await;
                removed.map_err(|error| error.at(hostname, done, hostnames.len()))?;
                out.say(format_args!("{listener}: route {hostname} removed"));
            }
            out.answer(|| json!({"listener_addr": listener, "hostnames": hostnames, "alpn": alpn}), String::new)
        }
    }
}

async fn list(listener: Option<String>, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let listeners = match listener {
        Some(listener) => vec![listener],
        None => {
            let status = answer(client.admin.get_status(v1::GetStatusRequest {})).await?;
            status.listeners.into_iter().map(|listener| listener.addr).collect()
        }
    };
    let mut all = Vec::with_capacity(listeners.len());
    for listener_addr in listeners {
        all.push(answer(client.admin.list_routes(v1::ListRoutesRequest { listener_addr })).await?);
    }
    let rows = all.iter().flat_map(|of| {
        let default = of.default_route.iter().map(|route| row(&of.listener_addr, "(default)", route));
        of.routes.iter().map(|route| row(&of.listener_addr, &route.hostname, route)).chain(default)
    });
    out.answer(
        || json!({"listeners": all.iter().map(json::routes).collect::<Value>()}),
        || table(["LISTENER", "HOSTNAME", "ALPN", "MODE", "OPTIONS", "BACKENDS"], rows),
    )
}

async fn add(route: Route, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let mut backends = route.backends.into_iter();
    let message = v1::Route {
        hostname: route.hostname,
        backend: backends.next().unwrap_or_default(),
        backends: backends.collect(),
        mode: route.mode,
        tls_cert: route.tls_cert.unwrap_or_default(),
        tls_key: route.tls_key.unwrap_or_default(),
        backend_tls: route.backend_tls,
        backend_ca: route.backend_ca.unwrap_or_default(),
        backend_server_name: route.backend_server_name.unwrap_or_default(),
        backend_insecure: route.backend_insecure,
        backend_protocol: route.backend_protocol.unwrap_or_default(),
        send_proxy_protocol: route.send_proxy_protocol || route.send_proxy.is_some(),
        l7_policies: Vec::new(),
        alpn: route.alpn,
        proxy_protocol_version: route.send_proxy.unwrap_or_default(),
        transparent: route.transparent,
        splice: route.splice.unwrap_or_default(),
    };
    let request = v1::AddRouteRequest { listener_addr: route.listener.clone(), route: Some(message.clone()) };
    answer(client.admin.add_route(request)).await?;
    out.say(format_args!("{}: route {} -> {}", route.listener, message.hostname, backends_of(&message)));
    out.answer(|| json!({"listener_addr": route.listener, "route": json::route(&message)}), String::new)
}

fn row(listener: &str, hostname: &str, route: &v1::Route) -> [String; 6] {
    let alpn = if route.alpn.is_empty() { "any".to_owned() } else { route.alpn.join(",") };
    let (listener, hostname) = (listener.to_owned(), hostname.to_owned());
    [listener, hostname, alpn, route.mode.clone(), options_of(route), backends_of(route)]
}

/// What is not as without options.
fn options_of(route: &v1::Route) -> String {
    let mut options = Vec::new();
    // On other routes it has no effect, and deploy agents send some of it with every route.
    if route.mode == "l7" {
        l7_options(route, &mut options);
    }
    if route.send_proxy_protocol {
        options.push(format!("send-proxy={}", route.proxy_protocol_version));
    }
    if route.transparent {
        options.push("transparent".to_owned());
    }
    if !route.splice.is_empty() {
        options.push(format!("splice={}", route.splice));
    }
    if options.is_empty() { "-".to_owned() } else { options.join(",") }
}

fn l7_options(route: &v1::Route, options: &mut Vec<String>) {
    if route.backend_protocol != "auto" {
        options.push(format!("backend-protocol={}", route.backend_protocol));
    }
    if !route.backend_tls {
        return;
    }
    options.push("backend-tls".to_owned());
    for (key, value) in [("backend-ca", &route.backend_ca), ("backend-server-name", &route.backend_server_name)] {
        if !value.is_empty() {
            options.push(format!("{key}={value}"));
        }
    }
    if route.backend_insecure {
        options.push("backend-insecure".to_owned());
    }
}

fn backends_of(route: &v1::Route) -> String {
    let backends = std::iter::once(route.backend.as_str()).chain(route.backends.iter().map(String::as_str));
    backends.collect::<Vec<_>>().join(", ")
}
