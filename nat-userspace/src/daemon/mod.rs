//! The daemon: what `natgw run` is. Everything is put in place here, in an order that lets no
//! packet through half-done; then one thread serves (`worker`).

mod checks;
mod claims;
mod control;
mod edits;
mod interfaces;
mod kernel;
pub(crate) mod preflight;
mod report;
mod services;
mod sockets;
mod supervisor;
mod top;
mod tracing_clients;
mod vlans;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use self::checks::Checks;
use self::control::Mailbox;
use self::kernel::Kernel;
use self::worker::Worker;
use crate::api::{ApiError, Reloaded, Server};
use crate::config::Config;
use crate::datapath::Datapath;
use crate::eventlog::Writer;
use crate::gateway::{Gateway, Random};
use crate::host::Host;
use crate::metrics::Responder;
use crate::privileges;
use crate::slowpath::{Frames, lent_frames};

/// What the command line says about a run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Leave the fast path in place at the end.
    pub keep: bool,
    /// Where the configuration was read, and is read anew.
    pub config_path: PathBuf,
    /// The text of the configuration in force.
    pub source: String,
    /// Where to listen instead of where the configuration says.
    pub socket: Option<PathBuf>,
}

/// Largest MTU whose frames fit the smaller frame size of `AF_XDP` memory.
const SMALL_MTU: u32 = 1700;

/// Runs the gateway until it is told to end.
pub fn run(options: RunOptions, config: Config) -> anyhow::Result<()> {
    let begun = Instant::now();
    preflight::privileges()?;
    for lacking in preflight::kernel()? {
        tracing::warn!("{lacking}");
    }
    let host = Host::open().context("read the host's interfaces and addresses")?;
    preflight::interfaces(&host, &config)?;
    let metrics = config.metrics.listen.map(Responder::bind).transpose()?;
    let socket = options.socket.as_ref().unwrap_or(&config.control.socket).clone();
    Server::make_way(&socket)?;
    let (mailbox, post) = Mailbox::new().context("listen for signals")?;
    let links = config.interfaces.iter().filter_map(|interface| {
        let link = host.link_by_name(&interface.name)?;
        Some(vlans::place(&host, interface, link)?.device)
    });
    let (present, receive, jumbo) = links.fold((0, 0, false), |(present, receive, jumbo), link| {
        let queues = interfaces::queues_of(&link);
        (present + 1, receive + queues * lent_frames(queues), jumbo || link.mtu > SMALL_MTU)
    });
    // Interfaces that are not there yet will want theirs.
    let absent = u32::try_from(config.interfaces.len()).unwrap_or(present) - present;
    let mut frames = Frames::new(receive + absent * lent_frames(1), jumbo)?;
    let limits = &config.limits;
    let fill = || frames.fill();
    let datapath = Datapath::load(&config.control.bpffs, limits.sessions, limits.delegated, fill)?;
    let taken_over = datapath.taken_over;
    let instructions = datapath.verified_instructions();
    let loaded = begun.elapsed();
    // The tables are read: nothing that follows needs more, and threads that it starts have no more.
    privileges::drop_others();
    let kernel = Kernel::new(datapath, host)?;
    let mut gateway = Gateway::new(&config, Instant::now(), Random::new());
    if config.limits.delegated > 0 {
        let epoch = kernel.datapath.epoch()?;
        gateway.delegate(std::rc::Rc::clone(&kernel.datapath.delegation.claims), epoch);
    }
    let keep = options.keep;
    let checks = Checks::new(post.clone());
    let log = Writer::start(&config.log).context("start a thread for the event log")?;
    let mut worker = Worker::new(options, config, gateway, kernel, frames, checks);
    if let Some(log) = log {
        worker.hub.add(log.queue(), &mut worker.gateway.events);
        worker.log = Some(log);
    }
    for warning in worker.warnings() {
        tracing::warn!("{warning}");
    }
    if let Err(error) = worker.start() {
        // What an earlier daemon left goes on as it was; what is only this one's goes.
        worker.stop(taken_over);
        return Err(error.context("take the interfaces into service"));
    }
    let responder = metrics.map(|bound| {
        let post = post.clone();
        let source = move || post.metrics().map_err(|error| error.message);
        Responder::serve(bound, Arc::new(source)).context("serve metrics")
    });
    let responder = responder.transpose()?;
    let server = Server::bind(&socket, Arc::new(post))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %socket.display(),
        taken_over,
        instructions,
        load_ms = loaded.as_millis(),
        serve_ms = begun.elapsed().saturating_sub(loaded).as_millis(),
        "natgw is ready"
    );
    supervisor::ready(&worker.config.summary());
    let mut worker = Serving { worker: Some(worker), keep };
    let served = match worker.worker.as_mut() {
        Some(worker) => worker.serve(&mailbox),
        None => Ok(()),
    };
    supervisor::stopping();
    drop((server, responder));
    served
}

/// A worker that is stopped in order, however its serving ends.
struct Serving {
    worker: Option<Worker>,
    keep: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop(self.keep);
        }
    }
}

/// Reads the configuration anew: what is wrong with it changes nothing.
fn reload(worker: &mut Worker) -> Result<Reloaded, ApiError> {
    supervisor::reloading();
    let file = worker.options.config_path.clone();
    let outcome = match Config::read(&file) {
        Ok((text, config)) => worker.reload(config).inspect(|_| worker.options.source = text),
        // It names the file, the line, and what to do.
        Err(error) => Err(ApiError::new(format!("reload: {error}"), "")),
    };
    match &outcome {
        Ok(Reloaded { kept, ended, changes, saved: _, warnings }) => {
            let changes = changes.join(", ");
            tracing::info!(file = %file.display(), kept, ended, changes, "configuration reloaded");
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            supervisor::ready(&worker.config.summary());
        }
        Err(error) => {
            tracing::error!("the old configuration stays: {error}");
            supervisor::ready("the file was refused at the last reload: what was in force stays");
        }
    }
    outcome
}
