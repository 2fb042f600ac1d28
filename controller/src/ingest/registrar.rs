//! Registers packs through Raft, many in one entry.
//!
//! No timer: an entry takes with it all that came while the one before was being agreed on. Alone, a pack waits
//! for nothing; under load the batches grow by themselves.

use crate::{
    catalog::{Actor, Command, PackOutcome, PackRegistration, Reply},
    error::{Error, Result},
    raft::Catalog,
};
use holdfast_core::limits;
use tokio::sync::{mpsc, oneshot};

type Waiting = (PackRegistration, oneshot::Sender<Result<PackOutcome>>);

/// The way to the catalog for packs. Cheap to clone; ends when all clones are dropped.
#[derive(Clone)]
pub struct Registrar {
    queue: mpsc::Sender<Waiting>,
}

impl Registrar {
    /// Starts the task that proposes.
    #[must_use]
    pub fn start(catalog: Catalog) -> Self {
        let (queue, waiting) = mpsc::channel(limits::REGISTER_BATCH);
        tokio::spawn(run(catalog, waiting));
        Self { queue }
    }

    /// Registers one pack; returns when the catalog has applied it.
    ///
    /// # Errors
    /// `Unavailable` when nobody can say what came of it; registering again is safe.
    pub async fn register(&self, pack: PackRegistration) -> Result<PackOutcome> {
        let ended = || Error::Unavailable("the controller stops".into());
        let (answer, outcome) = oneshot::channel();
        self.queue.send((pack, answer)).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }
}

async fn run(catalog: Catalog, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch: Vec<Waiting> = Vec::with_capacity(limits::REGISTER_BATCH);
    while queue.recv_many(&mut batch, limits::REGISTER_BATCH).await > 0 {
        let packs = batch.iter().map(|(pack, _)| pack.clone()).collect();
        let reply = catalog
            .propose(Actor::System, None, Command::RegisterPacks { packs })
            .await;
        answer(batch.drain(..).map(|(_, answer)| answer).collect(), reply);
    }
}

fn answer(waiting: Vec<oneshot::Sender<Result<PackOutcome>>>, reply: Result<Reply>) {
    let failed: Box<dyn Fn() -> Error> = match reply {
        Ok(Reply::Packs(outcomes)) if outcomes.len() == waiting.len() => {
            for (answer, outcome) in waiting.into_iter().zip(outcomes) {
                // Whoever does not wait any more asks again.
                let _ = answer.send(Ok(outcome));
            }
            return;
        }
        Ok(other) => {
            Box::new(move || Error::Internal(format!("registering packs was answered by {other:?}")))
        }
        Err(Error::Refused(refusal)) => Box::new(move || Error::Refused(refusal.clone())),
        Err(error) => Box::new(move || Error::Unavailable(error.to_string())),
    };
    for answer in waiting {
        let _ = answer.send(Err(failed()));
    }
}
