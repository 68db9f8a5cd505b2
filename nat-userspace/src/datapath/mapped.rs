//! Array maps as memory: read and written without a system call.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// An array map's values, shared with the kernel.
pub struct Mapped<T> {
    start: NonNull<T>,
    entries: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; access is by volatile copies.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Copy> Mapped<T> {
    /// Maps `entries` values of an array map made with `BPF_F_MMAPABLE`. `T` must have the map's
    /// value size, a multiple of 8.
    pub fn new(map: impl AsFd, entries: u32) -> io::Result<Self> {
        let entries = entries as usize;
        let page = rustix::param::page_size();
        let bytes = (entries * size_of::<T>()).next_multiple_of(page);
        // SAFETY: a fresh mapping at an address of the kernel's choice; the kernel checks that
        // the map has as many bytes.
        let start = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { start, entries, bytes })
    }

    /// A copy of a value; the kernel may be writing it, so it may be torn.
    pub fn read(&self, index: u32) -> Option<T> {
        let index = index as usize;
        // SAFETY: within the mapping; volatile, because the kernel writes it too.
        (index < self.entries).then(|| unsafe { self.start.add(index).as_ptr().read_volatile() })
    }

    /// Overwrites a value.
    pub fn write(&mut self, index: u32, value: T) {
        let index = index as usize;
        if index < self.entries {
            // SAFETY: as for `read`.
            unsafe { self.start.add(index).as_ptr().write_volatile(value) };
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing borrows any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
