//! Rules and services that change while the daemon runs, and what of them is hardly wanted.

use std::net::SocketAddrV4;
use std::time::Instant;

use nat_common::wire;

use super::super::interfaces::publish_addresses;
use super::super::preflight;
use super::Worker;
use crate::api::{ApiError, Reloaded};
use crate::config::{Config, Method, ServiceRule, differences};
use crate::datapath::publish_rules;
use crate::gateway::World as _;
use crate::host::RouteQuery;

impl Worker {
    pub(super) fn publish_rules(&mut self) -> anyhow::Result<()> {
        let inside = self.gateway.inside_networks();
        publish_rules(&mut self.kernel.datapath, self.gateway.rules(), &inside)?;
        self.published = inside;
        Ok(())
    }

    /// Takes a new configuration. The interfaces stay as they are.
    pub fn reload(&mut self, config: Config) -> Result<Reloaded, ApiError> {
        if config.interfaces != self.config.interfaces {
            return Err(ApiError::new(
                "reload: the [[interface]] sections differ from those in service",
                "restart the daemon to change interfaces: with `run --keep` established sessions go on meanwhile",
            ));
        }
        let waiting = [
            ("limits", config.limits != self.config.limits),
            ("control", config.control != self.config.control),
            ("metrics", config.metrics != self.config.metrics),
            ("log", config.log != self.config.log),
        ];
        let mut warnings: Vec<String> = waiting
            .iter()
            .filter(|(_, differs)| *differs)
            .map(|(section, _)| format!("[{section}] has changed: that takes effect at the next start"))
            .collect();
        let changes = differences(&self.config, &config);
        let now = Instant::now();
        let reloaded = self.gateway.reload(&mut self.kernel, now, &config);
        self.config = Config {
            limits: self.config.limits.clone(),
            control: self.config.control.clone(),
            metrics: self.config.metrics,
            log: self.config.log.clone(),
            ..config
        };
        self.checks.follow(&self.config.services);
        let published = self.publish_rules();
        let announcements = self.claims.make(&mut self.kernel, &self.gateway, &self.config);
        self.drain_events(now);
        let published =
            published.and_then(|()| publish_addresses(&mut self.kernel, &self.gateway, &self.config));
        // What the program has found meanwhile it has found by the old addresses.
        self.gateway.end_grants(&mut self.kernel);
        self.transmit(announcements);
        published.map_err(|error| {
            ApiError::new(
                format!("reload: hand the rules to the fast path: {error:#}"),
                "the daemon goes by the new rules, the fast path in part by the old ones: reload a file with fewer prefixes, or restart",
            )
        })?;
        warnings.extend(self.config.warnings.iter().cloned());
        for protocol in [wire::TCP, wire::UDP] {
            self.kernel.read_bound(protocol);
        }
        warnings.extend(self.hidden_services());
        self.find_far_servers();
        warnings.extend(self.far_servers.iter().cloned());
        Ok(Reloaded {
            kept: u64::from(reloaded.kept),
            ended: u64::from(reloaded.ended),
            changes,
            saved: None,
            warnings,
        })
    }

    /// Takes other servers and weights for the services there are.
    pub fn set_services(&mut self, services: Vec<ServiceRule>) -> Result<(), ApiError> {
        self.gateway.set_services(&mut self.kernel, Instant::now(), &services);
        self.checks.follow(&services);
        let servers = |services: &[ServiceRule]| -> Vec<SocketAddrV4> {
            services.iter().flat_map(|rule| &rule.servers).map(|server| server.address).collect()
        };
        let others = servers(&services) != servers(&self.config.services);
        self.config.services = services;
        self.find_far_servers();
        if others {
            self.publish_rules().map_err(|error| {
                ApiError::new(format!("hand the servers to the fast path: {error:#}"), "reload, or restart")
            })?;
        }
        Ok(())
    }

    /// What is allowed but hardly wanted in the configuration, and what on the host is likely to
    /// bite.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.config.warnings.clone();
        warnings.extend(preflight::warnings(&self.kernel.host, &self.config));
        warnings.extend(self.hidden_services());
        warnings.extend(self.far_servers.iter().cloned());
        warnings
    }

    /// Looks for servers that direct routing cannot reach: a router on the way sends what is for a service's address
    /// back to the gateway.
    pub(super) fn find_far_servers(&mut self) {
        let direct = self.config.services.iter().filter(|rule| rule.method == Method::DirectRouting);
        let servers: Vec<(String, SocketAddrV4)> = direct
            .flat_map(|rule| rule.servers.iter().map(|server| (rule.name.clone(), server.address)))
            .collect();
        self.far_servers = servers
            .into_iter()
            .filter_map(|(service, server)| {
                let query = RouteQuery { source: *server.ip(), destination: *server.ip(), ingress: 0 };
                let router = self.kernel.host.route(query).ok()?.gateway?;
                Some(format!(
                    "[[service]] {service}: {server} is behind the router {router}, direct routing reaches servers on the gateway's own links: use method = \"tunnel\" or \"nat\""
                ))
            })
            .collect();
    }

    /// Services of the gateway that a forward or virtual server goes before (behaviour PFW-11).
    fn hidden_services(&self) -> Vec<String> {
        let mut hidden: Vec<String> = self
            .kernel
            .bound()
            .filter_map(|(protocol, own, port)| {
                let (external, kind, rule) = self.gateway.forward_of(protocol, own, port)?;
                let word = crate::config::protocol_name(protocol);
                Some(format!(
                    "[[{kind}]] {rule}: {word} {external}:{port} is held by a socket of the gateway, too: the {kind} goes first there, the service is reached by other addresses"
                ))
            })
            .collect();
        hidden.sort();
        hidden.dedup();
        hidden
    }
}
