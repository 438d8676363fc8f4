//! What becomes of an address, and why: asked of the code that decides, and of the program that is attached.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use mc_proxy_common::reason::Reason;

use super::{Considered, ControlError, ExplainRequest, Explanation, KernelAnswer, Verdict, thread::Thread};
use crate::{
    clock,
    firewall::{Action, Rule, RuleScope},
    tls::{AlpnOffer, ServerName},
};

/// What the program returns for a packet that it drops (`enum xdp_action`).
const XDP_DROP: u32 = 1;

impl Thread {
    pub(super) fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ControlError> {
        let index = match &request.listener {
            Some(name) => self.index(name)?,
            None => 0,
        };
        let listener = self.owned.listeners.get(index).ok_or(ControlError::Stopping)?;
        let port = listener.addr.socket().port();
        let source = request.source.to_canonical();
        let verdict = self.owned.edge.firewall.ask(source, port, clock::since_boot());
        let reason = Reason::from_index(verdict.reason);
        let words = reason.map_or("unknown", Reason::name);

        let covering = self.owned.engine.covering(source);
        let keys: Vec<_> = covering.iter().map(|covering| covering.rule.key).collect();
        let mut stored = self.listed(&keys)?;
        let now = SystemTime::now();
        let (mut considered, mut decisive) = (Vec::new(), None);
        for covering in covering {
            let Some(rule) = stored.remove(&covering.rule.key) else { continue };
            let (holds, mut why) = holds(&covering.rule, port, now);
            if holds && decisive.is_some() {
                why = "would hold, but a rule above decides".to_owned();
            } else if holds && covering.rule.key.action == Action::Count {
                why = "counts what it would have dropped, and leaves the decision to the next".to_owned();
            } else if holds {
                why = format!("decides: {}", covering.net);
                decisive = Some(rule.clone());
            }
            considered.push(Considered { rule, holds, why });
        }

        let is_drop = verdict.is_drop();
        let kernel = self.ask_kernel(source, port, is_drop, words);
        let user = if is_drop { format!("refuses the connection: {words}") } else { format!("lets it in: {words}") };
        let route = match &request.server_name {
            Some(name) => Some(self.route_of(index, name, &request.alpn)?),
            None => None,
        };
        Ok(Explanation {
            verdict: if is_drop { Verdict::Drop } else { Verdict::Pass },
            reason: words.to_owned(),
            decisive,
            covering: considered,
            country: self.owned.geoip.as_ref().and_then(|countries| countries.country(source)),
            kernel,
            user,
            route,
        })
    }

    /// Runs the attached program on a segment of an established connection: one that opens a connection would be counted
    /// against the source's limit.
    ///
    /// It tells what it does and not why. By the same tables it has the same reason; `reason` is the one for `is_drop`.
    fn ask_kernel(&self, source: IpAddr, port: u16, is_drop: bool, reason: &str) -> KernelAnswer {
        match self.owned.plane.test_run(&frame(source, port)) {
            Ok(run) => {
                let drop = run.action == XDP_DROP;
                let reason = if drop == is_drop { reason } else { "differs from user space" };
                KernelAnswer::Ran { drop, reason: reason.to_owned() }
            }
            Err(error) => KernelAnswer::NotAttached(error.chain()),
        }
    }

    fn route_of(&self, listener: usize, name: &str, alpn: &[String]) -> Result<String, ControlError> {
        let name: ServerName =
            name.parse().map_err(|error| ControlError::Refused(format!("server_name: {name:?}: {error}")))?;
        let Some(listening) = self.owned.listening.get(listener) else { return Err(ControlError::Stopping) };
        let routes = listening.routes.load();
        Ok(match routes.lookup(Some(&name), &AlpnOffer::of(alpn)) {
            Some(found) => {
                let backends: Vec<_> = found.target.backends.iter().map(ToString::to_string).collect();
                backends.join(", ")
            }
            None if routes.knows(&name) => "no route of the name is for what is offered by ALPN".to_owned(),
            None => "no route for the name".to_owned(),
        })
    }
}

fn holds(rule: &Rule, port: u16, now: SystemTime) -> (bool, String) {
    if rule.expires_at.is_some_and(|expiry| expiry.is_past(now)) {
        return (false, "has expired".to_owned());
    }
    match rule.key.scope {
        RuleScope::Listener(only) if only != port => (false, format!("is about port {only}")),
        RuleScope::Default | RuleScope::Host | RuleScope::Listener(_) => (true, "holds".to_owned()),
    }
}

/// TCP with ACK alone, from the source to a port.
fn frame(source: IpAddr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let mut frame = vec![0; 12];
    let mut tcp = vec![0xc0, 0, high, low];
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    match source {
        IpAddr::V4(source) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(source.octets());
            frame.extend(Ipv4Addr::LOCALHOST.octets());
        }
        IpAddr::V6(source) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(source.octets());
            frame.extend(Ipv6Addr::LOCALHOST.octets());
        }
    }
    frame.extend(tcp);
    frame
}
