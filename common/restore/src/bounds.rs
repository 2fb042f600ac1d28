//! Bounds of restores, each with its reason. Sizes are in bytes of raw content.

use holdfast_core::limits::CHUNK_MAX;

const MIB: usize = 1024 * 1024;

/// Content of small files that is fetched, opened and written as one piece of work …
pub const BATCH_BYTES: usize = 4 * MIB;
/// … with at most so many files, so that the last batches end together …
pub const BATCH_FILES: usize = 256;
/// … from at most so many directories, each of which is kept open for it.
pub const BATCH_DIRS: usize = 64;
/// Piece in which larger files are fetched and written, by several workers at once; with 8 MiB and as many
/// workers a restore of an image took 25 MiB more memory and no less time.
pub const REGION_BYTES: usize = 4 * MIB;
/// Files up to this are always replaced as a whole, under another name first, so that nobody ever sees half
/// of one. Larger ones that are there already are rewritten in place, where a copy would cost too much.
pub const REWRITE_MIN: u64 = 8 * MIB as u64;
/// Raw content that all workers together may have fetched and not yet written.
pub const CONTENT_IN_FLIGHT: usize = 64 * MIB;
/// Blobs that one fetch holds at most, where nothing says how much to expect: of what a hostile tree names,
/// each may be as long as a blob can be.
pub const FETCH_BYTES: usize = 32 * MIB;
/// What a blob is longer than its content at most.
pub const BLOB_OVERHEAD: usize = 128;
/// What a chunk of which a segment takes parts is reckoned with; its length is not known before it came.
/// Most are patches of 128 KiB; where they are longer, less is fetched at once.
pub const PART_CHUNK: usize = MIB / 4;
/// Different chunks that the segments of parts in one region are made of, unless one alone needs more.
pub const REGION_PART_CHUNKS: usize = 128;
/// Opened chunks that segments of parts are put together from, kept for their neighbours.
pub const PARTS_CACHED: usize = 24 * MIB;
/// Most workers, however many cores there are: beyond it, the bytes in flight are the limit.
pub const WORKERS_MAX: usize = 32;
/// Directory nodes that are asked for at once.
pub const NODES_PER_FETCH: usize = 128;
/// Directories that are held open before the walk narrows to one branch.
pub const OPEN_DIRS: usize = 256;
/// Pieces of work that wait for each worker.
pub const QUEUED_PER_WORKER: usize = 1;
/// Copies of one blob that are tried before it is given up.
pub const COPIES_TRIED: usize = 8;
/// Attempts at one fetch while controllers are away.
pub const FETCH_ATTEMPTS: u32 = 5;
/// Calls that one fetch of many ids has under way.
pub const CALLS_IN_FLIGHT: usize = 4;
/// Packs whose directories are read at once.
pub const PACKS_IN_FLIGHT: usize = 8;
/// Blobs of one pack that lie closer than this are read together.
pub const READ_GAP: u64 = 64 * 1024;
/// Longest read of several blobs together.
pub const READ_MAX: u64 = 8 * MIB as u64;

const _: () = assert!(REGION_BYTES + CHUNK_MAX <= CONTENT_IN_FLIGHT);
const _: () = assert!(REGION_BYTES + REGION_PART_CHUNKS * PART_CHUNK <= CONTENT_IN_FLIGHT);
