//! Atomic operations on words that program and daemon share (kernel 5.12).
//!
//! The compiler's target has no compare-and-swap, as processors before v3 had none, so the standard library leaves
//! these out. Its intrinsics are there, and work on words of 64 bits.

use core::intrinsics::{AtomicOrdering::AcqRel, AtomicOrdering::Relaxed};

use nat_common::delegate::Word;

/// What a word holds.
///
/// # Safety
///
/// The word must be live, aligned, and written by atomic operations alone. So for all of these.
#[inline(always)]
pub unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { word.read_volatile() }
}

/// Sets bits; what the word held.
#[inline(always)]
pub unsafe fn set(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { core::intrinsics::atomic_or::<u64, u64, { AcqRel }>(word, bits) }
}

/// Keeps these bits only; what the word held.
#[inline(always)]
pub unsafe fn keep(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { core::intrinsics::atomic_and::<u64, u64, { AcqRel }>(word, bits) }
}

/// Stores another value; what the word held.
#[inline(always)]
pub unsafe fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { core::intrinsics::atomic_xchg::<u64, { AcqRel }>(word, value) }
}

/// Stores another value if the word holds the expected one. Whether it did.
#[inline(always)]
pub unsafe fn exchange(word: *mut u64, expected: u64, value: u64) -> bool {
    // By what it held, not by the flag that comes with it: inlined into a program, bpf-linker could not read that.
    // SAFETY: the caller's.
    unsafe { core::intrinsics::atomic_cxchg::<u64, { AcqRel }, { Relaxed }>(word, expected, value) }.0
        == expected
}

/// A word of a map, for what [`nat_common::delegate`] does with it.
#[derive(Clone, Copy)]
pub struct Shared(*mut u64);

impl Shared {
    /// # Safety
    ///
    /// As for all of these, as long as it is used.
    #[inline(always)]
    pub const unsafe fn new(word: *mut u64) -> Self {
        Self(word)
    }
}

impl Word for Shared {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: whoever made it has promised; so below.
        unsafe { load(self.0) }
    }

    #[inline(always)]
    fn set(&self, bits: u64) -> u64 {
        // SAFETY: as above.
        unsafe { set(self.0, bits) }
    }

    #[inline(always)]
    fn keep(&self, bits: u64) {
        // SAFETY: as above.
        unsafe { keep(self.0, bits) };
    }

    #[inline(always)]
    fn exchange(&self, expected: u64, value: u64) -> bool {
        // SAFETY: as above.
        unsafe { exchange(self.0, expected, value) }
    }
}
