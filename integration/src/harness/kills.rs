//! Who is killed when, among a server that archives, its agent and the controller.

use super::{Archiving, Process, Trap, archiving::AGENT};
use crate::wait;
use std::{fs, time::Duration};

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The agent on the server's host.
    Agent,
    /// The controller.
    Controller,
    /// PostgreSQL; kill -9 of it is what an immediate stop is at its worst.
    Server,
}

impl Archiving {
    /// The process of one that announces phases.
    ///
    /// # Panics
    /// For the server, which announces none.
    #[must_use]
    pub fn watched(&self, who: Who) -> &Process {
        match who {
            Who::Agent => self.cluster.agent_process(AGENT),
            Who::Controller => self.cluster.controller(),
            Who::Server => panic!("servers announce no phases"),
        }
    }

    /// Kills `victim` when `watched` is next in `phase`; the server by [`Self::spring`], which must be called in any case.
    pub fn arm(&self, watched: Who, phase: &str, delay: Duration, victim: Who) {
        let handle = match victim {
            Who::Agent | Who::Controller => self.watched(victim).victim(),
            Who::Server => return,
        };
        self.watched(watched).arm(Trap {
            phase: phase.into(),
            nth: 1,
            delay,
            victim: Some(handle),
        });
    }

    /// Waits until `watched` is in `phase`, counting from `mark`, and `victim` was killed in it; then it is started again.
    /// Gives up, and says so, when `is_over` before that.
    pub fn spring(
        &mut self,
        watched: Who,
        (phase, mark): (&str, usize),
        victim: Who,
        is_over: impl Fn() -> bool,
    ) -> bool {
        let came = wait::poll(wait::PATIENCE, || {
            // In this order: what came came before it was over.
            let is_over = is_over();
            let process = self.watched(watched);
            let came = match victim {
                Who::Server => process.announced(mark, phase),
                Who::Agent | Who::Controller => process.sprung(),
            };
            (came || is_over).then_some(came)
        });
        let came = came.unwrap_or_else(|| panic!("{phase} of {watched:?} did not come"));
        self.watched(watched).disarm();
        if came {
            self.kill(victim);
            self.restart(victim);
        }
        came
    }

    fn kill(&mut self, who: Who) {
        match who {
            Who::Agent => self.cluster.kill_agent(AGENT),
            Who::Controller => self.cluster.kill_controller(),
            Who::Server => self.server.kill(),
        }
    }

    fn restart(&mut self, who: Who) {
        match who {
            Who::Agent => self.cluster.start_agent(AGENT, None),
            Who::Controller => self.cluster.start_controller(None),
            Who::Server => {
                let _ = fs::remove_file(self.server.data().join("postmaster.pid"));
                self.server.start();
            }
        }
    }
}
