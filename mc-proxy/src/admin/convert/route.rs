//! Routes and their policies.

use std::{path::PathBuf, str::FromStr};

use mc_proxy_proto::v1;
use tonic::Status;

use super::{invalid, parse};
use crate::{
    config::Splice,
    control::ListenerRoutes,
    desired::{L7Policy, Mode, ProxyVersion, Route, RouteKey, Target, UnknownWord},
    net::addr::BackendAddr,
    route::{Pattern, alpn},
    tls::ServerName,
};

/// Longest file name that Linux opens.
const PATH_MAX: usize = 4096;

pub(in crate::admin) fn listener(addr: String) -> Result<String, Status> {
    if addr.is_empty() { Err(invalid("listener_addr", "is required, such as \":443\"")) } else { Ok(addr) }
}

/// Which route a call is about, by the fields `hostname` and `alpn`.
pub(in crate::admin) fn route_key(hostname: &str, alpn: Vec<String>) -> Result<RouteKey, Status> {
    Ok(RouteKey { hostname: self::hostname("hostname", hostname)?, alpn: self::alpn("alpn", alpn)? })
}

pub(in crate::admin) fn alpn(field: &str, names: Vec<String>) -> Result<Vec<String>, Status> {
    if names.len() > alpn::MAX_NAMES {
        return Err(invalid(field, format_args!("{} names are the most", alpn::MAX_NAMES)));
    }
    for (index, name) in names.iter().enumerate() {
        alpn::check_name(name)
            .map_err(|error| invalid(format_args!("{field}[{index}]"), format_args!("{name:?} {error}")))?;
    }
    Ok(alpn::canonical(names))
}

/// A mode of `SetSplice`.
pub(in crate::admin) fn splice_mode(word: &str) -> Result<Splice, Status> {
    parse("mode", word)
}

fn hostname(field: &str, text: &str) -> Result<Pattern, Status> {
    if text.is_empty() {
        return Err(invalid(field, "is required"));
    }
    text.parse().map_err(|error| invalid(field, format_args!("\"{text}\": {error}")))
}

/// A route of `AddRoute`. What has no effect on an L4 route is kept: deploy agents send it.
pub(in crate::admin) fn route(route: Option<v1::Route>) -> Result<Route, Status> {
    let route = route.ok_or_else(|| invalid("route", "is required"))?;
    let hostname = hostname("route.hostname", &route.hostname)?;
    let backends = backends(&route.backend, &route.backends)?;
    let mode: Mode = word_or_default("route.mode", &route.mode)?;
    let send_proxy = send_proxy(route.send_proxy_protocol, &route.proxy_protocol_version)?;
    if route.transparent
        && let Some(unix) = backends.iter().find(|backend| matches!(backend, BackendAddr::Unix(_)))
    {
        let problem = format_args!("the backend \"{unix}\" is a Unix socket, which shows no client address");
        return Err(invalid("route.transparent", problem));
    }
    let splice = match route.splice.as_str() {
        "" => None,
        word => Some(parse("route.splice", word)?),
    };
    let alpn = alpn("route.alpn", route.alpn)?;
    let mut l7_policies = Vec::with_capacity(route.l7_policies.len());
    for (index, policy) in route.l7_policies.into_iter().enumerate() {
        let policy = new_policy(&format!("route.l7_policies[{index}]"), Some(policy))?;
        if !l7_policies.iter().any(|known: &L7Policy| known.is_like(&policy)) {
            l7_policies.push(policy);
        }
    }
    let target = Target {
        backends,
        mode,
        tls_cert: path("route.tls_cert", route.tls_cert)?,
        tls_key: path("route.tls_key", route.tls_key)?,
        backend_tls: route.backend_tls,
        backend_ca: path("route.backend_ca", route.backend_ca)?,
        backend_server_name: server_name("route.backend_server_name", &route.backend_server_name)?,
        backend_insecure: route.backend_insecure,
        backend_protocol: word_or_default("route.backend_protocol", &route.backend_protocol)?,
        send_proxy,
        transparent: route.transparent,
        splice,
        l7_policies,
    };
    Ok(Route { hostname, alpn, target })
}

fn send_proxy(is_on: bool, version: &str) -> Result<Option<ProxyVersion>, Status> {
    const FIELD: &str = "route.proxy_protocol_version";
    match version {
        "" => Ok(is_on.then(ProxyVersion::default)),
        word => {
            let version = parse(FIELD, word)?;
            if is_on { Ok(Some(version)) } else { Err(invalid(FIELD, "has no effect without send_proxy_protocol")) }
        }
    }
}

