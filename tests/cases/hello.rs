//! ClientHellos in every shape: those that are whole go to the named route unchanged, everything else goes nowhere.

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    client::{End, ask, ask_and_stay},
    config::{listener, loopback},
    daemon::Installation,
    hello::{Hello, record},
    wait::{SOON, until},
};

#[test]
fn a_whole_hello_goes_to_the_named_route_unchanged() -> Result<()> {
    let (named, received) = Backend::named("named")?;
    let (default, _) = Backend::named("default")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(proxy, &[("app.example.com", named.addr())], Some(default.addr())))?;
    let _daemon = edge.start()?;

    let app = Hello::to("app.example.com");
    let shapes = [
        ("one record", app.bytes()),
        ("records of 1 byte", app.records_of(1)),
        ("records of 16 bytes", app.records_of(16)),
        ("two records, the name last", app.cut_in_the_name()),
        ("two records of 20 KB, the name last", app.clone().padded_to(16_000).cut_in_the_name()),
        ("20 KB", app.clone().padded_to(20_000).bytes()),
        ("20 KB in records of 100 bytes", app.clone().padded_to(20_000).records_of(100)),
        ("60 KB", app.clone().padded_to(60_000).bytes()),
        ("upper case", Hello::to("APP.EXAMPLE.COM").bytes()),
        ("a trailing dot", Hello::to("app.example.com.").bytes()),
        ("upper case and a trailing dot, 1 byte each", Hello::to("App.Example.Com.").records_of(1)),
        ("bytes after the hello", [app.bytes(), record(b"early data of some kind")].concat()),
    ];
    for (shape, bytes) in &shapes {
        let end = ask(proxy, bytes)?;
        ensure!(end == End::Closed(b"named\n".to_vec()), "{shape}: {end:?}");
    }
    let received = received.all();
    ensure!(received.len() == shapes.len());
    for ((shape, sent), received) in shapes.iter().zip(&received) {
        ensure!(sent == received, "{shape}: {} bytes were sent, {} other bytes arrived", sent.len(), received.len());
    }
    ensure!(default.accepts() == 0);
    Ok(())
}

#[test]
fn what_is_not_a_whole_hello_with_a_proper_name_reaches_no_backend() -> Result<()> {
    let (named, _) = Backend::named("named")?;
    let (default, _) = Backend::named("default")?;
    let proxy = loopback();
    let edge = Installation::new(&listener(
        proxy,
        &[("app.example.com", named.addr()), ("*.example.com", named.addr())],
        Some(default.addr()),
    ))?;
    let _daemon = edge.start()?;

    let whole = Hello::to("app.example.com").message();
    let mut lying = whole.clone();
    // The length of the session id reaches beyond the message.
    lying[38] = 255;
    let refused = [
        ("NUL in the name", Hello::to("app.example.com\0.evil.test").bytes()),
        ("NUL at the end", Hello::to("app.example.com\0").bytes()),
        ("an empty name", Hello::to("").bytes()),
        ("nothing but a dot", Hello::to(".").bytes()),
        ("an IPv4 literal", Hello::to("192.0.2.10").bytes()),
        ("an IPv6 literal", Hello::to("2001:db8::1").bytes()),
        ("an IPv6 literal in brackets", Hello::to("[2001:db8::1]").bytes()),
        ("bytes that are not ASCII", Hello::to(b"app\xff.example.com").bytes()),
        ("a space in the name", Hello::to("app .example.com").bytes()),
        ("an empty label", Hello::to("app..example.com").bytes()),
        ("a name of 300 bytes", Hello::to("a.".repeat(150)).bytes()),
        ("garbage", (0..512_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect()),
        ("zeros", vec![0; 512]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
        ("a TLS alert", vec![21, 3, 3, 0, 2, 2, 40]),
        ("another handshake message", record(&[2, 0, 0, 4, 3, 3, 0, 0])),
        ("lengths that do not agree", record(&lying)),
        ("an empty record first", [record(&[]), record(&whole)].concat()),
        ("another record type inside of the hello", [record(&whole[..40]), vec![23, 3, 3, 0, 1, 0]].concat()),
        ("a record of more than 16 KiB", [&[22, 3, 1, 0x7f, 0xff][..], &[0; 200]].concat()),
        ("a hello of more than 64 KiB", [&[22, 3, 1, 0, 4, 1, 1, 0, 1][..]].concat()),
    ];
    for (what, bytes) in &refused {
        let end = ask_and_stay(proxy, bytes)?;
        ensure!(end == End::Reset(Vec::new()), "{what}: {end:?}");
    }
    for length in [0, 1, 5, 6, 40, whole.len() - 1] {
        let end = ask(proxy, &record(&whole)[..length])?;
        ensure!(matches!(&end, End::Reset(bytes) | End::Closed(bytes) if bytes.is_empty()), "{length} bytes: {end:?}");
    }

    // What would have been accepted for the above has been by the time that this is answered.
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"named\n".to_vec()));
    ensure!(ask(proxy, &Hello::to("elsewhere.test").bytes())? == End::Closed(b"default\n".to_vec()));
    ensure!((named.accepts(), default.accepts()) == (1, 1), "something else has reached a backend");

    let admin = edge.admin()?;
    let expected = refused.len() as u64 + 6 + 2;
    until("one outcome for each connection", SOON, || {
        Ok(admin.status()?.outcomes.iter().map(|count| count.connections).sum::<u64>() == expected)
    })
    .with_context(|| format!("{expected} connections, and {:?}", admin.status().map(|status| status.outcomes)))
}
