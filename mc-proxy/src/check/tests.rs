use std::{fs, net::TcpListener};

use super::*;
use crate::{
    desired::{Desired, Route, Target},
    store::Store,
};

const NO_ENV: [(&str, &str); 0] = [];

fn check(text: &str) -> Checklist {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.toml");
    fs::write(&path, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    run(&path, NO_ENV)
}

fn find<'l>(list: &'l Checklist, part: &str) -> &'l Finding {
    list.findings.iter().find(|finding| finding.text.contains(part)).unwrap_or_else(|| panic!("{part} not in\n{list}"))
}

#[test]
fn every_error_of_the_file_is_a_line() {
    let list = check("[log]\nlevel = \"loud\"\n");
    assert!(!list.is_ok());
    assert_eq!(list.findings.len(), 2, "{list}");
    assert!(list.to_string().lines().all(|line| line.starts_with("[!] ")), "{list}");
}

#[test]
fn a_host_that_has_what_is_needed() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let list = check(&format!(
        "[database]\npath = \"DIR/a.db\"\n[grpc]\naddr = \"DIR/a.sock\"\n[[listeners]]\naddr = \"127.0.0.1:{port}\"\n\
         [listeners.default]\nbackends = [\"localhost:1\", \"127.0.0.1:2\"]"
    ));
    assert!(list.is_ok(), "{list}");
    for part in ["a.db: does not exist yet", "can be bound", "a.sock: can be made", "xdp: off", "localhost:1 resolves"]
    {
        assert_eq!(find(&list, part).grade, Grade::Good, "{list}");
    }
}

#[test]
fn what_is_missing_has_its_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let list = check(&format!(
        "[database]\npath = \"DIR/absent/a.db\"\n[firewall]\ngeoip_db = \"DIR/absent.mmdb\"\n\
         [xdp]\ninterfaces = [\"absent0\"]\n\
         [[listeners]]\naddr = \"127.0.0.1:{port}\"\n[[listeners]]\naddr = \"192.0.2.77:8443\"\n\
         [listeners.default]\nbackend = \"unix:DIR/absent.sock\""
    ));
    assert!(!list.is_ok(), "{list}");
    for (part, grade) in [
        ("its directory cannot be written to", Grade::Bad),
        ("absent.mmdb", Grade::Bad),
        ("in use, perhaps by a running mc-proxy", Grade::Warning),
        ("not an address of this host", Grade::Bad),
        ("interface absent0", Grade::Warning),
        ("absent.sock", Grade::Warning),
    ] {
        let finding = find(&list, part);
        assert_eq!(finding.grade, grade, "{list}");
        assert!(finding.text.contains(';'), "no remedy in {finding}");
    }
}

#[test]
fn without_listeners_only_a_database_can_help() {
    let list = check("[database]\npath = \"DIR/a.db\"\n");
    assert_eq!(find(&list, "no [[listeners]]").grade, Grade::Bad, "{list}");
    let list = check("[database]\npath = \"DIR/f.toml\"\n");
    assert_eq!(find(&list, "no [[listeners]]").grade, Grade::Warning, "{list}");
}

#[test]
fn the_routes_of_a_database_count_once_it_has_some() {
    let dir = tempfile::tempdir().unwrap();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!(
        "[database]\npath = \"{}/a.db\"\n[[listeners]]\naddr = \"127.0.0.1:8443\"\n\
         [listeners.default]\nbackend = \"unix:/of/the/file.sock\"",
        dir.path().display()
    );
    // Rules alone do not count: the file would still fill it.
    let mut store = Store::open(&dir.path().join("a.db")).unwrap();
    assert!(find(&check(&config), "/of/the/file.sock").grade == Grade::Warning);

    let target = Target { transparent: true, ..Target::passthrough(backend.to_string().parse().unwrap()) };
    let mut listener = Listener::new("192.0.2.77:8443".parse().unwrap());
    listener.routes.push(Route { hostname: "a.example".parse().unwrap(), alpn: Vec::new(), target });
    let local = Listener { default: listener.routes.first().map(|route| route.target.clone()), ..listener.clone() };
    store.seed(&Desired { listeners: vec![local], rules: Vec::new() }).unwrap();
    // The daemon that has it open is not disturbed, nor does it disturb.
    let text = check(&config).to_string();
    assert!(text.contains("the database counts, not the file: 1 listeners, 1 routes"), "{text}");
    assert!(text.contains("transparent") || text.contains("VERIFIED"), "{text}");
    assert!(text.contains("[!] listener 192.0.2.77:8443: not an address of this host"), "{text}");
    assert!(!text.contains("/of/the/file.sock") && !text.contains("127.0.0.1:8443"), "{text}");
    drop(store);

    let database = rusqlite::Connection::open(dir.path().join("a.db")).unwrap();
    database.pragma_update(None, "user_version", 1).unwrap();
    let list = check(&config);
    assert_eq!(find(&list, "the schema of an earlier mc-proxy").grade, Grade::Warning, "{list}");
    find(&list, "/of/the/file.sock");
    database.pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(find(&check(&config), "schema version 99").grade, Grade::Bad);
}

