//! Frames between the kernel and the gateway core: `AF_XDP` sockets, one for each queue of each
//! interface, on one memory. Rings and frames here, judgement in [`crate::gateway`].

mod port;

pub use self::port::{Frames, Port, PortError, receive_ring};
