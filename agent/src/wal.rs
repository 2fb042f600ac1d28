//! The WAL archive: what `archive_command` pushes and `restore_command` fetches.
//!
//! A server runs `holdfast-agent wal push` and `wal fetch`. These are small clients of the running agent, over a socket in the
//! file system (`protocol.rs`). The agent knows who calls by the socket's other end, reads files itself, and says *kept* only
//! when the controllers hold them: their bytes on disk, their names in the catalog. Files of several names go into one page of
//! the source's journal; what the server has ready is taken along.
//!
//! Where `agent.toml` allows a spool, a file is *kept* when it is durable there, and goes to the controllers by itself
//! (`spool.rs`, `archive/spooling.rs`, `archive/drain.rs`). They know of every such spool before that (`tail.rs`), so that nobody
//! calls a journal complete which is not.

mod archive;
mod archives;
mod blank;
mod caller;
mod client;
mod cluster_files;
mod fetched;
mod past_cache;
mod protocol;
mod queue;
mod sealing;
mod server;
mod spool;
mod spooled;
mod tail;

pub use archives::Archives;
pub(crate) use caller::{check as check_caller, user_name};
pub use client::{Fetch, Push, fetch, push};
pub use server::serve;
