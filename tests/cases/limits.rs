//! Deadlines and limits: nobody holds the proxy longer, or more often, than the operator allows.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    backend::{Backend, echo},
    client::{End, ask, connect, end_of, exchange, is_silent_for},
    config::{listener, loopback},
    daemon::Installation,
    hello::Hello,
    wait::{SOON, pass, until},
};

#[test]
fn a_client_that_says_nothing_is_cut_off() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nhandshake_timeout = \"700ms\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], Some(backend.addr()))
    ))?;
    let _daemon = edge.start()?;

    let start = Instant::now();
    let end = end_of(&mut connect(proxy)?)?;
    let after = start.elapsed();
    ensure!(is_refusal(&end), "{end:?}");
    ensure!((Duration::from_millis(600)..Duration::from_secs(5)).contains(&after), "cut off after {after:?}");
    ensure!(backend.accepts() == 0);
    Ok(())
}

#[test]
fn a_hello_that_drips_in_is_cut_off_all_the_same() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nhandshake_timeout = \"700ms\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let _daemon = edge.start()?;

    let mut client = connect(proxy)?;
    let start = Instant::now();
    let cut = Hello::to("app.example.com").bytes().into_iter().any(|byte| {
        pass(Duration::from_millis(30));
        client.write_all(&[byte]).is_err()
    });
    let after = start.elapsed();
    ensure!(cut, "a hello that took {after:?} was read to its end");
    ensure!(after < Duration::from_secs(3), "cut off after {after:?}");
    ensure!(backend.accepts() == 0);
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"app\n".to_vec()));
    Ok(())
}

#[test]
fn an_idle_connection_ends_and_a_busy_one_does_not() -> Result<()> {
    let backend = Backend::start(echo)?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nidle_timeout = \"1s\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let _daemon = edge.start()?;

    let mut client = established(proxy)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        ensure!(exchange(&mut client, b"alive")? == b"alive");
        pass(Duration::from_millis(250));
    }
    let idle = Instant::now();
    let end = end_of(&mut client)?;
    let after = idle.elapsed();
    ensure!(is_refusal(&end), "{end:?}");
    ensure!(
        (Duration::from_millis(500)..Duration::from_secs(5)).contains(&after),
        "ended after {after:?} without a byte"
    );
    Ok(())
}

#[test]
fn a_full_listener_refuses_and_the_limit_can_be_changed() -> Result<()> {
    let backend = Backend::start(echo)?;
    let proxy = loopback();
    let routes = listener(proxy, &[("app.example.com", backend.addr())], None);
    let edge = Installation::new(&routes.replace("[[listeners]]\n", "[[listeners]]\nmax_connections = 2\n"))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let name = proxy.to_string();

    let first = established(proxy)?;
    let mut second = established(proxy)?;
    let end = ask(proxy, &Hello::to("app.example.com").bytes())?;
    ensure!(is_refusal(&end), "the third of two connections: {end:?}");

    admin.set_max_connections(&name, 3)?;
    let third = established(proxy)?;
    ensure!(is_refusal(&ask(proxy, &Hello::to("app.example.com").bytes())?));

    admin.set_max_connections(&name, 1)?;
    ensure!(exchange(&mut second, b"still here")? == b"still here", "established connections stay");
    drop((first, third));
    until("the end of two connections", SOON, || Ok(admin.status()?.total_connections == 1))?;
    ensure!(is_refusal(&ask(proxy, &Hello::to("app.example.com").bytes())?));

    drop(second);
    until("the end of all connections", SOON, || Ok(admin.status()?.total_connections == 0))?;
    let mut last = established(proxy)?;
    ensure!(is_silent_for(&mut last, Duration::from_millis(100))?);

    let status = admin.status()?;
    ensure!(status.listeners[0].max_connections == 1 && status.listeners[0].active_connections == 1, "{status:?}");
    let negative = admin.set_max_connections(&name, -1).expect_err("a negative limit");
    ensure!(negative.code() == tonic::Code::InvalidArgument, "{negative}");
    let unknown = admin.set_max_connections("127.0.0.1:1", 1).expect_err("an unknown listener");
    ensure!(unknown.code() == tonic::Code::NotFound, "{unknown}");
    Ok(())
}

/// A connection that has been through to the backend and back.
fn established(proxy: SocketAddr) -> Result<TcpStream> {
    let hello = Hello::to("app.example.com").bytes();
    let mut client = connect(proxy)?;
    ensure!(exchange(&mut client, &hello)? == hello);
    Ok(client)
}

fn is_refusal(end: &End) -> bool {
    *end == End::Reset(Vec::new())
}