#[test]
fn a_required_plane_that_is_missing_is_bad() {
    let list = check("[database]\npath = \"DIR/a.db\"\n[xdp]\ninterfaces = [\"absent0\"]\nrequired = true\n");
    assert_eq!(find(&list, "interface absent0").grade, Grade::Bad);
    assert!(!list.is_ok());
}

#[test]
fn a_resolver_that_hangs_is_not_waited_for() {
    let mut listener = Listener::new(":1".parse().unwrap());
    for i in 0..50 {
        let target = Target::passthrough(format!("host{i}:1").parse().unwrap());
        listener.routes.push(Route { hostname: format!("h{i}").parse().unwrap(), alpn: Vec::new(), target });
    }
    let (hang, hung) = mpsc::channel::<()>();
    let hung = Mutex::new(hung);
    let mut list = Checklist::default();
    let begin = Instant::now();
    backends(&mut list, &[listener], Duration::from_millis(200), move |host, _| match host {
        "host1" => Ok(["127.0.0.1:1", "127.0.0.2:1"].map(|addr| addr.parse().unwrap()).into()),
        "host2" => Err("no such host".to_owned()),
        // Until the test ends.
        _ => hung.lock().map_err(|e| e.to_string())?.recv().map(|()| Addrs::new()).map_err(|e| e.to_string()),
    });
    drop(hang);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(list.findings.len(), 50);
    assert_eq!(find(&list, "host1:1").text, "backend host1:1 resolves to 2 addresses");
    assert!(find(&list, "host2:1").text.contains("does not resolve: no such host; "));
    assert!(find(&list, "host3:1").text.contains("did not resolve within"));
    assert!(list.is_ok());
}

#[test]
fn certificates_are_tried() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let files = crate::tls::certs::tests::make("a.example").write(dir.path());
    let checked = || {
        let mut list = Checklist::default();
        host::certificate(&mut list, &files);
        list.findings
    };
    assert_eq!(checked().iter().map(|found| found.grade).collect::<Vec<_>>(), [Grade::Good]);
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let found = checked();
    assert_eq!(found[0].grade, Grade::Warning);
    assert!(found[0].text.ends_with(&format!("`chmod o= {}`", files.key.display())), "{}", found[0].text);
    let authority = |path: &Path| {
        let mut list = Checklist::default();
        host::backend_ca(&mut list, path);
        list.findings.remove(0)
    };
    assert_eq!(authority(&files.cert).grade, Grade::Good);
    let found = authority(&files.key);
    assert_eq!(found.grade, Grade::Bad);
    assert!(found.text.contains("key.pem: there is no PEM certificate in it; name"), "{}", found.text);
    fs::remove_file(&files.key).unwrap();
    let found = checked();
    assert_eq!(found[0].grade, Grade::Bad);
    assert!(found[0].text.contains("key.pem: No such file"), "{}", found[0].text);
}

#[test]
fn access_logs() {
    let dir = tempfile::tempdir().unwrap();
    let checked = |path: &Path| {
        let mut list = Checklist::default();
        host::access_log(&mut list, path);
        list.findings.remove(0)
    };
    let path = dir.path().join("access.log");
    assert_eq!(checked(&path).grade, Grade::Good);
    fs::write(&path, "x").unwrap();
    assert_eq!(checked(&path).grade, Grade::Good);
    assert_eq!(fs::read(&path).unwrap(), b"x");
    let found = checked(&dir.path().join("absent/access.log"));
    assert_eq!(found.grade, Grade::Bad);
    assert!(found.text.contains("its directory cannot be written to: ") && found.text.contains(';'), "{}", found.text);
    assert_eq!(checked(dir.path()).grade, Grade::Bad);
}
