//! What a restored cluster is told to recover to, and the settings that say so.
//!
//! A server takes one target and stops when it is given two; it takes some combinations otherwise than people mean
//! them. Those are refused here, before anything is restored. Source: the documentation, "Recovery Target" and
//! "Archive Recovery", and what servers do with these settings (`tests/real_server`).

use crate::{
    Lsn, SettingsFile, TimelineId,
    error::{PgError, not_one},
};
use jiff::Timestamp;
use std::fmt;

/// Longest name of a restore point, in bytes: servers hold 64 with the zero at its end.
const RESTORE_POINT_NAME_MAX: usize = 63;
/// Lower ones stand for no transaction.
const FIRST_XID: u32 = 3;

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// Where the WAL ends.
    Latest,
    /// As soon as the files are consistent: the end of the backup.
    Immediate,
    /// At the first transaction that ended later. Servers know microseconds; what is finer is cut off.
    Time(Timestamp),
    /// When that transaction ended. With its epoch or without: servers use the lower half.
    Xid(u64),
    /// At that position.
    Lsn(Lsn),
    /// At the restore point that was given that name.
    Name(String),
}

/// What the server does once it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetAction {
    /// It takes writes, on a new timeline.
    Promote,
    /// It waits and answers queries, until it is told to go on.
    Pause,
    /// It stops, and goes on from there when it is started with another target.
    Shutdown,
}

impl fmt::Display for TargetAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Promote => "promote",
            Self::Pause => "pause",
            Self::Shutdown => "shutdown",
        })
    }
}

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The newest in the archive that began on the way.
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// That one.
    Is(TimelineId),
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Current => f.write_str("current"),
            Self::Is(timeline) => timeline.fmt(f),
        }
    }
}

/// What becomes of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// A server of its own once it is recovered.
    Primary,
    /// A standby, which waits for more WAL where there is none.
    Standby,
}

impl RecoveryMode {
    /// The name of the empty file in the data directory that begins it.
    #[must_use]
    pub const fn signal_file(self) -> &'static str {
        match self {
            Self::Primary => "recovery.signal",
            Self::Standby => "standby.signal",
        }
    }
}

/// A recovery, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What becomes of the server.
    pub mode: RecoveryMode,
    /// How a standby reaches its primary (`primary_conninfo`); without it, it gets WAL by the command alone.
    pub primary: Option<String>,
    /// How it gets WAL; see [`crate::restore_command`].
    pub restore_command: String,
    /// Where it ends.
    pub target: RecoveryTarget,
    /// Whether what is exactly at the target is still replayed. Only times, transactions and positions can leave it
    /// out.
    pub inclusive: bool,
    /// What then.
    pub action: TargetAction,
    /// Along which timeline.
    pub timeline: TargetTimeline,
    /// Whether `archive_mode` stays as the cluster had it. A copy must not archive to where its origin does: the
    /// names of its segments would be the same, with other content.
    pub keeps_archiving: bool,
}

impl Recovery {
    /// The settings that say it: exactly one target, or none for the latest.
    ///
    /// # Errors
    /// `Refused` for what contradicts itself, `NotOne` for a target that no server takes.
    pub fn settings(&self) -> Result<Vec<(&'static str, String)>, PgError> {
        self.check()?;
        let mut settings = Vec::new();
        // A standby may get all its WAL from its primary.
        if !self.restore_command.trim().is_empty() {
            settings.push(("restore_command", self.restore_command.clone()));
        }
        if let Some(primary) = &self.primary {
            settings.push(("primary_conninfo", primary.clone()));
        }
        settings.push(("recovery_target_timeline", self.timeline.to_string()));
        settings.extend(target_setting(&self.target)?);
        if self.target != RecoveryTarget::Latest {
            settings.push(("recovery_target_action", self.action.to_string()));
        }
        if self.can_be_exclusive() {
            let inclusive = if self.inclusive { "on" } else { "off" };
            settings.push(("recovery_target_inclusive", inclusive.to_owned()));
        }
        if self.action == TargetAction::Pause || self.mode == RecoveryMode::Standby {
            // Without it servers shut down where they should pause, and a standby answers nobody.
            settings.push(("hot_standby", "on".to_owned()));
        }
        if !self.keeps_archiving {
            settings.push(("archive_mode", "off".to_owned()));
        }
        Ok(settings)
    }

