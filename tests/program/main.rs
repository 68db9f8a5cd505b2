//! The program tier: the eBPF object as it is shipped, loaded into the kernel and run on frames.
//!
//! Each fixture is judged three times: by the loaded program, by nat-common as the daemon calls it, and by the
//! frame that an independent builder says must come out. All must agree to the byte, and exactly one counter
//! moves. The object is loaded once, in a namespace of its own: see [`stage`].

mod fixture;
mod stage;

mod budget;
mod link;
mod malformed;
mod relay;
mod rules;
mod translated;
mod vlans;