/// A policy that is to be added: beyond being well-formed, it can match something.
pub(in crate::admin) fn new_policy(field: &str, given: Option<v1::L7Policy>) -> Result<L7Policy, Status> {
    let policy = policy(field, given)?;
    if let Some(problem) = policy.problem() {
        return Err(invalid(format_args!("{field}.value"), problem));
    }
    if let Some(doubt) = policy.doubt() {
        tracing::warn!("{field}.value: {doubt}");
    }
    Ok(policy)
}

pub(in crate::admin) fn policy(field: &str, given: Option<v1::L7Policy>) -> Result<L7Policy, Status> {
    let given = given.ok_or_else(|| invalid(field, "is required"))?;
    let kind = parse(format_args!("{field}.type"), &given.r#type)?;
    if given.value.is_empty() {
        return Err(invalid(format_args!("{field}.value"), "is required"));
    }
    Ok(L7Policy { kind, value: given.value, shadow: given.shadow })
}

pub(in crate::admin) fn policy_to_proto(policy: L7Policy) -> v1::L7Policy {
    v1::L7Policy { r#type: policy.kind.as_str().to_owned(), value: policy.value, shadow: policy.shadow, hits: 0 }
}

pub(in crate::admin) fn routes_to_proto(listener_addr: String, routes: ListenerRoutes) -> v1::ListRoutesResponse {
    v1::ListRoutesResponse {
        listener_addr,
        routes: routes.routes.into_iter().map(|r| target_to_proto(r.hostname.to_string(), r.alpn, r.target)).collect(),
        default_route: routes.default.map(|target| target_to_proto(String::new(), Vec::new(), target)),
    }
}

fn target_to_proto(hostname: String, alpn: Vec<String>, target: Target) -> v1::Route {
    let text = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
    let word = |word: Option<&str>| word.unwrap_or_default().to_owned();
    let mut backends = target.backends.iter().map(BackendAddr::to_string);
    v1::Route {
        hostname,
        backend: backends.next().unwrap_or_default(),
        backends: backends.collect(),
        mode: target.mode.as_str().to_owned(),
        tls_cert: text(target.tls_cert),
        tls_key: text(target.tls_key),
        backend_tls: target.backend_tls,
        backend_ca: text(target.backend_ca),
        backend_server_name: target.backend_server_name.map(|name| name.to_string()).unwrap_or_default(),
        backend_insecure: target.backend_insecure,
        backend_protocol: target.backend_protocol.as_str().to_owned(),
        send_proxy_protocol: target.send_proxy.is_some(),
        l7_policies: target.l7_policies.into_iter().map(policy_to_proto).collect(),
        alpn,
        proxy_protocol_version: word(target.send_proxy.map(ProxyVersion::as_str)),
        transparent: target.transparent,
        splice: word(target.splice.map(Splice::as_str)),
    }
}

/// `backend` and `backends` are one list, in this order, without repetitions.
fn backends(first: &str, rest: &[String]) -> Result<Vec<BackendAddr>, Status> {
    let mut backends = Vec::with_capacity(1 + rest.len());
    if !first.is_empty() {
        backends.push(parse("route.backend", first)?);
    }
    for (index, text) in rest.iter().enumerate() {
        let backend = parse(format_args!("route.backends[{index}]"), text)?;
        if !backends.contains(&backend) {
            backends.push(backend);
        }
    }
    if backends.is_empty() {
        return Err(invalid("route.backend", "is required, such as \"127.0.0.1:8443\""));
    }
    Ok(backends)
}

/// What is empty is as if it had not been said.
fn word_or_default<T: FromStr<Err = UnknownWord> + Default>(field: &str, word: &str) -> Result<T, Status> {
    if word.is_empty() { Ok(T::default()) } else { parse(field, word) }
}

fn server_name(field: &str, text: &str) -> Result<Option<ServerName>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| invalid(field, format_args!("\"{text}\": {error}")))
}

