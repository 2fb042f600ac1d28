//! Several files on their way into a spool: sealed side by side, each synced on its own while others are sealed, and given their
//! names in their order, as many at a time as are ready behind one sync of the directory.

use super::{Spool, UNFINISHED, room_for, spooled, sync};
use crate::{
    error::{AgentError, Result},
    wal::{cluster_files::Candidate, sealing::Sealing, spool::Held, spooled::Note},
};
use parking_lot::Mutex;
use std::{fs, path::PathBuf};

/// A file whose bytes are on the disk, under a name that does not count.
struct Written {
    note: Note,
    unfinished: PathBuf,
    disk: u64,
}

/// The files of one call, and how far each of them is.
struct Line<'a> {
    spool: &'a Spool,
    sealing: Sealing,
    files: &'a [Candidate],
    system_id: u64,
    is_over: &'a (dyn Fn() -> bool + Sync),
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The next one to be begun.
    next: usize,
    /// What is written and has no name yet, by place.
    written: Vec<Option<Written>>,
    /// So many from the first have their names.
    named: usize,
    /// Somebody gives names.
    is_naming: bool,
    /// Room for what has no name yet.
    pending: u64,
    /// Nothing more is begun. Why: of the first file that could not be taken in, with its place.
    failed: Option<(usize, AgentError)>,
}

impl Spool {
    /// Takes files in, the first first: one is there only with all before it. How many were; and if not all, why, unless `is_over`
    /// said to stop. Those are durable when this returns. One call at a time; blocks.
    pub fn put_all(
        &self,
        sealing: &Sealing,
        files: &[Candidate],
        system_id: u64,
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> (usize, Option<AgentError>) {
        // One is cut into pieces; of several, each thread has its own, and one more works while another waits for the disk.
        let (writers, workers) = match files.len() {
            0 => return (0, None),
            1 => (1, sealing.workers),
            many => (many.min(sealing.workers + 1), 1),
        };
        let line = Line {
            spool: self,
            sealing: Sealing {
                workers,
                ..sealing.clone()
            },
            files,
            system_id,
            is_over,
            state: Mutex::new(State {
                written: files.iter().map(|_| None).collect(),
                ..State::default()
            }),
        };
        std::thread::scope(|scope| {
            for _ in 1..writers {
                scope.spawn(|| line.work());
            }
            line.work();
        });
        let state = line.state.into_inner();
        for left in state.written.into_iter().flatten() {
            let _ = fs::remove_file(left.unfinished);
        }
        (state.named, state.failed.map(|(_, error)| error))
    }
}

impl Line<'_> {
    fn work(&self) {
        while let Some(at) = self.begin() {
            match self.write(at) {
                Ok(written) => self.state.lock().written[at] = Some(written),
                Err(error) => self.fail(at, error),
            }
            self.name_what_is_ready();
        }
    }

    /// The place of the next file, if it may be begun.
    fn begin(&self) -> Option<usize> {
        let mut state = self.state.lock();
        if state.failed.is_some() || (self.is_over)() {
            return None;
        }
        let at = state.next;
        let len = self.files.get(at)?.len;
        let waiting = (at - state.named) as u64;
        let room = || self.spool.check_room(len, waiting, state.pending);
        if let Err(error) = self.spool.check_intact().and_then(|()| room()) {
            state.failed = Some((at, error));
            return None;
        }
        state.pending += room_for(len);
        state.next += 1;
        Some(at)
    }

    fn write(&self, at: usize) -> Result<Written> {
        let from = &self.files[at];
        let unfinished = self.spool.dir.join(format!("{}{UNFINISHED}", from.name));
        let written = spooled::write(&self.sealing, from, self.system_id, &unfinished);
        let note = self.spool.synced(written)?;
        let about = fs::metadata(&unfinished).map_err(AgentError::io("look at", &unfinished))?;
        Ok(Written {
            note,
            disk: about.len(),
            unfinished,
        })
    }

    fn fail(&self, at: usize, error: AgentError) {
        let mut state = self.state.lock();
        if state.failed.as_ref().is_none_or(|(first, _)| at < *first) {
            state.failed = Some((at, error));
        }
    }

    /// Gives names from the first file without one on. One thread does at a time, and does what the others leave meanwhile.
    fn name_what_is_ready(&self) {
        loop {
            let (from, ready) = {
                let mut state = self.state.lock();
                let from = state.named;
                if state.is_naming {
                    return;
                }
                let ready: Vec<Written> = state.written[from..].iter_mut().map_while(Option::take).collect();
                if ready.is_empty() {
                    return;
                }
                state.is_naming = true;
                (from, ready)
            };
            let files = &self.files[from..][..ready.len()];
            let named = self.spool.name(files, &ready);
            let mut state = self.state.lock();
            state.is_naming = false;
            match named {
                Ok(()) => {
                    state.named += files.len();
                    state.pending -= files.iter().map(|file| room_for(file.len)).sum::<u64>();
                }
                Err(error) => {
                    state.failed = Some((from, error));
                    return;
                }
            }
        }
    }
}

impl Spool {
    /// Gives files that are on the disk their names, durably, and notes them.
    fn name(&self, files: &[Candidate], ready: &[Written]) -> Result<()> {
        self.check_intact()?;
        tracing::debug!(target: "holdfast::phase", phase = "spool-rename");
        {
            // Under the lock, so that who removes a file by its generation removes that very file.
            let mut index = self.index.lock();
            for written in ready {
                let path = self.dir.join(&written.note.name);
                rustix::fs::rename(&written.unfinished, &path)
                    .map_err(AgentError::io("rename", &written.unfinished))?;
            }
            self.synced(sync(&self.dir))?;
            for (from, written) in files.iter().zip(ready) {
                index.generation += 1;
                let held = Held {
                    generation: index.generation,
                    len: written.note.len,
                    disk: written.disk,
                    content: Some(written.note.content),
                    stamp: Some(from.stamp()),
                    at: written.note.spooled_at,
                    is_damaged: false,
                };
                let before = index.files.insert(written.note.name.clone(), held);
                index.bytes = index.bytes + written.disk - before.map_or(0, |before| before.disk);
            }
        }
        self.changes.send_modify(|count| *count += 1);
        tracing::debug!(target: "holdfast::phase", phase = "spool-kept");
        Ok(())
    }
}
