//! What the jobs of a source may take of the host that they run on.

use crate::limits::{CPU_WEIGHT_MAX, IO_PRIORITY_MAX, RATE_MAX, RATE_MIN};
use serde::{Deserialize, Serialize};

/// The kernel's weights of nice 0 to 19 (`sched_prio_to_weight`, kernel/sched/core.c): each step gives a thread
/// about 10 % less of a contended processor.
const NICE_WEIGHTS: [u32; 20] = [
    1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

/// Limits of a source; what is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLimits {
    /// Bytes of packs sent, or of blobs fetched by a restore, per second.
    pub bandwidth: Option<u64>,
    /// Bytes read from files per second.
    pub read_rate: Option<u64>,
    /// Share of worker threads beside threads of normal priority, which have 100.
    pub cpu_weight: Option<u32>,
    /// I/O class of worker threads.
    pub io: Option<IoClass>,
}

/// How the kernel's I/O schedulers treat a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// As its nice value says.
    None,
    /// By turns; 0 is served first, 7 last.
    BestEffort(u32),
    /// When nobody else wants the disk.
    Idle,
}

impl IoClass {
    /// Its name in documents and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::BestEffort(_) => "best-effort",
            Self::Idle => "idle",
        }
    }

    /// The class of that name; best-effort without a priority has the kernel's middle one.
    ///
    /// # Errors
    /// Says what is wrong, for people.
    pub fn from_parts(class: &str, priority: Option<u32>) -> Result<Option<Self>, String> {
        /// Of `best-effort` when nothing else is said (linux/ioprio.h, IOPRIO_BE_NORM).
        const MIDDLE: u32 = 4;
        match (class, priority) {
            ("", None) => Ok(None),
            ("best-effort", None) => Ok(Some(Self::BestEffort(MIDDLE))),
            ("best-effort", Some(priority)) if priority <= IO_PRIORITY_MAX => {
                Ok(Some(Self::BestEffort(priority)))
            }
            ("best-effort", Some(priority)) => Err(format!(
                "I/O priority {priority} is not one: 0 is served first, {IO_PRIORITY_MAX} last"
            )),
            ("none", None) => Ok(Some(Self::None)),
            ("idle", None) => Ok(Some(Self::Idle)),
            ("" | "none" | "idle", Some(_)) => {
                Err("an I/O priority belongs to the I/O class best-effort alone".into())
            }
            (other, _) => Err(format!(
                "{other:?} is not an I/O class: use idle, best-effort or none"
            )),
        }
    }

    /// The priority within its class; none where there is but one.
    #[must_use]
    pub fn priority(self) -> Option<u32> {
        match self {
            Self::BestEffort(priority) => Some(priority),
            Self::None | Self::Idle => None,
        }
    }
}

impl HostLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every value against its bounds.
    ///
    /// # Errors
    /// Says what is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        for (name, rate) in [("bandwidth", self.bandwidth), ("read rate", self.read_rate)] {
            match rate {
                Some(0) => {
                    return Err(format!(
                        "a {name} of 0 would never end; leave it out for no limit"
                    ));
                }
                Some(rate) if !(RATE_MIN..=RATE_MAX).contains(&rate) => {
                    return Err(format!(
                        "a {name} is from 1KiB/s to 1TiB/s, not {rate} bytes per second"
                    ));
                }
                _ => {}
            }
        }
        if let Some(weight) = self.cpu_weight
            && !(1..=CPU_WEIGHT_MAX).contains(&weight)
        {
            return Err(format!(
                "a CPU weight is from 1 to {CPU_WEIGHT_MAX}, which is that of other processes, not {weight}"
            ));
        }
        match self.io {
            Some(class) => IoClass::from_parts(class.as_str(), class.priority()).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// The nice value, 0 to 19, whose weight is nearest to a share of normal priority's.
#[must_use]
pub fn nice_of_weight(weight: u32) -> i32 {
    let wanted = weight.min(CPU_WEIGHT_MAX) * NICE_WEIGHTS[0] / CPU_WEIGHT_MAX;
    (0..)
        .zip(NICE_WEIGHTS)
        .min_by_key(|(_, weight)| weight.abs_diff(wanted))
        .map_or(0, |(nice, _)| nice)
}

/// What a nice value amounts to, rounded; those below 0 count as normal.
#[must_use]
pub fn weight_of_nice(nice: i32) -> u32 {
    let at = usize::try_from(nice).unwrap_or(0).min(NICE_WEIGHTS.len() - 1);
    (NICE_WEIGHTS[at] * CPU_WEIGHT_MAX + NICE_WEIGHTS[0] / 2) / NICE_WEIGHTS[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_become_the_nearest_nice_value_and_back() {
        for (weight, nice) in [
            (100, 0),
            (80, 1),
            (50, 3),
            (33, 5),
            (11, 10),
            (10, 10),
            (2, 18),
            (1, 19),
        ] {
            assert_eq!(nice_of_weight(weight), nice, "{weight}");
        }
        for weight in 1..=100 {
            let nice = nice_of_weight(weight);
            assert_eq!(nice_of_weight(weight_of_nice(nice)), nice, "{weight}");
            assert!(weight == 100 || nice_of_weight(weight + 1) <= nice);
        }
        assert_eq!((weight_of_nice(-20), weight_of_nice(40)), (100, 1));
    }

    #[test]
    fn bad_limits_are_refused() {
        let none = HostLimits::default();
        let bandwidth = |rate| HostLimits {
            bandwidth: Some(rate),
            ..none
        };
        let cpu = |weight| HostLimits {
            cpu_weight: Some(weight),
            ..none
        };
        assert!(none.check().is_ok() && none.is_none());
        assert!(bandwidth(RATE_MIN).check().is_ok() && bandwidth(RATE_MAX).check().is_ok());
        assert!(cpu(1).check().is_ok() && cpu(100).check().is_ok());
        let read_rate = Some(1);
        for bad in [
            bandwidth(0),
            bandwidth(RATE_MAX + 1),
            cpu(0),
            cpu(101),
            HostLimits { read_rate, ..none },
        ] {
            assert!(bad.check().is_err() && !bad.is_none(), "{bad:?}");
        }
        assert_eq!(IoClass::from_parts("", None), Ok(None));
        assert_eq!(
            IoClass::from_parts("best-effort", None),
            Ok(Some(IoClass::BestEffort(4)))
        );
        for (class, priority) in [
            ("idle", Some(1)),
            ("", Some(1)),
            ("best-effort", Some(8)),
            ("realtime", None),
        ] {
            assert!(
                IoClass::from_parts(class, priority).is_err(),
                "{class} {priority:?}"
            );
        }
    }
}
