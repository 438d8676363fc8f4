//! A client of the daemon that is connected before it is needed, as an agent's that bans.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use mc_proxy_proto::v1;
use mc_proxy_proto::v1::proxy_admin_service_client::ProxyAdminServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const LIMIT: Duration = Duration::from_secs(30);

/// A connection to the admin API.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    admin: ProxyAdminServiceClient<Channel>,
}

impl Client {
    /// Connects, and asks something that changes nothing, so that the first change meets a warm connection.
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).context("the admin API's address")?;
        let channel = runtime.block_on(endpoint.timeout(LIMIT).connect()).context("connecting to the admin API")?;
        let mut admin = ProxyAdminServiceClient::new(channel);
        runtime.block_on(admin.get_status(v1::GetStatusRequest::default())).context("asking for the status")?;
        Ok(Self { runtime, admin })
    }

    /// Blocks an address; returns when the daemon has answered.
    pub(super) fn block(&mut self, address: IpAddr) -> anyhow::Result<()> {
        let mut rule = v1::FirewallRule { value: address.to_string(), ..Default::default() };
        rule.set_type(v1::FirewallRuleType::Ip);
        rule.set_action(v1::FirewallAction::Block);
        let request = v1::AddFirewallRuleRequest { rule: Some(rule), ..Default::default() };
        self.runtime.block_on(self.admin.add_firewall_rule(request)).context("adding a rule")?;
        Ok(())
    }
}
