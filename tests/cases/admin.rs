//! The admin API over the real socket: typed, by reflection as grpcurl does it, and through the command line.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use mc_proxy_proto::v1::{
    AddL7PolicyRequest, AddRouteRequest, FirewallAction, FirewallRule, L7Policy, ListL7PoliciesRequest,
    RemoveL7PolicyRequest, Route,
};
use mc_proxy_tests::{
    admin::rule,
    backend::Backend,
    client::{End, ask},
    config::{listener, loopback},
    daemon::Installation,
    hello::Hello,
    runbook::Grpcurl,
};
use serde_json::json;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const SERVICE: &str = "mc_proxy.v1.ProxyAdminService";

#[test]
fn routes_are_in_force_when_the_call_returns() -> Result<()> {
    let (first, _) = Backend::named("first")?;
    let (second, _) = Backend::named("second")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[], None))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let name = proxy.to_string();
    let hello = Hello::to("app.example.com").bytes();
    for _ in 0..50 {
        ensure!(ask(proxy, &hello)? == End::Reset(Vec::new()));
        admin.add_route(&name, "app.example.com", &first.addr().to_string())?;
        ensure!(ask(proxy, &hello)? == End::Closed(b"first\n".to_vec()));
        admin.add_route(&name, "APP.example.com.", &second.addr().to_string()).context("the same route once more")?;
        ensure!(ask(proxy, &hello)? == End::Closed(b"second\n".to_vec()));
        ensure!(admin.routes(&name)?.routes.len() == 1, "AddRoute replaces");
        admin.remove_route(&name, "app.example.com")?;
    }
    Ok(())
}

#[test]
fn bad_requests_are_named_and_change_nothing() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let backend_addr = backend.addr().to_string();
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let name = proxy.to_string();
    let before = (admin.routes(&name)?, admin.rules()?);

    let add = |route: Option<Route>| {
        let request = AddRouteRequest { listener_addr: name.clone(), route };
        admin.call(async |mut client| client.add_route(request).await).map(drop)
    };
    let route = |hostname: &str, backend: &str| Route {
        hostname: hostname.to_owned(),
        backend: backend.to_owned(),
        ..Route::default()
    };
    for (what, result, field) in [
        ("no route", add(None), "route"),
        ("no hostname", add(Some(route("", &backend_addr))), "hostname"),
        ("an address as hostname", add(Some(route("192.0.2.1", &backend_addr))), "hostname"),
        ("a wildcard inside", add(Some(route("a.*.example.com", &backend_addr))), "hostname"),
        ("no backend", add(Some(route("a.example.com", ""))), "backend"),
        ("a backend without port", add(Some(route("a.example.com", "127.0.0.1"))), "backend"),
        ("an unknown mode", add(Some(Route { mode: "l9".into(), ..route("a.example.com", &backend_addr) })), "mode"),
        ("no rule", admin.add_rule(Default::default()), "rule"),
        ("not an address", admin.block("203.0.113"), "value"),
        ("host bits", admin.block("198.51.100.7/24"), "198.51.100.0/24"),
        ("a country to allow", admin.allow("DE"), "country"),
    ] {
        let status = result.expect_err(what);
        ensure!(status.code() == Code::InvalidArgument, "{what}: {status}");
        ensure!(status.message().contains(field), "{what}: the message does not name {field:?}: {}", status.message());
    }
    for (what, result) in [
        ("an unknown listener", admin.add_route("127.0.0.1:1", "a.example.com", &backend_addr)),
        ("an unknown route", admin.remove_route(&name, "unknown.example.com")),
        ("an unknown rule", admin.unblock("203.0.113.99")),
        ("routes of an unknown listener", admin.routes("127.0.0.1:1").map(drop)),
    ] {
        let status = result.expect_err(what);
        ensure!(status.code() == Code::NotFound, "{what}: {status}");
    }
    ensure!((admin.routes(&name)?, admin.rules()?) == before, "a call that failed has changed something");
    Ok(())
}

