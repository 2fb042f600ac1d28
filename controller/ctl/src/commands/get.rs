//! `get` and `describe`.

use super::apply;
use crate::{
    address::snapshot_id,
    cli::{DescribeArgs, GetArgs, Kind},
    cluster::{Cluster, pages, wire_source},
    error::{Result, fault, invalid, lift_display},
    output::{self, Format, Row},
    rows::{
        AgentRow, JobRow, JournalDescription, JournalFileRow, MemberRow, SnapshotRow, TailRow, TimelineRow,
        VaultRow,
    },
};
use holdfast_core::{ErrorKind, SourceRef};
use holdfast_proto::v1;
use holdfast_restore::postgres::contents;
use std::{io::IsTerminal as _, time::Duration};

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(super) async fn get(cluster: &Cluster, args: &GetArgs) -> Result<()> {
    let query = Query {
        name: args.name.as_deref(),
        include_deleted: args.include_deleted,
    };
    let mut shown = query.show(cluster, args.kind, args.output).await?;
    output::print(&shown)?;
    if !args.watch {
        return Ok(());
    }
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Err(fault(ErrorKind::Interrupted, "stopped watching")),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
        let now = match query.show(cluster, args.kind, args.output).await {
            Err(fault) if fault.kind.is_transient() => {
                eprintln!("warning: {fault}; looking again");
                continue;
            }
            other => other?,
        };
        if now != shown {
            let clear = if std::io::stdout().is_terminal() {
                CLEAR
            } else {
                ""
            };
            output::print(&format!("{clear}{now}"))?;
            shown = now;
        }
    }
}

pub(super) async fn describe(cluster: &Cluster, args: &DescribeArgs) -> Result<()> {
    if !matches!(args.output, Format::Yaml | Format::Json) {
        return Err(
            invalid("describe knows the forms yaml and json").with_hint("holdfastctl get, for tables")
        );
    }
    let query = Query {
        name: args.name.as_deref(),
        include_deleted: true,
    };
    if args.kind == Kind::Journal {
        // Its files are many; what matters is whether one is missing.
        return output::print(&query.timelines(cluster, args.output).await?);
    }
    output::print(&query.show(cluster, args.kind, args.output).await?)
}

struct Query<'a> {
    name: Option<&'a str>,
    include_deleted: bool,
}

impl Query<'_> {
    async fn show(&self, cluster: &Cluster, kind: Kind, format: Format) -> Result<String> {
        match kind {
            Kind::Snapshots => self.snapshots(cluster, format).await,
            Kind::Sources => self.named(apply::sources(cluster).await?, "source", format),
            Kind::Agents => self.named(agents(cluster).await?, "agent", format),
            Kind::Jobs => self.named(jobs(cluster).await?, "job", format),
            Kind::Members => {
                let request = v1::ListRequest {
                    after: String::new(),
                    limit: 0,
                };
                let answer = cluster.control().list_members(request).await?.into_inner();
                self.named(
                    answer.members.into_iter().map(MemberRow::from).collect(),
                    "member",
                    format,
                )
            }
            Kind::Vaults => self.named(vaults(cluster).await?, "vault", format),
            Kind::Journal => self.journal(cluster, format).await,
        }
    }

    async fn snapshots(&self, cluster: &Cluster, format: Format) -> Result<String> {
        let rows: Vec<SnapshotRow> = match self.name {
            None => cluster.snapshots(None, self.include_deleted).await?,
            Some(name) => match name.parse::<SourceRef>() {
                Ok(source) => cluster.snapshots(Some(&source), self.include_deleted).await?,
                Err(_) => vec![cluster.snapshot(snapshot_id(name)?.1).await?],
            },
        };
        output::rows(&rows, format)
    }

    async fn journal(&self, cluster: &Cluster, format: Format) -> Result<String> {
        output::rows(&journal(cluster, &self.journal_of()?).await?.files, format)
    }

    async fn timelines(&self, cluster: &Cluster, format: Format) -> Result<String> {
        let journal = journal(cluster, &self.journal_of()?).await?;
        let timelines = contents(journal.files.iter().map(|file| (file.name.as_str(), file.bytes)));
        let timelines = timelines.map_err(lift_display)?;
        let rows: Vec<TimelineRow> = timelines.into_iter().map(TimelineRow::from).collect();
        let described = JournalDescription::new(&rows, &journal.tails);
        output::value(&described, format)
    }

    fn journal_of(&self) -> Result<SourceRef> {
        let name = self.name.ok_or_else(|| {
            invalid("the journal of which source?").with_hint("holdfastctl get journal AGENT/SOURCE")
        })?;
        name.parse().map_err(lift_display)
    }

    /// Rows with the asked name alone, or all.
    fn named<R: Row>(&self, mut rows: Vec<R>, what: &str, format: Format) -> Result<String> {
        if let Some(name) = self.name {
            rows.retain(|row| row.name() == name);
            if rows.is_empty() {
                return Err(fault(ErrorKind::NotFound, format!("there is no {what} {name:?}"))
                    .with_hint(format!("holdfastctl get {what}s")));
            }
        }
        output::rows(&rows, format)
    }
}

/// Every agent.
pub(super) async fn agents(cluster: &Cluster) -> Result<Vec<AgentRow>> {
    let found = pages(|after| async {
        let answer = cluster
            .control()
            .list_agents(v1::ListRequest { after, limit: 0 })
            .await?
            .into_inner();
        Ok((answer.agents, answer.next))
    })
    .await?;
    found.into_iter().map(AgentRow::try_from).collect()
}

/// Every vault.
pub(super) async fn vaults(cluster: &Cluster) -> Result<Vec<VaultRow>> {
    let answer = cluster
        .control()
        .list_vaults(v1::ListVaultsRequest {})
        .await?
        .into_inner();
    answer.vaults.into_iter().map(VaultRow::try_from).collect()
}

/// A source's journal.
pub(super) struct Journal {
    /// Every file.
    pub(super) files: Vec<JournalFileRow>,
    /// Agents whose spools may hold more, asked before the files were listed.
    pub(super) tails: Vec<TailRow>,
}

impl Journal {
    /// Where WAL may wait that is not listed, in words.
    pub(super) fn open_tail(&self) -> Option<String> {
        let open = self.tails.iter().filter(|tail| tail.open);
        let texts: Vec<String> = open
            .map(|tail| format!("agent {}: {}", tail.agent, tail.why))
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// A source's journal, all of it.
pub(super) async fn journal(cluster: &Cluster, source: &SourceRef) -> Result<Journal> {
    let tails = std::cell::RefCell::new(Vec::new());
    let found = pages(|after| async {
        let request = v1::ListJournalRequest {
            source: Some(wire_source(source)),
            after,
            limit: 0,
        };
        let answer = cluster.control().list_journal(request).await?.into_inner();
        tails
            .borrow_mut()
            .extend(answer.tails.into_iter().map(TailRow::from));
        Ok((answer.files, answer.next))
    })
    .await?;
    let files = found.into_iter().map(JournalFileRow::try_from);
    Ok(Journal {
        files: files.collect::<Result<_>>()?,
        tails: tails.into_inner(),
    })
}

async fn jobs(cluster: &Cluster) -> Result<Vec<JobRow>> {
    let found = pages(|after| async {
        let answer = cluster
            .control()
            .list_jobs(v1::ListRequest { after, limit: 0 })
            .await?
            .into_inner();
        Ok((answer.jobs, answer.next))
    })
    .await?;
    found.into_iter().map(JobRow::try_from).collect()
}
