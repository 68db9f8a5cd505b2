//! The one thread that moves frames and owns the gateway core: sockets, netlink, timers and
//! requests, all by one poll.

use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nat_common::Reason;
use nat_common::abi::{SessionEvent, TooBigEvent};
use nat_common::vlan::Tags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xdp::Packet;

use super::checks::Checks;
use super::claims::Claims;
use super::control::Mailbox;
use super::interfaces::{Served, publish_addresses};
use super::kernel::Kernel;
use super::vlans::{Place, place};
use super::{RunOptions, preflight, report};
use crate::api::{ApiError, Reloaded};
use crate::config::{Config, Method, ServiceRule};
use crate::datapath::publish_rules;
use crate::eventlog::{Hub, Writer};
use crate::gateway::{Emission, Gateway, Outcome, World as _};
use crate::host::{HostEvent, Link, NeighbourState, RouteQuery};
use crate::slowpath::{Frames, Port, retag};

/// How often neighbours of live flows are confirmed: below the kernel's own 60 s until it forgets
/// (`gc_stale_time`).
const CONFIRM_EVERY: Duration = Duration::from_secs(20);
/// How often it is looked whether events were lost.
const EVENTS_EVERY: Duration = Duration::from_secs(1);
/// Rounds of frames served before anything else is looked at again.
const ROUNDS: usize = 16;

/// Everything the daemon is made of.
pub struct Worker {
    /// When it began.
    pub started: Instant,
    /// What the command line said.
    pub options: RunOptions,
    /// The configuration in force.
    pub config: Config,
    /// The core.
    pub gateway: Gateway,
    /// Kernel and host.
    pub kernel: Kernel,
    /// The interfaces.
    pub served: Vec<Served>,
    /// Addresses added.
    pub claims: Claims,
    /// Who looks after the servers of services.
    checks: Checks,
    /// Warnings about servers that direct routing cannot reach.
    far_servers: Vec<String>,
    /// Who reads events.
    pub hub: Hub,
    /// Records them, if the configuration says so.
    pub log: Option<Writer>,
    /// Frames of the daemon's own making and counting: beyond the core's counts.
    pub transmit_failures: u64,
    // Sockets before the memory they use: dropped in this order.
    ports: Vec<Port>,
    frames: Frames,
    packets: Vec<Packet>,
    judged: Vec<(Packet, u32, Outcome)>,
    confirmed: Instant,
    events_looked_at: Instant,
    events_lost: u64,
    /// Inside networks as the fast path knows them.
    published: Vec<ipnet::Ipv4Net>,
}

