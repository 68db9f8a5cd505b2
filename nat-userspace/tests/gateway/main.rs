//! The gateway core in a simulated world: a flow table in memory, a clock that tests move, fixed routes.

mod world;

mod lifetimes;
mod neighbours;
mod operations;
mod scale;
