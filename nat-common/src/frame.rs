//! Where a frame's bytes lie: the one place that turns offsets into pointers.
//!
//! A slice cannot be handed through the BPF verifier (its length becomes a plain number), so both
//! sides implement one trait: the program by comparing packet pointers, the daemon by a slice.

use crate::wire::Wire;

/// A frame in memory, Ethernet header first.
pub trait Frame {
    /// The header `T` at `offset`, or `None` if the frame ends before it does.
    ///
    /// The pointer is valid for reads and writes of `T` while the frame is borrowed.
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T>;

    /// As [`Frame::at`], for use in loops: an optimiser that moves the comparison with the
    /// frame's end out of a loop makes arithmetic of it that the verifier refuses.
    fn at_in_loop<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        self.at(offset)
    }

    /// The frame from `offset` on, or an empty one if it ends before.
    ///
    /// Headers behind an offset that is not known beforehand are read through such a view, made
    /// once: the verifier then follows one pointer, not a sum at each access.
    #[must_use]
    fn skip(&self, offset: usize) -> Self
    where
        Self: Sized;

    /// Length of the frame in bytes.
    fn length(&self) -> usize;
}

/// A frame in a byte slice, as the daemon and the tests have it.
pub struct SliceFrame<'a> {
    start: *mut u8,
    length: usize,
    frame: core::marker::PhantomData<&'a mut [u8]>,
}

impl<'a> SliceFrame<'a> {
    /// Wraps a frame; `None` if it does not lie at an even address, which [`Wire`] types need.
    pub fn new(frame: &'a mut [u8]) -> Option<Self> {
        let start = frame.as_mut_ptr();
        if (start as usize) & 1 != 0 {
            return None;
        }
        Some(Self { start, length: frame.len(), frame: core::marker::PhantomData })
    }
}

impl Frame for SliceFrame<'_> {
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.length || (align_of::<T>() > 1 && (self.start as usize + offset) & 1 != 0) {
            return None;
        }
        // SAFETY: offset + size_of::<T>() lies within the slice this was made from.
        Some(unsafe { self.start.add(offset) }.cast())
    }

    fn skip(&self, offset: usize) -> Self {
        let skipped = offset.min(self.length);
        Self {
            // SAFETY: at most the slice's length.
            start: unsafe { self.start.add(skipped) },
            length: self.length - skipped,
            frame: core::marker::PhantomData,
        }
    }

    fn length(&self) -> usize {
        self.length
    }
}
