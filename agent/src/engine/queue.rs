//! The workers' shared queue: a stack of directories and files, so that the walk goes depth first
//! and little is open at once, and before it the pieces of large files that are in memory already.

use super::{directory::Directory, piece::Piece, section::Section};
use holdfast_core::limits::CHUNK_BYTES_QUEUED;
use parking_lot::{Condvar, Mutex};
use std::{collections::VecDeque, sync::Arc};

/// A unit of work.
pub(super) enum Task {
    /// Begin the directory at an index of a section, which is on that device.
    List(Arc<Section>, u32, u64),
    /// Begin the next section of a wide directory.
    Next(Arc<Directory>),
    /// Read these small files of a section, by index.
    Small(Arc<Section>, Vec<u32>),
    /// Read one large file of a section.
    Large(Arc<Section>, u32),
    /// Store a piece of a large file.
    Piece(Piece),
}

#[derive(Default)]
struct State {
    stack: Vec<Task>,
    pieces: VecDeque<Piece>,
    piece_bytes: usize,
    /// Tasks taken and not yet done: they may push more.
    active: usize,
    stopped: bool,
}

/// The queue. Its stack is bounded by the depth of the tree times the few sections that may be open of each
/// directory on the path, which the walk holds anyway: a task at most for each entry of a section.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    /// Adds tasks; the last is taken first.
    pub fn push_tasks(&self, tasks: Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        self.state.lock().stack.extend(tasks);
        self.changed.notify_all();
    }

    /// Adds a piece if there is room; gives it back otherwise, for the caller to store itself.
    pub fn offer_piece(&self, piece: Piece) -> Option<Piece> {
        let mut state = self.state.lock();
        let len = piece.len();
        if state.piece_bytes + len > CHUNK_BYTES_QUEUED {
            return Some(piece);
        }
        state.piece_bytes += len;
        state.pieces.push_back(piece);
        drop(state);
        self.changed.notify_one();
        None
    }

    /// The next task; waits while others may still add some; `None` when all is done or stopped.
    pub fn take(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(piece) = state.pieces.pop_front() {
                state.piece_bytes -= piece.len();
                state.active += 1;
                return Some(Task::Piece(piece));
            }
            if let Some(task) = state.stack.pop() {
                state.active += 1;
                return Some(task);
            }
            if state.active == 0 {
                self.changed.notify_all();
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// A taken task is done, with all that it added.
    pub fn done(&self) {
        let mut state = self.state.lock();
        state.active -= 1;
        if state.active == 0 {
            self.changed.notify_all();
        }
    }

    /// Wakes everyone to stop.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }
}