#[test]
fn rules_and_policies_are_stored_as_given() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;

    for _ in 0..2 {
        for value in ["203.0.113.50", "198.51.100.0/24", "2001:db8::1", "2001:db8::/32"] {
            admin.block(value)?;
            admin.allow(value)?;
        }
    }
    let rules = admin.rules()?;
    ensure!(rules.len() == 8, "adding twice is adding once: {rules:?}");
    for value in ["203.0.113.50", "198.51.100.0/24", "2001:db8::1", "2001:db8::/32"] {
        for action in [FirewallAction::Block, FirewallAction::Allow] {
            let is_there = |known: &&FirewallRule| known.value == value && known.action == i32::from(action);
            let known = rules.iter().find(is_there).with_context(|| format!("no {value} {action:?} in {rules:?}"))?;
            ensure!(known.r#type == rule(value, action).r#type && known.expires_at.is_none(), "{known:?}");
            ensure!((known.group.as_str(), known.scope.as_str()) == ("default", "default"), "{known:?}");
            admin.remove_rule(rule(value, action))?;
        }
    }
    ensure!(admin.rules()?.is_empty());

    let policy =
        |kind: &str, value: &str| L7Policy { r#type: kind.to_owned(), value: value.to_owned(), ..Default::default() };
    let wanted = [policy("block_user_agent", "BadBot"), policy("require_header", "X-Token")];
    let listener_addr = proxy.to_string();
    let hostname = "app.example.com".to_owned();
    for policy in wanted.iter().chain(&wanted) {
        let request = AddL7PolicyRequest {
            listener_addr: listener_addr.clone(),
            hostname: hostname.clone(),
            policy: Some(policy.clone()),
            ..AddL7PolicyRequest::default()
        };
        admin.call(async |mut client| client.add_l7_policy(request).await)?;
    }
    let list = || {
        let request = ListL7PoliciesRequest {
            listener_addr: listener_addr.clone(),
            hostname: hostname.clone(),
            ..ListL7PoliciesRequest::default()
        };
        admin.call(async |mut client| client.list_l7_policies(request).await).map(|response| response.policies)
    };
    ensure!(list()? == wanted);
    ensure!(admin.routes(&listener_addr)?.routes[0].l7_policies == wanted);
    let request = RemoveL7PolicyRequest {
        listener_addr: listener_addr.clone(),
        hostname: hostname.clone(),
        policy: Some(wanted[0].clone()),
        ..RemoveL7PolicyRequest::default()
    };
    admin.call(async |mut client| client.remove_l7_policy(request).await)?;
    ensure!(list()? == wanted[1..]);
    Ok(())
}

#[test]
fn the_runbooks_grpcurl_calls_work_by_reflection() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("old.metacircular.net", backend.addr())], None))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let grpcurl = Grpcurl::new(&admin);
    let name = proxy.to_string();
    let call = |method: &str, json: serde_json::Value| -> Result<serde_json::Value> {
        Ok(grpcurl.call(&format!("{SERVICE}/{method}"), &json.to_string())??)
    };

    let services = grpcurl.list()?;
    for service in [SERVICE, "grpc.health.v1.Health"] {
        ensure!(services.iter().any(|name| name == service), "{service} is not among {services:?}");
    }
    call(
        "AddRoute",
        json!({"listener_addr": name, "route": {"hostname": "new.metacircular.net", "backend": backend.addr().to_string()}}),
    )?;
    let listed = call("ListRoutes", json!({"listener_addr": name}))?;
    let hostnames = listed["routes"].as_array().context("no routes")?.iter().map(|route| route["hostname"].clone());
    ensure!(hostnames.collect::<Vec<_>>() == ["old.metacircular.net", "new.metacircular.net"], "{listed}");
    ensure!(ask(proxy, &Hello::to("new.metacircular.net").bytes())? == End::Closed(b"app\n".to_vec()));
    call("RemoveRoute", json!({"listener_addr": name, "hostname": "old.metacircular.net"}))?;
    ensure!(ask(proxy, &Hello::to("old.metacircular.net").bytes())? == End::Reset(Vec::new()));

    for (kind, value) in [("FIREWALL_RULE_TYPE_IP", "203.0.113.50"), ("FIREWALL_RULE_TYPE_CIDR", "198.51.100.0/24")] {
        let rule = json!({"rule": {"type": kind, "value": value}});
        call("AddFirewallRule", rule.clone())?;
        let rules = call("GetFirewallRules", json!({}))?;
        let rules = rules["rules"].as_array().context("no rules")?;
        ensure!(rules.iter().any(|rule| rule["type"] == kind && rule["value"] == value), "{rules:?}");
        call("RemoveFirewallRule", rule)?;
    }
    let country = json!({"rule": {"type": "FIREWALL_RULE_TYPE_COUNTRY", "value": "RU"}}).to_string();
    let refused = grpcurl.call(&format!("{SERVICE}/AddFirewallRule"), &country)?.expect_err("without a GeoIP database");
    ensure!(refused.message().contains("geoip_db"), "{refused}");

    call("SetListenerMaxConnections", json!({"listener_addr": name, "max_connections": 100}))?;
    let status = call("GetStatus", json!({}))?;
    ensure!(status["version"] == env!("CARGO_PKG_VERSION"), "{status}");
    Ok(())
}

