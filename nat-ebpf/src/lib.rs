//! Empty: gives cargo the rebuild edge between this crate and the daemon that embeds its object.
#![no_std]
