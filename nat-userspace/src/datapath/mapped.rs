//! Array maps as memory: read and written without a system call.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// An array map's values, shared with the kernel.
pub struct Mapped<T> {
    start: NonNull<T>,
    entries: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; access is by volatile copies, by atomics, or the caller's to justify.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Copy> Mapped<T> {
    /// Maps `entries` values of an array map made with `BPF_F_MMAPABLE`. The map's values, one after the other,
    /// must be `T`s one after the other, so a multiple of 8 bytes each.
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

    /// Where a value is. Whoever reads or writes it shares it with the kernel.
    pub fn at(&self, index: u32) -> Option<NonNull<T>> {
        let index = index as usize;
        // SAFETY: within the mapping.
        (index < self.entries).then(|| unsafe { self.start.add(index) })
    }

    /// A copy of a value; the kernel may be writing it, so it may be torn.
    pub fn read(&self, index: u32) -> Option<T> {
        // SAFETY: a live value; volatile, because the kernel writes it too.
        self.at(index).map(|value| unsafe { value.read_volatile() })
    }
}

impl Mapped<u32> {
    /// A word, and all that was written before it was stored.
    pub fn load(&self, index: u32) -> u32 {
        self.atomic(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Stores a word after all that was written before.
    pub fn store(&self, index: u32, value: u32) {
        if let Some(word) = self.atomic(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// Stores a word if it is the expected one; else tells what it is.
    pub fn exchange(&self, index: u32, expected: u32, value: u32) -> Result<(), u32> {
        let Some(word) = self.atomic(index) else { return Ok(()) };
        word.compare_exchange(expected, value, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    fn atomic(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: a live, aligned word that everybody, the program included, reads and writes as a whole.
        self.at(index).map(|word| unsafe { AtomicU32::from_ptr(word.as_ptr()) })
    }
}

impl Mapped<u64> {
    /// A word, and all that was written before it was stored.
    pub fn load(&self, index: u32) -> u64 {
        self.atomic(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The word itself.
    pub fn atomic(&self, index: u32) -> Option<&AtomicU64> {
        // SAFETY: a live, aligned word that everybody, the program included, reads and writes as a whole.
        self.at(index).map(|word| unsafe { AtomicU64::from_ptr(word.as_ptr()) })
    }

    /// Stores a word after all that was written before.
    pub fn store(&self, index: u32, value: u64) {
        if let Some(word) = self.atomic(index) {
            word.store(value, Ordering::Release);
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing borrows any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Memory as a map's would be.
#[cfg(test)]
pub(super) fn memory<T: Copy>(entries: u32) -> Mapped<T> {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let file = memfd_create("map", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&file, u64::from(entries) * size_of::<T>() as u64).expect("make it as long");
    Mapped::new(file, entries).expect("map it")
}
