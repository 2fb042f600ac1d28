//! What newcomers to PostgreSQL backups get wrong, each with the test that shows it right here; and those of these tests that
//! belong nowhere else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Archiving, Output, Server, archiving::SOURCE},
    wait,
};
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

/// The facts, and the names of tests somewhere in the workspace.
const FACTS: &[(&str, &[&str])] = &[
    (
        "one session stays open from start to stop; its labels are stored byte for byte and never written into the live directory",
        &[
            "a_backup_leaves_no_trace_in_the_live_directory",
            "the_files_are_those_of_pg_basebackup",
            "a_server_that_goes_away_ends_the_backup",
            "the_server_dies_in_every_phase_of_a_backup",
        ],
    ),
    (
        "the control file's checkpoint, timeline, version and system identifier fit the backup, the push and the fetch",
        &[
            "servers_that_cannot_be_backed_up_are_refused",
            "one_name_has_one_content",
            "segments_of_another_cluster_version_size_or_place_are_refused",
        ],
    ),
    (
        "what belongs to the running server alone is left out or kept empty; unlogged relations keep their first fork",
        &[
            "what_belongs_to_this_server_alone_is_left_out",
            "directories_of_a_running_server_are_kept_empty",
            "relations_with_an_init_fork_are_left_out_but_for_that",
        ],
    ),
    (
        "files may vanish, grow or shrink while they are read",
        &[
            "what_changes_under_a_backup_is_right_in_it",
            "what_is_cut_off_meanwhile_and_parts_of_pages_are_no_damage",
        ],
    ),
    (
        "a torn page is read again, a corrupt one reported with its block; unused pages are valid; numbers go on from file to file",
        &[
            "a_page_that_was_being_written_is_read_again_and_is_no_damage",
            "flipped_bytes_are_reported_with_file_and_block_until_they_are_mended",
            "unused_pages_are_valid",
            "pages_are_numbered_within_their_fork",
        ],
    ),
    (
        "the control file comes last, and is read again while its checksum is wrong; links come before files; the mode is 0700 or 0750",
        &[
            "pg_control_is_taken_last",
            "a_control_file_that_is_being_written_is_read_again",
            "an_interrupted_restore_has_no_control_file_and_goes_on",
            "a_link_in_the_place_of_pg_wal_is_followed_for_wal_and_kept_as_a_directory",
            "a_cluster_that_its_group_may_read_comes_back_so",
        ],
    ),
    (
        "a time of change is no proof",
        &[
            "what_changes_while_it_is_read_is_no_news_and_is_read_again_next_time",
            "rewritten_pages_cost_their_bytes_again_and_again",
        ],
    ),
    (
        "archiving: the same again is well, another content is refused; nothing is acknowledged before it is kept",
        &[
            "one_name_has_one_content",
            "the_controller_dies_in_every_phase_of_a_push",
            "the_agent_dies_in_every_phase_of_a_push",
        ],
    ),
    (
        "archiving: histories, partial segments and empty backup histories are kept too; segments are of any size",
        &[
            "a_promotion_begins_a_timeline_that_is_followed_or_not",
            "an_empty_backup_history_is_archived",
            "sizes_that_initdb_does_not_make_are_refused",
        ],
    ),
    (
        "archiving: no failure ends with more than 125, and nothing that is ready is renamed",
        &[
            "no_failure_of_a_push_looks_like_a_signal_and_none_of_a_fetch_like_absence",
            "what_is_taken_along_stays_ready",
        ],
    ),
    (
        "fetching: only what is surely absent ends with 1; files appear whole",
        &[
            "no_failure_of_a_push_looks_like_a_signal_and_none_of_a_fetch_like_absence",
            "what_is_archived_is_kept_and_comes_back",
            "whoever_dies_in_a_fetch_the_file_comes",
        ],
    ),
    (
        "recovery: one signal file, one target, none left of another recovery; 'immediate' stays on its timeline",
        &[
            "each_mode_has_its_signal",
            "whatever_stood_there_one_target_is_left",
            "what_another_file_says_of_recovery_counts_no_more",
            "exactly_what_was_committed_by_the_target_is_there",
        ],
    ),
    (
        "recovery: a target before consistency, or that is never reached, is refused before anything is written",
        &[
            "a_position_within_the_backup_is_refused",
            "exactly_what_was_committed_by_the_target_is_there",
        ],
    ),
    (
        "WAL that makes a tablespace would be replayed into the origin's own directory",
        &["wal_that_makes_a_tablespace_is_not_replayed_over_the_origins"],
    ),
    (
        "a clone does not archive into the archive of its origin; a standby has at least the limits of its primary",
        &[
            "a_standby_is_built_from_a_backup_follows_and_takes_over",
            "half_a_cluster_never_starts_and_is_completed_in_place",
            "each_that_is_lower_is_told_with_both_values",
        ],
    ),
];

