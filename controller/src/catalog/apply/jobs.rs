//! Jobs: one winner per attempt, and an end for every job.

use super::{Context, Outcome, clusters, refuse, sessions, test_restores};
use crate::catalog::{
    command::Reply,
    keys,
    kv::Read,
    model::{Job, JobOutcome, JobState, JobWork, RunStats, SessionState, SnapshotState},
    query::Queries,
};
use holdfast_core::{ErrorKind, JobId, Name, SourceRef};

/// Attempts that a backup gets by itself when its agent is lost.
const ATTEMPTS_MAX: u32 = 3;
/// Longest error text kept with a job, in characters.
const ERROR_MAX: usize = 2000;
/// Most findings kept with a check: more than there are things to find, and a bound on the job's record.
const FINDINGS_MAX: usize = 16;
/// Most paths of one restore.
const RESTORE_PATHS_MAX: usize = 1000;
/// Longest path of one, or pattern, in bytes: PATH_MAX. The agent holds patterns against every name that it meets.
const RESTORE_PATH_MAX: usize = 4096;

pub(super) fn create<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: JobId,
    work: &JobWork,
    source_name: &SourceRef,
    agent: &Name,
) -> Outcome {
    if cx.txn.job(id)?.is_some() {
        return refuse(ErrorKind::Conflict, format!("job {id} exists already"));
    }
    if cx.txn.agent(agent)?.is_none() {
        return refuse(ErrorKind::NotFound, format!("there is no agent {agent}"));
    }
    match work {
        JobWork::Backup => {
            let Some(mut source) = cx.txn.source(source_name)? else {
                return refuse(ErrorKind::NotFound, format!("there is no source {source_name}"));
            };
            sessions::check_serves(&source, agent)?;
            if let Some(job) = source.active_job {
                return refuse(
                    ErrorKind::Conflict,
                    format!(
                        "source {source_name} has job {job} that is not over; wait, or: holdfastctl job cancel {job}"
                    ),
                );
            }
            if let Some(system_id) = clusters::of(&source) {
                clusters::check_free(cx, system_id, id)?;
            }
            source.active_job = Some(id);
            cx.txn.put(keys::source(source_name), &source)?;
        }
        JobWork::Check => {
            let Some(source) = cx.txn.source(source_name)? else {
                return refuse(ErrorKind::NotFound, format!("there is no source {source_name}"));
            };
            if source.postgres.is_none() {
                return refuse(
                    ErrorKind::Invalid,
                    format!("source {source_name} is of files; only PostgreSQL sources are checked"),
                );
            }
            sessions::check_serves(&source, agent)?;
        }
        JobWork::TestRestore(spec) => test_restores::check(cx, source_name, spec)?,
        JobWork::Restore(spec) => {
            let is_visible = cx
                .txn
                .snapshot(spec.snapshot)?
                .is_some_and(|s| s.state == SnapshotState::Visible);
            if !is_visible {
                return refuse(
                    ErrorKind::NotFound,
                    format!("there is no snapshot {} to restore", spec.snapshot),
                );
            }
            if spec.paths.len() > RESTORE_PATHS_MAX {
                return refuse(
                    ErrorKind::TooLarge,
                    format!("a restore names at most {RESTORE_PATHS_MAX} paths"),
                );
            }
            let mut paths = spec.paths.iter().chain([&spec.target]);
            if paths.any(|path| path.len() > RESTORE_PATH_MAX) {
                return refuse(
                    ErrorKind::TooLarge,
                    format!("a path of a restore has at most {RESTORE_PATH_MAX} bytes"),
                );
            }
        }
    }
    let job = Job {
        id,
        work: work.clone(),
        source: source_name.clone(),
        agent: agent.clone(),
        state: JobState::Queued,
        attempt: 1,
        created_at: cx.now,
        started_at: 0,
        finished_at: 0,
        outcome: None,
        session: None,
        requested_by: cx.proposal.actor.to_string(),
        trace: cx.proposal.trace.chars().take(128).collect(),
    };
    cx.txn.put(keys::job_active(agent, id), &id)?;
    save(cx, job)
}

