//! Start, stop, reload, restart: what an operator does, and what must survive it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::{Backend, echo},
    client::{End, ask, connect, exchange, is_reset},
    config::{listener, loopback},
    daemon::{Installation, binary},
    hello::Hello,
    wait::{SOON, pass, until},
};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn sigterm_lets_connections_finish() -> Result<()> {
    let backend = Backend::start(echo)?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let mut daemon = edge.start()?;

    let mut client = established(proxy)?;
    daemon.signal(Signal::TERM)?;
    until("the end of accepting", SOON, || Ok(TcpStream::connect(proxy).is_err()))?;
    for _ in 0..10 {
        ensure!(exchange(&mut client, b"still served")? == b"still served");
    }
    drop(client);
    let finished = Instant::now();
    let status = daemon.wait(SOON)?;
    ensure!(status.success(), "{status}");
    ensure!(finished.elapsed() < Duration::from_secs(5), "it waited for nobody: {:?}", finished.elapsed());
    ensure!(daemon.log().matching(&["shutdown timeout exceeded"]).is_empty());
    ensure!(!edge.socket().exists(), "the admin socket is left behind");
    Ok(())
}

#[test]
fn connections_that_do_not_finish_are_closed_by_force() -> Result<()> {
    let backend = Backend::start(echo)?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nshutdown_timeout = \"1s\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let mut daemon = edge.start()?;

    let mut client = established(proxy)?;
    let start = Instant::now();
    daemon.signal(Signal::TERM)?;
    // One that fell silent would be told before.
    let error = loop {
        pass(Duration::from_millis(20));
        if let Err(error) = exchange(&mut client, b"still talking") {
            break error;
        }
        ensure!(start.elapsed() < SOON, "it goes on");
    };
    ensure!(error.downcast_ref().is_some_and(is_reset), "{error:#}");
    let status = daemon.wait(SOON)?;
    let after = start.elapsed();
    ensure!(status.success(), "{status}");
    ensure!((Duration::from_millis(900)..Duration::from_secs(6)).contains(&after), "ended after {after:?}");
    daemon.log().wait_for(&["shutdown timeout exceeded, forcing close"], SOON)?;
    let records = daemon.log().matching(&["connection closed"]);
    ensure!(records.len() == 1 && records[0].contains("reason=forced"), "{records:?}");
    Ok(())
}

#[test]
fn a_signal_during_the_start_ends_it_in_order() -> Result<()> {
    let edge = Installation::new(&listener(loopback(), &[], None))?;
    let mut daemon = Command::new(binary("mc-proxy")?).arg("server").arg("-c").arg(edge.config()).spawn()?;
    // It is among the first things that a start does.
    let deadline = Instant::now() + SOON;
    while !edge.database().exists() && Instant::now() < deadline {
        thread::yield_now();
    }
    for signal in [Signal::HUP, Signal::TERM] {
        kill_process(Pid::from_child(&daemon), signal)?;
    }
    let mut status = None;
    until("the end of the daemon", SOON, || {
        status = daemon.try_wait()?;
        Ok(status.is_some())
    })?;
    ensure!(status.is_some_and(|status| status.success()), "{status:?}");
    Ok(())
}

#[test]
fn a_thousand_routes_survive_a_restart() -> Result<()> {
    let (even, _) = Backend::named("even")?;
    let (odd, _) = Backend::named("odd")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[], None))?;
    let daemon = edge.start()?;
    let admin = edge.admin()?;
    let name = proxy.to_string();
    let backend_of = |number: usize| if number.is_multiple_of(2) { &even } else { &odd };
    for number in 0..1_000 {
        admin.add_route(&name, &format!("host-{number}.example.com"), &backend_of(number).addr().to_string())?;
    }
    let before = admin.routes(&name)?.routes;
    ensure!(before.len() == 1_000);
    daemon.stop()?;

    let daemon = edge.start()?;
    ensure!(daemon.ready_after() < Duration::from_secs(5), "ready after {:?}", daemon.ready_after());
    let after = edge.admin()?.routes(&name)?.routes;
    ensure!(before == after, "the routes are not those of before");
    for (number, answer) in [(0, "even\n"), (777, "odd\n"), (998, "even\n"), (999, "odd\n")] {
        let end = ask(proxy, &Hello::to(format!("host-{number}.example.com")).bytes())?;
        ensure!(end == End::Closed(answer.into()), "host-{number}: {end:?}");
    }
    ensure!(ask(proxy, &Hello::to("host-1000.example.com").bytes())? == End::Reset(Vec::new()));
    Ok(())
}

