//! Deadlines and limits: nobody holds the proxy longer, or more often, than the operator allows.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    admin::Admin,
    backend::{Backend, echo},
    client::{End, ask, ask_from, connect, connect_from, end_of, exchange, is_silent_for},
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
        "[proxy]\nidle_timeout = \"2s\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let _daemon = edge.start()?;

    let mut client = established(proxy)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(5000) {
        ensure!(exchange(&mut client, b"alive")? == b"alive");
        pass(Duration::from_millis(250));
    }
    let idle = Instant::now();
    let end = end_of(&mut client)?;
    let after = idle.elapsed();
    ensure!(is_refusal(&end), "{end:?}");
    ensure!(
        (Duration::from_millis(1000)..Duration::from_secs(6)).contains(&after),
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

#[test]
fn one_source_has_its_places_and_others_have_theirs() -> Result<()> {
    let backend = Backend::start(echo)?;
    let proxy = loopback();
    let routes = listener(proxy, &[("app.example.com", backend.addr())], None);
    let edge =
        Installation::new(&routes.replace("[[listeners]]\n", "[[listeners]]\nmax_connections_per_source = 2\n"))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let hello = Hello::to("app.example.com").bytes();
    let [first, second, other] =
        [[127, 0, 0, 11], [127, 0, 0, 11], [127, 0, 0, 12]].map(|source| -> Result<TcpStream> {
            let mut client = connect_from(IpAddr::from(source), proxy)?;
            ensure!(exchange(&mut client, &hello)? == hello);
            Ok(client)
        });
    let (first, mut second, mut other) = (first?, second?, other?);
    for _ in 0..3 {
        ensure!(is_refusal(&ask_from(IpAddr::from([127, 0, 0, 11]), proxy, &hello)?));
    }
    ensure!(outcome(&admin, "over_source_limit")? == 3);
    ensure!(exchange(&mut second, b"still here")? == b"still here");
    ensure!(exchange(&mut other, b"still here")? == b"still here");

    drop(first);
    until("the end of a connection", SOON, || Ok(admin.status()?.total_connections == 2))?;
    ensure!(ask_from(IpAddr::from([127, 0, 0, 11]), proxy, &hello)? == End::Closed(hello.clone()));
    Ok(())
}

/// Every place in the budget is 8 KiB; what a full house refuses is anonymous.
#[test]
fn short_of_memory_the_anonymous_give_way_and_the_established_stay() -> Result<()> {
    let backend = Backend::start(echo)?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nmemory_limit = \"1MiB\"\nhandshake_timeout = \"60s\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let mut regulars = (0..20).map(|_| established(proxy)).collect::<Result<Vec<_>>>()?;
    let memory = admin.status()?.memory.unwrap_or_default();
    ensure!(memory.limit_bytes == 1 << 20 && memory.used_bytes >= 20 * 8192, "{memory:?}");

    let silent = (0..300).map(|_| connect(proxy)).collect::<Result<Vec<_>>>()?;
    until("those who give way", SOON, || Ok(outcome(&admin, "over_memory")? >= 300 - 128))?;
    ensure!(admin.status()?.memory.unwrap_or_default().used_bytes <= 1 << 20);
    for regular in &mut regulars {
        ensure!(exchange(regular, b"still here")? == b"still here");
    }
    // A newcomer that says at once whom it wants has the place of the newest who has not.
    let newcomer = established(proxy)?;
    drop((silent, newcomer));
    drop(regulars);
    until("everything to be given back", SOON, || Ok(admin.status()?.memory.unwrap_or_default().used_bytes == 0))?;
    ensure!(outcome(&admin, "handshake_timeout")? == 0);
    Ok(())
}

/// Reads that are short of memory are short, and go on.
#[test]
fn short_of_memory_bytes_still_move() -> Result<()> {
    let (backend, streams) = Backend::handing_over()?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nmemory_limit = \"1MiB\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?;
    let _daemon = edge.start()?;
    let admin = edge.admin()?;
    let hello = Hello::to("app.example.com").bytes();
    // Readers that do not read, until what waits for them fills the budget.
    let mut pairs = Vec::new();
    for _ in 0..8 {
        let mut client = connect(proxy)?;
        client.write_all(&hello)?;
        let mut stream = streams.recv_timeout(SOON)?;
        stream.read_exact(&mut vec![0; hello.len()])?;
        pairs.push((client, stream));
    }
    let total = 16 << 20;
    let senders: Vec<_> = pairs
        .into_iter()
        .map(|(client, mut stream)| {
            let sender = thread::spawn(move || -> Result<()> {
                let chunk = vec![7; 1 << 20];
                for _ in 0..total / chunk.len() {
                    stream.write_all(&chunk)?;
                }
                Ok(())
            });
            (client, sender)
        })
        .collect();
    let used = || -> Result<u64> { Ok(admin.status()?.memory.unwrap_or_default().used_bytes) };
    until("memory to be short", SOON, || Ok(used()? > (1 << 20) - 256 * 1024))?;
    for (mut client, sender) in senders {
        ensure!(used()? <= 1 << 20, "{} bytes are used", used()?);
        let mut received = 0;
        let mut buffer = vec![0; 1 << 20];
        while received < total {
            let read = client.read(&mut buffer)?;
            ensure!(read > 0, "the end came after {received} bytes");
            received += read;
        }
        sender.join().ok().context("a sender has panicked")??;
    }
    ensure!(outcome(&admin, "over_memory")? == 0);
    Ok(())
}

#[test]
fn without_descriptors_the_queue_waits_and_nobody_spins() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&format!(
        "[proxy]\nhandshake_timeout = \"60s\"\n{}",
        listener(proxy, &[("app.example.com", backend.addr())], None)
    ))?
    .with_open_files(100);
    let daemon = edge.start()?;
    let admin = edge.admin()?;
    let silent = (0..150).map(|_| connect(proxy)).collect::<Result<Vec<_>>>()?;
    daemon.log().wait_for(&["a connection could not be accepted"], SOON)?;
    let waiting = thread::spawn(move || ask(proxy, &Hello::to("app.example.com").bytes()));

    let (before, lines) = (daemon.cpu_time()?, daemon.log().matching(&["could not be accepted"]).len());
    pass(Duration::from_secs(2));
    let (spent, lines) = (daemon.cpu_time()? - before, daemon.log().matching(&["could not be accepted"]).len() - lines);
    ensure!(spent < Duration::from_millis(400), "{spent:?} of two seconds were spent on accepting nothing");
    ensure!(lines <= 4, "{lines} lines in two seconds");
    ensure!(!waiting.is_finished());

    drop(silent);
    let end = waiting.join().ok().context("the client has panicked")??;
    ensure!(end == End::Closed(b"app\n".to_vec()), "{end:?}");
    ensure!(admin.status()?.accept_failures > 0);
    ensure!(ask(proxy, &Hello::to("app.example.com").bytes())? == End::Closed(b"app\n".to_vec()));
    Ok(())
}

fn outcome(admin: &Admin, name: &str) -> Result<u64> {
    let outcomes = admin.status()?.outcomes;
    Ok(outcomes.iter().find(|count| count.outcome == name).context("no such outcome")?.connections)
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
