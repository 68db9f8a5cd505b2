//! Memory for large tables.

use rustix::mm::{Advice, madvise};

/// An empty vector with room for so many values, in huge pages if the kernel has them to give: each page that is
/// touched for the first time takes a microsecond, and a huge one is five hundred of them.
pub fn reserve<T>(values: usize) -> Vec<T> {
    let mut reserved: Vec<T> = Vec::with_capacity(values);
    let page = rustix::param::page_size();
    let start = reserved.as_mut_ptr().addr().next_multiple_of(page);
    let end = (reserved.as_mut_ptr().addr() + values * size_of::<T>()) / page * page;
    if let Some(length) = end.checked_sub(start).filter(|length| *length > 0) {
        // SAFETY: whole pages within the vector's own allocation; advice changes nothing in them.
        // Without such pages it stays as it is.
        let _ =
            unsafe { madvise(reserved.as_mut_ptr().with_addr(start).cast(), length, Advice::LinuxHugepage) };
    }
    reserved
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
