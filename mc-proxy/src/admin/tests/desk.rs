//! A control thread that keeps everything in memory.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use super::rules::Rules;
use crate::{
    config::Splice,
    control::{Command, ControlError, ListedCertificate, ListenerRoutes, ListenerStatus, Status},
    desired::{Listener, Target},
    net::relay::Figures,
    tls::certs::{CertFiles, CertStatus, Leaf, Reloaded},
    xdp::{InterfaceStatus, PlaneStatus, ReasonCount},
};

/// What the control thread does, in memory: listener `:443` exists.
pub(super) struct Desk {
    listener: Listener,
    splice: Splice,
    pub(super) rules: Rules,
}

impl Default for Desk {
    fn default() -> Self {
        let mut listener = Listener::new(":443".parse().unwrap());
        listener.default = Some(Target::passthrough("unix:/run/default.sock".parse().unwrap()));
        Self { listener, splice: Splice::default(), rules: Rules::default() }
    }
}

impl Desk {
    pub(super) async fn answer(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            self.one(command);
        }
    }

    fn one(&mut self, command: Command) {
        let unknown = |what: &dyn std::fmt::Display| ControlError::NotFound(format!("there is no {what}"));
        let known = |name: &str| {
            if name == ":443" { Ok(()) } else { Err(unknown(&format_args!("listener \"{name}\""))) }
        };
        let routes = &mut self.listener.routes;
        // A caller that has gone does not wait for its answer.
        match command {
            Command::Routes(name, reply) => {
                let answer = ListenerRoutes { routes: routes.clone(), default: self.listener.default.clone() };
                let _ = reply.send(known(&name).map(|()| answer));
            }
            Command::AddRoute(name, route, reply) => {
                let added = known(&name).map(|()| match routes.iter_mut().find(|r| r.is(&route.key())) {
                    Some(old) => *old = *route,
                    None => routes.push(*route),
                });
                let _ = reply.send(added);
            }
            Command::RemoveRoute(name, key, reply) => {
                let before = routes.len();
                let _ = reply.send(known(&name).and_then(|()| {
                    routes.retain(|r| !r.is(&key));
                    if routes.len() < before { Ok(()) } else { Err(unknown(&format_args!("route \"{key}\""))) }
                }));
            }
            Command::Policies(name, key, reply) => {
                let route = routes.iter().find(|r| r.is(&key));
                let policies = route
                    .map(|r| r.target.l7_policies.iter().cloned().map(|policy| (policy, 7)).collect())
                    .ok_or_else(|| unknown(&"route"));
                let _ = reply.send(known(&name).and(policies));
            }
            Command::AddPolicy(_, key, policy, reply) => {
                let route = routes.iter_mut().find(|r| r.is(&key)).ok_or_else(|| unknown(&"route"));
                let _ = reply.send(route.map(|r| {
                    r.target.l7_policies.retain(|p| !p.is_like(&policy));
                    r.target.l7_policies.push(policy);
                }));
            }
            Command::RemovePolicy(_, key, policy, reply) => {
                let route = routes.iter_mut().find(|r| r.is(&key)).ok_or_else(|| unknown(&"route"));
                let _ = reply.send(route.map(|r| r.target.l7_policies.retain(|p| !p.is_like(&policy))));
            }
            Command::SetMaxConnections(name, max, reply) => {
                self.listener.max_connections = max;
                let refused = || Err(ControlError::Refused("the listener is going away".to_owned()));
                let _ = reply.send(known(&name).and_then(|()| if max == 99 { refused() } else { Ok(()) }));
            }
            Command::SetSplice(mode, reply) => {
                let _ = reply.send(Ok(std::mem::replace(&mut self.splice, mode)));
            }
            Command::Firewall(command) => self.rules.one(command),
            Command::ReloadGeoIp(reply) => {
                let _ = reply.send(Err(ControlError::Stopping));
            }
            Command::Certificates(reply) => {
                let _ = reply.send(Ok(certificates()));
            }
            Command::ReloadCertificates(reply) => {
                let files = certificates().remove(0).status.files;
                let failed = vec![(files.cert, "/certs/a.pem: there is no PEM certificate in it".to_owned())];
                let _ = reply.send(Ok(Reloaded { replaced: 2, unchanged: 1, failed }));
            }
            Command::Release(reply) => {
                let _ = reply.send(Err(ControlError::Stopping));
            }
            Command::Stop(reply) => {
                let _ = reply.send(Err(ControlError::Stopping));
            }
            Command::Status(reply) => {
                let _ = reply.send(Ok(self.status()));
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            started_at: SystemTime::UNIX_EPOCH,
            uptime: Duration::from_secs(16_330),
            listeners: vec![ListenerStatus {
                addr: ":443".to_owned(),
                routes: self.listener.routes.len(),
                active: 12,
                max_connections: self.listener.max_connections,
                max_connections_per_source: self.listener.max_connections_per_source,
                proxy: self.listener.proxy.clone(),
                accepted: 40,
            }],
            plane: PlaneStatus {
                is_active: true,
                detail: String::new(),
                interfaces: vec![InterfaceStatus {
                    name: "eth0".to_owned(),
                    mode: "native",
                    program_id: 57,
                    error: String::new(),
                    is_adopted: false,
                    driver: "veth".to_owned(),
                    mtu: 1500,
                    note: String::new(),
                    obstacle: None,
                    foreign_program_id: 0,
                }],
                rules: 3,
                counters: vec![ReasonCount { reason: "blocked_ip", is_drop: true, packets: 8, bytes: 480 }],
                map_bytes: 4096,
                groups: Vec::new(),
                obstacle: None,
                generation: 2,
            },
            firewall: self.rules.status(),
            outcomes: vec![("closed", 28)],
            splice: self.splice,
            kernel_splice: (Figures::default(), None),
            client_bytes: 1,
            backend_bytes: 2,
            memory: crate::control::MemoryStatus::default(),
            accept_failures: 0,
            names: crate::net::resolve::Figures::default(),
            access: None,
            http: None,
            certificates: crate::tls::certs::Figures {
                count: 1,
                failing: 0,
                failures: 2,
                earliest_expiry: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)),
            },
        }
    }
}

/// One that has ended long ago.
fn certificates() -> Vec<ListedCertificate> {
    let leaf = Leaf {
        names: vec!["a.example".to_owned(), "b.example".to_owned()],
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(86_400),
        issuer: "CA".to_owned(),
        serial: "0A".to_owned(),
    };
    let files = CertFiles { cert: "/certs/a.pem".into(), key: "/certs/a.key".into() };
    let status = CertStatus { files, leaf: Some(leaf), loaded_at: Some(SystemTime::UNIX_EPOCH), error: None };
    vec![ListedCertificate { status, routes: vec![(":443".to_owned(), "a.example".to_owned())] }]
}
