//! The command line, as clap reads it.

use crate::{error::Result, output::Format};
use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast_core::{Name, SourceRef};
use holdfast_net::Role;
use holdfast_restore::postgres::TimelineId;
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// Operates a Holdfast cluster.
#[derive(Debug, Parser)]
#[command(name = "holdfastctl", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Directory of the admin's context and keys [default: ~/.config/holdfast].
    #[arg(long, env = "HOLDFAST_CONFIG_DIR", global = true, hide_env_values = true)]
    pub(crate) config_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Found a cluster: make its CA, the first controller's identity, the recovery kit and the admin's context.
    Init(InitArgs),
    /// Invite a host.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Create or change what documents describe, and nothing else.
    Apply(FileArgs),
    /// Show what `apply` would change, or what differs between two snapshots; exits with 4 when that is anything.
    Diff(DiffArgs),
    /// Delete something by kind and name; its snapshots stay.
    Delete {
        /// Kind, for example source.
        kind: DeleteKind,
        /// Name, for example web1/uploads.
        name: SourceRef,
    },
    /// List things.
    Get(GetArgs),
    /// Show everything about one thing, or about each of a kind.
    Describe(DescribeArgs),
    /// Run backups.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Restore a snapshot, whole or in part.
    Restore(RestoreArgs),
    /// List the files of a snapshot.
    Ls {
        /// SOURCE, SOURCE@latest, SOURCE@SNAPSHOT or SOURCE@TIME.
        source: String,
        /// Directory or file within the snapshot.
        path: Option<OsString>,
        /// Descend into directories.
        #[arg(short, long)]
        recursive: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write a file of a snapshot to standard output.
    Cat {
        /// SOURCE, SOURCE@latest, SOURCE@SNAPSHOT or SOURCE@TIME.
        source: String,
        /// File within the snapshot.
        path: OsString,
    },
    /// Check that what is stored is whole, and with keys that it restores; exits with 4 on findings.
    Verify {
        /// Only this source; without it also everything else in the stores. With --test-restore also SOURCE@SNAPSHOT or
        /// SOURCE@TIME.
        source: Option<String>,
        /// Read every byte, decrypt and compare.
        #[arg(long)]
        read_data: bool,
        /// Of a PostgreSQL source: have an agent restore it into its scratch directory, with its WAL, start a server on it, look
        /// through everything with pg_amcheck and queries, and remove it again.
        #[arg(long, requires = "source", conflicts_with = "read_data")]
        test_restore: bool,
        /// With --test-restore: by this agent [default: the source's].
        #[arg(long, requires = "test_restore")]
        agent: Option<Name>,
        /// With --test-restore: wait for the end, and exit with 4 on findings.
        #[arg(long, requires = "test_restore")]
        wait: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Have a source's agent look whether it can be backed up as it should be; exits with 4 on findings, each with the line that
    /// mends it.
    Check {
        /// Source, for example db1/main.
        source: SourceRef,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete snapshots, or bring them back within the undo period.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show the cluster at a glance.
    Status(OutputArgs),
    /// Look for problems here and in the cluster; exits with 4 when there are any.
    Doctor(OutputArgs),
    /// Free the space of what no snapshot needs any more.
    Gc {
        /// Show what would be freed.
        #[arg(long)]
        dry_run: bool,
        /// Deleted snapshots are gone for good now.
        #[arg(long)]
        ignore_undo_period: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Follow or stop jobs.
    #[command(subcommand)]
    Job(JobCommand),
    /// Show who did what.
    Audit(OutputArgs),
    /// Manage administrators.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Restore without any controller, from a store and the recovery kit.
    Recover(RecoverArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Name of the cluster.
    #[arg(long)]
    pub(crate) name: Name,
    /// Address at which agents and admins reach the first controller (HOST or HOST:PORT).
    #[arg(long)]
    pub(crate) address: String,
    /// File for the recovery kit; must not exist.
    #[arg(long)]
    pub(crate) recovery_kit: PathBuf,
    /// Directory for the first controller's configuration and identity.
    #[arg(long)]
    pub(crate) controller_dir: PathBuf,
    /// Your name as an administrator.
    #[arg(long, default_value = "admin")]
    pub(crate) admin: Name,
    /// Name of the first controller.
    #[arg(long, default_value = "ctl1")]
    pub(crate) controller: Name,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token with which one host can join, once.
    Create(TokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// Name of the joining host.
    pub(crate) name: Name,
    /// What it becomes.
    #[arg(long, default_value = "agent", value_parser = joinable)]
    pub(crate) role: Role,
    /// Vault of an agent [default: one of its own, named like it].
    #[arg(long)]
    pub(crate) vault: Option<Name>,
    /// How long the token is good, for example 15m, 2h or 1d.
    #[arg(long, default_value = "15m", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// File for the token; must not exist. Without it the token goes to standard output.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// The host was rebuilt: it takes over name, vault and sources, and the old certificate is refused.
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// YAML file with one or more documents, or - for standard input.
    #[arg(short, long)]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// YAML file with one or more documents, or - for standard input.
    #[arg(short, long, required_unless_present = "before", conflicts_with_all = ["before", "after"])]
    pub(crate) file: Option<PathBuf>,
    /// First snapshot: SOURCE@SNAPSHOT, SOURCE@latest or SOURCE@TIME.
    #[arg(requires = "after")]
    pub(crate) before: Option<String>,
    /// Second snapshot.
    pub(crate) after: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DeleteKind {
    #[value(alias = "sources")]
    Source,
}

/// What `get` and `describe` know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    #[value(alias = "agent")]
    Agents,
    #[value(alias = "source")]
    Sources,
    #[value(alias = "snapshot")]
    Snapshots,
    #[value(alias = "job")]
    Jobs,
    #[value(alias = "member")]
    Members,
    #[value(alias = "vault")]
    Vaults,
    /// Files of a source's journal, or what they make up and what is missing; needs the source's name.
    Journal,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// What to list.
    pub(crate) kind: Kind,
    /// Only this one; for snapshots also a source, for the journal its source.
    pub(crate) name: Option<String>,
    /// Form of the output.
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
    /// Show again whenever something changes, until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Deleted snapshots too.
    #[arg(long)]
    pub(crate) include_deleted: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    /// What to show.
    pub(crate) kind: Kind,
    /// Only this one; for snapshots also a source.
    pub(crate) name: Option<String>,
    /// Form of the output: yaml or json.
    #[arg(short, long, default_value = "yaml")]
    pub(crate) output: Format,
}

/// For commands that answer with one text or one JSON value.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// Form of the output.
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Back a source up now.
    Run {
        /// Source, for example web1/uploads.
        source: SourceRef,
        /// Which of a PostgreSQL source's members does it; otherwise its own agent, or while that is away a connected member.
        #[arg(long)]
        agent: Option<Name>,
        /// Wait for the end; exits with 3 when some of it could not be read.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// SOURCE, SOURCE@latest, SOURCE@SNAPSHOT or SOURCE@TIME (with a time zone).
    pub(crate) source: String,
    /// Directory to restore to.
    #[arg(long)]
    pub(crate) to: PathBuf,
    /// Only this path within the snapshot, or what fits a pattern (*, ?, ** for any number of directories); may be
    /// given several times.
    #[arg(long = "path")]
    pub(crate) paths: Vec<OsString>,
    /// Of a PostgreSQL backup: where a tablespace goes, as OID=DIR, NAME=DIR or LOCATION=DIR; may be given several
    /// times. Others go to their own place, which must be empty.
    #[arg(long = "tablespace", value_name = "TABLESPACE=DIR", conflicts_with = "paths")]
    pub(crate) tablespaces: Vec<OsString>,
    /// How it is laid out: a PostgreSQL backup becomes a data directory that a server starts from, unless its files
    /// are asked for.
    #[arg(long, default_value = "auto")]
    pub(crate) layout: RestoreLayout,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// On this agent's host instead of this machine.
    #[arg(long, conflicts_with = "target")]
    pub(crate) agent: Option<Name>,
    /// The directory may hold something already: only what differs is fetched and written. Completes a restore that
    /// was interrupted.
    #[arg(long)]
    pub(crate) in_place: bool,
    /// With --in-place: delete what is in the restored directories and not in the snapshot, so also what the source
    /// excludes. Look at it with --dry-run first.
    #[arg(long, requires = "in_place")]
    pub(crate) delete: bool,
    /// Show what would be restored, and deleted.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Of a PostgreSQL backup with archived WAL: where the server recovers to when it starts. Without a target as far as there is
/// WAL; of SOURCE@SNAPSHOT the end of that backup.
#[derive(Debug, Default, Args)]
pub(crate) struct TargetArgs {
    /// To a time, with its zone: everything that was committed by then.
    #[arg(long, value_name = "TIME", group = "target", help_heading = "PostgreSQL")]
    pub(crate) at: Option<String>,
    /// To the end of that transaction.
    #[arg(long, value_name = "XID", group = "target", help_heading = "PostgreSQL")]
    pub(crate) xid: Option<u64>,
    /// To that position in the WAL.
    #[arg(long, value_name = "X/X", group = "target", help_heading = "PostgreSQL")]
    pub(crate) lsn: Option<String>,
    /// To a named restore point (pg_create_restore_point).
    #[arg(long, value_name = "NAME", group = "target", help_heading = "PostgreSQL")]
    pub(crate) name: Option<String>,
    /// To the end of the backup.
    #[arg(long, group = "target", help_heading = "PostgreSQL")]
    pub(crate) immediate: bool,
    /// As far as there is WAL.
    #[arg(long, group = "target", help_heading = "PostgreSQL")]
    pub(crate) latest: bool,
    /// Recover also without WAL that may still wait in the spool of an agent, or that the replaced cluster has behind a gap, and
    /// which the archive lacks: it is lost to this copy.
    #[arg(long, help_heading = "PostgreSQL")]
    pub(crate) accept_loss: bool,
    /// Restore a cluster also where there seems to be no room for it, as on a file system that compresses.
    #[arg(long, help_heading = "PostgreSQL")]
    pub(crate) no_space_check: bool,
    /// Leave out what is exactly at the time, transaction or position.
    #[arg(long, requires = "target", help_heading = "PostgreSQL")]
    pub(crate) exclusive: bool,
    /// What the server does at the target.
    #[arg(long, default_value = "promote", help_heading = "PostgreSQL")]
    pub(crate) action: Action,
    /// Along which timeline: latest, current (the backup's), or its number.
    #[arg(long, value_parser = timeline, help_heading = "PostgreSQL")]
    pub(crate) timeline: Option<Timeline>,
    /// As a standby: it goes on replaying what its primary sends, or what --restore-command brings.
    #[arg(long, group = "target", help_heading = "PostgreSQL")]
    pub(crate) standby: bool,
    /// With --standby: how it reaches its primary (primary_conninfo); keep passwords in a passfile.
    #[arg(
        long,
        value_name = "CONNINFO",
        requires = "standby",
        help_heading = "PostgreSQL"
    )]
    pub(crate) primary: Option<String>,
    /// With --standby: what fetches archived WAL, as in "/usr/bin/holdfast-agent wal fetch --standby --source db1/main %f
    /// %p".
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "standby",
        help_heading = "PostgreSQL"
    )]
    pub(crate) restore_command: Option<String>,
    /// Start the server when all is in place, and follow it until it has recovered.
    #[arg(long, help_heading = "PostgreSQL")]
    pub(crate) start: bool,
    /// With --start: options for the server, as in "-c port=5433".
    #[arg(
        long,
        value_name = "OPTIONS",
        requires = "start",
        allow_hyphen_values = true,
        help_heading = "PostgreSQL"
    )]
    pub(crate) server_options: Option<String>,
}

