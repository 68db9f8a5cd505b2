//! What the tracing programs tell of a frame: how it came, how it left, and why.
//!
//! They are the other programs with these two calls around them, and are loaded and attached only while somebody asks:
//! what is not asked for costs nothing.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{
        bpf_ktime_get_ns, bpf_loop, bpf_ringbuf_output, bpf_skb_load_bytes, bpf_xdp_load_bytes,
    },
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use nat_common::{
    Reason,
    trace::{HEAD, Header, QUERIES, ROOM, Spent, Tracing, Tuple},
};

/// One entry: what is asked for. Written by the daemon.
#[map]
static TRACING: Array<Tracing> = Array::with_max_entries(1, 0);

/// Frames that were asked for, each behind its [`Header`]. Full: the loss is counted under its queries.
#[map]
static TRACED: RingBuf = RingBuf::with_byte_size(1 << 23, 0);

/// Query → what it has been told of, per CPU.
#[map]
static SPENT: PerCpuArray<Spent> = PerCpuArray::with_max_entries(QUERIES as u32, 0);

/// The frame in hand, as it came and as it left; what is told begins with the header.
#[repr(C)]
struct Sheet {
    before: Tuple,
    after: Tuple,
    header: Header,
    frames: [u8; 2 * ROOM],
}

/// One entry a CPU.
#[map]
static SHEET: PerCpuArray<Sheet> = PerCpuArray::with_max_entries(1, 0);

/// How a program has finished with a frame.
#[derive(Clone, Copy)]
pub struct Finished<A> {
    /// What it returns.
    pub action: A,
    /// What the frame was counted under; [`Finished::UNTOLD`] where somebody else tells of it.
    pub reason: u32,
    /// The interface that it leaves by; 0 if it does not.
    pub out: u32,
    /// The interface that it came in by, which may be a VLAN's; 0 if that is none of natgw's.
    pub interface: u32,
}

impl<A> Finished<A> {
    /// Handed on to one who tells: the daemon, the tc hook; or none of natgw's.
    pub const UNTOLD: u32 = u32::MAX;

    /// It ends or goes on here.
    #[inline(always)]
    pub fn told(action: A, reason: Reason) -> Self {
        Self { action, reason: reason.index(), out: 0, interface: 0 }
    }

    /// Somebody else tells.
    #[inline(always)]
    pub fn untold(action: A) -> Self {
        Self { action, reason: Self::UNTOLD, out: 0, interface: 0 }
    }
}

/// Where a frame is read from.
#[derive(Clone, Copy)]
enum Context {
    Xdp(*mut xdp_md),
    Skb(*mut __sk_buff),
}

impl Context {
    #[inline(always)]
    fn length(self) -> u32 {
        // SAFETY: a program is always given a valid context.
        unsafe {
            match self {
                Self::Xdp(ctx) => (*ctx).data_end - (*ctx).data,
                Self::Skb(skb) => (*skb).len,
            }
        }
    }

    /// Copies the frame's first bytes. Whether it worked.
    #[inline(always)]
    fn read(self, to: *mut u8, length: u32) -> bool {
        let to: *mut c_void = to.cast();
        // SAFETY: the context is valid, `to` has room for a frame, and `length` is below that.
        let failed = unsafe {
            match self {
                Self::Xdp(ctx) => bpf_xdp_load_bytes(ctx, 0, to, length),
                Self::Skb(skb) => bpf_skb_load_bytes(skb.cast(), 0, to, length),
            }
        };
        failed == 0
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe {
            match self {
                Self::Xdp(ctx) => (*ctx).ingress_ifindex,
                Self::Skb(skb) => (*skb).ifindex,
            }
        }
    }
}

/// Notes how a frame came.
#[inline(never)]
pub fn begin_xdp(ctx: *mut xdp_md) -> u32 {
    begin(Context::Xdp(ctx))
}

/// Likewise for an skb.
#[inline(never)]
pub fn begin_skb(skb: *mut __sk_buff) -> u32 {
    begin(Context::Skb(skb))
}

/// Notes what becomes of it.
///
/// By way of the map: the verifier forgets what it knows of a value there, and so walks what follows once, and not once
/// for each reason.
#[inline(always)]
pub fn note<A>(finished: &Finished<A>) {
    if let Some(sheet) = SHEET.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own.
        unsafe {
            (*sheet).header.reason = finished.reason;
            (*sheet).header.out = finished.out;
            (*sheet).header.ifindex = finished.interface;
        }
    }
}

/// Notes how it left. [`tell`] tells.
#[inline(never)]
pub fn end_xdp(ctx: *mut xdp_md) -> u32 {
    end(Context::Xdp(ctx), Header::XDP)
}

/// Likewise for an skb.
#[inline(never)]
pub fn end_skb(skb: *mut __sk_buff) -> u32 {
    end(Context::Skb(skb), Header::TC)
}

#[inline(always)]
fn begin(context: Context) -> u32 {
    let Some(sheet) = SHEET.get_ptr_mut(0) else { return 0 };
    let Some(tracing) = TRACING.get(0) else { return 0 };
    // SAFETY: the slot is this CPU's own, and no program interrupts another here.
    let sheet = unsafe { &mut *sheet };
    let length = context.length();
    sheet.header.length_before = length;
    sheet.header.kept_before = keep(context, &raw mut sheet.frames, length, tracing.snap);
    0
}

