//! A restart that nobody notices: the listening sockets never close, whoever has the daemon's next start in hand.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    backend::{Backend, echo},
    client::{End, ask, connect, end_of, exchange},
    config::{listener, loopback},
    daemon::Installation,
    hello::Hello,
    manager::ServiceManager,
    wait::{SOON, pass, until},
};
use rustix::process::Signal;

/// Descriptors that are passed to one daemon are open in this process while it starts: another would inherit them too.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clients that come all the time, one after the other on each of some threads.
struct Load {
    is_over: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<BTreeMap<String, u64>>>,
    begun: Instant,
}

impl Load {
    const THREADS: usize = 8;

    fn start(proxy: SocketAddr) -> Self {
        let (is_over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let hello = Hello::to("app.example.com").bytes();
        let threads = (0..Self::THREADS).map(|_| {
            let (is_over, served, hello) = (Arc::clone(&is_over), Arc::clone(&served), hello.clone());
            thread::spawn(move || {
                let mut ends = BTreeMap::new();
                while !is_over.load(Relaxed) {
                    let end = match ask(proxy, &hello) {
                        Ok(End::Closed(answer)) if answer == b"app\n" => "served".to_owned(),
                        Ok(end) => format!("{end:?}"),
                        Err(error) => format!("{error:#}"),
                    };
                    if end == "served" {
                        served.fetch_add(1, Relaxed);
                    }
                    *ends.entry(end).or_default() += 1;
                }
                ends
            })
        });
        Self { threads: threads.collect(), is_over, served, begun: Instant::now() }
    }

    /// Waits until so many more have been served.
    fn runs(&self, more: u64) -> Result<()> {
        let before = self.served.load(Relaxed);
        until("clients to be served", 2 * SOON, || Ok(self.served.load(Relaxed) >= before + more))
    }

    /// An error if anybody got anything else than the answer.
    fn ends_well(self) -> Result<u64> {
        self.is_over.store(true, Relaxed);
        let mut ends = BTreeMap::<String, u64>::new();
        for thread in self.threads {
            for (end, count) in thread.join().ok().context("a client has panicked")? {
                *ends.entry(end).or_default() += count;
            }
        }
        let served = ends.remove("served").unwrap_or(0);
        ensure!(ends.is_empty(), "{served} were served, and {ends:?}");
        println!("{served} connections in {:?}, none refused or reset", self.begun.elapsed());
        Ok(served)
    }
}

fn body(proxy: SocketAddr, backends: &[(&str, SocketAddr)], shutdown_timeout: &str) -> String {
    format!("[proxy]\nshutdown_timeout = \"{shutdown_timeout}\"\n{}", listener(proxy, backends, None))
}

/// A connection that has been through to the backend and back.
fn established(proxy: SocketAddr) -> Result<TcpStream> {
    let hello = Hello::to("echo.example.com").bytes();
    let mut client = connect(proxy)?;
    ensure!(exchange(&mut client, &hello)? == hello);
    Ok(client)
}

#[test]
fn under_a_service_manager_a_restart_refuses_nobody() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let echo = Backend::start(echo)?;
    let proxy = loopback();
    let routes = [("app.example.com", app.addr()), ("echo.example.com", echo.addr())];
    let edge = Installation::new(&body(proxy, &routes, "3s"))?;
    let mut manager = ServiceManager::new(edge.directory())?;
    let mut daemon = edge.start_under(&mut manager)?;
    let stored = manager.stored();
    ensure!(stored > 0, "nothing was stored");

    let load = Load::start(proxy);
    for _ in 0..3 {
        load.runs(200)?;
        let mut client = established(proxy)?;
        daemon.signal(Signal::TERM)?;
        daemon.log().wait_for(&["shutting down"], SOON)?;
        // What is established is served on, though what comes anew waits for the next daemon.
        ensure!(exchange(&mut client, b"still served")? == b"still served");
        drop(client);
        let status = daemon.wait(SOON)?;
        ensure!(status.success(), "{status}");
        daemon.log().wait_for(&["drained connections", "forced=0", "told=0"], SOON)?;
        daemon = edge.start_under(&mut manager)?;
        daemon.log().wait_for(&["listening sockets were inherited"], SOON)?;
        ensure!(manager.stored() == stored, "{} descriptors are stored, not {stored}", manager.stored());
    }
    load.runs(200)?;
    load.ends_well()?;
    daemon.stop()
}