    /// Rewrites a `postgresql.auto.conf`: what was set of another recovery goes, this one is appended.
    ///
    /// # Errors
    /// Like [`Self::settings`], and `NotOne` for a value with a line break, `TooLarge`. The file is unchanged then.
    ///
    /// `elsewhere` are recovery settings that another file has: they are made to say nothing, before this one says what counts.
    pub fn write_to(&self, file: &mut SettingsFile, elsewhere: &[String]) -> Result<(), PgError> {
        let settings = self.settings()?;
        let mut changed = file.clone();
        changed.remove(is_recovery_setting);
        for name in elsewhere {
            // The others are said anyway, or have no other meaning than their default.
            if let Some(nothing) = nothing_of(name) {
                changed.set(name, nothing)?;
            }
        }
        for (name, value) in settings {
            changed.set(name, &value)?;
        }
        *file = changed;
        Ok(())
    }

    /// Refuses a position that the server would not accept: it stops when its target comes before its files are
    /// consistent, which is at the end of the backup.
    ///
    /// # Errors
    /// `Refused`.
    pub fn check_reaches(&self, end_of_backup: Lsn) -> Result<(), PgError> {
        match self.target {
            RecoveryTarget::Lsn(lsn) if lsn < end_of_backup => Err(PgError::Refused {
                what: "the position to recover to",
                why: "it is before the end of the backup: choose an earlier snapshot",
            }),
            _ => Ok(()),
        }
    }

    const fn can_be_exclusive(&self) -> bool {
        matches!(
            self.target,
            RecoveryTarget::Time(_) | RecoveryTarget::Xid(_) | RecoveryTarget::Lsn(_)
        )
    }

    fn check(&self) -> Result<(), PgError> {
        let refused = |what, why| Err(PgError::Refused { what, why });
        if self.mode == RecoveryMode::Primary && self.restore_command.trim().is_empty() {
            return refused(
                "an empty restore_command",
                "a server that is no standby does not recover without one",
            );
        }
        if self.mode == RecoveryMode::Primary && self.primary.is_some() {
            return refused("a primary to follow", "only a standby follows one");
        }
        if !self.inclusive && !self.can_be_exclusive() {
            return refused(
                "to stop before the target",
                "only a time, a transaction or a position can be left out: choose one of these, or include the target",
            );
        }
        if self.target == RecoveryTarget::Immediate && self.timeline != TargetTimeline::Current {
            return refused(
                "another timeline with the target `immediate`",
                "recovery ends with the backup, on its own timeline: choose the timeline `current`",
            );
        }
        if self.target == RecoveryTarget::Latest && self.action != TargetAction::Promote {
            return refused(
                "to pause or shut down without a target",
                "servers do that at a target only: choose a time, transaction, position or name, or promote",
            );
        }
        Ok(())
    }
}

fn target_setting(target: &RecoveryTarget) -> Result<Option<(&'static str, String)>, PgError> {
    let bad = |text: &str, why| Err(not_one("a recovery target", text, why));
    Ok(Some(match target {
        RecoveryTarget::Latest => return Ok(None),
        RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned()),
        RecoveryTarget::Time(time) if *time < Timestamp::UNIX_EPOCH => {
            return bad(&time.to_string(), "no cluster is from before 1970");
        }
        // In the one form that every DateStyle reads alike.
        RecoveryTarget::Time(time) => (
            "recovery_target_time",
            time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string(),
        ),
        RecoveryTarget::Xid(xid) => match *xid as u32 {
            0..FIRST_XID => return bad(&xid.to_string(), "no transaction has that number"),
            lower_half => ("recovery_target_xid", lower_half.to_string()),
        },
        RecoveryTarget::Lsn(lsn) if lsn.is_zero() => {
            return bad("0/0", "nothing was written before it");
        }
        RecoveryTarget::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
        RecoveryTarget::Name(name) if name.is_empty() => {
            return bad(name, "restore points have names");
        }
        RecoveryTarget::Name(name) if name.len() > RESTORE_POINT_NAME_MAX => {
            return bad(name, "names of restore points have at most 63 bytes");
        }
        RecoveryTarget::Name(name) => ("recovery_target_name", name.clone()),
    }))
}

