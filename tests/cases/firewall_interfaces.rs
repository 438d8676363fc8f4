//! Interfaces as they come and go, in the modes that they can, and with programs of others.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mc_proxy_proto::v1::{InterfaceStatus, KernelPlaneStatus};
use mc_proxy_tests::{
    admin::Admin,
    bpffs::Bpffs,
    config::{listener, xdp},
    daemon::Installation,
    site::Site,
    wait::{SOON, until},
};

fn kernel(admin: &Admin) -> Result<KernelPlaneStatus> {
    admin.status()?.kernel.context("no kernel plane in status")
}

fn interface(admin: &Admin) -> Result<InterfaceStatus> {
    kernel(admin)?.interfaces.into_iter().next().context("no interface in status")
}

#[test]
fn an_interface_that_returns_is_attached_again() -> Result<()> {
    let test = "an_interface_that_returns_is_attached_again";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    let daemon = site.edge.start()?;
    let admin = site.edge.admin()?;
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    admin.block("203.0.113.0/24")?;
    admin.block("2001:db8:0:3::50")?;
    for round in 0..2 {
        site.net.unplug_edge()?;
        until("a word on the missing interface", SOON, || Ok(!interface(&admin)?.error.is_empty()))?;
        let missing = interface(&admin)?;
        ensure!(missing.program_id == 0 && missing.error.contains("eth0"), "{missing:?}");
        ensure!(!kernel(&admin)?.active, "{:?}", kernel(&admin)?);
        site.net.plug_edge()?;
        let begin = Instant::now();
        until("the program on the new interface", SOON, || Ok(interface(&admin)?.program_id != 0))?;
        let took = begin.elapsed();
        println!("round {round}: attached after {took:?}");
        ensure!(took < Duration::from_secs(2), "{took:?}");
        for source in [attacker.v4, attacker.v6] {
            ensure!(!site.passes(&inbox, attacker, source)?, "{source} in round {round}");
        }
        let back = interface(&admin)?;
        ensure!(back.error.is_empty() && back.mode == "native" && kernel(&admin)?.active, "{back:?}");
        site.serve(&site.net.client, site.v4(443))?;
    }
    daemon.stop()
}

#[test]
fn a_foreign_program_is_named_in_status_and_check() -> Result<()> {
    let test = "a_foreign_program_is_named_in_status_and_check";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    // Another daemon's program, with other pins, is as foreign as any.
    let _owner = site.edge.start()?;
    let owner = site.edge.admin()?;
    owner.block("203.0.113.50")?;
    let id = interface(&owner)?.program_id;
    let elsewhere = Bpffs::mount()?;
    let second = Installation::new(&format!(
        "{}{}",
        listener(":4443", &[("app.example.com", site.backend.addr())], None),
        xdp(&elsewhere, "host").replace("required = true", "required = false")
    ))?
    .within(&site.net.edge.namespace);
    let checked = second.run("check")?;
    let words = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    let line = words.lines().find(|line| line.contains("eth0")).with_context(|| format!("nothing of eth0: {words}"))?;
    ensure!(line.contains(&format!("id {id}")) && line.contains("left alone"), "{line}");

    let guest = second.start()?;
    let status = interface(&second.admin()?)?;
    ensure!(status.foreign_program_id == id && status.program_id == 0, "{status:?}");
    let text = second.ctl(&["status"])?;
    ensure!(text.contains(&id.to_string()), "{text}");
    // Its own rules act in user space only, and the owner's program stays.
    second.admin()?.block("198.51.100.10")?;
    let inbox = site.probe()?;
    ensure!(!site.passes(&inbox, &site.net.attacker, site.net.attacker.v4)?);
    guest.stop()?;
    ensure!(interface(&owner)?.program_id == id && kernel(&owner)?.active);
    Ok(())
}

#[test]
fn generic_and_native_mode_both_drop() -> Result<()> {
    let Some(site) = Site::for_test("generic_and_native_mode_both_drop", "host", "")? else { return Ok(()) };
    let inbox = site.probe()?;
    let attacker = &site.net.attacker;
    for mode in ["generic", "native", "generic"] {
        site.configure_xdp("host", &format!("mode = \"{mode}\"\n"))?;
        let daemon = site.edge.start()?;
        let admin = site.edge.admin()?;
        ensure!(interface(&admin)?.mode == mode, "{:?}", interface(&admin)?);
        for source in [attacker.v4, attacker.v6] {
            ensure!(site.passes(&inbox, attacker, source)?, "{source} in {mode} mode");
            admin.block(&source.to_string())?;
            ensure!(!site.passes(&inbox, attacker, source)?, "{source} in {mode} mode, blocked");
            admin.unblock(&source.to_string())?;
        }
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn require_native_is_met_by_veth_and_refused_for_a_bridge() -> Result<()> {
    let test = "require_native_is_met_by_veth_and_refused_for_a_bridge";
    let Some(site) = Site::for_test(test, "host", "")? else { return Ok(()) };
    site.configure_xdp("host", "require_native = true\n")?;
    let daemon = site.edge.start()?;
    ensure!(interface(&site.edge.admin()?)?.mode == "native");
    daemon.stop()?;

    // A bridge passes XDP to nobody: it has no native mode.
    site.net.edge.namespace.ip("link add br0 type bridge\nlink set br0 up\n")?;
    let listener = listener(":443", &[("app.example.com", site.backend.addr())], None);
    let bridge = |more: &str| {
        let xdp = xdp(&site.bpffs, "host").replace("\"eth0\"", "\"br0\"");
        site.edge.configure(&format!("{listener}{xdp}{more}"))
    };
    bridge("require_native = true\n")?;
    let output = site.edge.start_and_fail()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && words.contains("br0") && words.contains("native"), "{words}");
    bridge("")?;
    let daemon = site.edge.start()?;
    let status = interface(&site.edge.admin()?)?;
    ensure!(status.mode == "generic" && status.mode_reason.contains("native"), "{status:?}");
    daemon.stop()
}
