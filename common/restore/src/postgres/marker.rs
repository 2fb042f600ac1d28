//! The note in a data directory that a restore has not come to its end.
//!
//! It is there, durably, before anything else is, and goes after `global/pg_control` came: where it is and the control
//! file is not, a restore was interrupted, and may go on.

use holdfast_postgres::SystemId;
use serde::{Deserialize, Serialize};

/// Name of the file. Unlike temporary names, it has no ULID.
pub(super) const NAME: &str = ".holdfast-restore";
/// Longest content: what is longer is not ours.
pub(super) const LEN_MAX: usize = 4096;
const VERSION: u32 = 1;

/// How far the restore has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// What the directory held of a cluster may not be out of the way yet.
    Aside,
    /// Everything in it is ours, or will be replaced.
    Place,
}

/// The note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    holdfast_postgres_restore: u32,
    system_id: String,
    pub(super) phase: Phase,
}

impl Marker {
    pub(super) fn new(system_id: SystemId, phase: Phase) -> Self {
        Self {
            holdfast_postgres_restore: VERSION,
            system_id: system_id.to_string(),
            phase,
        }
    }

    /// Of which cluster the restore is; none when this is no note of ours.
    pub(super) fn parse(bytes: &[u8]) -> Option<(SystemId, Phase)> {
        let this: Self = serde_json::from_slice(bytes).ok()?;
        let system_id = this.system_id.parse().ok()?;
        (this.holdfast_postgres_restore == VERSION).then_some((system_id, this.phase))
    }

    /// Its content. Of one length in all phases, so that it is rewritten in place within one sector.
    pub(super) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_and_are_of_one_length() {
        let id = SystemId(7_301_234_567_890_123_456);
        let notes = [Phase::Aside, Phase::Place].map(|phase| Marker::new(id, phase));
        let bytes = notes.each_ref().map(Marker::bytes);
        assert_eq!(bytes[0].len(), bytes[1].len());
        assert!(bytes[0].len() < 512 && bytes[0].len() < LEN_MAX);
        assert_eq!(Marker::parse(&bytes[0]), Some((id, Phase::Aside)));
        assert_eq!(Marker::parse(&bytes[1]), Some((id, Phase::Place)));
        for other in [&b""[..], b"{}", b"{\"holdfast_postgres_restore\":1"] {
            assert_eq!(Marker::parse(other), None);
        }
    }
}