fn path(field: &str, text: String) -> Result<Option<PathBuf>, Status> {
    match text {
        text if text.is_empty() => Ok(None),
        text if text.contains('\0') || text.len() >= PATH_MAX => Err(invalid(field, "is not a file name")),
        text => Ok(Some(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::{super::tests::refusal, *};
    use crate::admin::convert::MESSAGE_MAX;

    fn message(hostname: &str, backend: &str) -> v1::Route {
        v1::Route { hostname: hostname.into(), backend: backend.into(), ..v1::Route::default() }
    }

    #[test]
    fn every_refusal_of_a_route_names_its_field() {
        let good = || message("app.example.com", "127.0.0.1:8443");
        let policy =
            |kind: &str, value: &str| v1::L7Policy { r#type: kind.into(), value: value.into(), ..Default::default() };
        let cases = [
            (None, "route: is required"),
            (Some(message("", "a:1")), "route.hostname: is required"),
            (Some(message("a*.b", "a:1")), "route.hostname: \"a*.b\": a wildcard is"),
            (Some(message("10.0.0.1", "a:1")), "route.hostname: \"10.0.0.1\": the name is an IP address"),
            (Some(message("a.b", "")), "route.backend: is required"),
            (Some(message("a.b", "foo")), "route.backend: \"foo\" is not a backend address"),
            (Some(v1::Route { backends: vec!["a:1".into(), "x".into()], ..good() }), "route.backends[1]: \"x\" is not"),
            (Some(v1::Route { mode: "L5".into(), ..good() }), "route.mode: \"L5\" is not one of"),
            (Some(v1::Route { splice: "fast".into(), ..good() }), "route.splice: \"fast\" is not one of"),
            (
                Some(v1::Route { proxy_protocol_version: "v3".into(), ..good() }),
                "route.proxy_protocol_version: \"v3\" is not one of",
            ),
            (
                Some(v1::Route { proxy_protocol_version: "v1".into(), ..good() }),
                "route.proxy_protocol_version: has no effect without send_proxy_protocol",
            ),
            (
                Some(v1::Route { alpn: vec!["h2".into(), String::new()], ..good() }),
                "route.alpn[1]: \"\" is not 1 to 255 bytes long",
            ),
            (Some(v1::Route { alpn: vec!["x".into(); 33], ..good() }), "route.alpn: 32 names are the most"),
            (Some(v1::Route { tls_cert: "a\0b".into(), ..good() }), "route.tls_cert: is not a file name"),
            (Some(v1::Route { backend_ca: "a\0b".into(), ..good() }), "route.backend_ca: is not a file name"),
            (
                Some(v1::Route { backend_server_name: "10.0.0.1".into(), ..good() }),
                "route.backend_server_name: \"10.0.0.1\": the name is an IP address",
            ),
            (
                Some(v1::Route { backend_protocol: "h3".into(), ..good() }),
                "route.backend_protocol: \"h3\" is not one of",
            ),
            (Some(v1::Route { tls_key: "k".repeat(PATH_MAX), ..good() }), "route.tls_key: is not a file name"),
            (
                Some(v1::Route { l7_policies: vec![policy("nope", "x")], ..good() }),
                "route.l7_policies[0].type: \"nope\" is not one of",
            ),
            (
                Some(v1::Route { l7_policies: vec![policy("block_user_agent", "")], ..good() }),
                "route.l7_policies[0].value: is required",
            ),
            (
                Some(v1::Route { l7_policies: vec![policy("require_header", "X-A: b")], ..good() }),
                "route.l7_policies[0].value: \"X-A: b\" is not the name of a header",
            ),
            (
                Some(v1::Route { l7_policies: vec![policy("require_header", "Host")], ..good() }),
                "route.l7_policies[0].value: \"Host\" would refuse every request: ",
            ),
        ];
        for (given, expected) in cases {
            let (code, text) = refusal(route(given));
            assert_eq!(code, Code::InvalidArgument, "{text}");
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn a_refusal_fits_into_a_header() {
        let (_, text) = refusal(route(Some(message(&"é".repeat(30_000), "a:1"))));
        assert!(text.starts_with("route.hostname: \"é") && text.len() < MESSAGE_MAX + 4, "{}", text.len());
    }

    #[test]
    fn a_route_of_a_deploy_agent() {
        let route = route(Some(v1::Route {
            backends: vec!["b:2".into(), "a:1".into(), "b:2".into()],
            tls_cert: "/certs/a.pem".into(),
            backend_tls: true,
            backend_ca: "/certs/ca.pem".into(),
            backend_server_name: "App.internal.".into(),
            backend_insecure: true,
            backend_protocol: "h2".into(),
            ..message("APP.example.com.", "a:1")
        }))
        .unwrap();
        assert_eq!(route.hostname.to_string(), "app.example.com");
        assert_eq!(route.target.mode, Mode::L4);
        assert_eq!(route.target.backends.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert_eq!(route.target.tls_cert.as_deref(), Some("/certs/a.pem".as_ref()));
        assert!(route.target.backend_tls);
        let sent = target_to_proto(String::new(), Vec::new(), route.target.clone());
        assert_eq!((sent.backend_ca.as_str(), sent.backend_insecure), ("/certs/ca.pem", true));
        assert_eq!((sent.backend_server_name.as_str(), sent.backend_protocol.as_str()), ("app.internal", "h2"));
        assert_eq!(super::route(Some(v1::Route { hostname: "a.b".into(), ..sent })).unwrap().target, route.target);
    }
}
