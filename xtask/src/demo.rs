//! `cargo xtask demo`: two clients, natgw, a server; real programs on both sides, and what the server saw.

mod gateway;
mod interrupt;
mod lab;
mod services;
mod traffic;

use std::time::Instant;

use crate::{
    build::build_natgw,
    machine::want_root,
    setup::setup,
    shell::{step, Result},
};

use gateway::Gateway;
use lab::Lab;
pub(crate) use services::services;
use traffic::Server;

/// Sets up, builds, shows. With `keep`, what it made stays for a look around.
pub(crate) fn demo(keep: bool) -> Result {
    want_root("demo")?;
    step("setup", setup)?;
    step("build natgw", build_natgw)?;
    interrupt::clean_up_on_signals();
    let start = Instant::now();
    // Dropped in reverse order, also when a step fails or Ctrl-C ends the programs in it.
    let lab = step("make namespaces: clients a and b, gateway, server", || Lab::new(lab::HOSTS))?;
    println!("{}", lab::DRAWING);
    let gateway = step("start natgw in the gateway", || Gateway::start(&lab, gateway::CONFIGURATION))?;
    let server = step("start web, DNS and iperf3 servers", || Server::start(&lab))?;
    let mut failed = Vec::new();
    for (name, experiment) in traffic::EXPERIMENTS {
        if let Err(message) = step(name, || experiment(&lab, &gateway, &server)) {
            eprintln!("{message}");
            failed.push(*name);
        }
        interrupt::check()?;
    }
    println!("==> what the server saw: the first packet of each flow");
    print!("{}", server.first_packets(12));
    println!("==> natgw session list");
    print!("{}", gateway.ask(&["session", "list"])?);
    println!("==> natgw status");
    print!("{}", gateway.ask(&["status"])?);
    if !failed.is_empty() {
        println!("==> natgw's log\n{}", gateway.log());
    }
    if keep {
        println!("{}", gateway.guide(&lab, &server));
        // Their drops would take down what is to stay.
        std::mem::forget((server, gateway, lab));
    } else {
        gateway.stop()?;
    }
    let total = traffic::EXPERIMENTS.len();
    let worked = total - failed.len();
    println!("demo: {worked} of {total} experiments worked, in {:.0} s", start.elapsed().as_secs_f32());
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("these did not: {}", failed.join("; ")))
    }
}
