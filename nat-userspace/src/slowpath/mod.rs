//! Frames between the kernel and the gateway core: `AF_XDP` sockets, one for each queue of each
//! interface, on one memory. Rings and frames here, judgement in [`crate::gateway`].

mod port;
mod tags;

pub use self::port::{Frames, Port, PortError, lent_frames};
pub use self::tags::retag;
