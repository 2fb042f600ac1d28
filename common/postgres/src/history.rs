//! Timeline histories: which timeline wrote which part of the WAL on the way to a given one.
//!
//! A promotion leaves its timeline at some position and begins another. The file `NNNNNNNN.history` of a timeline
//! lists all that came before it, oldest first. Sources: the documentation, "Timelines", and files of real servers.

use crate::{
    error::{PgError, bounded, malformed, not_one},
    lsn::{Lsn, TimelineId, decimal_u32},
};
use holdfast_core::limits::PG_HISTORY_MAX;
use std::fmt::Write as _;

const WHAT: &str = "a timeline history";

/// A timeline that was left for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it was left: the first byte that it does not share with what came next.
    pub left_at: Lsn,
    /// Why, as the server says it, for people.
    pub reason: String,
}

/// A stretch of WAL that one timeline wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first byte.
    pub from: Lsn,
    /// Behind its last byte; none where it goes on as far as there is WAL.
    pub to: Option<Lsn>,
}

/// A timeline and all that came before it.
///
/// Positions where timelines were left need not rise: a server that recovers along timeline 2 but stops where it
/// still replays timeline 1 writes 2 as the parent of its new timeline, left at a position before 2 began. Like the
/// server, this takes the newest timeline that had begun at a position, so that 2 then has no part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    branches: Vec<Branch>,
}

impl TimelineHistory {
    /// A timeline that nothing came before: the first one, which has no file.
    #[must_use]
    pub const fn root(timeline: TimelineId) -> Self {
        Self {
            timeline,
            branches: Vec::new(),
        }
    }

    /// Reads the history file of that timeline.
    ///
    /// # Errors
    /// `TooLarge`, or `Malformed` for lines that no server writes, and for timelines that do not rise.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self, PgError> {
        bounded(WHAT, bytes.len(), PG_HISTORY_MAX)?;
        let mut history = Self::root(timeline);
        for line in bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if !line.is_empty() && !line.starts_with(b"#") {
                history.push(branch(line)?)?;
            }
        }
        Ok(history)
    }

    fn push(&mut self, branch: Branch) -> Result<(), PgError> {
        let rises = self
            .branches
            .last()
            .is_none_or(|last| last.timeline < branch.timeline);
        if !rises || branch.timeline >= self.timeline {
            return Err(malformed(WHAT, "its timelines do not rise up to its own"));
        }
        self.branches.push(branch);
        Ok(())
    }

    /// The history of a timeline that leaves this one.
    ///
    /// # Errors
    /// `NotOne` when its number is not higher, `TooLarge`.
    pub fn branch_off(&self, timeline: TimelineId, left_at: Lsn, reason: &str) -> Result<Self, PgError> {
        if timeline <= self.timeline {
            let number = timeline.to_string();
            return Err(not_one(
                "a new timeline",
                &number,
                "it must be higher than the one it leaves",
            ));
        }
        if left_at.is_zero() {
            return Err(not_one(
                "the end of a timeline",
                "0/0",
                "nothing was written before it",
            ));
        }
        let mut branches = self.branches.clone();
        branches.push(Branch {
            timeline: self.timeline,
            left_at,
            // One line each.
            reason: reason.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
        });
        let history = Self { timeline, branches };
        bounded(WHAT, history.render().len(), PG_HISTORY_MAX)?;
        Ok(history)
    }

    /// The text of its file.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for branch in &self.branches {
            let Branch {
                timeline,
                left_at,
                reason,
            } = branch;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{timeline}\t{left_at}\t{reason}");
        }
        text
    }

    /// The timeline whose history it is.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What came before it, oldest first.
    #[must_use]
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// All timelines, newest first, with where each began.
    fn begins(&self) -> impl Iterator<Item = (TimelineId, Lsn)> {
        let older = self.branches.iter().rev();
        let timelines = std::iter::once(self.timeline).chain(older.clone().map(|branch| branch.timeline));
        let begins = older.map(|branch| branch.left_at).chain([Lsn::ZERO]);
        timelines.zip(begins)
    }

    /// The timeline that wrote the byte at `lsn`, on the way to this one.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.begins()
            .find(|(_, begin)| *begin <= lsn)
            .map_or(self.timeline, |(timeline, _)| timeline)
    }

    /// Whether the byte at `lsn`, written by `timeline`, is part of this history: what begins there can be recovered
    /// along it.
    #[must_use]
    pub fn holds(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.timeline_at(lsn) == timeline
    }

    /// Whether all that `timeline` wrote before `end` is part of this history: what ends there can be recovered
    /// along it. The point where a timeline was left still belongs to both.
    #[must_use]
    pub fn holds_until(&self, timeline: TimelineId, end: Lsn) -> bool {
        end.checked_sub(1).is_some_and(|last| self.holds(timeline, last))
    }

    /// The stretches of WAL from a position to `to`, or as far as there is WAL, in the order of replay.
    ///
    /// # Errors
    /// `NotInHistory` when the way to this timeline does not pass the start; `Refused` when `to` is before it.
    pub fn legs(&self, timeline: TimelineId, from: Lsn, to: Option<Lsn>) -> Result<Vec<Leg>, PgError> {
        if !self.holds(timeline, from) {
            return Err(PgError::NotInHistory {
                at: from,
                timeline,
                target: self.timeline,
                left: self.left_at(timeline),
            });
        }
        if to.is_some_and(|to| to < from) {
            return Err(PgError::Refused {
                what: "the position to recover to",
                why: "it is before the snapshot begins: choose an earlier snapshot",
            });
        }
        let mut legs = Vec::new();
        let mut end = to;
        for (timeline, begin) in self.begins() {
            let leg = Leg {
                timeline,
                from: begin.max(from),
                to: end,
            };
            if end.is_none_or(|end| leg.from < end) {
                legs.push(leg);
            }
            end = Some(end.map_or(begin, |end| end.min(begin)));
        }
        legs.reverse();
        Ok(legs)
    }

    /// Where the way to this timeline leaves that one; zero if it never is on it.
    fn left_at(&self, timeline: TimelineId) -> Lsn {
        let newer = self
            .branches
            .iter()
            .skip_while(|branch| branch.timeline != timeline);
        newer.map(|branch| branch.left_at).min().unwrap_or(Lsn::ZERO)
    }
}