#[test]
fn what_was_acknowledged_survives_sigkill() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[], None))?;
    let daemon = edge.start()?;
    let admin = edge.admin()?;
    let name = proxy.to_string();
    admin.add_route(&name, "kept.example.com", &backend.addr().to_string())?;
    admin.add_route(&name, "removed.example.com", &backend.addr().to_string())?;
    admin.block("203.0.113.50")?;
    admin.set_max_connections(&name, 77)?;
    admin.remove_route(&name, "removed.example.com")?;
    daemon.kill()?;

    let _daemon = edge.start().context("after SIGKILL")?;
    let admin = edge.admin()?;
    let routes = admin.routes(&name)?.routes;
    ensure!(routes.len() == 1 && routes[0].hostname == "kept.example.com", "{routes:?}");
    let rules = admin.rules()?;
    ensure!(rules.len() == 1 && rules[0].value == "203.0.113.50", "{rules:?}");
    ensure!(admin.status()?.listeners[0].max_connections == 77);
    ensure!(ask(proxy, &Hello::to("kept.example.com").bytes())? == End::Closed(b"app\n".to_vec()));
    Ok(())
}

#[test]
fn the_database_wins_over_the_file_and_says_so() -> Result<()> {
    let (first, _) = Backend::named("first")?;
    let (second, _) = Backend::named("second")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", first.addr())], None))?;
    edge.start()?.stop()?;

    edge.configure(&listener(proxy, &[("app.example.com", second.addr()), ("new.example.com", second.addr())], None))?;
    let daemon = edge.start()?;
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"first\n".to_vec()));
    ensure!(ask(proxy, &Hello::to("new.example.com").bytes())? == End::Reset(Vec::new()));
    for hostname in ["app.example.com", "new.example.com"] {
        let warnings = daemon.log().matching(&["level=WARN", hostname]);
        ensure!(warnings.len() == 1, "one warning about {hostname}: {warnings:?}");
    }
    Ok(())
}

#[test]
fn the_database_is_for_its_owner_only_and_has_one_daemon() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    let mode = fs::metadata(edge.database())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the database has mode {mode:o}");

    let config = fs::read_to_string(edge.config())?;
    let elsewhere = loopback().to_string();
    let second = Installation::without_config()?;
    second.write_config(
        &config
            .replace(&proxy.to_string(), &elsewhere)
            .replace(&edge.socket().display().to_string(), &second.socket().display().to_string()),
    )?;
    let output = second.start_and_fail()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "a second daemon runs on the same database");
    ensure!(message.contains(&edge.database().display().to_string()), "the error does not name the file: {message}");
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"app\n".to_vec()));
    edge.admin()?.block("203.0.113.50").context("the first daemon can no longer write")?;
    Ok(())
}

#[test]
fn a_snapshot_of_a_running_daemon_is_a_whole_database() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;
    edge.admin()?.block("203.0.113.50")?;
    let output = edge.run("snapshot")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let backups = edge.directory().join("backups");
    let files = fs::read_dir(&backups)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(files.len() == 1, "{files:?}");
    let name = files[0].file_name().into_string().unwrap_or_default();
    ensure!(name.starts_with("mc-proxy-") && name.ends_with(".db"), "{name}");
    ensure!(files[0].metadata()?.permissions().mode() & 0o777 == 0o600);

    let restored = Installation::without_config()?;
    fs::copy(files[0].path(), restored.database())?;
    let elsewhere = loopback();
    restored.configure("")?;
    let database = rusqlite::Connection::open(restored.database())?;
    let verdict = database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))?;
    ensure!(verdict == "ok", "{verdict}");
    drop(database);
    // The restored state names the listener of the running daemon: it is what the copy has to contain.
    let output = restored.start_and_fail()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(message.contains("address already in use"), "{message}");
    ensure!(message.contains(&proxy.to_string()) && !message.contains(&elsewhere.to_string()), "{message}");
    Ok(())
}

#[test]
fn a_corrupt_database_is_refused_and_kept() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let edge = Installation::new(&listener(loopback(), &[("app.example.com", backend.addr())], None))?;
    edge.start()?.stop()?;
    let mut bytes = fs::read(edge.database())?;
    for byte in bytes.iter_mut().skip(4096).take(8192) {
        *byte ^= 0xa5;
    }
    fs::write(edge.database(), &bytes)?;

    let output = edge.start_and_fail()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success());
    ensure!(message.contains(&edge.database().display().to_string()), "{message}");
    ensure!(message.contains("backups"), "the error does not say how to restore: {message}");
    ensure!(fs::read(edge.database())? == bytes, "the corrupt database was touched");
    Ok(())
}

#[test]
fn sighup_is_acknowledged_in_the_log_and_changes_nothing_else() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", backend.addr())], None))?;
    let daemon = edge.start()?;
    daemon.signal(Signal::HUP)?;
    daemon.log().wait_for(&["received SIGHUP, reloading GeoIP database"], SOON)?;
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"app\n".to_vec()));
    daemon.stop()
}

/// A connection that has been through to the backend and back.
fn established(proxy: SocketAddr) -> Result<TcpStream> {
    let hello = Hello::to("app.example.com").bytes();
    let mut client = connect(proxy)?;
    ensure!(exchange(&mut client, &hello)? == hello);
    Ok(client)
}
