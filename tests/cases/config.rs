//! Mistakes in the configuration end the start with exit code 78 and words that help.

use anyhow::{Result, ensure};
use mc_proxy_tests::{
    backend::Backend,
    client::{End, ask},
    config::{listener, loopback},
    daemon::Installation,
    hello::Hello,
};

const EXIT_CONFIG: i32 = 78;

#[test]
fn mistakes_are_named_and_end_with_78() -> Result<()> {
    let route = |body: &str| {
        format!("[database]\npath = \"x.db\"\n[[listeners]]\naddr = \"127.0.0.1:4443\"\n[[listeners.routes]]\n{body}\n")
    };
    let database = "[database]\npath = \"x.db\"\n";
    for (toml, expected) in [
        (String::new(), vec!["database.path is required"]),
        (format!("{database}[proxy]\nconnect_timeout = \"-1s\"\n"), vec!["proxy.connect_timeout must not be negative"]),
        (format!("{database}[proxy]\nidle_timout = \"1s\"\n"), vec!["idle_timout", "idle_timeout"]),
        (format!("{database}[firewall]\nblocked_countries = [\"RU\"]\n"), vec!["firewall: geoip_db is required"]),
        (format!("{database}[firewall]\nblocked_cidrs = [\"198.51.100.7/24\"]\n"), vec!["198.51.100.0/24"]),
        (format!("{database}[[listeners]]\naddr = \"443\"\n"), vec!["443"]),
        (route("backend = \"127.0.0.1:1\""), vec!["hostname"]),
        (route("hostname = \"app.example.com\""), vec!["backend"]),
        (route("hostname = \"app.example.com\"\nbackend = \"127.0.0.1\""), vec!["127.0.0.1", "host:port"]),
        (
            route("hostname = \"app.example.com\"\nbackend = \"127.0.0.1:1\"\nmode = \"l7\""),
            vec!["tls_cert is required"],
        ),
        (format!("{database}[[listeners]]\naddr = \":4443\"\nproxy_protocol = true\n"), vec!["proxy_protocol"]),
        (format!("{database}[firewall]\nrate_prefix_v6 = 128\n"), vec!["rate_prefix_v6"]),
        (
            format!(
                "{database}[[listeners]]\naddr = \":4443\"\n\
                 [[listeners.routes]]\nhostname = \"a.test\"\nbackend = \"127.0.0.1:1\"\n\
                 [[listeners.routes]]\nhostname = \"A.test.\"\nbackend = \"127.0.0.1:2\"\n"
            ),
            vec!["a.test"],
        ),
        ("[database\n".to_owned(), vec!["mc-proxy.toml:1"]),
    ] {
        let edge = Installation::without_config()?;
        edge.write_config(&toml)?;
        for output in [edge.start_and_fail()?, edge.run("check")?] {
            let words = [output.stdout, output.stderr].concat();
            let words = String::from_utf8_lossy(&words);
            ensure!(output.status.code() == Some(EXIT_CONFIG), "{toml}\nended with {}: {words}", output.status);
            for part in &expected {
                ensure!(words.contains(part), "{toml}\nis not answered with {part:?} but with: {words}");
            }
            ensure!(!words.contains("panicked"), "{words}");
        }
    }
    Ok(())
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() -> Result<()> {
    let edge = Installation::without_config()?;
    edge.write_config(
        "[database]\npath = \"x.db\"\n\n[proxy]\nconnect_timeout = \"-1s\"\nidle_timeout = \"soon\"\n\n\
         [firewall]\nblocked_ips = [\"203.0.113\"]\n",
    )?;
    let output = edge.start_and_fail()?;
    let words = String::from_utf8_lossy(&output.stderr);
    for part in [":5", "connect_timeout", ":6", "soon", ":9", "203.0.113"] {
        ensure!(words.contains(part), "{part:?} is not in: {words}");
    }
    Ok(())
}

#[test]
fn a_missing_file_is_named() -> Result<()> {
    let edge = Installation::without_config()?;
    let output = edge.start_and_fail()?;
    ensure!(output.status.code() == Some(EXIT_CONFIG), "{}", output.status);
    ensure!(String::from_utf8_lossy(&output.stderr).contains(&edge.config().display().to_string()));
    Ok(())
}

#[test]
fn a_good_configuration_passes_the_check_and_starts() -> Result<()> {
    let backend = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let edge = Installation::new(&listener(loopback(), &[("app.example.com", backend)], None))?;
    let output = edge.run("check")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    edge.start()?.stop()
}

#[test]
fn a_first_start_that_fails_leaves_the_file_to_be_corrected() -> Result<()> {
    let (backend, _) = Backend::named("app")?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let routes = [("app.example.com", backend.addr())];
    let edge = Installation::new(&listener(taken.local_addr()?, &routes, None))?;
    let output = edge.start_and_fail()?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("address already in use"), "{output:?}");

    let corrected = loopback();
    edge.configure(&listener(corrected, &routes, None))?;
    let daemon = edge.start()?;
    let answer = ask(corrected, &Hello::to("app.example.com").bytes())?;
    ensure!(answer == End::Closed(b"app\n".to_vec()), "{answer:?}");
    ensure!(daemon.log().matching(&["level=WARN"]).is_empty(), "the file and the database agree");
    daemon.stop()
}

#[test]
fn an_address_in_use_is_said_in_the_words_of_the_runbook() -> Result<()> {
    let proxy = loopback();
    let _taken = std::net::TcpListener::bind(proxy)?;
    let edge = Installation::new(&listener(proxy, &[], None))?;
    let output = edge.start_and_fail()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success());
    ensure!(words.contains("address already in use") && words.contains(&proxy.to_string()), "{words}");
    Ok(())
}
