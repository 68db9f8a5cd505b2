//! The configuration: any text is either refused in words or a configuration that the core takes.

use std::time::Instant;

use natgw::{
    config::Config,
    gateway::{Gateway, Random},
};

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Config::parse(&text, "fuzzed.toml") {
        Ok(config) => {
            assert!(!config.interfaces.is_empty(), "a gateway without interfaces");
            // A table for millions of sessions is memory, not logic.
            if config.limits.sessions <= 1 << 20 {
                drop(Gateway::new(&config, Instant::now(), Random::seeded(1)));
            }
        }
        Err(error) => {
            let told = error.to_string();
            assert!(told.len() > 10, "{told:?} tells nothing");
        }
    }
}