pub(super) fn offer<R: Read>(cx: &mut Context<'_, '_, R>, id: JobId, attempt: u32) -> Outcome {
    let mut job = find(cx, id, attempt)?;
    if job.state == JobState::Queued {
        job.state = JobState::Offered;
    }
    save(cx, job)
}

pub(super) fn start<R: Read>(cx: &mut Context<'_, '_, R>, id: JobId, attempt: u32) -> Outcome {
    let mut job = find(cx, id, attempt)?;
    if !matches!(job.state, JobState::Queued | JobState::Offered) {
        return refuse(
            ErrorKind::Conflict,
            format!("attempt {attempt} of job {id} is {} already", job.state.as_str()),
        );
    }
    job.state = JobState::Running;
    job.started_at = cx.now;
    save(cx, job)
}

pub(super) fn finish<R: Read>(
    cx: &mut Context<'_, '_, R>,
    id: JobId,
    attempt: u32,
    outcome: &JobOutcome,
) -> Outcome {
    let job = find(cx, id, attempt)?;
    if job.state.is_over() {
        // The first report counts; an agent that did not get the answer reports again.
        return Ok(Reply::Job(Box::new(job)));
    }
    if !outcome.state.is_over() {
        return refuse(
            ErrorKind::Invalid,
            "a job cannot end in a state that is not an end",
        );
    }
    let mut outcome = JobOutcome {
        error: outcome.error.chars().take(ERROR_MAX).collect(),
        findings: outcome.findings.iter().take(FINDINGS_MAX).cloned().collect(),
        test: match job.work {
            JobWork::TestRestore(_) => outcome.test.clone(),
            _ => None,
        },
        ..outcome.clone()
    };
    if job.work == JobWork::Backup {
        match committed_outcome(cx, &job)? {
            // What the catalog holds counts, whatever the agent believes.
            Some(committed) => {
                outcome = JobOutcome {
                    limits: outcome.limits,
                    ..committed
                }
            }
            None if matches!(outcome.state, JobState::Succeeded | JobState::Partial) => {
                outcome.state = JobState::Failed;
                outcome.error_kind = Some(ErrorKind::Internal);
                "the agent reports success, but no snapshot was committed".clone_into(&mut outcome.error);
                outcome.snapshot = None;
            }
            None => outcome.snapshot = None,
        }
    }
    end(cx, job, outcome, "its job ended")
}

pub(super) fn lose<R: Read>(cx: &mut Context<'_, '_, R>, id: JobId, attempt: u32, reason: &str) -> Outcome {
    let mut job = find(cx, id, attempt)?;
    match job.state {
        JobState::Queued => return Ok(Reply::Job(Box::new(job))),
        JobState::Offered => {
            job.state = JobState::Queued;
            return save(cx, job);
        }
        JobState::Running => {}
        over => {
            return refuse(
                ErrorKind::Conflict,
                format!("job {id} is {} already", over.as_str()),
            );
        }
    }
    if let Some(committed) = committed_outcome(cx, &job)? {
        return end(cx, job, committed, reason);
    }
    let reason: String = reason.chars().take(ERROR_MAX).collect();
    match job.work {
        JobWork::Backup if job.attempt < ATTEMPTS_MAX => {
            end_session(cx, &job, &reason)?;
            job.state = JobState::Queued;
            job.attempt += 1;
            job.started_at = 0;
            job.session = None;
            save(cx, job)
        }
        JobWork::Backup => {
            let outcome = over(
                JobState::Failed,
                ErrorKind::Unavailable,
                format!("lost {ATTEMPTS_MAX} times: {reason}"),
            );
            end(cx, job, outcome, &reason)
        }
        JobWork::Check | JobWork::TestRestore(_) => {
            let outcome = over(JobState::Interrupted, ErrorKind::Interrupted, reason.clone());
            end(cx, job, outcome, &reason)
        }
        JobWork::Restore(_) => {
            let text = format!(
                "{reason}; what was restored so far is in the target, start it again with --in-place"
            );
            end(
                cx,
                job,
                over(JobState::Interrupted, ErrorKind::Interrupted, text),
                &reason,
            )
        }
    }
}

