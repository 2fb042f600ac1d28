//! Settings of which a standby, and every server that recovers with connections allowed, needs at least as much as
//! its primary had: otherwise it stops. Source: the documentation, "Hot Standby", "Administrator's Overview".

use crate::control_file::StandbyLimits;
use std::fmt;

/// A setting of a server that is lower than the WAL needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitTooLow {
    /// Its name.
    pub setting: &'static str,
    /// What the primary had.
    pub needed: u32,
    /// What the server has.
    pub found: u32,
}

impl fmt::Display for LimitTooLow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            needed,
            found,
        } = self;
        write!(
            f,
            "{setting} is {found} and must be at least {needed}, as on the primary"
        )
    }
}

impl StandbyLimits {
    /// Each by its name.
    #[must_use]
    pub const fn by_name(&self) -> [(&'static str, u32); 5] {
        let Self {
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_transactions,
            max_locks_per_transaction,
        } = *self;
        [
            ("max_connections", max_connections),
            ("max_worker_processes", max_worker_processes),
            ("max_wal_senders", max_wal_senders),
            ("max_prepared_transactions", max_prepared_transactions),
            ("max_locks_per_transaction", max_locks_per_transaction),
        ]
    }

    /// Which of them are too low to replay the WAL of a primary with those. None: it will do.
    #[must_use]
    pub fn too_low_for(&self, primary: &Self) -> Vec<LimitTooLow> {
        let both = self.by_name().into_iter().zip(primary.by_name());
        both.filter(|((_, found), (_, needed))| found < needed)
            .map(|((setting, found), (_, needed))| LimitTooLow {
                setting,
                needed,
                found,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: StandbyLimits = StandbyLimits {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
    };

    #[test]
    fn as_much_as_the_primary_or_more_will_do() {
        assert_eq!(PRIMARY.too_low_for(&PRIMARY), []);
        let larger = StandbyLimits {
            max_connections: 101,
            max_prepared_transactions: 5,
            ..PRIMARY
        };
        assert_eq!(larger.too_low_for(&PRIMARY), []);
    }

    #[test]
    fn each_that_is_lower_is_told_with_both_values() {
        for (index, (setting, value)) in PRIMARY.by_name().into_iter().enumerate() {
            let mut primary = PRIMARY;
            let field = match index {
                0 => &mut primary.max_connections,
                1 => &mut primary.max_worker_processes,
                2 => &mut primary.max_wal_senders,
                3 => &mut primary.max_prepared_transactions,
                _ => &mut primary.max_locks_per_transaction,
            };
            *field += 1;
            let low = LimitTooLow {
                setting,
                needed: value + 1,
                found: value,
            };
            assert_eq!(PRIMARY.too_low_for(&primary), [low]);
        }
        let low = LimitTooLow {
            setting: "max_connections",
            needed: 100,
            found: 20,
        };
        assert_eq!(
            low.to_string(),
            "max_connections is 20 and must be at least 100, as on the primary"
        );
    }
}
