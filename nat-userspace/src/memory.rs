//! Memory for large tables.

use std::ptr;

use rustix::mm::{Advice, madvise};

/// Has the kernel find the pages of memory that is about to be used.
pub fn fill(start: *mut u8, bytes: usize) {
    if let Some(pages) = Pages::within(start, bytes) {
        // Before Linux 5.14 whoever needs them finds them.
        pages.advise(Advice::LinuxPopulateWrite);
    }
}

/// Whole pages of memory.
struct Pages {
    start: usize,
    bytes: usize,
}

impl Pages {
    /// Those within some memory.
    fn within(start: *mut u8, bytes: usize) -> Option<Self> {
        let page = rustix::param::page_size();
        let first = start.expose_provenance().next_multiple_of(page);
        let end = (start.addr() + bytes) / page * page;
        let bytes = end.checked_sub(first).filter(|bytes| *bytes > 0)?;
        Some(Self { start: first, bytes })
    }

    /// Tells the kernel how they will be used. Where it does not know the advice they stay as they are.
    fn advise(&self, advice: Advice) {
        // SAFETY: neither kind of advice changes what is in the pages, and of pages that are not there any more the
        // kernel says so.
        let _ = unsafe { madvise(ptr::with_exposed_provenance_mut(self.start), self.bytes, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_stays_as_it_is() {
        let mut memory = vec![7_u8; 1 << 20];
        fill(memory.as_mut_ptr(), memory.len());
        assert!(memory.iter().all(|byte| *byte == 7));
        // Too little for a page.
        fill(memory.as_mut_ptr(), 1);
    }
}
