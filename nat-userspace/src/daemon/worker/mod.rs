//! The one thread that moves frames and owns the gateway core: sockets, netlink, timers and
//! requests, all by one poll.

mod changes;
mod frames;
mod interfaces;
mod meter;
mod rules;
mod told;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xdp::Packet;

use self::meter::Meter;
use super::checks::Checks;
use super::claims::Claims;
use super::control::Mailbox;
use super::interfaces::{Served, keep_ports, publish_addresses};
use super::kernel::Kernel;
use super::supervisor::Watchdog;
use super::tracing_clients::Tracers;
use super::{RunOptions, report};
use crate::api::PacketTotals;
use crate::config::Config;
use crate::eventlog::{Hub, Writer};
use crate::gateway::{Gateway, Outcome, World as _};
use crate::slowpath::{Frames, Port};

/// How long the program's reports may wait after the last ones. Each report that finds none before it wakes the daemon,
/// which costs more than what it tells: while there are many they are read together.
const REPORTS_EVERY: Duration = Duration::from_millis(2);

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
    /// Who is told of packets.
    pub tracers: Tracers,
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
    /// When the program had last reported something.
    reports_read: Instant,
    events_lost: u64,
    /// Inside networks as the fast path knows them.
    published: Vec<ipnet::Ipv4Net>,
    told: told::Told,
    /// Packets a second.
    pub meter: Meter,
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
            tracers: Tracers::default(),
            log: None,
            transmit_failures: 0,
            ports: Vec::new(),
            frames,
            packets: Vec::new(),
            judged: Vec::new(),
            confirmed: now,
            events_looked_at: now,
            reports_read: now,
            events_lost: 0,
            published: Vec::new(),
            told: told::Told::default(),
            meter: Meter::new(now, PacketTotals::default()),
        }
    }

    /// Takes the interfaces that are there into service: sockets and tables first, programs last,
    /// so that the first packet they see finds everything in place.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.kernel.datapath.taken_over {
            keep_ports(&mut self.served, &self.kernel);
        }
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
            self.take_over(now);
        }
        self.kernel.datapath.adopt_links()?;
        for index in 0..self.served.len() {
            self.attach(index)?;
        }
        self.let_go_of_others();
        self.kernel.datapath.forget_earlier();
        // What the program remembers of an earlier daemon's grants ends before it is lent anything.
        self.gateway.end_grants(&mut self.kernel);
        self.gateway.lend(&mut self.kernel);
        self.transmit(announcements);
        self.checks.follow(&self.config.services);
        self.find_far_servers();
        for warning in &self.far_servers {
            tracing::warn!("{warning}");
        }
        self.tell_interfaces();
        Ok(())
    }

    /// Goes on with the sessions of a daemon that was killed or left its fast path behind.
    fn take_over(&mut self, now: Instant) {
        // What the program told that daemon is in the table as well. Read later, it would be taken for a report about
        // whatever its slots are lent for by then.
        self.kernel.opened();
        self.kernel.session_events();
        let (found, hops) = self.kernel.datapath.flows.sessions();
        let restored = self.gateway.restore(&mut self.kernel, now, &found, hops);
        self.kernel.datapath.flows.retain(&restored);
        self.gateway.finish_restore();
        tracing::info!(
            sessions = restored.len(),
            discarded = found.len() - restored.len(),
            "took over the flow table of an earlier daemon"
        );
    }

    /// Serves until the mailbox says to end.
    pub fn serve(&mut self, mailbox: &Mailbox) -> anyhow::Result<()> {
        let mut watchdog = Watchdog::from_environment(Instant::now());
        self.meter = Meter::new(Instant::now(), report::totals(self));
        loop {
            let now = Instant::now();
            watchdog.feed(now);
            self.kernel.refresh(now);
            self.confirm_neighbours(now);
            self.notice_lost_events(now);
            if self.meter.is_due(now) {
                self.meter.look(now, report::totals(self));
            }
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
            self.wait(mailbox.fd(), watchdog.bound(Instant::now(), wait))?;
            self.drain_events(Instant::now());
            self.read_session_events(Instant::now());
            self.read_traces();
            self.serve_frames();
            self.gateway.lend(&mut self.kernel);
        }
    }

    /// Sleeps until something can be done.
    fn wait(&self, mailbox: BorrowedFd<'_>, wait: Duration) -> anyhow::Result<()> {
        let monitors = self.kernel.host.monitor();
        let mut fds = vec![
            PollFd::from_borrowed_fd(mailbox, PollFlags::IN),
            PollFd::from_borrowed_fd(monitors, PollFlags::IN),
        ];
        let pause = REPORTS_EVERY.saturating_sub(self.reports_read.elapsed());
        let lender = &self.kernel.datapath.delegation.lender;
        let wait = if pause.is_zero() {
            if lender.fall_asleep() { Duration::ZERO } else { wait }
        } else {
            wait.min(pause)
        };
        if pause.is_zero() {
            fds.push(PollFd::from_borrowed_fd(self.kernel.datapath.events_fd(), PollFlags::IN));
        }
        fds.extend(self.ports.iter().map(|port| PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN)));
        if let Some(traced) = self.tracers.programs() {
            fds.push(PollFd::from_borrowed_fd(traced.fd(), PollFlags::IN));
        }
        let timeout = Timespec::try_from(wait).ok();
        let woken = poll(&mut fds, timeout.as_ref());
        lender.wake_up();
        match woken {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(anyhow::anyhow!("wait for frames: {error}")),
        }
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
