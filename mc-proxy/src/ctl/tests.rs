//! Whole commands against a served API.

use super::*;
use crate::admin::tests::Served;

pub(super) struct Ran {
    pub(super) data: String,
    pub(super) talk: String,
    pub(super) result: Result<(), CtlError>,
}

pub(super) async fn run_on(socket: &Path, line: &[&str]) -> Ran {
    let socket = socket.to_str().unwrap();
    let args = Args::try_parse_from(["mcproxyctl", "--socket", socket].iter().chain(line)).unwrap();
    let (mut data, mut talk) = (Vec::new(), Vec::new());
    let result = execute(args, &mut data, &mut talk, Terminals::default()).await;
    Ran { data: String::from_utf8(data).unwrap(), talk: String::from_utf8(talk).unwrap(), result }
}

/// A command that has to succeed: its stdout and stderr.
pub(super) async fn ok(served: &Served, line: &[&str]) -> (String, String) {
    let ran = run_on(&served.path, line).await;
    assert!(ran.result.is_ok(), "{line:?}: {:?}", ran.result);
    (ran.data, ran.talk)
}

pub(super) async fn json(served: &Served, line: &[&str]) -> serde_json::Value {
    let line = line.iter().copied().chain(["--json"]).collect::<Vec<_>>();
    let (data, talk) = ok(served, &line).await;
    assert_eq!(talk, "");
    serde_json::from_str(&data).unwrap()
}

pub(super) async fn refused(served: &Served, line: &[&str]) -> (String, Exit) {
    let ran = run_on(&served.path, line).await;
    assert_eq!(ran.data, "");
    let error = ran.result.unwrap_err();
    (error.to_string(), error.exit())
}

#[tokio::test]
async fn routes() {
    let served = Served::start();
    let (ours, route) = ("app.example.com", ["127.0.0.1:8443", "[2001:db8::1]:443"]);
    let add = ["routes", "add", ":443", ours, route[0], route[1], "--backend-tls", "--splice", "userspace"];
    let (_, talk) = ok(&served, &add).await;
    assert_eq!(talk, ":443: route app.example.com -> 127.0.0.1:8443, [2001:db8::1]:443\n");
    let (table, _) = ok(&served, &["routes", "list"]).await;
    assert_eq!(
        table,
        "LISTENER  HOSTNAME         ALPN  MODE  OPTIONS           BACKENDS\n\
         :443      app.example.com  any   l4    splice=userspace  127.0.0.1:8443, [2001:db8::1]:443\n\
         :443      (default)        any   l4    -                 unix:/run/default.sock\n"
    );
    let listed = json(&served, &["routes", "list", ":443"]).await;
    let listener = &listed["listeners"][0];
    assert_eq!(listener["listener_addr"], ":443");
    assert_eq!(listener["routes"][0]["hostname"], "app.example.com");
    assert_eq!(listener["routes"][0]["backends"], serde_json::json!(["[2001:db8::1]:443"]));
    assert_eq!(listener["routes"][0]["backend_tls"], true);
    assert_eq!(listener["default_route"]["backend"], "unix:/run/default.sock");

    let options = ["--backend-ca", "/ca.pem", "--backend-server-name", "App.internal", "--backend-insecure"];
    let add = [&["routes", "add", ":443", ours, route[0]], &options[..], &["--backend-protocol", "h2"]].concat();
    ok(&served, &add).await;
    let listed = &json(&served, &["routes", "list"]).await["listeners"][0]["routes"][0];
    assert_eq!((&listed["backend_ca"], &listed["backend_insecure"]), (&"/ca.pem".into(), &true.into()));
    assert_eq!((&listed["backend_server_name"], &listed["backend_protocol"]), (&"app.internal".into(), &"h2".into()));

    ok(&served, &["routes", "remove", ":443", "app.example.com"]).await;
    let (text, exit) = refused(&served, &["routes", "list", ":444"]).await;
    assert_eq!((text.as_str(), exit), ("there is no listener \":444\"", Exit::Failure));
    let add = ["routes", "add", ":443", "a.b", "a:1", "--mode", "l7", "--tls-cert", "/c", "--tls-key", "/k"];
    let options =
        ["--backend-tls", "--backend-ca", "/ca", "--backend-server-name", "b.c", "--backend-protocol", "http1"];
    ok(&served, &[&add[..], &options].concat()).await;
    let (table, _) = ok(&served, &["routes", "list"]).await;
    let options = "backend-protocol=http1,backend-tls,backend-ca=/ca,backend-server-name=b.c";
    assert!(table.contains(&format!("l7    {options}")), "{table}");
    let (text, exit) = refused(&served, &["routes", "add", ":443", "a.b", "a:1", "--mode", "l5"]).await;
    assert_eq!(exit, Exit::Failure);
    assert!(text.starts_with("route.mode: \"l5\" is not one of"), "{text}");
}

