//! What the server of a test restore is told: it must recover like its origin, reach nobody, and start nothing but itself.
//!
//! It gets files of its own for settings and for who may connect, so that nothing that a restored file says counts: what it
//! includes, commands that it runs, libraries that it loads. Of `postgresql.auto.conf`, which a server reads in any case, only
//! the recovery is kept.

use holdfast_postgres::{PgError, SettingsFile, StandbyLimits, is_recovery_setting, quote_setting};
use std::path::Path;

/// Names the socket; nothing listens at an address.
pub const PORT: u16 = 5432;
/// A few connections of ours, and those that the server keeps for superusers.
const CONNECTIONS_MIN: u32 = 20;
/// WAL may raise it behind the backup, and with too few a server ends.
const PREPARED_MIN: u32 = 64;

/// Whoever reaches the socket is let in: its directory lets nobody pass but the server's user and root.
pub const ACCESS: &str = "local all all trust\n";

/// What every session of ours asks for: settings of roles and databases come with the cluster, and count more than those of files.
/// Only superusers may.
pub const SESSION: &str = "-c session_preload_libraries= -c local_preload_libraries= -c statement_timeout=0 -c lock_timeout=0 \
    -c default_transaction_read_only=off";

/// Bytes of a socket's path that the system takes.
const SOCKET_PATH_MAX: usize = 107;

/// Whether a socket in that directory can be reached.
#[must_use]
pub fn fits_socket(dir: &Path) -> bool {
    dir.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() <= SOCKET_PATH_MAX
}

/// The settings of the server.
///
/// # Errors
/// For a path that no line of settings can hold.
pub fn settings(
    major: u32,
    limits: Option<StandbyLimits>,
    socket: &Path,
    access: &Path,
) -> Result<String, PgError> {
    let mut text = String::new();
    let mut set = |name: &str, value: &str| {
        text.push_str(&format!("{name} = {}\n", quote_setting(value)?));
        Ok::<_, PgError>(())
    };
    set("unix_socket_directories", &socket.display().to_string())?;
    set("hba_file", &access.display().to_string())?;
    set("port", &PORT.to_string())?;
    for (name, value) in FIXED {
        set(name, value)?;
    }
    for (name, value, since) in SINCE {
        if major >= *since {
            set(name, value)?;
        }
    }
    for (name, value) in limits.iter().flat_map(StandbyLimits::by_name) {
        let at_least = match name {
            "max_connections" => CONNECTIONS_MIN,
            "max_prepared_transactions" => PREPARED_MIN,
            _ => 0,
        };
        set(name, &value.max(at_least).to_string())?;
    }
    Ok(text)
}

const FIXED: &[(&str, &str)] = &[
    // Reached by nobody, and reaching nobody.
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    ("archive_mode", "off"),
    ("primary_conninfo", ""),
    ("max_logical_replication_workers", "0"),
    // No code of extensions but what their objects need.
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("jit", "off"),
    // Connections during recovery are not needed, and a server that allows them waits for ever where its settings are lower than
    // the WAL says.
    ("hot_standby", "off"),
    // It is thrown away: what a power cut would leave of it does not matter, and production beside it does.
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    // Little of the machine.
    ("shared_buffers", "64MB"),
    ("work_mem", "8MB"),
    ("maintenance_work_mem", "64MB"),
    ("huge_pages", "off"),
    ("max_wal_size", "1GB"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_parallel_maintenance_workers", "0"),
    // It is looked at as it is, and nothing in it is changed.
    ("autovacuum", "off"),
    ("restart_after_crash", "off"),
    // What it says is read here.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m "),
    ("lc_messages", "C"),
];

/// Settings of later versions.
const SINCE: &[(&str, &str, u32)] = &[
    // Tablespaces within the data directory are no reason to stop.
    ("allow_in_place_tablespaces", "on", 15),
    // Triggers of the cluster on logins.
    ("event_triggers", "off", 17),
];

/// What is kept of `postgresql.auto.conf`.
///
/// # Errors
/// `TooLarge`.
pub fn recovery_only(auto: &[u8]) -> Result<Vec<u8>, PgError> {
    let mut file = SettingsFile::parse(auto)?;
    file.remove(|name| !is_recovery_setting(name));
    Ok(file.render().to_vec())
}

/// A word that `pg_ctl` hands through a shell.
#[must_use]
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StandbyLimits = StandbyLimits {
        max_connections: 500,
        max_worker_processes: 12,
        max_wal_senders: 11,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 640,
    };

    fn written(major: u32) -> SettingsFile {
        let (socket, access) = (Path::new("/s/it's"), Path::new("/s/hba"));
        let text = settings(major, Some(LIMITS), socket, access).unwrap();
        SettingsFile::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_server_is_alone_and_as_large_as_recovery_needs() {
        let file = written(15);
        for (name, value) in [
            ("listen_addresses", ""),
            ("unix_socket_directories", "/s/it's"),
            ("unix_socket_permissions", "0700"),
            ("hba_file", "/s/hba"),
            ("archive_mode", "off"),
            ("shared_preload_libraries", ""),
            ("session_preload_libraries", ""),
            ("local_preload_libraries", ""),
            ("max_logical_replication_workers", "0"),
            ("primary_conninfo", ""),
            ("autovacuum", "off"),
            ("jit", "off"),
            ("max_connections", "500"),
            ("max_worker_processes", "12"),
            ("max_wal_senders", "11"),
            ("max_prepared_transactions", "64"),
            ("max_locks_per_transaction", "640"),
        ] {
            assert_eq!(file.get(name).as_deref(), Some(value), "{name}");
        }
    }

    #[test]
    fn settings_of_later_versions_are_left_out() {
        let has = |major, name: &str| written(major).get(name).is_some();
        assert!(!has(14, "allow_in_place_tablespaces") && has(15, "allow_in_place_tablespaces"));
        assert!(!has(16, "event_triggers") && has(17, "event_triggers"));
    }

    #[test]
    fn only_the_recovery_is_kept() {
        let auto =
            b"restore_command = '/bin/false'\nshared_preload_libraries = 'x'\nrecovery_target_lsn = '0/1'\n\
            log_directory = '/srv'\n";
        assert_eq!(
            recovery_only(auto).unwrap(),
            b"restore_command = '/bin/false'\nrecovery_target_lsn = '0/1'\n"
        );
    }

    #[test]
    fn sockets_have_short_paths() {
        assert!(fits_socket(Path::new(
            "/var/lib/holdfast-scratch/test-01M8FP12DXZWCFHJNNB6JM0TYX/s"
        )));
        assert!(!fits_socket(Path::new(&format!("/{}", "x".repeat(100)))));
    }

    #[test]
    fn words_are_one_word_to_a_shell() {
        assert_eq!(shell_word("/a b/it's"), r"'/a b/it'\''s'");
    }
}
