//! Memory for large tables.

use std::ptr;

use rustix::mm::{Advice, madvise};

/// Has the kernel find the pages of memory that is about to be used: those that lie in it as a whole.
pub fn fill(start: *mut u8, bytes: usize) {
    let page = rustix::param::page_size();
    let first = start.expose_provenance().next_multiple_of(page);
    let end = (start.addr() + bytes) / page * page;
    let Some(length) = end.checked_sub(first).filter(|length| *length > 0) else { return };
    // SAFETY: what is in the pages stays as it is, and of pages that are not there the kernel says so. Before Linux 5.14
    // it does not know the advice: whoever needs the pages finds them.
    let _ = unsafe { madvise(ptr::with_exposed_provenance_mut(first), length, Advice::LinuxPopulateWrite) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of this process that are in memory.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("read /proc/self/statm");
        text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages")
    }

    #[test]
    fn what_is_filled_is_in_memory_and_stays_as_it_is() {
        const BYTES: usize = 256 << 20;
        let mut memory: Vec<u8> = Vec::with_capacity(BYTES);
        memory.extend([7; 100]);
        let before = resident();
        fill(memory.as_mut_ptr(), BYTES);
        let pages = resident() - before;
        // Other tests give memory back meanwhile.
        assert!(pages > BYTES / rustix::param::page_size() * 3 / 4, "{pages} pages");
        assert!(memory.iter().all(|byte| *byte == 7));
        // Too little for a page.
        fill(memory.as_mut_ptr(), 1);
    }
}
