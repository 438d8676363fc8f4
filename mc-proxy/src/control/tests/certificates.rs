//! Routes with certificates, from the call to the table that connections look into.

use std::sync::Arc;

use super::support::{Bench, listener, route};
use crate::{
    control::ControlError,
    desired::{Mode, Route},
    tls::{
        AlpnOffer,
        certs::{CertFiles, Certificate, tests::make},
    },
};

fn l7(files: &CertFiles) -> Route {
    let mut route = route("a.example", "10.0.0.1:443");
    route.target.mode = Mode::L7;
    route.target.tls_cert = Some(files.cert.clone());
    route.target.tls_key = Some(files.key.clone());
    route
}

fn certificate(bench: &Bench) -> Arc<Certificate> {
    let routes = bench.listening.routes.load();
    let found = routes.lookup(Some(&"a.example".parse().unwrap()), &AlpnOffer::default()).unwrap();
    found.target.certificate.clone().unwrap()
}

#[tokio::test]
async fn a_route_has_its_certificate_and_keeps_it() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let files = make("a.example").write(dir.path());
    let name = || listener().addr.to_string();

    bench.control.add_route(name(), l7(&files)).await.unwrap();
    let held = certificate(&bench);
    let first = held.config().unwrap();
    let listed = bench.control.certificates().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].routes, [(":443".to_owned(), "a.example".to_owned())]);
    assert_eq!(listed[0].status.leaf.as_ref().unwrap().names, ["a.example"]);

    // A table that is held while its certificate is replaced has the new one.
    make("a.example").write(dir.path());
    assert_eq!(bench.control.reload_certificates().await.unwrap().replaced, 1);
    let second = held.config().unwrap();
    assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&held, &certificate(&bench)));

    std::fs::write(&files.key, "nothing").unwrap();
    let reloaded = bench.control.reload_certificates().await.unwrap();
    assert_eq!((reloaded.replaced, reloaded.failed.len()), (0, 1));
    assert!(Arc::ptr_eq(&second, &held.config().unwrap()));
    let figures = bench.control.status().await.unwrap().certificates;
    assert_eq!((figures.count, figures.failing, figures.failures), (1, 1, 1));

    // Files that are broken at a start do not keep the other routes from being served.
    let bench = bench.restarted().await;
    assert!(certificate(&bench).config().is_none());
    make("a.example").write(dir.path());
    bench.control.reload_certificates().await.unwrap();
    assert!(certificate(&bench).config().is_some());

    bench.control.remove_route(name(), l7(&files).key()).await.unwrap();
    assert!(bench.control.certificates().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_certificate_that_does_not_load_is_refused_and_nothing_changes() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let files = make("a.example").write(dir.path());
    let refusal = async |route: Route| match bench.control.add_route(listener().addr.to_string(), route).await {
        Err(ControlError::Invalid(text)) => text,
        other => panic!("{other:?}"),
    };
    let (cert, key) = (files.cert.display(), files.key.display());
    std::fs::write(&files.key, make("a.example").key).unwrap();
    let text = refusal(l7(&files)).await;
    assert_eq!(text, format!("route.tls_key: {key}: it is not the key of the first certificate in {cert}"));
    std::fs::write(&files.cert, "").unwrap();
    assert_eq!(refusal(l7(&files)).await, format!("route.tls_cert: {cert}: there is no PEM certificate in it"));
    let mut without = l7(&files);
    without.target.tls_key = None;
    assert!(refusal(without).await.starts_with("route.tls_cert: is required"));
    let files = make("a.example").write(dir.path());
    let mut unverified = l7(&files);
    unverified.target.backend_tls = true;
    unverified.target.backend_ca = Some(files.key.clone());
    assert_eq!(
        refusal(unverified.clone()).await,
        format!("route.backend_ca: {key}: there is no PEM certificate in it")
    );
    assert!(bench.control.routes(":443".into()).await.unwrap().routes.is_empty());
    assert!(bench.control.certificates().await.unwrap().is_empty());
    // Whoever looks at no certificate of the backend needs no authority.
    unverified.target.backend_insecure = true;
    bench.control.add_route(":443".into(), unverified).await.unwrap();
}

#[tokio::test]
async fn authorities_that_have_rotated_verify_the_backends_of_all_routes() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, make("ca.example").cert).unwrap();
    let mut route = l7(&make("a.example").write(dir.path()));
    (route.target.backend_tls, route.target.backend_ca) = (true, Some(ca.clone()));
    let name = || listener().addr.to_string();
    bench.control.add_route(name(), route.clone()).await.unwrap();
    let second = Route { hostname: "b.example".parse().unwrap(), ..route.clone() };
    bench.control.add_route(name(), second.clone()).await.unwrap();
    let upstreams = || {
        let routes = bench.listening.routes.load();
        ["a.example", "b.example"].map(|name| {
            let found = routes.lookup(Some(&name.parse().unwrap()), &AlpnOffer::default()).unwrap();
            found.target.upstream.clone().unwrap()
        })
    };
    let first = upstreams();
    let is_kept = || {
        let [a, b] = upstreams();
        [Arc::ptr_eq(&a, &first[0]), Arc::ptr_eq(&b, &first[1])]
    };
    bench.control.add_route(name(), route.clone()).await.unwrap();
    bench.control.reload_certificates().await.unwrap();
    assert_eq!(is_kept(), [true; 2], "the file is the same");

    std::fs::write(&ca, "nothing").unwrap();
    assert_eq!(bench.control.reload_certificates().await.unwrap().failed[0].0, ca);
    assert_eq!(is_kept(), [true; 2]);

    std::fs::write(&ca, make("ca.example").cert).unwrap();
    bench.control.reload_certificates().await.unwrap();
    assert_eq!(is_kept(), [false; 2]);

    let before = upstreams();
    std::fs::write(&ca, make("ca.example").cert).unwrap();
    bench.control.add_route(name(), second).await.unwrap();
    let after = upstreams();
    assert!(
        !Arc::ptr_eq(&before[0], &after[0]) && !Arc::ptr_eq(&before[1], &after[1]),
        "a route that names the same file"
    );
}
