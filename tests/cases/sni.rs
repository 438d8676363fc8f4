//! Real TLS through the proxy: the name in the ClientHello decides who answers.

use std::{io, thread};

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    client::connect,
    config::{listener, loopback},
    daemon::Installation,
    tls::{Authority, Client},
};

#[test]
fn names_reach_their_own_backends() -> Result<()> {
    let authority = Authority::new()?;
    let one = authority.backend("one", &["one.example.com", "deep.one.example.com"])?;
    let any = authority.backend("any", &["*.example.com", "*.b.example.com"])?;
    let below_b = authority.backend("below-b", &["x.b.example.com", "x.y.b.example.com"])?;
    let rest = authority.backend("rest", &["elsewhere.test"])?;
    let proxy = loopback();
    let edge = Installation::new(&listener(
        proxy,
        &[("one.example.com", one.addr()), ("*.example.com", any.addr()), ("*.b.example.com", below_b.addr())],
        Some(rest.addr()),
    ))?;
    let _daemon = edge.start()?;

    for (hostname, backend) in [
        ("one.example.com", "one"),
        ("ONE.Example.COM", "one"),
        ("two.example.com", "any"),
        ("x.b.example.com", "below-b"),
        ("x.y.b.example.com", "below-b"),
        ("elsewhere.test", "rest"),
    ] {
        let mut client = authority.client(proxy, hostname)?;
        ensure!(client.answered_by() == backend, "{hostname} was answered by {}", client.answered_by());
        client.echo("the first line")?;
        client.echo("the second line")?;
        client.close()?;
    }
    ensure!((one.accepts(), any.accepts(), below_b.accepts(), rest.accepts()) == (2, 1, 2, 1));
    Ok(())
}

#[test]
fn an_unknown_name_without_a_default_route_is_reset() -> Result<()> {
    let authority = Authority::new()?;
    let backend = authority.backend("one", &["one.example.com", "two.example.com"])?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("one.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;

    let error = authority.client(proxy, "two.example.com").expect_err("there is no such route");
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    ensure!(kind == Some(io::ErrorKind::ConnectionReset), "{error:#}");
    ensure!(backend.accepts() == 0);
    ensure!(authority.client(proxy, "one.example.com")?.answered_by() == "one");
    ensure!(backend.accepts() == 1);
    Ok(())
}

#[test]
fn no_name_takes_the_default_route() -> Result<()> {
    let authority = Authority::new()?;
    let rest = authority.backend("rest", &["rest.example.com"])?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("one.example.com", rest.addr())], Some(rest.addr())))?;
    let _daemon = edge.start()?;

    let mut config = authority.client_config()?;
    config.enable_sni = false;
    ensure!(Client::greet(connect(proxy)?, config, "rest.example.com")?.answered_by() == "rest");
    Ok(())
}

#[test]
fn a_handshake_in_small_records_completes() -> Result<()> {
    let authority = Authority::new()?;
    let backend = authority.backend("one", &["one.example.com"])?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("one.example.com", backend.addr())], None))?;
    let _daemon = edge.start()?;

    for size in [32, 64, 200] {
        let mut config = authority.client_config()?;
        config.max_fragment_size = Some(size);
        let mut client = Client::greet(connect(proxy)?, config, "one.example.com")?;
        client.echo(&"long ".repeat(100))?;
        client.close()?;
    }
    Ok(())
}

#[test]
fn many_clients_at_once_are_not_mixed_up() -> Result<()> {
    let authority = Authority::new()?;
    let names = ["a.example.com", "b.example.com", "c.example.com", "d.example.com"];
    let backends = names.map(|name| authority.backend(name, &[name]));
    let backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
    let routes = names.iter().copied().zip(backends.iter().map(|backend| backend.addr())).collect::<Vec<_>>();
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &routes, None))?;
    let _daemon = edge.start()?;

    thread::scope(|scope| {
        let clients = (0..40).map(|number| {
            let (authority, name) = (&authority, names[number % names.len()]);
            scope.spawn(move || -> Result<()> {
                let mut client = authority.client(proxy, name)?;
                ensure!(client.answered_by() == name);
                (0..20).try_for_each(|line| client.echo(&format!("client {number} line {line}")))?;
                client.close()
            })
        });
        let clients = clients.collect::<Vec<_>>();
        clients.into_iter().try_for_each(|client| client.join().expect("clients return errors"))
    })
}
