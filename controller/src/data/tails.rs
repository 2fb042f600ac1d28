//! Whether WAL of a source may wait in an agent's spool: what the catalog noted, and what the agents say now.
//!
//! **Architecture invariant.** A journal is called complete only when each agent whose spool may hold more of it has said, after
//! it was asked, that there is nothing. Its word from before the question does not count: it may have taken WAL in since.

use crate::{
    api::fleet::Fleet,
    catalog::{CatalogView, Queries, model::Tail},
    error::Result,
};
use holdfast_core::{Name, SourceRef};
use holdfast_proto::v1::{JournalTail, Queue, QueueReport};

/// The tails of a source's journal, each agent asked now. One that asks itself has looked into its own spool.
pub(crate) async fn ask(
    view: &CatalogView,
    fleet: &dyn Fleet,
    source: &SourceRef,
    asking: Option<&Name>,
) -> Result<Vec<JournalTail>> {
    let journal = view.source(source)?.and_then(|source| source.journal);
    let mut tails = Vec::new();
    for tail in journal.map(|journal| journal.tails).unwrap_or_default() {
        let report = fleet.ask_queues(&tail.agent).await;
        let queue =
            queue_of(report.as_ref(), &tail.agent, source).filter(|queue| queue.mark == tail.mark[..]);
        let is_own = asking == Some(&tail.agent);
        if is_own && queue.is_some() {
            continue;
        }
        let state = judge(report.is_some(), queue);
        tails.push(to_wire(tail, state));
    }
    Ok(tails)
}

fn to_wire(tail: Tail, (is_open, why): (bool, String)) -> JournalTail {
    let Tail {
        agent,
        incarnation: _,
        mark: _,
        opened_at,
    } = tail;
    JournalTail {
        agent: agent.to_string(),
        opened_at,
        is_open,
        why,
    }
}

/// Whether an agent's spool may hold something, and how that is known.
fn judge(has_answered: bool, queue: Option<&Queue>) -> (bool, String) {
    let Some(queue) = queue else {
        let why = if has_answered {
            "the agent does not have that spool: its state was lost, or its host joined anew"
        } else {
            "the agent is away, so what its spool holds is not known"
        };
        return (true, why.into());
    };
    match (queue.spool_files, queue.aside_files) {
        (0, 0) => (false, "its spool is empty".into()),
        (waiting, 0) => (true, format!("{waiting} files wait in its spool")),
        (waiting, aside) => (
            true,
            format!(
                "{waiting} files wait in its spool, and {aside} are set aside there (damaged, or refused)"
            ),
        ),
    }
}

/// What an agent's report says of a source: by its name alone if it is the agent's own, else by all of its address.
pub(crate) fn queue_of<'r>(
    report: Option<&'r QueueReport>,
    agent: &Name,
    source: &SourceRef,
) -> Option<&'r Queue> {
    let address = source.to_string();
    let name = if source.agent == *agent {
        source.source.as_str()
    } else {
        &address
    };
    report?.queues.iter().find(|queue| queue.source == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_says_empty_closes_a_tail() {
        let queue = |spool_files, aside_files| Queue {
            spool_files,
            aside_files,
            ..Queue::default()
        };
        assert!(judge(false, None).0);
        assert!(judge(true, None).0);
        assert!(judge(true, Some(&queue(1, 0))).0);
        assert!(judge(true, Some(&queue(0, 1))).0);
        assert!(!judge(true, Some(&queue(0, 0))).0);
    }

    #[test]
    fn an_agents_own_source_is_not_taken_for_that_of_which_it_is_a_member() {
        let report = QueueReport {
            question: 0,
            queues: [("main", 1), ("db1/main", 2)]
                .map(|(source, spool_files)| Queue {
                    source: source.into(),
                    spool_files,
                    ..Queue::default()
                })
                .into(),
        };
        let files = |agent: &str, source: &str| {
            queue_of(Some(&report), &agent.parse().unwrap(), &source.parse().unwrap())
                .map(|queue| queue.spool_files)
        };
        assert_eq!(files("db2", "db2/main"), Some(1));
        assert_eq!(files("db2", "db1/main"), Some(2));
        assert_eq!(files("db2", "db3/main"), None);
    }
}
