//! Memory as every allocator gives it: at even addresses at least. Miri gives bytes any address.

use std::alloc::{GlobalAlloc, Layout, System};

struct Even;

#[global_allocator]
static EVEN: Even = Even;

impl Even {
    fn layout(wanted: Layout) -> Layout {
        wanted.align_to(2).unwrap_or(wanted)
    }
}

// SAFETY: the system's allocator, asked for a stricter alignment, in the same way each time.
unsafe impl GlobalAlloc for Even {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { System.alloc(Self::layout(layout)) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's; it was allocated with this layout.
        unsafe { System.dealloc(memory, Self::layout(layout)) }
    }
}