/// Whether a setting belongs to one recovery and must not outlive it in a copy: targets, and where WAL comes from.
#[must_use]
pub fn is_recovery_setting(name: &str) -> bool {
    name.starts_with("recovery_target")
        || matches!(
            name,
            "restore_command"
                | "archive_cleanup_command"
                | "recovery_end_command"
                | "recovery_min_apply_delay"
                | "primary_conninfo"
                | "primary_slot_name"
                | "promote_trigger_file"
        )
}

/// The value by which a recovery setting says nothing.
fn nothing_of(name: &str) -> Option<&'static str> {
    match name {
        "recovery_target_inclusive" => Some("on"),
        "recovery_target_action" => Some("pause"),
        "recovery_target_timeline" => Some("latest"),
        "recovery_min_apply_delay" => Some("0"),
        name => is_recovery_setting(name).then_some(""),
    }
}

/// The recovery settings that another file (`postgresql.conf`) still has. `postgresql.auto.conf` counts more where
/// it sets the same, but a second target in another file makes the server refuse both.
#[must_use]
pub fn recovery_settings_in(file: &SettingsFile) -> Vec<String> {
    let mut names: Vec<String> = file.names().filter(|name| is_recovery_setting(name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to(target: RecoveryTarget) -> Recovery {
        Recovery {
            mode: RecoveryMode::Primary,
            primary: None,
            restore_command: "get %f %p".to_owned(),
            timeline: match target {
                RecoveryTarget::Immediate => TargetTimeline::Current,
                _ => TargetTimeline::Latest,
            },
            target,
            inclusive: true,
            action: TargetAction::Promote,
            keeps_archiving: false,
        }
    }

    fn time(text: &str) -> RecoveryTarget {
        RecoveryTarget::Time(text.parse().unwrap())
    }

    fn all_targets() -> Vec<RecoveryTarget> {
        vec![
            RecoveryTarget::Latest,
            RecoveryTarget::Immediate,
            time("2026-11-27T14:00:00Z"),
            RecoveryTarget::Xid(733),
            RecoveryTarget::Lsn(Lsn(0x16_b374_d848)),
            RecoveryTarget::Name("before".to_owned()),
        ]
    }

    fn written(recovery: &Recovery, before: &str) -> String {
        let mut file = SettingsFile::parse(before.as_bytes()).unwrap();
        recovery.write_to(&mut file, &[]).unwrap();
        String::from_utf8(file.render().to_vec()).unwrap()
    }

    #[test]
    fn a_standby_follows_its_primary_and_answers() {
        let mut recovery = to(RecoveryTarget::Latest);
        recovery.primary = Some("host=db1 user=copy".to_owned());
        assert!(recovery.settings().is_err());
        recovery.mode = RecoveryMode::Standby;
        let text = written(&recovery, "primary_conninfo = 'host=old'\nhot_standby = off\n");
        assert!(text.contains("primary_conninfo = 'host=db1 user=copy'"), "{text}");
        assert!(
            text.contains("hot_standby = 'on'") && !text.contains("old"),
            "{text}"
        );
    }

    #[test]
    fn what_another_file_says_of_recovery_counts_no_more() {
        let conf =
            b"recovery_target_time = '2020-01-01 00:00:00+00'\nrecovery_end_command = 'rm -r /'\nport = 1\n";
        let names = recovery_settings_in(&SettingsFile::parse(conf).unwrap());
        let mut file = SettingsFile::parse(b"").unwrap();
        to(RecoveryTarget::Lsn(Lsn(77)))
            .write_to(&mut file, &names)
            .unwrap();
        let text = String::from_utf8(file.render().to_vec()).unwrap();
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in {text}"));
        assert!(place("recovery_end_command = ''") < place("restore_command = 'get"));
        // Empty after the real one, the server would take it for a second target.
        assert!(place("recovery_target_time = ''") < place("recovery_target_lsn = '0/4D'"));
        assert!(!text.contains("port"), "{text}");
    }

    #[test]
    fn each_target_is_one_setting() {
        let settings = |target| to(target).settings().unwrap();
        let value = |target, name: &str| {
            let found = settings(target);
            found.into_iter().find(|row| row.0 == name).map(|row| row.1)
        };
        for (target, name, expected) in [
            (RecoveryTarget::Immediate, "recovery_target", "immediate"),
            (
                time("2026-11-27T14:00:00Z"),
                "recovery_target_time",
                "2026-11-27 14:00:00.000000+00",
            ),
            (
                time("2026-11-27T14:00:00.1234569+05:30"),
                "recovery_target_time",
                "2026-11-27 08:30:00.123456+00",
            ),
            (RecoveryTarget::Xid((7 << 32) | 733), "recovery_target_xid", "733"),
            (
                RecoveryTarget::Lsn(Lsn(0x16_b374_d848)),
                "recovery_target_lsn",
                "16/B374D848",
            ),
            (
                RecoveryTarget::Name("it's".to_owned()),
                "recovery_target_name",
                "it's",
            ),
        ] {
            assert_eq!(value(target, name).as_deref(), Some(expected));
        }
        for target in all_targets() {
            let is_target = |name: &str| {
                ["", "_time", "_xid", "_lsn", "_name"]
                    .iter()
                    .any(|ending| name == format!("recovery_target{ending}"))
            };
            let count = settings(target.clone())
                .iter()
                .filter(|row| is_target(row.0))
                .count();
            assert_eq!(count, usize::from(target != RecoveryTarget::Latest), "{target:?}");
        }
    }

    #[test]
    fn what_was_set_of_another_recovery_goes() {
        let before = "# kept\n\
            recovery_target = 'immediate'\n\
            RECOVERY_TARGET_XID = '9'\n\
            restore_command = 'old'\n\
            primary_conninfo = 'host=old'\n\
            primary_slot_name = 'old'\n\
            archive_cleanup_command = 'old'\n\
            archive_mode = 'on'\n\
            work_mem = '1MB'\n";
        let recovery = Recovery {
            inclusive: false,
            action: TargetAction::Pause,
            ..to(time("2026-11-27T14:00:00Z"))
        };
        let expected = "# kept\n\
            work_mem = '1MB'\n\
            restore_command = 'get %f %p'\n\
            recovery_target_timeline = 'latest'\n\
            recovery_target_time = '2026-11-27 14:00:00.000000+00'\n\
            recovery_target_action = 'pause'\n\
            recovery_target_inclusive = 'off'\n\
            hot_standby = 'on'\n\
            archive_mode = 'off'\n";
        assert_eq!(written(&recovery, before), expected);
        // And so does its own, when it is written again.
        assert_eq!(written(&recovery, expected), expected);
        let archiving = Recovery {
            keeps_archiving: true,
            ..to(RecoveryTarget::Latest)
        };
        assert_eq!(
            written(&archiving, before),
            "# kept\narchive_mode = 'on'\nwork_mem = '1MB'\n\
            restore_command = 'get %f %p'\nrecovery_target_timeline = 'latest'\n"
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let refused = |recovery: Recovery| {
            let error = recovery.settings().unwrap_err();
            assert!(matches!(error, PgError::Refused { .. }), "{error}");
        };
        for target in all_targets() {
            let exclusive = Recovery {
                inclusive: false,
                ..to(target.clone())
            };
            match target {
                RecoveryTarget::Time(_) | RecoveryTarget::Xid(_) | RecoveryTarget::Lsn(_) => {
                    assert!(exclusive.settings().is_ok());
                }
                _ => refused(exclusive),
            }
            let mut without_command = to(target);
            without_command.restore_command = " ".to_owned();
            refused(without_command.clone());
            without_command.mode = RecoveryMode::Standby;
            assert!(without_command.settings().is_ok());
        }
        for timeline in [TargetTimeline::Latest, TargetTimeline::Is(TimelineId::FIRST)] {
            refused(Recovery {
                timeline,
                ..to(RecoveryTarget::Immediate)
            });
        }
        for action in [TargetAction::Pause, TargetAction::Shutdown] {
            refused(Recovery {
                action,
                ..to(RecoveryTarget::Latest)
            });
        }
    }

    #[test]
    fn targets_that_no_server_takes_are_refused() {
        for target in [
            time("1969-12-31T23:59:59Z"),
            RecoveryTarget::Xid(0),
            RecoveryTarget::Xid(2),
            RecoveryTarget::Xid(5 << 32),
            RecoveryTarget::Lsn(Lsn::ZERO),
            RecoveryTarget::Name(String::new()),
            RecoveryTarget::Name("é".repeat(32)),
        ] {
            let error = to(target.clone()).settings().unwrap_err();
            assert!(matches!(error, PgError::NotOne { .. }), "{target:?}: {error}");
        }
        assert!(to(RecoveryTarget::Name("x".repeat(63))).settings().is_ok());
        let mut file = SettingsFile::default();
        let broken = to(RecoveryTarget::Name("a\nfsync = off".to_owned()));
        assert!(broken.write_to(&mut file, &[]).is_err());
        assert_eq!(file, SettingsFile::default());
    }

    #[test]
    fn a_position_within_the_backup_is_refused() {
        let recovery = to(RecoveryTarget::Lsn(Lsn(100)));
        assert!(recovery.check_reaches(Lsn(101)).is_err());
        assert_eq!(recovery.check_reaches(Lsn(100)), Ok(()));
        assert_eq!(to(RecoveryTarget::Immediate).check_reaches(Lsn(101)), Ok(()));
    }

    #[test]
    fn settings_of_recoveries_in_another_file_are_found() {
        let text = "recovery_target_xid = 5\nport = 1\n#restore_command = 'x'\nRecovery_Target_Xid = 6\n";
        let file = SettingsFile::parse(text.as_bytes()).unwrap();
        assert_eq!(recovery_settings_in(&file), ["recovery_target_xid"]);
    }

    #[test]
    fn each_mode_has_its_signal() {
        assert_eq!(RecoveryMode::Primary.signal_file(), "recovery.signal");
        assert_eq!(RecoveryMode::Standby.signal_file(), "standby.signal");
    }

    fn any_line() -> impl Strategy<Value = String> {
        let name = proptest::sample::select(vec![
            "recovery_target",
            "Recovery_Target_Time",
            "recovery_target_xid",
            "RESTORE_COMMAND",
            "primary_conninfo",
            "work_mem",
            "#recovery_target_lsn",
            "",
        ]);
        (name, "[ =']{0,2}", "[a-z0-9'#]{0,5}", "[\r\n]{1,2}")
            .prop_map(|(name, sign, value, end)| format!("{name}{sign}{value}{end}"))
    }

    proptest! {
        #[test]
        fn whatever_stood_there_one_target_is_left(
            lines in proptest::collection::vec(any_line(), 0..6), index in 0..6_usize,
        ) {
            let before = lines.concat();
            let mut file = SettingsFile::parse(before.as_bytes()).unwrap();
            let recovery = to(all_targets().swap_remove(index));
            recovery.write_to(&mut file, &[]).unwrap();
            let names: Vec<String> = file.names().filter(|name| is_recovery_setting(name)).collect();
            let settings = recovery.settings().unwrap().into_iter();
            let expected: Vec<&str> =
                settings.map(|row| row.0).filter(|name| is_recovery_setting(name)).collect();
            prop_assert_eq!(names, expected);
        }
    }
}
