//! The control thread over a real database, and a kernel plane in memory that a test can make refuse.

mod bans;
mod certificates;
mod changes;
mod confirm;
mod countries;
mod explain;
mod failures;
mod support;

use support::{Bench, Setup, listener, route};

use ::http::HeaderMap;

use super::*;
use crate::{
    conn::Listening,
    desired::{L7PolicyKind, Listener, Protocol},
    http::policy::Verdict,
    route::Pattern,
    tls::AlpnOffer,
};

#[tokio::test]
async fn routes_are_published_as_a_whole_and_stored() {
    let bench = Bench::new();
    let listener = || listener().addr.to_string();
    let name: crate::tls::ServerName = "a.example".parse().unwrap();
    let backend = |listening: &Listening| {
        listening
            .routes
            .load()
            .lookup(Some(&name), &AlpnOffer::default())
            .map(|found| found.target.backends[0].to_string())
    };
    bench.control.add_route(listener(), route("a.example", "10.0.0.1:443")).await.unwrap();
    bench.control.add_route(listener(), route("*.example", "10.0.0.2:443")).await.unwrap();
    assert_eq!(backend(&bench.listening).as_deref(), Some("10.0.0.1:443"));
    bench.control.add_route(listener(), route("a.example", "10.0.0.3:443")).await.unwrap();
    assert_eq!(backend(&bench.listening).as_deref(), Some("10.0.0.3:443"));
    let policy = L7Policy { kind: L7PolicyKind::RequireHeader, value: "X-Key".into(), shadow: false };
    let key: RouteKey = "a.example".parse::<Pattern>().unwrap().into();
    bench.control.add_policy(listener(), key.clone(), policy.clone()).await.unwrap();
    assert_eq!(bench.control.policies(listener(), key.clone()).await.unwrap(), [(policy.clone(), 0)]);
    let shadow = L7Policy { shadow: true, ..policy };
    bench.control.add_policy(listener(), key.clone(), shadow.clone()).await.unwrap();
    assert_eq!(bench.control.policies(listener(), key.clone()).await.unwrap(), [(shadow, 0)]);
    bench.control.remove_route(listener(), key.clone()).await.unwrap();
    assert_eq!(backend(&bench.listening).as_deref(), Some("10.0.0.2:443"));
    assert!(matches!(bench.control.remove_route(listener(), key).await, Err(ControlError::NotFound(_))));

    let acme = Route { alpn: vec!["acme-tls/1".to_owned()], ..route("*.example", "10.0.0.4:443") };
    bench.control.add_route(listener(), acme.clone()).await.unwrap();
    let wrong = RouteKey { alpn: vec!["h2".to_owned()], ..acme.key() };
    assert_eq!(
        bench.control.remove_route(listener(), wrong).await.unwrap_err().to_string(),
        "hostname: listener \":443\" has no route *.example (ALPN h2); it has *.example, *.example (ALPN acme-tls/1)"
    );
    assert_eq!(bench.control.routes(listener()).await.unwrap().routes.len(), 2);
    bench.control.remove_route(listener(), acme.key()).await.unwrap();
    assert_eq!(bench.control.set_splice(Splice::Userspace).await.unwrap(), Splice::Auto);
    assert_eq!(bench.control.status().await.unwrap().splice, Splice::Userspace);
    let unknown = bench.control.routes(":80".into()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "listener_addr: there is no listener \":80\"; there is \":443\"");
    bench.control.set_max_connections(listener(), 7).await.unwrap();
    assert_eq!(bench.listening.max_connections(), 7);
    let bench = bench.restarted().await;
    assert_eq!(bench.listening.max_connections(), 7);
    let routes = bench.control.routes(listener()).await.unwrap().routes;
    assert_eq!(routes, [route("*.example", "10.0.0.2:443")]);
}

#[tokio::test]
async fn a_release_leaves_the_kernel_plane_and_frees_the_database() {
    let bench = Bench::new();
    let _other = bench.control.clone();
    let released = bench.control.release().await.unwrap();
    assert_eq!(released.listeners, [listener()]);
    assert!(!bench.plane.is_shut_down());
    crate::store::Store::open(&bench.database).unwrap();

    let bench = Bench::new();
    bench.control.stop().await.unwrap();
    assert!(bench.plane.is_shut_down());
}

#[tokio::test]
async fn a_listener_that_redirects_has_no_routes() {
    let listener = Listener { protocol: Protocol::HttpRedirect, ..Listener::new(":80".parse().unwrap()) };
    let bench = Bench::with(Setup { listener, ..Setup::default() });
    let error = bench.control.add_route(":80".into(), route("a.example", "10.0.0.1:443")).await.unwrap_err();
    assert!(matches!(error, ControlError::Invalid(_)));
    assert!(error.to_string().starts_with("listener_addr: :80 redirects every request"), "{error}");
    assert!(bench.restarted().await.control.routes(":80".into()).await.unwrap().routes.is_empty());
}

#[tokio::test]
async fn a_policy_is_in_the_running_table_at_once_and_goes_on_counting() {
    let bench = Bench::new();
    let listener = || listener().addr.to_string();
    let name = "a.example".parse().unwrap();
    let judge = || {
        let table = bench.listening.routes.load();
        table.lookup(Some(&name), &AlpnOffer::default()).unwrap().target.policies.judge(&HeaderMap::new())
    };
    bench.control.add_route(listener(), route("a.example", "10.0.0.1:443")).await.unwrap();
    assert_eq!(judge(), Verdict::Pass);
    let [first, second] = ["x-a", "x-b"].map(|value| L7Policy {
        kind: L7PolicyKind::RequireHeader,
        value: value.to_owned(),
        shadow: false,
    });
    let key = || RouteKey::from("a.example".parse::<Pattern>().unwrap());
    bench.control.add_policy(listener(), key(), first.clone()).await.unwrap();
    assert_eq!([judge(), judge()], [Verdict::Refuse(0); 2]);
    bench.control.add_policy(listener(), key(), second.clone()).await.unwrap();
    let shadow = L7Policy { shadow: true, ..first };
    bench.control.add_policy(listener(), key(), shadow.clone()).await.unwrap();
    assert_eq!(judge(), Verdict::Refuse(1));
    // A deploy repeats its route, and knows of no policies.
    bench.control.add_route(listener(), route("a.example", "10.0.0.2:443")).await.unwrap();
    // A change of another route leaves everything as it is.
    bench.control.add_route(listener(), route("b.example", "10.0.0.1:443")).await.unwrap();
    let listed = bench.control.policies(listener(), key()).await.unwrap();
    assert_eq!(listed, [(shadow.clone(), 3), (second.clone(), 1)]);
    bench.control.remove_policy(listener(), key(), second).await.unwrap();
    assert_eq!(judge(), Verdict::Pass);
    assert_eq!(bench.control.policies(listener(), key()).await.unwrap(), [(shadow, 4)]);
}
