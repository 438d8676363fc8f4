use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use tokio::time::{advance, sleep};

use super::*;

/// A name server that says what it is told to, and nothing more when that is over.
#[derive(Debug, Default)]
pub(super) struct Script(Mutex<VecDeque<Option<Result<Heard, Unheard>>>>);

impl Script {
    pub(super) async fn lookup(&self, _host: &str) -> Result<Heard, Unheard> {
        let said = self.lines().pop_front().flatten();
        match said {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<Option<Result<Heard, Unheard>>>> {
        self.0.lock().unwrap()
    }
}

fn resolver(lines: impl IntoIterator<Item = Result<Heard, Unheard>>) -> Resolver {
    let script = Script(Mutex::new(lines.into_iter().map(Some).collect()));
    let source = Source { from: From::Script(script), ..Source::default() };
    Resolver { source: Arc::new(source), ..Resolver::default() }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn heard(lasts: &[u8], seconds: u64) -> Result<Heard, Unheard> {
    let ips = lasts.iter().map(|last| ip(*last)).collect();
    Ok(Heard { ips, ttl: Duration::from_secs(seconds), unheard: None })
}

fn failed() -> Result<Heard, Unheard> {
    Err(Unheard::Failed("server failure".to_owned()))
}

/// All of them, and those that failed.
fn lookups(resolver: &Resolver) -> (u64, u64) {
    let Figures { lookups, failures, .. } = resolver.figures();
    (lookups, failures)
}

async fn first(resolver: &Resolver) -> IpAddr {
    resolver.lookup("app").await.unwrap().in_order(Instant::now()).next().unwrap()
}

#[tokio::test]
async fn the_system_knows_localhost() {
    let resolver = Resolver::default();
    let found = resolver.lookup("localhost").await.unwrap();
    assert!(found.in_order(Instant::now()).all(|ip| ip.is_loopback()));
    assert_eq!(lookups(&resolver), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_for_once_whoever_wants_it() {
    let resolver = resolver([heard(&[1], 60)]);
    let wants = || resolver.lookup("app");
    let all = tokio::join!(wants(), wants(), wants());
    assert!([all.0, all.1, all.2].into_iter().all(|found| *found.unwrap().ips == [ip(1)]));
    assert_eq!(lookups(&resolver), (1, 0));
    assert_eq!(*resolver.known("app"), [ip(1)]);
    assert!(resolver.known("other").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kept_name_is_asked_for_again_in_the_background() {
    let resolver = resolver([heard(&[1], 60), heard(&[2], 60)]);
    assert_eq!(first(&resolver).await, ip(1));
    sleep(Duration::from_secs(59)).await;
    assert_eq!(first(&resolver).await, ip(1));
    sleep(Duration::from_secs(2)).await;
    assert_eq!((first(&resolver).await, lookups(&resolver)), (ip(2), (2, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_serves_at_once_while_name_servers_fail_or_are_silent() {
    let resolver = resolver([heard(&[1], 60), failed(), failed()]);
    assert_eq!(first(&resolver).await, ip(1));
    for after in [61, 62, 65, 3_600, 86_400] {
        sleep(Duration::from_secs(after)).await;
        let asked_at = Instant::now();
        assert_eq!((first(&resolver).await, asked_at.elapsed()), (ip(1), Duration::ZERO));
    }
    // The script has ended, and the third look-up gets no answer.
    assert_eq!(lookups(&resolver), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_everyone_and_asked_about_again_by_itself() {
    let resolver = resolver([failed(), heard(&[1], 60)]);
    for _ in 0..3 {
        assert!(resolver.lookup("app").await.is_err());
    }
    assert_eq!(resolver.figures(), Figures { kept: 1, failing: 1, lookups: 1, failures: 1 });
    sleep(Duration::from_millis(1_100)).await;
    assert_eq!(first(&resolver).await, ip(1));
    assert_eq!(resolver.figures(), Figures { kept: 1, failing: 0, lookups: 2, failures: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_wants_is_let_go_and_taken_up_again() {
    let resolver = resolver((1..=40).map(|last| heard(&[last], 60)));
    assert_eq!(first(&resolver).await, ip(1));
    sleep(Duration::from_secs(2 * 3600)).await;
    let (asked, _) = lookups(&resolver);
    assert!((9..=12).contains(&asked), "{asked} look-ups for a name that nobody wants");
    // What is old is not served unasked.
    assert_eq!(first(&resolver).await, ip(u8::try_from(asked).unwrap() + 1));

    resolver.source_script().lines().clear();
    sleep(Duration::from_secs(2 * 3600)).await;
    let name = resolver.name("app");
    name.is_current.store(false, Relaxed);
    let asked_at = Instant::now();
    assert_eq!(first(&resolver).await, ip(u8::try_from(asked).unwrap() + 1));
    assert_eq!(asked_at.elapsed(), PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_outlives_who_wanted_it() {
    let resolver = resolver([heard(&[1], 60)]);
    tokio::select! {
        biased;
        _ = resolver.lookup("app") => panic!("an answer at once"),
        () = std::future::ready(()) => {}
    }
    assert!(resolver.known("app").is_empty());
    sleep(Duration::from_millis(1)).await;
    assert_eq!(*resolver.known("app"), [ip(1)]);
}

#[tokio::test(start_paused = true)]
async fn who_won_a_race_comes_first_for_a_while() {
    let resolver = resolver([heard(&[1, 2, 3], 3_600)]);
    let found = resolver.lookup("app").await.unwrap();
    let order = |now| found.in_order(now).collect::<Vec<_>>();
    assert_eq!(order(Instant::now()), [ip(1), ip(2), ip(3)]);
    found.prefer(ip(3), Instant::now());
    assert_eq!(order(Instant::now()), [ip(3), ip(1), ip(2)]);
    found.prefer(ip(2), Instant::now());
    assert_eq!(order(Instant::now()), [ip(2), ip(1), ip(3)]);
    found.prefer(ip(9), Instant::now());
    assert_eq!(order(Instant::now()), [ip(1), ip(2), ip(3)]);
    found.prefer(ip(2), Instant::now());
    advance(PREFERRED).await;
    assert_eq!(order(Instant::now()), [ip(1), ip(2), ip(3)]);
}

#[tokio::test(start_paused = true)]
async fn names_are_forgotten_before_there_are_too_many() {
    let resolver = resolver([heard(&[1], 60)]);
    assert_eq!(first(&resolver).await, ip(1));
    for number in 0..=MAX_NAMES {
        resolver.name(&format!("name-{number}"));
        assert!(resolver.names.load().len() <= MAX_NAMES);
    }
    assert_eq!(*resolver.known("app"), [ip(1)], "one that is kept has gone");
}

impl Resolver {
    fn source_script(&self) -> &Script {
        match &self.source.from {
            From::Script(script) => script,
            From::System(_) => panic!("not a script"),
        }
    }
}