#[tokio::test]
async fn splice() {
    let served = Served::start();
    let set = json(&served, &["splice", "userspace"]).await;
    assert_eq!(set, serde_json::json!({"mode": "userspace", "previous": "auto"}));
    let (data, talk) = ok(&served, &["splice", "auto"]).await;
    assert_eq!((data.as_str(), talk.as_str()), ("", "splice: auto until the daemon ends; it was userspace\n"));
    assert_eq!(json(&served, &["status"]).await["splice"], "auto");
}

#[tokio::test]
async fn policies() {
    let served = Served::start();
    ok(&served, &["routes", "add", ":443", "a.b", "a:1"]).await;
    ok(&served, &["policies", "add", ":443", "a.b", "block_user_agent", "bad\u{1b}[2Jbot"]).await;
    let (table, _) = ok(&served, &["policies", "list", ":443", "a.b"]).await;
    assert_eq!(
        table,
        "TYPE              VALUE            MODE    HITS\nblock_user_agent  bad\\u{1b}[2Jbot  refuse  7\n"
    );
    let listed = json(&served, &["policies", "list", ":443", "a.b"]).await;
    assert_eq!(listed["policies"][0]["value"], "bad\u{1b}[2Jbot");
    assert_eq!(listed["policies"][0]["hits"], 7);
    ok(&served, &["policies", "add", ":443", "a.b", "block_user_agent", "bad\u{1b}[2Jbot", "--shadow"]).await;
    let listed = json(&served, &["policies", "list", ":443", "a.b"]).await;
    assert_eq!((&listed["policies"][0]["shadow"], &listed["policies"][1]), (&true.into(), &serde_json::Value::Null));
    ok(&served, &["policies", "remove", ":443", "a.b", "block_user_agent", "bad\u{1b}[2Jbot"]).await;
    assert_eq!(ok(&served, &["policies", "list", ":443", "a.b"]).await, (String::new(), String::new()));
}

#[tokio::test]
async fn listeners() {
    let served = Served::start();
    let set = json(&served, &["listeners", "set-max-connections", ":443", "1000"]).await;
    assert_eq!(set, serde_json::json!({"listener_addr": ":443", "max_connections": 1000}));
    let (table, _) = ok(&served, &["listeners", "list"]).await;
    assert_eq!(
        table,
        "LISTENER  ROUTES  ACTIVE  MAX   PER SOURCE  PROXY  ACCEPTED\n:443      0       12      1000  unlimited   -      40\n"
    );
    assert_eq!(json(&served, &["listeners", "list"]).await["listeners"][0]["accepted_total"], 40);
}

