//! Every bound of the system, named, with its reason. Sizes are in bytes.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// --- Engine -----------------------------------------------------------------

/// Largest raw content of one chunk: bounds every decompression and every buffer that holds one.
pub const CHUNK_MAX: usize = 4 * MIB;
/// Smallest content-defined chunk, save the last of a file.
pub const CHUNK_MIN: usize = 128 * KIB;
/// Size that content-defined chunks gather around.
pub const CHUNK_AVG: usize = 1024 * KIB;
/// Length of a segment of a file that is rewritten in place.
pub const SEGMENT_LEN: usize = MIB;
/// Most different chunks that one segment is made of: bounds what must be fetched to read it.
pub const SEGMENT_CHUNKS_MAX: usize = 64;
/// Most parts of one segment.
pub const SEGMENT_EXTENTS_MAX: usize = 256;
/// Most links of one node: a damaged or hostile node cannot make a walker hold more.
pub const NODE_LINKS_MAX: usize = 2048;
/// Largest raw payload of a node.
pub const NODE_PAYLOAD_MAX: usize = 2 * MIB;
/// Deepest tree of nodes for one file or one directory; 1000^6 entries are beyond any file.
pub const NODE_DEPTH_MAX: usize = 8;
/// Deepest nesting of directories: PATH_MAX allows 2048 one-letter names.
pub const DIR_DEPTH_MAX: usize = 2048;
/// Longest file name: NAME_MAX on Linux.
pub const FILE_NAME_MAX: usize = 255;
/// Longest name of an extended attribute, and longest value: XATTR_NAME_MAX and XATTR_SIZE_MAX on Linux.
pub const XATTR_NAME_MAX: usize = 255;
/// See [`XATTR_NAME_MAX`].
pub const XATTR_VALUE_MAX: usize = 64 * KIB;
/// Most extended attributes of one entry: Linux lists at most 64 KiB of names.
pub const XATTRS_MAX: usize = 1024;
/// Longest attributes of one entry together: half of a directory's leaf, so that every entry fits into one.
pub const ATTRIBUTES_LEN_MAX: usize = 256 * KIB;
/// Longest attributes of all of a snapshot's trees together: they stand in its root object.
pub const ROOT_ATTRIBUTES_LEN_MAX: usize = 64 * KIB;
/// A pack is closed once it holds this much. Half of what the design began with: an agent keeps a
/// closed pack until it is acknowledged, and its memory bound is 128 MiB.
pub const PACK_TARGET: usize = 16 * MIB;
/// Longest pack that is accepted: the target, one largest blob and the directory.
pub const PACK_MAX: usize = 64 * MIB;
/// Most blobs of one pack: bounds the directory that a reader must hold.
pub const PACK_BLOBS_MAX: usize = 64 * 1024;
/// Largest root object.
pub const ROOT_MAX: usize = 256 * KIB;
/// Largest key object or grant.
pub const KEY_OBJECT_MAX: usize = 64 * KIB;

// --- Wire -------------------------------------------------------------------

/// Largest gRPC message: a batch of blobs holds at least one largest blob with its header.
pub const MESSAGE_MAX: usize = 8 * MIB;
/// Piece in which packs travel: large enough for throughput, small enough for fair streams.
pub const FRAME_LEN: usize = 512 * KIB;
/// Most ids in one query or fetch.
pub const IDS_PER_QUERY: usize = 1024;
/// Most rows in one page of a list.
pub const LIST_PAGE: usize = 1000;
/// A TLS handshake that takes longer is cut.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections whose handshake is not finished.
pub const HANDSHAKES_MAX: usize = 256;
/// Most concurrent streams of one HTTP/2 connection.
pub const STREAMS_PER_CONNECTION: u32 = 256;
/// HTTP/2 window of one stream: a pack in flight needs no more to fill a fast link.
pub const STREAM_WINDOW: u32 = 8 * MIB as u32;
/// HTTP/2 window of one connection: what a peer can make us hold for it, all streams together.
pub const CONNECTION_WINDOW: u32 = 32 * MIB as u32;
/// HTTP/2 frame: few enough headers for throughput, small enough for fair streams.
pub const HTTP2_FRAME: u32 = 256 * KIB as u32;
/// Bytes that wait encrypted on one connection: a frame is written to the socket at once.
pub const TLS_BUFFER: usize = HTTP2_FRAME as usize + 16 * KIB;
/// Most bytes of headers in one request.
pub const HEADERS_MAX: u32 = 16 * KIB as u32;
/// Most connections of one server, all peers together.
pub const CONNECTIONS_MAX: usize = 8192;
/// A connection without a client certificate can only join; it is cut after this long.
pub const JOIN_CONNECTION_MAX: Duration = Duration::from_secs(60);
/// A silent peer is asked for a sign of life this often, and given this long to answer.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// Longest wait for a connection to one address, handshake included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that run when a server stops are given this long to end.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Largest catalog copy or other blob that is sealed as a whole.
pub const SEALED_BLOB_MAX: usize = 256 * MIB;
/// Packs that one agent has under way to a controller: while one is sent, another waits for its syncs, and the next
/// is filled. Each is held in memory until it is acknowledged.
pub const UPLOADS_IN_FLIGHT: usize = 2;

