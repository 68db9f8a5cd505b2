//! What becomes of single packets, for `natgw trace` and `natgw capture`: which are asked for, and how they are told of.

#![deny(unsafe_code)]

mod advice;
mod filter;
mod row;

pub use self::advice::advice;
pub use self::filter::{Filter, FilterError};
pub use self::row::{By, Frames, Missed, Seen, TraceLine, TraceRow, Verdict};
pub(crate) use self::row::{monotonic, tuple};
