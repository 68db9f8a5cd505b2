//! Atomic operations on words that program and daemon share (kernel 5.12).
//!
//! The compiler's target has no compare-and-swap, as processors before v3 had none, so the standard library leaves
//! these out. Its intrinsics are there, and work on words of 64 bits.

use core::intrinsics::{AtomicOrdering::AcqRel, AtomicOrdering::Relaxed};

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
    // SAFETY: the caller's.
    unsafe { core::intrinsics::atomic_cxchg::<u64, { AcqRel }, { Relaxed }>(word, expected, value) }.1
}
