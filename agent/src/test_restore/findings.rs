//! What is found, counted exactly and listed up to a bound; and which checks were run.

use holdfast_proto::v1::{CheckFinding, TestCheck};

/// Findings that are listed: the first ones tell what is wrong, all of them would not fit a job's record.
const LISTED_MAX: usize = 16;

/// Everything that was found so far.
#[derive(Debug, Default)]
pub struct Findings {
    /// All of them.
    pub count: u64,
    /// The first ones.
    pub listed: Vec<CheckFinding>,
    /// What was looked at, or could not be.
    pub checks: Vec<TestCheck>,
}

impl Findings {
    /// One more.
    pub fn add(&mut self, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) {
        self.count += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push(CheckFinding {
                what: what.into(),
                why: why.into(),
                fix: fix.into(),
            });
        }
    }

    /// More that are not listed.
    pub fn add_unlisted(&mut self, count: u64) {
        self.count += count;
    }

    /// A check came to its end; `before` is how many findings there were when it began.
    pub fn checked(&mut self, name: &str, before: u64, detail: impl Into<String>) {
        let state = if self.count == before { "ok" } else { "findings" };
        self.note(name, state, detail.into());
    }

    /// A check could not be run, or not to its end. What it found until then counts.
    pub fn not_run(&mut self, name: &str, why: impl Into<String>) {
        self.note(name, "not-run", why.into());
    }

    fn note(&mut self, name: &str, state: &str, detail: String) {
        self.checks.push(TestCheck {
            name: name.into(),
            state: state.into(),
            detail,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_some_are_listed() {
        let mut findings = Findings::default();
        findings.checked("first", 0, "nothing");
        for number in 0..100 {
            findings.add(format!("index {number}"), "why", "");
        }
        findings.add_unlisted(3);
        findings.checked("second", 0, "something");
        findings.not_run("third", "no program");
        assert_eq!((findings.count, findings.listed.len()), (103, LISTED_MAX));
        let states: Vec<&str> = findings.checks.iter().map(|check| check.state.as_str()).collect();
        assert_eq!(states, ["ok", "findings", "not-run"]);
    }
}
