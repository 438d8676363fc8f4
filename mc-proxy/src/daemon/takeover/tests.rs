use std::{net::TcpListener, thread};

use super::*;

/// A daemon that waits, and a database beside which it does.
fn daemon() -> (tempfile::TempDir, PathBuf, Doorbell) {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("mc-proxy.db");
    let doorbell = Doorbell::bind(path(&database)).unwrap();
    (directory, database, doorbell)
}

/// Asks on a thread, and confirms when everything has been passed on.
fn successor(database: &Path) -> thread::JoinHandle<Result<(), TooLate>> {
    let database = database.to_owned();
    thread::spawn(move || ask(&database).unwrap().unwrap().1.confirm())
}

#[tokio::test]
async fn sockets_change_hands() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("mc-proxy.db");
    assert!(ask(&database).unwrap().is_none(), "nobody is there");
    fs::write(path(&database), "stale").unwrap();
    let doorbell = Doorbell::bind(path(&database)).unwrap();
    let listeners: Vec<_> = (0..BATCH + 6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addrs: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let sockets: Vec<_> =
        listeners.into_iter().map(|listener| Named { name: String::new(), fd: listener.into() }).collect();
    // Who asks for something else is turned away, and does not keep others from asking.
    UnixStream::connect(path(&database)).unwrap().write_all(b"mc-proxy takeover 1\n").unwrap();
    let asking = thread::spawn({
        let database = database.clone();
        move || {
            let (inherited, predecessor) = ask(&database).unwrap().unwrap();
            predecessor.confirm().unwrap();
            inherited
        }
    });
    let mut successor = doorbell.rung().await;
    successor.pass(&sockets).await.unwrap();
    drop(sockets);
    successor.release().await.unwrap();
    successor.accepts().await.unwrap();
    successor.go().await.unwrap();
    let mut inherited = asking.join().unwrap();
    for addr in addrs {
        assert_eq!(inherited.take(&addr.to_string().parse().unwrap()).len(), 1);
    }
    doorbell.remove();
    assert!(!path(&database).exists());
}

#[tokio::test]
async fn a_daemon_that_dies_before_it_gives_way_is_an_error() {
    let (_directory, database, doorbell) = daemon();
    let asking = thread::spawn(move || ask(&database));
    drop(doorbell.rung().await);
    assert_eq!(asking.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_daemon_that_dies_later_leaves_the_place() {
    let (_directory, database, doorbell) = daemon();
    let asking = successor(&database);
    let mut successor = doorbell.rung().await;
    successor.release().await.unwrap();
    drop(successor);
    asking.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_successor_that_dies_has_not_got_the_place() {
    let (_directory, database, doorbell) = daemon();
    let asking = thread::spawn(move || drop(ask(&database).unwrap()));
    let mut successor = doorbell.rung().await;
    successor.release().await.unwrap();
    asking.join().unwrap();
    assert_eq!(successor.accepts().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    successor.go().await.unwrap_err();
}

#[tokio::test]
async fn a_successor_that_takes_too_long_is_sent_away() {
    let (_directory, database, doorbell) = daemon();
    let (may_confirm, confirms) = std::sync::mpsc::channel::<()>();
    let asking = thread::spawn(move || {
        let predecessor = ask(&database).unwrap().unwrap().1;
        confirms.recv().unwrap();
        predecessor.confirm()
    });
    let mut successor = doorbell.rung().await;
    successor.release().await.unwrap();
    tokio::time::pause();
    assert_eq!(successor.accepts().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    successor.send_away().await;
    may_confirm.send(()).unwrap();
    asking.join().unwrap().unwrap_err();
}