#[test]
fn after_a_crash_the_queue_is_there_for_the_next_daemon() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&body(proxy, &[("app.example.com", app.addr())], "3s"))?;
    let mut manager = ServiceManager::new(edge.directory())?;
    edge.start_under(&mut manager)?.kill()?;

    let clients: Vec<_> =
        (0..20).map(|_| thread::spawn(move || ask(proxy, &Hello::to("app.example.com").bytes()))).collect();
    let daemon = edge.start_under(&mut manager)?;
    for client in clients {
        let end = client.join().ok().context("a client has panicked")??;
        ensure!(end == End::Closed(b"app\n".to_vec()), "{end:?}");
    }
    daemon.stop()
}

#[test]
fn a_listener_that_is_gone_is_taken_out_of_the_store() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let (kept, gone) = (loopback(), loopback());
    let routes = [("app.example.com", app.addr())];
    let edge = Installation::new(&format!("{}{}", body(kept, &routes, "3s"), listener(gone, &routes, None)))?;
    let mut manager = ServiceManager::new(edge.directory())?;
    edge.start_under(&mut manager)?.stop()?;
    let stored = manager.stored();
    ensure!(TcpStream::connect(gone).is_ok(), "the manager keeps it");

    let second = Installation::new(&body(kept, &routes, "3s"))?;
    let daemon = second.start_under(&mut manager)?;
    ensure!(manager.stored() * 2 == stored, "{} of {stored}", manager.stored());
    until("the end of listening", SOON, || Ok(TcpStream::connect(gone).is_err()))?;
    daemon.log().wait_for(&["an inherited socket is closed", &gone.to_string()], SOON)?;
    daemon.stop()?;
    manager.forget();
    ensure!(TcpStream::connect(kept).is_err(), "nobody keeps it");
    Ok(())
}

/// As with a socket unit: one socket, without `SO_REUSEPORT`, that listens before there is a daemon.
#[test]
fn a_socket_of_a_socket_unit_is_served_by_every_worker() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&body(proxy, &[("app.example.com", app.addr())], "3s"))?;
    let mut manager = ServiceManager::new(edge.directory())?;
    manager.keep("mc-proxy.socket", OwnedFd::from(TcpListener::bind(proxy)?));
    let early = thread::spawn(move || ask(proxy, &Hello::to("app.example.com").bytes()));
    let daemon = edge.start_under(&mut manager)?;
    ensure!(early.join().ok().context("the client has panicked")?? == End::Closed(b"app\n".to_vec()));
    let load = Load::start(proxy);
    load.runs(200)?;
    load.ends_well()?;
    daemon.stop()
}

#[test]
fn a_successor_takes_over_and_refuses_nobody() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let echo = Backend::start(echo)?;
    let proxy = loopback();
    let routes = [("app.example.com", app.addr()), ("echo.example.com", echo.addr())];
    let edge = Installation::new(&body(proxy, &routes, "20s"))?;
    // Without a daemon it is a start like any other.
    let mut daemon = edge.take_over()?;
    daemon.log().wait_for(&["there is no daemon to take over from"], SOON)?;

    let load = Load::start(proxy);
    for round in 0..3 {
        load.runs(200)?;
        let mut client = established(proxy)?;
        edge.admin()?.block(&format!("203.0.113.{round}"))?;
        let successor = edge.take_over()?;
        // Both have connections; the successor has the listeners, the database and the admin socket.
        load.runs(200)?;
        ensure!(exchange(&mut client, b"still served")? == b"still served");
        ensure!(edge.admin()?.rules()?.len() == round + 1);
        drop(client);
        let status = daemon.wait(SOON)?;
        ensure!(status.success(), "{status}");
        daemon.log().wait_for(&["drained connections", "forced=0"], SOON)?;
        daemon = successor;
    }
    load.runs(200)?;
    load.ends_well()?;
    daemon.stop()?;
    ensure!(TcpStream::connect(proxy).is_err(), "nobody keeps the sockets");
    Ok(())
}

/// The daemon serves, and takes changes.
fn is_whole(edge: &Installation, load: &Load, rule: &str) -> Result<()> {
    load.runs(100)?;
    until("the admin API", SOON, || Ok(edge.admin().is_ok_and(|admin| admin.block(rule).is_ok())))?;
    Ok(edge.admin()?.unblock(rule)?)
}