#[tokio::test]
async fn status_and_health() {
    let served = Served::start();
    let (text, _) = ok(&served, &["status"]).await;
    assert_eq!(
        text,
        format!(
            "mc-proxy v{}\nuptime: 4h32m10s\nconnections: 12\n:443 routes=0 active=12\n\
             kernel: on rules=3 dropped_packets=8 dropped_bytes=480\neth0 xdp=native program=57 driver=veth mtu=1500\n\
             splice: auto kernel_pairs=0 taken=0 latched=0 bytes=0\n\
             firewall: rules=0 groups=0 bans=0 geoip=DBIP-Country-Lite age=0d\n\
             memory: connections=0.0MiB kernel_sockets=0.0MiB\ncertificates: 1 earliest_expiry=1970-01-02T00:00:00Z\nended: closed=28\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    let status = json(&served, &["status"]).await;
    assert_eq!(status["started_at"], "1970-01-01T00:00:00Z");
    assert_eq!((&status["uptime_seconds"], &status["total_connections"]), (&16_330.into(), &12.into()));
    assert_eq!(status["kernel"]["interfaces"][0]["mode"], "native");
    assert_eq!(status["kernel"]["counters"][0]["packets"], 8);
    assert_eq!(status["outcomes"][0]["connections"], 28);
    assert_eq!(status["kernel"]["generation"], 2);
    assert_eq!(status["firewall"]["geoip"]["database_type"], "DBIP-Country-Lite");

    assert_eq!(ok(&served, &["health"]).await.0, "SERVING\n");
    assert_eq!(json(&served, &["health"]).await["status"], "SERVING");
}

#[tokio::test]
async fn an_unreachable_daemon_is_69_and_says_which_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let missing = run_on(&path, &["status"]).await.result.unwrap_err();
    assert_eq!(missing.exit(), Exit::Unavailable);
    let text = missing.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("--socket"), "{text}");

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let stale = run_on(&path, &["status"]).await.result.unwrap_err();
    assert_eq!(stale.exit(), Exit::Unavailable);
    assert!(stale.to_string().contains("systemctl start mc-proxy"), "{stale}");

    let denied = CtlError::Connect { path, source: io::ErrorKind::PermissionDenied.into() };
    assert_eq!(denied.exit(), Exit::NoPermission);
    assert!(denied.to_string().contains("grpc.socket_group"), "{denied}");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_does_not_answer_is_75() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let held = tokio::spawn(async move { listener.accept().await.unwrap() });
    let error = run_on(&path, &["status"]).await.result.unwrap_err();
    assert_eq!(error.exit(), Exit::TryLater, "{error}");
    drop(held.await);
}

#[test]
fn usage_errors_are_clap_s() {
    for line in [
        &["firewall", "add"][..],
        &["firewall", "add", "198.51.100.7/24"],
        &["firewall", "add", "example.com"],
        &["firewall", "add", "10.0.0.1", "--allow", "--count"],
        &["firewall", "add", "10.0.0.1", "--ttl", "1x"],
        &["firewall", "add", "10.0.0.1", "--group", "A"],
        &["firewall", "add", "10.0.0.1", "--scope", "443"],
        &["firewall", "add", "10.0.0.1", "--comment", "a\nb"],
        &["firewall", "import", "-"],
        &["firewall", "explain", "RU"],
        &["firewall", "top", "--window", "0s"],
        &["listeners", "set-max-connections", ":443", "-1"],
        &["policies", "add", ":443", "a.b", "nope", "x"],
        &["routes", "add", ":443", "a.b"],
        &[],
    ] {
        let error = Args::try_parse_from([&["mcproxyctl"], line].concat()).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8), "{line:?}");
    }
    let error = Args::try_parse_from(["mcproxyctl", "firewall", "add", "198.51.100.7/24"]).unwrap_err().to_string();
    assert!(error.contains("the canonical CIDR is \"198.51.100.0/24\""), "{error}");
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    Args::command().debug_assert();
}

#[test]
fn a_closed_pipe_is_success() {
    let closed = |kind: io::ErrorKind| report("mcproxyctl", Err(CtlError::Output(kind.into())));
    assert_eq!(closed(io::ErrorKind::BrokenPipe), Exit::Success);
    assert_eq!(closed(io::ErrorKind::StorageFull), Exit::Failure);
}

#[tokio::test]
async fn certs() {
    let served = Served::start();
    let expected = "CERTIFICATE   NAMES                EXPIRES               DAYS    ROUTES\n\
                    /certs/a.pem  a.example,b.example  1970-01-02T00:00:00Z  ";
    for line in [&["certs"][..], &["certs", "list"]] {
        let (text, _) = ok(&served, line).await;
        assert!(text.starts_with(expected) && text.ends_with("  :443 a.example\n"), "{text}");
    }
    let listed = &json(&served, &["certs"]).await["certificates"][0];
    assert!(listed["days_left"].as_i64().unwrap() < -20_000);
    assert_eq!(listed["not_after"], "1970-01-02T00:00:00Z");
    assert_eq!(listed["routes"], serde_json::json!([{"listener_addr": ":443", "route": "a.example"}]));
    let ran = run_on(&served.path, &["certs", "reload"]).await;
    assert_eq!(
        ran.talk,
        "certificates: 2 replaced, 1 unchanged, 1 failed\n\
         the old one stays: /certs/a.pem: there is no PEM certificate in it\n"
    );
    let error = ran.result.unwrap_err();
    assert_eq!(error.to_string(), "1 certificates could not be loaded; the old ones stay in use");
    assert_eq!(error.exit(), Exit::Failure);
    assert_eq!(json(&served, &["status"]).await["certificates"]["load_failures"], 2);
}