pub(super) fn cancel<R: Read>(cx: &mut Context<'_, '_, R>, id: JobId) -> Outcome {
    let Some(job) = cx.txn.job(id)? else {
        return refuse(ErrorKind::NotFound, format!("there is no job {id}"));
    };
    if job.state.is_over() {
        return refuse(
            ErrorKind::Conflict,
            format!("job {id} is over: {}", job.state.as_str()),
        );
    }
    if let Some(committed) = committed_outcome(cx, &job)? {
        return end(cx, job, committed, "its snapshot is visible");
    }
    let text = format!("cancelled by {}", cx.proposal.actor);
    end(
        cx,
        job,
        over(JobState::Cancelled, ErrorKind::Interrupted, text.clone()),
        &text,
    )
}

fn over(state: JobState, kind: ErrorKind, error: String) -> JobOutcome {
    JobOutcome {
        state,
        error_kind: Some(kind),
        error,
        snapshot: None,
        stats: RunStats::default(),
        limits: None,
        findings: Vec::new(),
        test: None,
    }
}

/// How a backup ended if its session made a snapshot.
fn committed_outcome<R: Read>(cx: &Context<'_, '_, R>, job: &Job) -> Outcome<Option<JobOutcome>> {
    let Some(session) = job.session else {
        return Ok(None);
    };
    let Some(session) = cx.txn.session(session)? else {
        return Ok(None);
    };
    if session.state != SessionState::Committed {
        return Ok(None);
    }
    let Some(snapshot) = cx.txn.snapshot(session.snapshot)? else {
        return Ok(None);
    };
    Ok(Some(JobOutcome {
        state: if snapshot.partial {
            JobState::Partial
        } else {
            JobState::Succeeded
        },
        error_kind: snapshot.partial.then_some(ErrorKind::Partial),
        error: if snapshot.partial {
            format!("{} things could not be read", snapshot.stats.unreadable)
        } else {
            String::new()
        },
        snapshot: Some(snapshot.id),
        stats: snapshot.stats,
        limits: None,
        findings: Vec::new(),
        test: None,
    }))
}

fn find<R: Read>(cx: &Context<'_, '_, R>, id: JobId, attempt: u32) -> Outcome<Job> {
    let Some(job) = cx.txn.job(id)? else {
        return refuse(ErrorKind::NotFound, format!("there is no job {id}"));
    };
    if job.attempt != attempt {
        return refuse(
            ErrorKind::Conflict,
            format!("job {id} is at attempt {}, not {attempt}", job.attempt),
        );
    }
    Ok(job)
}

fn save<R: Read>(cx: &mut Context<'_, '_, R>, job: Job) -> Outcome {
    cx.txn.put(keys::job(job.id), &job)?;
    Ok(Reply::Job(Box::new(job)))
}

fn end_session<R: Read>(cx: &mut Context<'_, '_, R>, job: &Job, reason: &str) -> Outcome<()> {
    if let Some(session) = job.session
        && let Some(session) = cx.txn.session(session)?
        && session.state == SessionState::Open
    {
        sessions::end(cx, session, SessionState::Closed, reason)?;
    }
    Ok(())
}

fn end<R: Read>(cx: &mut Context<'_, '_, R>, mut job: Job, outcome: JobOutcome, reason: &str) -> Outcome {
    end_session(cx, &job, reason)?;
    cx.txn.delete(keys::job_active(&job.agent, job.id));
    if let Some(mut source) = cx.txn.source(&job.source)?
        && source.active_job == Some(job.id)
    {
        source.active_job = None;
        cx.txn.put(keys::source(&job.source), &source)?;
    }
    test_restores::remember(cx, &job, &outcome)?;
    job.state = outcome.state;
    job.finished_at = cx.now;
    job.outcome = Some(outcome);
    save(cx, job)
}