#[test]
fn every_fact_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = String::new();
    for dir in ["agent", "common", "controller", "integration"] {
        collect(&root.join(dir), &mut sources);
    }
    let missing: Vec<&str> = FACTS
        .iter()
        .flat_map(|(_, tests)| tests.iter().copied())
        .filter(|test| !sources.contains(&format!("fn {test}(")))
        .collect();
    assert_eq!(missing, [""; 0]);
}

fn collect(dir: &Path, sources: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

fn segment(world: &Archiving, rows: u32) -> String {
    world.server.execute(&format!(
        "CREATE TABLE IF NOT EXISTS rows (text text); INSERT INTO rows SELECT md5(i::text) FROM generate_series(1, {rows}) i"
    ));
    let name = world
        .server
        .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    world.server.execute("SELECT pg_switch_wal()");
    name
}

fn fetch(world: &Archiving, name: &str, more: &[&str]) -> (Output, PathBuf) {
    let dir = world.path("fetched");
    Server::make_dir(&dir);
    let to = dir.join(name);
    let path = to.to_str().unwrap();
    let mut args = vec!["wal", "fetch", "--fetch-timeout", "1"];
    args.extend(more);
    args.extend([name, path]);
    (world.agent(&args), to)
}

#[test]
fn a_backup_leaves_no_trace_in_the_live_directory() {
    let world = Archiving::start("");
    world
        .server
        .execute("CREATE TABLE filler AS SELECT md5(i::text) FROM generate_series(1, 100000) i");
    world.cluster.apply(&format!(
        "kind: Source\nname: {SOURCE}\npostgres: {{fast_checkpoint: true}}\nlimits: {{read_rate: 8MiB}}\n"
    ));
    let sessions = "SELECT string_agg(pid || ' ' || backend_start, ';' ORDER BY pid) FROM pg_stat_activity \
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let job = world.cluster.start_backup(SOURCE);
    let mut seen = Vec::new();
    wait::until("the backup to end", || {
        for name in ["backup_label", "tablespace_map", "backup_manifest"] {
            assert!(!world.server.data().join(name).exists(), "{name}");
        }
        let now = world.server.query(sessions);
        if !now.is_empty() && seen.last() != Some(&now) {
            seen.push(now);
        }
        let state = world.cluster.job(&job)["state"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_ne!(state, "failed");
        (state == "succeeded").then_some(())
    });
    // A first one asks which cluster it is.
    assert!(
        (1..=2).contains(&seen.len()),
        "one session, from the first moment to the last: {seen:?}"
    );
    assert_eq!(
        world.server.number("SELECT count(*) FROM pg_replication_slots"),
        0
    );
}

#[test]
fn a_cluster_that_its_group_may_read_comes_back_so() {
    let mut world = Archiving::start("");
    world.server.stop();
    let mut command = Command::new("chmod");
    command.args(["-R", "g+rX"]).arg(world.server.data());
    let _ = Output::of(command).ok();
    world.server.start();
    let _ = world.cluster.backup(SOURCE).ok();
    let to = world.path("restored");
    let _ = world.cluster.restore(&format!("{SOURCE}@latest"), &to).ok();
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o750);
    let mut restored = Server::at(&to, &world.path("restored.socket"));
    restored.start();
    assert_eq!(restored.query("SHOW data_directory_mode"), "0750");
    restored.stop();
}

#[test]
fn an_empty_backup_history_is_archived() {
    let mut world = Archiving::start("");
    let name = segment(&world, 100);
    world.wait_archived(&name);
    world.server.stop();
    let history = format!("{name}.00000028.backup");
    let path = world.server.data().join("pg_wal").join(&history);
    fs::write(&path, b"").unwrap();
    let owner = fs::metadata(world.server.data()).unwrap();
    std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    let _ = world.agent(&["wal", "push", &format!("pg_wal/{history}")]).ok();
    let (fetched, to) = fetch(&world, &history, &[]);
    let _ = fetched.ok();
    assert_eq!(fs::read(to).unwrap(), b"");
}

#[test]
fn no_failure_of_a_push_looks_like_a_signal_and_none_of_a_fetch_like_absence() {
    let mut world = Archiving::start("");
    let name = segment(&world, 100);
    world.wait_archived(&name);
    world.server.stop();
    let path = format!("pg_wal/{name}");
    let push = |world: &Archiving, args: &[&str]| {
        let output = world.agent(&[&["wal", "push"], args].concat());
        assert!(
            (1..=125).contains(&output.code),
            "{args:?} ended with {}",
            output.code
        );
        assert!(!output.stderr.is_empty(), "{args:?} says nothing");
    };
    push(&world, &["pg_wal/0000000100000000000000EE"]);
    push(&world, &["pg_wal"]);
    push(&world, &[]);
    push(&world, &["--source", "other", &path]);
    push(&world, &["--socket", "/nowhere/at/all", &path]);
    let fails = |world: &Archiving, name: &str, more: &[&str]| {
        let (output, to) = fetch(world, name, more);
        assert!(output.code >= 126, "{name} {more:?} ended with {}", output.code);
        assert!(!to.exists(), "{name} {more:?} left a file");
    };
    fails(&world, &name, &["--socket", "/nowhere/at/all"]);
    fails(&world, &name, &["--source", "other"]);
    let (absent, _) = fetch(&world, "0000000100000000000000EE", &[]);
    assert_eq!(absent.code, 1, "{}", absent.stderr);
    world.cluster.stop_controller();
    fails(&world, "0000000100000000000000EE", &[]);
    fails(&world, &name, &[]);
    world
        .cluster
        .kill_agent(holdfast_integration::harness::archiving::AGENT);
    push(&world, &[&path]);
    fails(&world, &name, &[]);
}

#[test]
fn what_is_taken_along_stays_ready() {
    let mut world = Archiving::start("");
    let first = segment(&world, 100);
    world.wait_archived(&first);
    world
        .server
        .execute("ALTER SYSTEM SET archive_command = '/bin/false'");
    world.server.execute("SELECT pg_reload_conf()");
    let names: Vec<String> = (0..4).map(|_| segment(&world, 100)).collect();
    world.server.stop();
    let status = world.server.data().join("pg_wal/archive_status");
    let ready = || {
        let mut found: Vec<(String, i64)> = fs::read_dir(&status)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    entry.metadata().unwrap().ctime_nsec(),
                )
            })
            .filter(|(name, _)| name.ends_with(".ready"))
            .collect();
        found.sort();
        found
    };
    let before = ready();
    assert!(before.len() >= names.len(), "{before:?}");
    let _ = world
        .agent(&["wal", "push", &format!("pg_wal/{}", names[0])])
        .ok();
    let kept = world.kept();
    assert!(kept.contains(&names[1]), "taken along: {kept:?}");
    assert_eq!(ready(), before);
    assert_eq!(fs::metadata(status).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn wal_that_makes_a_tablespace_is_not_replayed_over_the_origins() {
    let mut world = Archiving::start("");
    let _ = world.cluster.backup(SOURCE).ok();
    let late = world.path("late");
    Server::make_dir(&late);
    world
        .server
        .execute(&format!("CREATE TABLESPACE late LOCATION '{}'", late.display()));
    world
        .server
        .execute("CREATE TABLE kept TABLESPACE late AS SELECT i FROM generate_series(1, 1000) i");
    world.archive_all();
    let to = world.path("beside");
    let restore = |more: &[&str]| {
        let mut args = vec!["restore", SOURCE, "--to", to.to_str().unwrap()];
        args.extend(more);
        world.cluster.ctl(args)
    };
    let refused = restore(&[]);
    assert_eq!(refused.code, 11, "{}", refused.stderr);
    assert!(
        refused.stderr.contains(late.to_str().unwrap()),
        "{}",
        refused.stderr
    );
    assert!(!to.join("global/pg_control").exists(), "no server starts from it");
    assert_eq!(restore(&["--in-place"]).code, 11, "nor after another try");
    world.server.execute("CHECKPOINT");
    assert_eq!(world.server.number("SELECT count(*) FROM kept"), 1000);

    // Where nothing lies it is made.
    world.server.stop();
    rustix::fs::rename(&late, world.path("away")).unwrap();
    Server::make_dir(&late);
    let _ = world
        .cluster
        .ctl(["restore", SOURCE, "--in-place", "--to", to.to_str().unwrap()])
        .ok();
    let mut restored = Server::at(&to, &world.path("restored.socket"));
    restored.start();
    assert_eq!(restored.number("SELECT count(*) FROM kept"), 1000);
    restored.stop();
}
