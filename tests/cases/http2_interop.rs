//! Clients of HTTP/2 that others have written: curl, nghttp and h2load.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    http::{Edge, HOST, Origin, Plan, ok},
    privilege::{find_program, skip},
};

/// A daemon in front of a backend that echoes; the certificate is for [`HOST`], and who names nobody gets the same.
fn edge() -> Result<(Origin, Edge)> {
    let origin = Origin::answering(|request| match request.body.as_slice() {
        [] => ok("hello\n"),
        body => ok(body),
    })?;
    let plan = Plan::to(origin.addr())?.http("max_requests = 0").default_route(&[origin.addr()], "");
    Ok((origin, plan.start()?))
}

/// What a program has written; none when it is not there.
fn output(test: &str, program: &str, args: &[String]) -> Result<Option<String>> {
    if find_program(program).is_none() {
        // It is a peer, not a privilege: never required.
        skip(test, &format!("{program} is not installed"))?;
        return Ok(None);
    }
    let output = Command::new("timeout").arg("20").arg(program).args(args).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{program} {args:?}: {} {}", output.status, text(&output.stderr));
    Ok(Some(text(&output.stdout) + &text(&output.stderr)))
}

#[test]
fn curl() -> Result<()> {
    let (origin, edge) = edge()?;
    let ca = edge.installation.directory().join("ca.crt");
    let (port, ip) = (edge.addr.port(), edge.addr.ip());
    let body = edge.installation.directory().join("body");
    std::fs::write(&body, "x".repeat(1 << 20))?;
    let url = format!("https://{HOST}:{port}/");
    let common = |more: &[&str]| -> Vec<String> {
        let base =
            ["-sS", "--http2", "--cacert", &ca.display().to_string(), "--resolve", &format!("{HOST}:{port}:{ip}")]
                .map(str::to_owned);
        base.into_iter().chain(more.iter().map(ToString::to_string)).chain([url.clone()]).collect()
    };
    let Some(text) = output("curl", "curl", &common(&["-i"]))? else { return Ok(()) };
    ensure!(text.starts_with("HTTP/2 200") && text.ends_with("hello\n"), "{text}");
    ensure!(origin.last()?.field("x-forwarded-proto") == Some("https"));
    let data = format!("@{}", body.display());
    let text = output("curl", "curl", &common(&["--data-binary", &data]))?.context("gone")?;
    ensure!(text.len() == 1 << 20 && text.bytes().all(|byte| byte == b'x'), "{} bytes", text.len());
    let text = output("curl", "curl", &common(&["-I"]))?.context("gone")?;
    ensure!(text.starts_with("HTTP/2 200"), "{text}");
    // Twice over one connection.
    let text = output("curl", "curl", &common(&["-w", "%{num_connects} %{http_version}\n", &url]))?.context("gone")?;
    ensure!(text == "hello\n1 2\nhello\n0 2\n", "{text}");
    Ok(())
}

#[test]
fn nghttp() -> Result<()> {
    let (_origin, edge) = edge()?;
    let url = format!("https://{}/", edge.addr);
    let args = ["-nvy", "-m", "20", &format!("-H:authority: {HOST}"), &url].map(str::to_owned);
    let Some(text) = output("nghttp", "nghttp", &args)? else { return Ok(()) };
    ensure!(text.matches(":status: 200").count() == 20 && text.contains("recv SETTINGS frame"), "{text}");
    ensure!(!text.contains("PROTOCOL_ERROR") && !text.contains("[INVALID"), "{text}");
    Ok(())
}

#[test]
fn h2load() -> Result<()> {
    let (_origin, edge) = edge()?;
    let at = format!("--connect-to={}", edge.addr);
    let args = ["-n", "1000", "-c", "4", "-m", "32", &at, &format!("https://{HOST}/")].map(str::to_owned);
    let Some(text) = output("h2load", "h2load", &args)? else { return Ok(()) };
    ensure!(text.contains("Application protocol: h2"), "{text}");
    ensure!(text.contains("1000 succeeded, 0 failed, 0 errored") && text.contains("status codes: 1000 2xx"), "{text}");
    Ok(())
}
