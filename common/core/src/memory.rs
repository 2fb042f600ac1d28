//! What the allocator does with large buffers that were freed.

/// The longest block that teaches glibc something (`DEFAULT_MMAP_THRESHOLD_MAX` is 32 MiB), with room for its header.
const LONGEST: usize = (32 << 20) - (64 << 10);

/// Lets the process keep freed buffers of megabytes for the next ones, up to some tens of MiB a thread, instead of giving each
/// back to the kernel and having it cleared anew: some percent of a restore's CPU time. For programs that stream; call it
/// first.
///
/// glibc maps blocks above a threshold one by one, and raises the threshold when one of them is freed (mallopt(3),
/// `M_MMAP_THRESHOLD`); what it keeps at the end of a heap grows along. So one long block is made, not touched and
/// freed. Elsewhere this does nothing.
pub fn keep_freed_buffers() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LONGEST)));
}
