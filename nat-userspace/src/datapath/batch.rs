//! Batched map operations (kernel 5.6, commit aa2e93b8e58e), which aya does not wrap: a system call
//! for hundreds of entries instead of one each.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use bytemuck::Pod;

/// `bpf(2)` commands.
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const MAP_DELETE_BATCH: libc::c_long = 27;

/// The `batch` variant of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Runs a batch command. Returns how many entries were done, with the error that stopped it.
fn run(command: libc::c_long, attr: &mut BatchAttr) -> (usize, io::Result<()>) {
    // SAFETY: `attr` points to buffers that the callers below keep alive and that are as long as
    // `count` says; the kernel writes `count` back.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<BatchAttr>()) };
    if result >= 0 {
        return (attr.count as usize, Ok(()));
    }
    let error = io::Error::last_os_error();
    // A request refused before its first entry leaves the count as it was given.
    let refused = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EFAULT | libc::EPERM));
    (if refused { 0 } else { attr.count as usize }, Err(error))
}

/// Writes entries; stops at the first that fails and tells how many were written. (The kernel takes
/// no `BPF_NOEXIST` here: that no entry is there already is the session table's to know.)
pub(super) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> (usize, io::Result<()>) {
    let count = keys.len().min(values.len());
    if count == 0 {
        return (0, Ok(()));
    }
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..BatchAttr::default()
    };
    run(MAP_UPDATE_BATCH, &mut attr)
}

/// Removes entries; stops at the first that is not there and tells how many were removed.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> (usize, io::Result<()>) {
    if keys.is_empty() {
        return (0, Ok(()));
    }
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..BatchAttr::default()
    };
    run(MAP_DELETE_BATCH, &mut attr)
}

/// Reads a hash map from where `cursor` says (`None` for its beginning), up to `keys.len()`
/// entries, and moves the cursor. Returns how many were read; the cursor is `None` at the end.
pub(super) fn lookup<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<usize> {
    // For hash maps the cursor is a bucket number, 32 bits.
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: cursor.as_ref().map_or(0, |bucket| std::ptr::from_ref(bucket) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..BatchAttr::default()
    };
    let (count, outcome) = run(MAP_LOOKUP_BATCH, &mut attr);
    match outcome {
        Ok(()) => *cursor = Some(next),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => *cursor = None,
        Err(error) => return Err(error),
    }
    Ok(count)
}
