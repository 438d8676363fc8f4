//! The daemon without root: with the three capabilities of the unit file, and with none.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use mc_proxy_tests::{
    bpffs::Bpffs,
    client::{End, ask},
    config::{listener, xdp},
    daemon::Installation,
    hello::Hello,
    privilege::{can_run, find_program, missing_for_kernel_plane},
    tls::{Authority, Client},
    topology::Topology,
    wait::{SOON, until},
};

const EXIT_RIGHTS: i32 = 77;

#[test]
fn three_capabilities_are_enough_for_everything() -> Result<()> {
    if !can_run("three_capabilities_are_enough_for_everything", missing())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let bpffs = Bpffs::mount()?;
    bpffs.give_to(65_534, 65_534)?;
    let authority = Authority::new()?;
    let backend = authority.backend_in(&net.edge.namespace, "app", &["app.example.com"])?;
    let edge = Installation::new(&format!(
        "{}{}",
        listener(":443", &[("app.example.com", backend.addr())], None),
        xdp(&bpffs, "listeners")
    ))?
    .within(&net.edge.namespace)
    .as_nobody_with(&capabilities_of_the_unit()?.each_ref().map(String::as_str))?;
    let daemon = edge.start()?;
    let admin = edge.admin()?;
    let kernel = admin.status()?.kernel.context("no kernel plane")?;
    ensure!(kernel.active && kernel.interfaces[0].program_id != 0, "{kernel:?}");

    let proxy = SocketAddr::new(net.edge.v4, 443);
    let greet = |leaf: &mc_proxy_tests::topology::Leaf| -> Result<Client> {
        leaf.namespace.run(|| authority.client(proxy, "app.example.com"))?
    };
    greet(&net.client)?.echo("hello")?;
    greet(&net.attacker)?.echo("hello")?;
    admin.block(&net.attacker.v4.to_string())?;
    let drops = admin.kernel_drops()?;
    let knock = net.attacker.namespace.spawn(move || Ok(std::net::TcpStream::connect_timeout(&proxy, SOON)?));
    until("the drop of a SYN", SOON, || Ok(admin.kernel_drops()? > drops))?;
    greet(&net.client)?.echo("hello")?;
    drop(admin);

    // The same rights have to be enough to take over what is pinned.
    daemon.kill()?;
    let daemon = edge.start().context("taking over")?;
    let admin = edge.admin()?;
    ensure!(admin.status()?.kernel.is_some_and(|kernel| kernel.active && kernel.interfaces[0].adopted));
    admin.unblock(&net.attacker.v4.to_string())?;
    knock.join().expect("the thread returns its error").context("the SYN is repeated and answered")?;
    greet(&net.attacker)?.echo("hello")?;
    daemon.stop()
}

#[test]
fn without_capabilities_it_serves_enforces_in_user_space_and_says_so() -> Result<()> {
    if !can_run("without_capabilities_it_serves_enforces_in_user_space_and_says_so", missing())? {
        return Ok(());
    }
    let net = Topology::new()?;
    let bpffs = Bpffs::mount()?;
    bpffs.give_to(65_534, 65_534)?;
    let authority = Authority::new()?;
    let backend = authority.backend_in(&net.edge.namespace, "app", &["app.example.com"])?;
    let routes = listener(":4443", &[("app.example.com", backend.addr())], None);
    let kernel = xdp(&bpffs, "listeners");
    let edge = Installation::new(&format!("{routes}{}", kernel.replace("required = true", "required = false")))?
        .within(&net.edge.namespace)
        .as_nobody_with(&[])?;
    let daemon = edge.start()?;
    let proxy = SocketAddr::new(net.edge.v4, 4443);
    let is_served = |leaf: &mc_proxy_tests::topology::Leaf| -> Result<bool> {
        let end = leaf.namespace.run(|| ask(proxy, &Hello::to("elsewhere.test").bytes()))??;
        ensure!(end == End::Reset(Vec::new()), "there is no such route: {end:?}");
        let client = leaf.namespace.run(|| authority.client(proxy, "app.example.com"))?;
        Ok(client.and_then(|mut client| client.echo("hello")).is_ok())
    };
    ensure!(is_served(&net.client)? && is_served(&net.attacker)?);
    let admin = edge.admin()?;
    admin.block(&net.attacker.v4.to_string())?;
    admin.block("2001:db8:0:3::/64")?;
    ensure!(is_served(&net.client)? && !is_served(&net.attacker)?);
    let end = net.attacker.namespace.run(|| ask(SocketAddr::new(net.edge.v6, 4443), b"anything"))??;
    ensure!(end == End::Reset(Vec::new()), "{end:?}");

    let warnings = daemon.log().matching(&["level=WARN"]);
    ensure!(warnings.len() == 1, "one warning: {warnings:#?}");
    ensure!(warnings[0].contains("CAP_BPF"), "the warning does not say what is missing: {}", warnings[0]);
    let kernel_status = admin.status()?.kernel.context("no word about the kernel plane")?;
    ensure!(!kernel_status.active && !kernel_status.detail.is_empty(), "{kernel_status:?}");
    let status = String::from_utf8(edge.run("status")?.stdout)?;
    ensure!(status.contains("kernel: off") && status.contains("CAP_BPF"), "{status}");
    daemon.stop()?;

    edge.configure(&format!("{routes}{kernel}"))?;
    let output = edge.start_and_fail()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(EXIT_RIGHTS), "with xdp.required: {}: {words}", output.status);
    ensure!(words.contains("CAP_BPF"), "{words}");
    Ok(())
}

/// What `deploy/mc-proxy.service` grants, as `setpriv` names it.
fn capabilities_of_the_unit() -> Result<[String; 3]> {
    let unit = include_str!("../../deploy/mc-proxy.service");
    let list = |key: &str| {
        let line =
            unit.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key} in the unit"))?;
        let names = line.split_whitespace().map(|name| name.trim_start_matches("CAP_").to_lowercase());
        anyhow::Ok(names.collect::<Vec<_>>())
    };
    let ambient = list("AmbientCapabilities=")?;
    ensure!(ambient == list("CapabilityBoundingSet=")?, "the two lists of the unit differ");
    ensure!(ambient == ["bpf", "net_admin", "net_bind_service"], "{ambient:?}");
    ambient.try_into().map_err(|list| anyhow::anyhow!("three are promised, not {list:?}"))
}

fn missing() -> Option<String> {
    missing_for_kernel_plane()
        .or_else(|| find_program("setpriv").is_none().then(|| "`setpriv` of util-linux is not there".to_owned()))
}