// --- Controller -------------------------------------------------------------

/// A lease that is not renewed ends after this long; three renewals fit.
pub const LEASE_TTL: Duration = Duration::from_secs(60);
/// Longest wait before a batch of registrations is proposed.
pub const REGISTER_BATCH_DELAY: Duration = Duration::from_millis(20);
/// Most registrations in one Raft entry.
pub const REGISTER_BATCH: usize = 256;
/// Largest value in sled: larger ones go to files that it never syncs.
pub const SLED_VALUE_MAX: usize = 4 * KIB;
/// Longest list of unreadable or missing things kept with a run; the count is always exact.
pub const LISTED_PROBLEMS_MAX: usize = 100;
/// Client request ids are remembered this long, so that a retry acts once.
pub const REQUEST_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// How long a deleted snapshot can be brought back, unless told otherwise.
pub const UNDO_PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the packs of an interrupted run wait for the next one.
pub const ORPHAN_PACKS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Join tokens live at most this long.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Most files of one page of a journal: a page's root object and its records stay far below their bounds.
pub const JOURNAL_PAGE_FILES: usize = 64;
/// Contents that are kept beside the first one of a name, for people to look at; more than these tell nothing new.
pub const JOURNAL_DIVERGENT_LISTED: usize = 8;
/// Longest name of a file in a journal; those of PostgreSQL have up to 41 characters.
pub const JOURNAL_NAME_MAX: usize = 64;
/// Agents whose spools may hold WAL of one source: its members, and hosts that were joined anew; the record of a source stays short.
pub const JOURNAL_TAILS_MAX: usize = 16;
/// Members of a source beside its own agent: with hosts that are joined anew, their spools stay below `JOURNAL_TAILS_MAX`. Nobody has
/// more standbys of one cluster that archive.
pub const SOURCE_MEMBERS_MAX: usize = 8;
/// Most names in one question to a journal.
pub const JOURNAL_NAMES_ASKED: usize = 64;

// --- Agent ------------------------------------------------------------------

/// Raw chunk bytes that wait for a worker, all together.
pub const CHUNK_BYTES_QUEUED: usize = 6 * MIB;
/// Times a commit is tried again after the controller asked for missing chunks.
pub const COMMIT_RETRIES: usize = 3;
/// Slowest bandwidth or read rate that a source may ask for, in bytes per second: below it a run would hardly end.
pub const RATE_MIN: u64 = 1024;
/// Fastest one: faster than any host, and far from where arithmetic ends.
pub const RATE_MAX: u64 = 1 << 40;
/// The CPU weight of a thread of normal priority; also the highest that can be asked for.
pub const CPU_WEIGHT_MAX: u32 = 100;
/// Lowest I/O priority of Linux.
pub const IO_PRIORITY_MAX: u32 = 7;
/// Most warnings about limits that are kept with a job.
pub const LIMIT_WARNINGS_MAX: usize = 4;
/// First and longest pause between attempts to reach a controller.
pub const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

// --- PostgreSQL -------------------------------------------------------------

/// Longest backup label or backup history file: ten lines, of which the server bounds the label's text to 1 KiB.
pub const PG_BACKUP_LABEL_MAX: usize = 8 * KIB;
/// Longest timeline history file: about ten thousand promotions, one line each.
pub const PG_HISTORY_MAX: usize = MIB;
/// Most ranges of archived WAL of one source: an archive without gaps has one per timeline.
pub const PG_ARCHIVE_RANGES_MAX: usize = 64 * 1024;
/// Most unlogged relations of one database in one tablespace: their numbers are held while its directory is read, up to
/// some 10 MiB.
pub const PG_UNLOGGED_RELATIONS_MAX: usize = 1024 * 1024;
/// Longest tablespace map: some hundred tablespaces with the longest paths.
pub const PG_TABLESPACE_MAP_MAX: usize = MIB;
/// Longest file of settings: `ALTER SYSTEM` writes a line per setting, of which there are some hundred.
pub const PG_SETTINGS_MAX: usize = MIB;
/// Longest command that servers call, all replaced: up to 15 they cut it there (MAXPGPATH without the zero at its end).
pub const PG_COMMAND_MAX: usize = 1023;