/// Copies what is to be kept of a frame. How much that is.
#[inline(always)]
fn keep<T>(context: Context, to: *mut T, length: u32, snap: u32) -> u32 {
    let wanted = if length < snap { length } else { snap };
    if wanted == 0 {
        return 0;
    }
    // The helpers read at least one byte, which the verifier before 6.8 does not learn from the comparison.
    let kept = (core::hint::black_box(wanted - 1) & (ROOM as u32 - 1)) + 1;
    if context.read(to.cast(), kept) { kept } else { 0 }
}

#[inline(always)]
fn end(context: Context, hook: u32) -> u32 {
    let Some(sheet) = SHEET.get_ptr_mut(0) else { return 0 };
    let Some(tracing) = TRACING.get(0) else { return 0 };
    // SAFETY: as in `begin`.
    let sheet = unsafe { &mut *sheet };
    sheet.header.hook = hook;
    if sheet.header.ifindex == 0 {
        sheet.header.ifindex = context.ifindex();
    }
    let (mut length, mut after) = (0, 0);
    if sheet.header.out != 0 {
        length = context.length();
        after = keep(context, behind(sheet), length, tracing.snap);
    }
    sheet.header.length_after = length;
    sheet.header.kept_after = after;
    0
}

/// Where the frame is kept as it left: behind as it came.
#[inline(always)]
fn behind(sheet: &mut Sheet) -> *mut u8 {
    let before = sheet.header.kept_before & (ROOM as u32 - 1);
    // SAFETY: half the room is left behind it.
    unsafe { (&raw mut sheet.frames).cast::<u8>().add(before as usize) }
}

/// Tells those who asked for it.
///
/// A function beside those above, not below: all that call each other have 512 bytes of stack, of which each takes a
/// multiple of 32 before Linux 6.8.
#[inline(never)]
pub fn tell() -> u32 {
    let Some(sheet) = SHEET.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `begin`.
    let sheet = unsafe { &mut *sheet };
    if sheet.header.reason == Finished::<u32>::UNTOLD {
        return 0;
    }
    let (before, after) = (sheet.header.kept_before, sheet.header.kept_after);
    // SAFETY: both lie within the sheet, whatever is in it.
    unsafe {
        read_tuple(&raw mut sheet.before, (&raw const sheet.frames).cast(), before & (ROOM as u32 - 1));
        read_tuple(&raw mut sheet.after, behind(sheet).cast(), after);
    }
    // SAFETY: the helper has no preconditions.
    sheet.header.time = unsafe { bpf_ktime_get_ns() };
    sheet.header.queries = 0;
    // SAFETY: the body takes no context.
    unsafe { bpf_loop(QUERIES as u32, ask as *mut c_void, core::ptr::null_mut(), 0) };
    if sheet.header.queries == 0 {
        return 0;
    }
    let header = &mut sheet.header;
    let kept = (header.kept_before & (ROOM as u32 - 1)) + (header.kept_after & (ROOM as u32 - 1));
    let size = u64::from(size_of::<Header>() as u32 + kept);
    // SAFETY: a sheet is longer than a header and twice what is kept.
    let failed = unsafe { bpf_ringbuf_output(ring(), (&raw mut *header).cast(), size, 0) };
    if failed != 0 {
        // SAFETY: as above.
        unsafe { bpf_loop(QUERIES as u32, lose as *mut c_void, core::ptr::null_mut(), 0) };
    }
    0
}

/// Reads the endpoints of a frame of which so much is kept.
///
/// # Safety
/// Both pointers must be valid.
#[inline(never)]
unsafe fn read_tuple(to: *mut Tuple, head: *const [u8; HEAD], kept: u32) -> u32 {
    // SAFETY: as the caller says.
    unsafe { *to = Tuple::of(&*head, kept as usize) };
    0
}

/// The ring, as the helper takes it.
#[inline(always)]
fn ring() -> *mut c_void {
    (&raw const TRACED).cast_mut().cast()
}

/// The body of the loop over the queries: 0 goes on.
extern "C" fn ask(number: u32, _context: *mut c_void) -> i64 {
    let Some(sheet) = SHEET.get_ptr_mut(0) else { return 1 };
    let Some(tracing) = TRACING.get(0) else { return 1 };
    // SAFETY: as in `begin`.
    let sheet = unsafe { &mut *sheet };
    // The verifier does not follow a comparison into the copy that the index is made of; it follows a mask.
    let query = &tracing.queries[core::hint::black_box(number as usize) & (QUERIES - 1)];
    if query.active == 0 || !(query.matches(&sheet.before) || query.matches(&sheet.after)) {
        return 0;
    }
    let Some(spent) = SPENT.get_ptr_mut(number) else { return 0 };
    // SAFETY: the slot is this CPU's own.
    if unsafe { (*spent).take(sheet.header.time, query.per_second) } {
        sheet.header.queries |= 1 << (number & 31);
    }
    0
}

/// Counts the loss under each query it is one for.
extern "C" fn lose(number: u32, _context: *mut c_void) -> i64 {
    let Some(sheet) = SHEET.get_ptr(0) else { return 1 };
    // SAFETY: the slot is this CPU's own.
    if unsafe { (*sheet).header.queries } & (1 << (number & 31)) != 0
        && let Some(spent) = SPENT.get_ptr_mut(number)
    {
        // SAFETY: as above.
        unsafe { (*spent).lost += 1 };
    }
    0
}
