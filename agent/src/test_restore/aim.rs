//! Where a test restore recovers to, as it is asked for on the wire.

use crate::error::{AgentError, Result};
use holdfast_postgres::{Recovery, RecoveryMode, RecoveryTarget, TargetAction, TargetTimeline, TimelineId};
use holdfast_proto::v1::RecoverySpec;
use holdfast_restore::postgres::NO_ARCHIVE;
use std::fmt::Display;

/// The whole recovery.
///
/// # Errors
/// `Invalid` for what is not understood, or contradicts itself.
pub fn recovery(spec: &RecoverySpec) -> Result<Recovery> {
    let RecoverySpec {
        target,
        value,
        timeline,
    } = spec;
    let target = match target.as_str() {
        "latest" => RecoveryTarget::Latest,
        "immediate" => RecoveryTarget::Immediate,
        "time" => RecoveryTarget::Time(value.parse().map_err(bad(value))?),
        "xid" => RecoveryTarget::Xid(value.parse().map_err(bad(value))?),
        "lsn" => RecoveryTarget::Lsn(value.parse().map_err(bad(value))?),
        "name" => RecoveryTarget::Name(value.clone()),
        other => {
            return Err(AgentError::Invalid(format!(
                "this agent does not know the recovery target {other:?}; update it"
            )));
        }
    };
    let timeline = match (timeline.as_str(), &target) {
        (_, RecoveryTarget::Immediate) | ("current", _) => TargetTimeline::Current,
        ("" | "latest", _) => TargetTimeline::Latest,
        (number, _) => {
            let number: u32 = number.parse().map_err(bad(number))?;
            let known = TimelineId::new(number);
            TargetTimeline::Is(known.ok_or_else(|| AgentError::Invalid("there is no timeline 0".into()))?)
        }
    };
    let recovery = Recovery {
        mode: RecoveryMode::Primary,
        primary: None,
        restore_command: NO_ARCHIVE.into(),
        target,
        inclusive: true,
        action: TargetAction::Promote,
        timeline,
        keeps_archiving: false,
    };
    // What contradicts itself is refused before anything is read.
    recovery.settings()?;
    Ok(recovery)
}

fn bad<E: Display>(text: &str) -> impl FnOnce(E) -> AgentError {
    move |error| AgentError::Invalid(format!("{text:?} is no recovery target: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, value: &str, timeline: &str) -> Result<Recovery> {
        recovery(&RecoverySpec {
            target: target.into(),
            value: value.into(),
            timeline: timeline.into(),
        })
    }

    #[test]
    fn each_target_is_understood() {
        for (target, value) in [
            ("latest", ""),
            ("immediate", ""),
            ("time", "2026-11-27T14:00:00.123456Z"),
            ("xid", "733"),
            ("lsn", "0/5000148"),
            ("name", "before"),
        ] {
            let recovery = asked(target, value, "").unwrap();
            assert_eq!(recovery.action, TargetAction::Promote, "{target}");
        }
        assert_eq!(asked("latest", "", "3").unwrap().timeline.to_string(), "3");
        assert_eq!(
            asked("immediate", "", "latest").unwrap().timeline,
            TargetTimeline::Current
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (target, value, timeline) in [
            ("", "", ""),
            ("moon", "", ""),
            ("time", "yesterday", ""),
            ("lsn", "5", ""),
            ("latest", "", "0"),
            ("latest", "", "x"),
        ] {
            assert!(
                asked(target, value, timeline).is_err(),
                "{target} {value} {timeline}"
            );
        }
    }
}
