//! Memory for large tables.

use std::{ptr, thread};

use rustix::mm::{Advice, madvise};

use crate::privileges;

/// An empty vector with room for so many values, in huge pages if the kernel has them to give: each page that is
/// touched for the first time takes a microsecond, and a huge one is five hundred of them.
pub fn reserve<T>(values: usize) -> Vec<T> {
    let mut reserved: Vec<T> = Vec::with_capacity(values);
    if let Some(pages) = Pages::within(reserved.as_mut_ptr().cast(), values * size_of::<T>()) {
        pages.advise(Advice::LinuxHugepage);
    }
    reserved
}

/// Has the kernel find the pages of memory that is about to be used, on a thread of its own.
pub fn fill_in_time(start: *mut u8, bytes: usize) {
    let Some(pages) = Pages::within(start, bytes) else { return };
    pages.advise(Advice::LinuxHugepage);
    // Without a thread, or before Linux 5.14, whoever needs them finds them.
    let _ = thread::Builder::new().name("memory".to_owned()).spawn(move || {
        privileges::drop_others();
        pages.advise(Advice::LinuxPopulateWrite);
    });
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
    fn what_is_reserved_can_be_used() {
        for values in [0, 1, 1 << 20] {
            let mut reserved: Vec<u64> = reserve(values);
            assert!(reserved.is_empty() && reserved.capacity() >= values);
            reserved.extend(0..values as u64);
            assert!(reserved.iter().copied().eq(0..values as u64));
        }
    }
}