#[test]
fn health_is_serving() -> Result<()> {
    let edge = Installation::new(&listener(loopback(), &[], None))?;
    let _daemon = edge.start()?;
    for service in ["", SERVICE] {
        let answer = edge.admin()?.with_channel(async |channel| {
            HealthClient::new(channel).check(HealthCheckRequest { service: service.to_owned() }).await
        })?;
        ensure!(answer.into_inner().status() == ServingStatus::Serving, "{service:?}");
    }
    Ok(())
}

#[test]
fn status_has_the_shape_of_the_runbook() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let (first, second) = (loopback(), loopback());
    let edge = Installation::new(&format!(
        "{}{}",
        listener(first, &[("a.example.com", backend.addr()), ("b.example.com", backend.addr())], None),
        listener(second, &[("c.example.com", backend.addr())], None),
    ))?;
    let daemon = edge.start()?;
    let output = edge.run("status")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().collect::<Vec<_>>();
    ensure!(lines.len() >= 5, "{text}");
    ensure!(lines[0] == concat!("mc-proxy v", env!("CARGO_PKG_VERSION")), "{text}");
    ensure!(lines[1].strip_prefix("uptime: ").is_some_and(|uptime| uptime.ends_with('s')), "{text}");
    ensure!(lines[2] == "connections: 0", "{text}");
    ensure!(lines[3] == format!("{first} routes=2 active=0"), "{text}");
    ensure!(lines[4] == format!("{second} routes=1 active=0"), "{text}");

    daemon.stop()?;
    let output = edge.run("status")?;
    ensure!(output.status.code() == Some(69), "without a daemon: {}", output.status);
    Ok(())
}

#[test]
fn the_command_line_does_what_the_api_does() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;

    edge.ctl(&["firewall", "add", "203.0.113.50"])?;
    edge.ctl(&["firewall", "add", "198.51.100.0/24"])?;
    let values = || -> Result<Vec<String>> { Ok(admin.rules()?.into_iter().map(|rule| rule.value).collect()) };
    let mut rules = values()?;
    rules.sort();
    ensure!(rules == ["198.51.100.0/24", "203.0.113.50"], "{rules:?}");
    let table = edge.ctl(&["firewall", "list"])?;
    ensure!(table.contains("203.0.113.50") && table.contains("198.51.100.0/24"), "{table}");
    edge.ctl(&["firewall", "remove", "203.0.113.50"])?;
    ensure!(values()? == ["198.51.100.0/24"]);

    for args in [&["--json", "status"][..], &["--json", "routes", "list"], &["--json", "firewall", "list"]] {
        let text = edge.ctl(args)?;
        serde_json::from_str::<serde_json::Value>(&text).with_context(|| format!("{args:?} printed {text}"))?;
    }
    let status = edge.ctl(&["status"])?;
    ensure!(status.contains(&proxy.to_string()), "{status}");
    edge.ctl(&["health"])?;

    let output = edge.ctl_output(&["firewall", "add", "203.0.113"])?;
    ensure!(!output.status.success() && !output.stderr.is_empty());
    Ok(())
}

#[test]
fn the_socket_is_for_its_group_only_and_a_stale_one_is_replaced() -> Result<()> {
    let edge = Installation::new(&listener(loopback(), &[], None))?;
    let daemon = edge.start()?;
    let mode = std::fs::metadata(edge.socket())?.permissions().mode() & 0o777;
    ensure!(mode == 0o660, "the socket has mode {mode:o}");
    daemon.kill()?;
    ensure!(edge.socket().exists());
    let _daemon = edge.start().context("over the socket of a killed daemon")?;
    edge.admin()?.status()?;
    Ok(())
}
