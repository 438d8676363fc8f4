//! Each test has threads of its own, since accounts are a thread's.

use std::{
    future::Future as _,
    pin::pin,
    sync::{Arc, Barrier},
    task::Context,
    thread,
};

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1024;

/// Runs with an account of a budget.
fn with<T: Send>(budget: &Arc<Budget>, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            budget.open_account();
            run()
        });
        thread.join().unwrap()
    })
}

fn is_shed(anonymous: &Anonymous) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    pin!(anonymous.shed()).poll(&mut cx).is_ready()
}

#[test]
fn the_limit_is_a_limit_and_what_is_dropped_is_free() {
    let budget = Budget::new(64 * KIB);
    with(&budget, || {
        let first = Charge::take(40 * KIB).unwrap();
        assert!(Charge::take(24 * KIB + 1).is_none());
        let second = Charge::take(24 * KIB).unwrap();
        assert_eq!(budget.used(), 64 * KIB);
        assert!(!second.resize(25 * KIB) && !has_room(1));
        assert_eq!(second.bytes(), 24 * KIB);
        assert!(second.resize(1) && has_room(23 * 1024) && !has_room(24 * 1024));
        drop((first, second));
        assert_eq!(budget.used(), 0);
        assert!(has_room(64 * 1024));
    });
}

#[test]
fn without_a_limit_everything_is_counted() {
    let budget = Budget::new(0);
    with(&budget, || {
        let charge = Charge::take(1 << 50).unwrap();
        assert_eq!((budget.limit(), budget.used()), (0, 1 << 50));
        assert!(Anonymous::admit().unwrap().known().is_some());
        drop(charge);
    });
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_thread_without_an_account_has_what_it_wants() {
    thread::spawn(|| assert!(Charge::take(u64::MAX / 2).is_some())).join().unwrap();
}

#[test]
fn workers_share_one_limit() {
    let budget = Budget::new(1024 * KIB);
    let all_refused = Barrier::new(4);
    let taken = thread::scope(|scope| {
        let take = || {
            budget.open_account();
            let charges: Vec<_> = std::iter::from_fn(|| Charge::take(KIB)).collect();
            all_refused.wait();
            charges.len() as u64
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    assert_eq!((taken, budget.used()), (1024, 0));
}

#[test]
fn the_newest_anonymous_gives_way_and_the_established_never() {
    let budget = Budget::new(4 * CONNECTION);
    with(&budget, || {
        let established = Anonymous::admit().unwrap().known().unwrap();
        let [oldest, middle, newest] = [(); 3].map(|()| Anonymous::admit().unwrap());
        assert!([&oldest, &middle, &newest].iter().all(|anonymous| !is_shed(anonymous)));
        let next = Anonymous::admit().unwrap();
        assert!(is_shed(&newest) && !is_shed(&middle) && !is_shed(&next));
        assert!(newest.known().is_none());
        // A longer hello of the oldest costs the two after it their places.
        assert!(oldest.hold(CONNECTION as usize + 1));
        assert!(is_shed(&next) && is_shed(&middle));
        drop((middle, next));
        let known = oldest.known().unwrap();
        assert_eq!(known.bytes(), 2 * CONNECTION + 1);
        assert!(Anonymous::admit().is_none(), "there is nobody who could give way");
        assert!(known.resize(CONNECTION));
        let last = Anonymous::admit().unwrap();
        assert!(!last.hold(10 * CONNECTION as usize) && is_shed(&last), "the newest is the one that asks");
        drop((established, known, last));
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn what_was_forced_is_paid_back() {
    let budget = Budget::new(16 * KIB);
    with(&budget, || {
        let charge = Charge::default();
        charge.force(20 * KIB);
        assert!(!has_room(1));
        drop(charge);
        assert_eq!(budget.used(), 0);
        assert!(has_room(16 * 1024) && Charge::take(16 * KIB).is_some());
    });
}

proptest! {
    #[test]
    fn the_sum_is_right_whatever_comes(steps in prop::collection::vec((0_usize..8, 0_u64..200 * KIB), 0..200)) {
        let budget = Budget::new(512 * KIB);
        with(&budget, || {
            let charges: [Charge; 8] = Default::default();
            let mut model = [0; 8];
            for (index, bytes) in steps {
                let others = model.iter().sum::<u64>() - model[index];
                let fits = bytes <= model[index] || others + bytes <= 512 * KIB;
                assert_eq!(charges[index].resize(bytes), fits);
                if fits {
                    model[index] = bytes;
                }
                assert_eq!(budget.used(), model.iter().sum::<u64>());
            }
            drop(charges);
            assert_eq!(budget.used(), 0);
            assert!(Charge::take(512 * KIB).is_some());
        });
    }
}