/// What a server does at its target.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Action {
    /// Take writes, on a new timeline.
    #[default]
    Promote,
    /// Wait and answer queries.
    Pause,
    /// Stop.
    Shutdown,
}

/// Which timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timeline {
    Latest,
    Current,
    Is(TimelineId),
}

fn timeline(text: &str) -> Result<Timeline, String> {
    match text {
        "latest" => Ok(Timeline::Latest),
        "current" => Ok(Timeline::Current),
        number => number
            .parse()
            .ok()
            .and_then(TimelineId::new)
            .map(Timeline::Is)
            .ok_or_else(|| format!("{text:?} is neither latest, current nor a timeline's number")),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Delete a snapshot; it can be brought back until the undo period ends.
    Delete {
        /// Snapshot id or SOURCE@SNAPSHOT.
        snapshot: String,
    },
    /// Bring a deleted snapshot back.
    Undelete {
        /// Snapshot id or SOURCE@SNAPSHOT.
        snapshot: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Stop a job.
    Cancel {
        /// Job id.
        job: String,
    },
    /// Follow a job to its end.
    Watch {
        /// Job id.
        job: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Give this context a new certificate; needs the recovery kit, because only the offline root makes admins.
    Renew {
        /// The recovery kit.
        #[arg(long)]
        kit: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Store: a directory or file:// URL.
    #[arg(long)]
    pub(crate) from: String,
    /// The recovery kit.
    #[arg(long)]
    pub(crate) kit: PathBuf,
    /// List the snapshots that the store holds.
    #[arg(long, conflicts_with_all = ["snapshot", "to"])]
    pub(crate) list: bool,
    /// Snapshot to restore.
    #[arg(required_unless_present = "list", requires = "to")]
    pub(crate) snapshot: Option<String>,
    /// Directory to restore to.
    #[arg(long)]
    pub(crate) to: Option<PathBuf>,
    /// Only this path within the snapshot, or what fits a pattern (*, ?, ** for any number of directories); may be
    /// given several times.
    #[arg(long = "path")]
    pub(crate) paths: Vec<OsString>,
    /// Of a PostgreSQL backup: where a tablespace goes, as OID=DIR, NAME=DIR or LOCATION=DIR; may be given several
    /// times. Others go to their own place, which must be empty.
    #[arg(long = "tablespace", value_name = "TABLESPACE=DIR", conflicts_with = "paths")]
    pub(crate) tablespaces: Vec<OsString>,
    /// How it is laid out: a PostgreSQL backup becomes a data directory that a server starts from, unless its files
    /// are asked for.
    #[arg(long, default_value = "auto")]
    pub(crate) layout: RestoreLayout,
    /// The directory may hold something already.
    #[arg(long)]
    pub(crate) in_place: bool,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How what is restored is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RestoreLayout {
    /// As what it is a backup of needs it.
    Auto,
    /// As files below their paths in the snapshot.
    Files,
}

fn joinable(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(Role::Admin) | Err(_) => Err("use agent or controller".into()),
        Ok(role) => Ok(role),
    }
}

/// Reads `90s`, `15m`, `2h` or `1d`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write for example 15m, 2h or 1d");
    let split = text.len() - text.chars().next_back().map_or(0, char::len_utf8);
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(bad()),
    };
    let duration = number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(bad)?;
    let most = holdfast_core::limits::TOKEN_TTL_MAX;
    if duration.is_zero() || duration > most {
        return Err(format!(
            "must be between 1s and {}d",
            most.as_secs() / (24 * 3600)
        ));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_and_bounded() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for bad in ["", "m", "15", "0s", "8d", "-1m", "1ü", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    /// Every command's help in one text: a changed option shows up in review. Written anew with
    /// HOLDFAST_BLESS=1.
    #[test]
    fn help_is_as_recorded() {
        let mut command = Cli::command();
        command.build();
        let mut text = String::new();
        collect(&mut command, &mut text);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/help.txt");
        if std::env::var_os("HOLDFAST_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let recorded = std::fs::read_to_string(path).unwrap();
        assert!(
            text == recorded,
            "help differs from tests/help.txt; HOLDFAST_BLESS=1 writes it anew:\n{text}"
        );
    }

    fn collect(command: &mut clap::Command, text: &mut String) {
        if command.get_name() == "help" {
            return;
        }
        text.push_str(&format!("{}\n\n", command.render_help()));
        for sub in command.get_subcommands_mut() {
            collect(sub, text);
        }
    }
}