impl Worker {
    /// A worker whose interfaces are not attached yet.
    pub fn new(
        options: RunOptions,
        config: Config,
        gateway: Gateway,
        kernel: Kernel,
        frames: Frames,
        checks: Checks,
    ) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            served: Served::of(&config),
            options,
            config,
            gateway,
            kernel,
            claims: Claims::default(),
            checks,
            far_servers: Vec::new(),
            hub: Hub::default(),
            log: None,
            transmit_failures: 0,
            ports: Vec::new(),
            frames,
            packets: Vec::new(),
            judged: Vec::new(),
            confirmed: now,
            events_looked_at: now,
            events_lost: 0,
            published: Vec::new(),
        }
    }

    /// Takes the interfaces that are there into service: sockets and tables first, programs last,
    /// so that the first packet they see finds everything in place.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let first_hop = self.kernel.datapath.first_free_hop();
        for index in 0..self.served.len() {
            let name = self.served[index].config.name.clone();
            let link = self.kernel.host.link_by_name(&name).cloned();
            let Some(link) = link else {
                tracing::warn!(interface = name, "is not there yet: it is served once it appears");
                continue;
            };
            self.take_in(index, now, &link)?;
        }
        self.publish_rules()?;
        let announcements = self.claims.make(&mut self.kernel, &self.gateway, &self.config);
        self.drain_events(now);
        publish_addresses(&mut self.kernel, &self.gateway, &self.config)?;
        if self.kernel.datapath.taken_over {
            self.take_over(now, first_hop);
        }
        for index in 0..self.served.len() {
            self.attach(index)?;
        }
        self.transmit(announcements);
        self.checks.follow(&self.config.services);
        self.find_far_servers();
        for warning in &self.far_servers {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// Goes on with the sessions of a daemon that was killed or left its fast path behind.
    fn take_over(&mut self, now: Instant, first_hop: u32) {
        let found = self.kernel.datapath.flows.sessions();
        let restored = self.gateway.restore(&mut self.kernel, now, &found, first_hop);
        self.kernel.datapath.flows.retain(&restored);
        tracing::info!(
            sessions = restored.len(),
            discarded = found.len() - restored.len(),
            "took over the flow table of an earlier daemon"
        );
    }

    fn publish_rules(&mut self) -> anyhow::Result<()> {
        let inside = self.gateway.inside_networks();
        publish_rules(&mut self.kernel.datapath, self.gateway.rules(), &inside)?;
        self.published = inside;
        Ok(())
    }

    /// Attaches an interface that has its sockets.
    fn attach(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.served[index].config.name.clone();
        let Some(link) = self.kernel.host.link_by_name(&name).cloned() else { return Ok(()) };
        let Some(device) = self.served[index].place.as_ref().map(|place| place.device.index) else {
            return Ok(());
        };
        let already =
            self.served.iter().filter(|served| served.is_on(device)).find_map(|served| served.attached);
        self.served[index].attach(&mut self.kernel, &link, already)?;
        // Again: only now is it known whether XDP runs on skbs here.
        self.publish(index, Instant::now(), &link)
    }

    /// Opens an interface's sockets, or finds those of another on the same device, and makes it known.
    fn take_in(&mut self, index: usize, now: Instant, link: &Link) -> anyhow::Result<()> {
        let config = &self.served[index].config;
        let Some(place) = place(&self.kernel.host, config, link) else {
            tracing::warn!(
                interface = link.name,
                "its parent is not there yet: it is served once that appears"
            );
            return Ok(());
        };
        let device = place.device.index;
        let shared = self.served.iter().find(|served| served.is_on(device) && served.queues > 0);
        let shared = shared.map(|served| (served.first_socket, served.queues));
        let served = &mut self.served[index];
        match shared {
            Some((first, queues)) => served.share_sockets(place, first, queues),
            None => served.open_sockets(&mut self.kernel, &mut self.frames, &mut self.ports, place)?,
        }
        self.publish(index, now, link)
    }

    fn publish(&mut self, index: usize, now: Instant, link: &Link) -> anyhow::Result<()> {
        let device = self.served[index].place.as_ref().map(|place| place.device.name.clone());
        let trunk = self.served.iter().all(|served| Some(&served.config.name) != device.as_ref());
        self.served[index].publish(&mut self.kernel, &mut self.gateway, now, link, trunk)
    }

    /// Lets go of an interface, and of its device if no other is on it.
    fn lose(&mut self, index: usize) {
        let device = self.served[index].place.as_ref().map(|place| place.device.index);
        let others = self.served.iter().enumerate().filter(|(other, _)| *other != index);
        let shared = device.is_some_and(|device| others.clone().any(|(_, served)| served.is_on(device)));
        self.served[index].lost(&mut self.kernel, &mut self.ports, shared);
    }

    /// The device that an interface's frames pass, and their tags there.
    fn place_of(&self, ifindex: u32) -> (u32, Tags) {
        let served = self.served.iter().find(|served| served.ifindex == Some(ifindex));
        let place = served.and_then(|served| served.place.as_ref());
        place.map_or((ifindex, Tags::NONE), |place| (place.device.index, place.tags))
    }

    /// Serves until the mailbox says to end.
    pub fn serve(&mut self, mailbox: &Mailbox) -> anyhow::Result<()> {
        loop {
            let now = Instant::now();
            self.kernel.refresh(now);
            self.confirm_neighbours(now);
            self.notice_lost_events(now);
            let wait = self.gateway.tick(&mut self.kernel, now);
            self.gateway.end_unreachable(&mut self.kernel, now);
            self.gateway.notices().into_iter().for_each(report::notice);
            self.settle(now);
            if mailbox.serve(self) {
                return Ok(());
            }
            self.settle(Instant::now());
            let backlog = self.ports.iter().any(Port::has_backlog);
            let wait = if backlog { wait.min(Duration::from_millis(1)) } else { wait };
            self.wait(mailbox.fd(), wait)?;
            self.drain_events(Instant::now());
            self.read_session_events(Instant::now());
            self.serve_frames();
        }
    }

    /// Sleeps until something can be done.
    fn wait(&self, mailbox: BorrowedFd<'_>, wait: Duration) -> anyhow::Result<()> {
        let monitors = self.kernel.host.monitor();
        let mut fds = vec![
            PollFd::from_borrowed_fd(mailbox, PollFlags::IN),
            PollFd::from_borrowed_fd(monitors, PollFlags::IN),
            PollFd::from_borrowed_fd(self.kernel.datapath.events_fd(), PollFlags::IN),
        ];
        fds.extend(self.ports.iter().map(|port| PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN)));
        let timeout = Timespec::try_from(wait).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(anyhow::anyhow!("wait for frames: {error}")),
        }
    }

    /// Serves what the sockets have, a bounded number of rounds.
    fn serve_frames(&mut self) {
        for _ in 0..ROUNDS {
            let mut any = false;
            for index in 0..self.ports.len() {
                let now = Instant::now();
                let port = &mut self.ports[index];
                let ifindex = port.ifindex;
                if port.receive(&mut self.frames, &mut self.packets) == 0 {
                    continue;
                }
                any = true;
                let mut packets = std::mem::take(&mut self.packets);
                for mut packet in packets.drain(..) {
                    let tags = Tags::of_frame(&packet).unwrap_or_default().vlan();
                    let interface = if tags.is_empty() {
                        ifindex
                    } else {
                        // A VLAN that has just gone is nobody's, and never its device's.
                        let of_vlan =
                            |place: &Place| place.device.index == ifindex && place.tags.vlan() == tags;
                        let served =
                            self.served.iter().find(|served| served.place.as_ref().is_some_and(of_vlan));
                        served.and_then(|served| served.ifindex).unwrap_or(0)
                    };
                    let outcome = self.gateway.handle(&mut self.kernel, now, interface, &mut packet);
                    self.judged.push((packet, ifindex, outcome));
                }
                self.packets = packets;
                self.settle(now);
            }
            if !any {
                break;
            }
        }
    }

    /// Brings the kernel's table in line with what was judged, then sends: a frame never leaves
    /// before the entries that its answer needs.
    fn settle(&mut self, now: Instant) {
        let failed = self.kernel.datapath.flows.flush();
        if !failed.is_empty() {
            tracing::warn!(sessions = failed.len(), "the flow table has no place for new sessions");
        }
        for &session in &failed {
            self.gateway.abort(&mut self.kernel, now, session);
        }
        let mut judged = std::mem::take(&mut self.judged);
        for (packet, ingress, outcome) in judged.drain(..) {
            match outcome {
                Outcome::Send { ifindex, session }
                    if session.is_none_or(|session| !failed.contains(&session)) =>
                {
                    self.send(ifindex, packet);
                }
                Outcome::ToStack => {
                    self.inject(ingress, &packet);
                    self.frames.free(packet);
                }
                _ => self.frames.free(packet),
            }
        }
        self.judged = judged;
        for released in std::mem::take(&mut self.gateway.released) {
            match released.outcome {
                Outcome::Send { ifindex, session }
                    if session.is_none_or(|session| !failed.contains(&session)) =>
                {
                    self.transmit(vec![Emission { ifindex, frame: released.frame }]);
                }
                Outcome::ToStack => {
                    let (device, _) = self.place_of(released.ingress);
                    self.inject(device, &released.frame);
                }
                _ => {}
            }
        }
        let emissions = std::mem::take(&mut self.gateway.emissions);
        self.transmit(emissions);
        self.hub.deliver(&mut self.gateway.events);
        for port in &mut self.ports {
            port.flush(&mut self.frames);
        }
    }

    fn send(&mut self, ifindex: u32, mut packet: Packet) {
        let (device, tags) = self.place_of(ifindex);
        let port = self.ports.iter_mut().find(|port| port.ifindex == device);
        let Some(port) = port.filter(|_| retag(&mut packet, tags)) else {
            self.transmit_failures += 1;
            return self.frames.free(packet);
        };
        if let Err(packet) = port.send(packet) {
            self.transmit_failures += 1;
            self.frames.free(packet);
        }
    }

    fn transmit(&mut self, emissions: Vec<Emission>) {
        for Emission { ifindex, frame } in emissions {
            match self.frames.copy(&frame) {
                Some(packet) => self.send(ifindex, packet),
                None => self.transmit_failures += 1,
            }
        }
    }

    fn inject(&self, ingress: u32, frame: &[u8]) {
        if let Err(error) = self.kernel.datapath.inject(ingress, frame) {
            tracing::debug!(%error, "a frame could not be handed to the stack");
        }
    }

    /// Neighbours of live flows are asked for before the kernel forgets them: it does not see the
    /// traffic that would confirm them.
    fn confirm_neighbours(&mut self, now: Instant) {
        if now.saturating_duration_since(self.confirmed) < CONFIRM_EVERY {
            return;
        }
        self.confirmed = now;
        for (ifindex, neighbour) in self.gateway.neighbours() {
            let stale = self
                .kernel
                .host
                .neighbour(ifindex, neighbour)
                .is_some_and(|known| matches!(known.state, NeighbourState::Stale));
            if stale {
                self.kernel.resolve(ifindex, neighbour);
            }
        }
    }

    /// Looks at every TCP session if the fast path could not tell which of them changed.
    fn notice_lost_events(&mut self, now: Instant) {
        if now.saturating_duration_since(self.events_looked_at) < EVENTS_EVERY {
            return;
        }
        self.events_looked_at = now;
        let lost = self.count(Reason::EventLost);
        if lost != self.events_lost {
            self.events_lost = lost;
            self.gateway.session_events_lost(&mut self.kernel, now);
        }
    }

    /// What the fast path reported of TCP sessions.
    fn read_session_events(&mut self, now: Instant) {
        let mut events = Vec::new();
        while let Some(event) = self.kernel.datapath.events.next() {
            // Their sizes tell them apart.
            events.extend(bytemuck::try_pod_read_unaligned::<SessionEvent>(&event));
            if let Ok(too_big) = bytemuck::try_pod_read_unaligned::<TooBigEvent>(&event) {
                self.gateway.merged_too_big(now, &too_big);
            }
        }
        for event in &events {
            self.gateway.session_event(&mut self.kernel, now, event);
        }
    }

    /// What changed on the host.
    fn drain_events(&mut self, now: Instant) {
        let mut events = Vec::new();
        if let Err(error) = self.kernel.host.poll(&mut events) {
            tracing::warn!(%error, "changes of the host could not be read");
        }
        if events.is_empty() {
            return;
        }
        let mut routes = false;
        let mut addresses = false;
        for event in events {
            match event {
                HostEvent::NeighbourChanged { ifindex, addr, .. } => {
                    self.gateway.neighbour_changed(&mut self.kernel, now, ifindex, addr);
                }
                HostEvent::RoutesChanged => routes = true,
                HostEvent::LinkRemoved { index, name } => self.link_removed(now, index, &name),
                HostEvent::LinkChanged(index) | HostEvent::XdpFeaturesChanged(index) => {
                    self.link_changed(now, index);
                    routes = true;
                }
                HostEvent::AddressAdded { ifindex, .. } | HostEvent::AddressRemoved { ifindex, .. } => {
                    addresses = true;
                    routes = true;
                    self.kernel.read_addresses();
                    self.link_changed(now, ifindex);
                }
                HostEvent::Resynced => {
                    addresses = true;
                    routes = true;
                    self.kernel.read_addresses();
                    let indexes: Vec<u32> = self.kernel.host.links().map(|link| link.index).collect();
                    for index in indexes {
                        self.link_changed(now, index);
                    }
                }
            }
        }
        if addresses && let Err(error) = publish_addresses(&mut self.kernel, &self.gateway, &self.config) {
            tracing::error!(%error, "the gateway's addresses could not be handed to the fast path");
        }
        if self.published != self.gateway.inside_networks()
            && let Err(error) = self.publish_rules()
        {
            tracing::error!(%error, "the inside networks could not be handed to the fast path");
        }
        if routes {
            self.gateway.routes_changed(&mut self.kernel);
        }
    }

    /// A device changed, or has appeared: an interface, or what one is a VLAN of.
    fn link_changed(&mut self, now: Instant, index: u32) {
        let Some(changed) = self.kernel.host.link(index).cloned() else { return };
        for position in 0..self.served.len() {
            let served = &self.served[position];
            let is_parent = served.config.vlan.as_ref().is_some_and(|vlan| vlan.parent == changed.name);
            if served.config.name == changed.name || served.is_on(index) || is_parent {
                let link = self.kernel.host.link_by_name(&served.config.name).cloned();
                if let Some(link) = link {
                    self.interface_changed(position, now, &link);
                }
            }
        }
    }

    /// An interface changed, or can be served now.
    fn interface_changed(&mut self, position: usize, now: Instant, link: &Link) {
        let known = self.served[position].ifindex;
        if known == Some(link.index) || (known.is_none() && self.served[position].queues > 0) {
            if let Err(error) = self.publish(position, now, link) {
                tracing::error!(%error, interface = link.name, "a change could not be handed to the fast path");
            }
            return;
        }
        tracing::info!(interface = link.name, "has appeared: taken into service");
        self.lose(position);
        let taken = self.take_in(position, now, link).and_then(|()| self.attach(position));
        if let Err(error) = taken {
            tracing::error!(%error, interface = link.name, "could not be taken into service");
        }
        if let Err(error) = publish_addresses(&mut self.kernel, &self.gateway, &self.config) {
            tracing::error!(%error, "the gateway's addresses could not be handed to the fast path");
        }
    }

    fn link_removed(&mut self, now: Instant, index: u32, name: &str) {
        self.gateway.remove_interface(&mut self.kernel, now, index);
        for position in 0..self.served.len() {
            let served = &self.served[position];
            let Some(own) = served.ifindex.filter(|&own| own == index || served.is_on(index)) else {
                continue;
            };
            tracing::warn!(
                interface = served.config.name,
                "{name} is gone: it is served again once that reappears"
            );
            self.gateway.remove_interface(&mut self.kernel, now, own);
            self.lose(position);
        }
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
    fn find_far_servers(&mut self) {
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
        self.transmit(announcements);
        published.map_err(|error| {
            ApiError::new(
                format!("reload: hand the rules to the fast path: {error:#}"),
                "the daemon goes by the new rules, the fast path in part by the old ones: reload a file with fewer prefixes, or restart",
            )
        })?;
        warnings.extend(self.config.warnings.iter().cloned());
        self.kernel.read_bound();
        warnings.extend(self.hidden_services());
        self.find_far_servers();
        warnings.extend(self.far_servers.iter().cloned());
        Ok(Reloaded { kept: u64::from(reloaded.kept), ended: u64::from(reloaded.ended), warnings })
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

    /// Packets counted by reason: by the fast path on all CPUs, and by the core.
    pub fn count(&self, reason: Reason) -> u64 {
        let kernel: u64 = self
            .kernel
            .datapath
            .counters
            .get(&reason.index(), 0)
            .map(|values| values.iter().sum())
            .unwrap_or_default();
        let own = match reason {
            Reason::DropTransmit => self.transmit_failures,
            // Counted as punted, and lost on the way.
            Reason::DropNoDaemon => self.lost_frames(),
            _ => 0,
        };
        kernel + own + self.gateway.counts().get(reason)
    }

    /// Frames that found no room in the daemon's rings.
    pub fn lost_frames(&self) -> u64 {
        self.ports.iter().map(Port::lost).sum()
    }

    /// Whoever reads the records later wants to know until when each translation was.
    fn record_the_end(&mut self) {
        /// Sessions between two deliveries.
        const PIECE: u32 = 4096;
        if self.hub.is_idle() {
            return;
        }
        let now = Instant::now();
        for slot in 0..self.gateway.session_slots() {
            self.gateway.record_last(now, slot);
            if slot % PIECE == 0 {
                self.hub.deliver(&mut self.gateway.events);
            }
        }
        self.hub.deliver(&mut self.gateway.events);
    }

    /// Ends: with `keep` the fast path stays, without it nothing is left.
    pub fn stop(mut self, keep: bool) {
        for port in &mut self.ports {
            port.clear(&mut self.frames);
        }
        if keep {
            return;
        }
        for position in 0..self.served.len() {
            self.lose(position);
        }
        self.record_the_end();
        self.claims.release(&mut self.kernel);
        self.kernel.datapath.remove();
    }
}