#[test]
fn a_successor_that_fails_leaves_the_place_to_the_daemon_that_runs() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let proxy = loopback();
    let body = body(proxy, &[("app.example.com", app.addr())], "20s");
    let edge = Installation::new(&body)?;
    let daemon = edge.start()?;
    let taken_back = |count: usize| {
        until("everything to be taken back", SOON, || {
            Ok(daemon.log().matching(&["everything has been taken back"]).len() == count)
        })
    };
    edge.admin()?.block("203.0.113.1")?;
    let load = Load::start(proxy);

    // Wrong configuration, or a database that this version cannot read, is found before anything is asked for.
    edge.configure("[proxy]\nshutdown_timeout = \"soon\"\n")?;
    ensure!(edge.take_over_and_fail()?.status.code() == Some(78));
    edge.configure(&body)?;
    let database = rusqlite::Connection::open(edge.database())?;
    database.execute("UPDATE routes SET hostname = 'not a name'", [])?;
    ensure!(edge.take_over_and_fail()?.status.code() == Some(1));
    database.execute("UPDATE routes SET hostname = 'app.example.com'", [])?;
    // A certificate that only the daemon that runs has got.
    database.execute("UPDATE routes SET mode = 'l7', tls_cert = '/absent.pem', tls_key = '/absent.key'", [])?;
    ensure!(edge.take_over_and_fail()?.status.code() == Some(78));
    database.execute("UPDATE routes SET mode = 'l4', tls_cert = NULL, tls_key = NULL", [])?;
    drop(database);
    ensure!(daemon.log().matching(&["asks for the place"]).is_empty());
    is_whole(&edge, &load, "203.0.113.2")?;

    // Everything has been passed on when it fails.
    edge.configure(&format!("{body}\n[xdp]\ninterfaces = [\"absent0\"]\nrequired = true\n"))?;
    ensure!(!edge.take_over_and_fail()?.status.success());
    taken_back(1)?;
    edge.configure(&body)?;
    is_whole(&edge, &load, "203.0.113.3")?;

    // It hangs for a while: the daemon serves without database and admin API.
    let stream = edge.ask_for_place()?;
    ensure!(!edge.socket().exists());
    load.runs(200)?;
    drop(stream);
    taken_back(2)?;
    is_whole(&edge, &load, "203.0.113.4")?;

    ensure!(edge.admin()?.rules()?.len() == 1);
    let successor = edge.take_over()?;
    load.runs(200)?;
    load.ends_well()?;
    ensure!(successor.log().matching(&["listening sockets were inherited"]).len() == 1);
    ensure!(edge.admin()?.rules()?.len() == 1);
    successor.stop()
}

#[test]
fn a_successor_that_is_killed_leaves_the_place_to_the_daemon_that_runs() -> Result<()> {
    let _alone = alone();
    let (app, _) = Backend::named("app")?;
    let proxy = loopback();
    let edge = Installation::new(&body(proxy, &[("app.example.com", app.addr())], "20s"))?;
    let daemon = edge.start()?;
    let load = Load::start(proxy);
    for round in 1..=5 {
        let successor = edge.begin_take_over()?;
        until("the successor to ask", SOON, || Ok(daemon.log().matching(&["asks for the place"]).len() == round))?;
        successor.kill()?;
        until("the daemon to go on", SOON, || Ok(daemon.log().matching(&["this daemon goes on"]).len() == round))?;
        is_whole(&edge, &load, "203.0.113.1")?;
    }
    load.ends_well()?;
    daemon.stop()
}

#[test]
fn quiet_connections_are_told_and_a_line_sums_up() -> Result<()> {
    let echo = Backend::start(echo)?;
    let proxy = loopback();
    let edge = Installation::new(&body(proxy, &[("echo.example.com", echo.addr())], "9s"))?;
    let mut daemon = edge.start()?;
    let mut quiet = established(proxy)?;
    let mut busy = established(proxy)?;
    let mut deaf = established(proxy)?;
    daemon.signal(Signal::TERM)?;
    let begun = Instant::now();
    // After three seconds: a third of the timeout.
    let talk = thread::spawn(move || -> Result<Duration> {
        // Told three seconds after its last byte, which leaves two before the end of all.
        while begun.elapsed() < Duration::from_secs(4) {
            ensure!(exchange(&mut busy, b"x")? == b"x");
            pass(Duration::from_millis(100));
        }
        ensure!(end_of(&mut busy)? == End::Closed(Vec::new()));
        Ok(begun.elapsed())
    });
    ensure!(end_of(&mut quiet)? == End::Closed(Vec::new()), "not told");
    ensure!(begun.elapsed() < Duration::from_secs(7), "told after {:?}", begun.elapsed());
    drop(quiet);
    // Told as well, and never ends.
    ensure!(end_of(&mut deaf)? == End::Closed(Vec::new()), "not told");
    let told_after = talk.join().ok().context("the client has panicked")??;
    ensure!(told_after >= Duration::from_secs(4), "cut while it talked, after {told_after:?}");
    let status = daemon.wait(SOON)?;
    ensure!(status.success(), "{status}");
    let line = daemon.log().wait_for(&["drained connections"], SOON)?;
    ensure!(line.contains("open=3"), "{line}");
    ensure!(line.contains("forced=1") && line.contains("told=2"), "{line}");
    drop(deaf);
    Ok(())
}