/// One line: timeline, position, reason.
fn branch(line: &[u8]) -> Result<Branch, PgError> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace();
    let mut fields = line.splitn(2, is_space);
    let timeline = fields.next().and_then(decimal_u32).and_then(TimelineId::new);
    let rest = fields.next().unwrap_or_default().trim_ascii_start();
    let mut fields = rest.splitn(2, is_space);
    let left_at = fields.next().and_then(|text| std::str::from_utf8(text).ok());
    let left_at = left_at
        .and_then(|text| text.parse::<Lsn>().ok())
        .filter(|lsn| !lsn.is_zero());
    let reason = fields.next().unwrap_or_default().trim_ascii_start();
    match (timeline, left_at) {
        (Some(timeline), Some(left_at)) => Ok(Branch {
            timeline,
            left_at,
            reason: String::from_utf8_lossy(reason).into_owned(),
        }),
        _ => Err(malformed(
            WHAT,
            "a line is not a timeline, a position and a reason",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn leg(number: u32, from: u64, to: u64) -> Leg {
        Leg {
            timeline: timeline(number),
            from: Lsn(from),
            to: Some(Lsn(to)).filter(|to| to.0 > 0),
        }
    }

    fn history(own: u32, branches: &[(u32, u64)]) -> TimelineHistory {
        let text: String = branches
            .iter()
            .map(|(timeline, lsn)| format!("{timeline}\t{}\twhy\n", Lsn(*lsn)))
            .collect();
        TimelineHistory::parse(timeline(own), text.as_bytes()).unwrap()
    }

    prop_compose! {
        /// Any history, also one whose positions do not rise.
        fn histories()(
            steps in proptest::collection::vec((1..5_u32, 1..1000_u64), 0..8), last in 1..5_u32,
        ) -> TimelineHistory {
            let mut number = 0;
            let mut branches = Vec::new();
            for (step, left_at) in steps {
                number += step;
                branches.push((number, left_at));
            }
            history(number + last, &branches)
        }
    }

    proptest! {
        #[test]
        fn histories_read_back_as_they_are_written(history in histories()) {
            let read = TimelineHistory::parse(history.timeline(), history.render().as_bytes()).unwrap();
            prop_assert_eq!(&read, &history);
            let next = timeline(history.timeline().get() + 3);
            let child = history.branch_off(next, Lsn(77), "no  recovery\ntarget").unwrap();
            prop_assert_eq!(TimelineHistory::parse(next, child.render().as_bytes()).unwrap(), child);
        }

        #[test]
        fn legs_follow_each_other_and_each_byte_is_on_the_leg_of_its_timeline(
            history in histories(), from in 0..1000_u64, len in 0..1000_u64, open: bool,
        ) {
            let (from, to) = (Lsn(from), Some(Lsn(from + len)).filter(|_| !open));
            let legs = history.legs(history.timeline_at(from), from, to).unwrap();
            prop_assert_eq!(legs.is_empty(), to == Some(from));
            prop_assert_eq!(legs.first().map_or(from, |leg| leg.from), from);
            prop_assert_eq!(legs.last().map_or(to, |leg| leg.to), to);
            prop_assert!(legs.windows(2).all(|pair| pair[0].to == Some(pair[1].from) && pair[0].timeline < pair[1].timeline));
            for lsn in (from.0..from.0 + len).map(Lsn) {
                let on: Vec<_> = legs.iter().filter(|leg| leg.from <= lsn && leg.to.is_none_or(|to| lsn < to)).collect();
                prop_assert_eq!(on.len(), 1);
                prop_assert_eq!(on[0].timeline, history.timeline_at(lsn));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, own in 1..=u32::MAX, text in "[0-9#\t\n /A-F]{0,60}") {
            let _ = TimelineHistory::parse(timeline(own), &bytes);
            let _ = TimelineHistory::parse(timeline(own), text.as_bytes());
        }
    }

    #[test]
    fn a_file_as_servers_write_it_is_read() {
        // The server puts an empty line between what it copies and what it adds.
        let text = b"1\t0/3000150\tno recovery target specified\n\n# by hand\n   \n2\t0/5000000\tbefore 2026-11-27 10:00:00+00\n";
        let history = TimelineHistory::parse(timeline(3), text).unwrap();
        let [first, second] = history.branches() else {
            panic!()
        };
        assert_eq!((first.timeline, first.left_at), (timeline(1), Lsn(0x300_0150)));
        assert_eq!(second.reason, "before 2026-11-27 10:00:00+00");
        assert_eq!(
            TimelineHistory::parse(timeline(1), b"").unwrap(),
            TimelineHistory::root(TimelineId::FIRST)
        );
    }

    #[test]
    fn lines_that_no_server_writes_are_refused() {
        for text in [
            "1",
            "1\t",
            "1\t0/0\twhy",
            "0\t0/1\twhy",
            "x\t0/1\twhy",
            "1\t000000010000000000000003\twhy",
            "1\t0/1\twhy\n1\t0/2\twhy",
            "2\t0/1\twhy\n1\t0/2\twhy",
            "5\t0/1\twhy",
            "6\t0/1\twhy",
        ] {
            assert!(
                TimelineHistory::parse(timeline(5), text.as_bytes()).is_err(),
                "{text:?}"
            );
        }
        let long = vec![b'#'; PG_HISTORY_MAX + 1];
        assert!(matches!(
            TimelineHistory::parse(timeline(5), &long),
            Err(PgError::TooLarge { .. })
        ));
    }

    #[test]
    fn the_byte_at_a_switch_is_the_new_timelines_and_the_point_is_both() {
        let history = history(3, &[(1, 100), (2, 200)]);
        assert!(history.holds(timeline(1), Lsn(99)) && !history.holds(timeline(1), Lsn(100)));
        assert!(history.holds(timeline(2), Lsn(100)) && history.holds(timeline(3), Lsn(200)));
        assert!(history.holds_until(timeline(1), Lsn(100)) && !history.holds_until(timeline(1), Lsn(101)));
        assert!(!history.holds_until(timeline(2), Lsn(100)) && !history.holds_until(timeline(1), Lsn::ZERO));
        assert!(!history.holds(timeline(4), Lsn(500)));
    }

    #[test]
    fn a_snapshot_behind_the_point_where_its_timeline_was_left_is_refused() {
        let error = history(3, &[(1, 100), (2, 200)])
            .legs(timeline(1), Lsn(150), None)
            .unwrap_err();
        assert!(
            matches!(error, PgError::NotInHistory { left: Lsn(100), .. }),
            "{error}"
        );
        let never = history(3, &[(1, 100)])
            .legs(timeline(2), Lsn(50), None)
            .unwrap_err();
        assert!(
            matches!(never, PgError::NotInHistory { left: Lsn::ZERO, .. }),
            "{never}"
        );
        assert!(
            history(3, &[(1, 100)])
                .legs(timeline(1), Lsn(50), Some(Lsn(49)))
                .is_err()
        );
    }

    #[test]
    fn legs_end_at_the_target_and_skip_what_was_not_reached() {
        let history = history(3, &[(1, 100), (2, 200)]);
        let all = history.legs(timeline(1), Lsn(40), None).unwrap();
        assert_eq!(all, [leg(1, 40, 100), leg(2, 100, 200), leg(3, 200, 0)]);
        assert_eq!(
            history.legs(timeline(1), Lsn(40), Some(Lsn(200))).unwrap(),
            [leg(1, 40, 100), leg(2, 100, 200)]
        );
        assert_eq!(history.legs(timeline(2), Lsn(150), Some(Lsn(150))).unwrap(), []);
    }

    #[test]
    fn a_timeline_that_was_left_before_it_began_has_no_part() {
        // Recovered along timeline 2, stopped at 50, where timeline 1 was still being replayed.
        let history = history(3, &[(1, 100), (2, 50)]);
        assert_eq!(
            history.legs(timeline(1), Lsn(10), None).unwrap(),
            [leg(1, 10, 50), leg(3, 50, 0)]
        );
        assert_eq!(history.timeline_at(Lsn(120)), timeline(3));
        assert!(!history.holds(timeline(2), Lsn(120)) && !history.holds(timeline(1), Lsn(60)));
    }

    #[test]
    fn a_new_timeline_has_a_higher_number() {
        let root = TimelineHistory::root(timeline(4));
        assert!(root.branch_off(timeline(4), Lsn(1), "").is_err());
        assert!(root.branch_off(timeline(5), Lsn::ZERO, "").is_err());
    }
}
