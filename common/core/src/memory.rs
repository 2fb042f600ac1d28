//! What the allocator does with large buffers that were freed.

use std::{env, os::unix::process::CommandExt as _, process::Command};

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

/// glibc's name for the threshold (mallopt(3)). Programs of more rights than their callers ignore it.
const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
/// Blocks from here on are mapped one by one: pieces, packs and read windows, which are megabytes long.
const LARGE: &str = "1048576";
/// Says that the program was started anew already, whatever became of the threshold.
const DONE: &str = "HOLDFAST_HEAP";

/// Lets the process give each freed buffer of a megabyte or more back to the kernel: the opposite of [`keep_freed_buffers`],
/// for programs that run for months beside something more important. Without it glibc takes such blocks from the heaps of
/// its threads once one of them was freed, where they leave holes that nothing else fits: of an agent that had archived
/// 64 segments of WAL 180 MiB stayed resident, and 19 MiB with it.
///
/// The threshold can only be set from outside, so the program replaces itself, with the same process id. Call it before
/// anything else is done. If that fails, nothing is lost but memory.
pub fn give_freed_buffers_back() {
    if env::var_os(DONE).is_some() || env::var_os(THRESHOLD).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut args = env::args_os();
    let name = args.next().unwrap_or_default();
    // Comes back only if it could not be done.
    let _ = Command::new(program)
        .arg0(name)
        .args(args)
        .env(THRESHOLD, LARGE)
        .env(DONE, "1")
        .exec();
}
