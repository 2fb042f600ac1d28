//! Every finding of `check` is provoked on a real server, and mended by exactly the line that it gave. What a full disk makes
//! it find is in `full_disk.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{
        Archiving, Output, Server,
        archiving::{AGENT, SOURCE},
        as_server,
    },
    wait,
};
use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

/// A server, and an operator who does as told.
struct World(Archiving);

impl World {
    fn check(&self) -> Output {
        self.0.cluster.ctl(["check", SOURCE, "-o", "json"])
    }

    /// What is found and the remedies, once it is that; settings take a moment to be taken.
    fn finds(&self, expected: &[&str]) -> Vec<String> {
        let mut last = Vec::new();
        let found = wait::poll(wait::PATIENCE, || {
            let output = self.check();
            let findings = output.json()["findings"].as_array().unwrap().clone();
            let all = |key: &str| -> Vec<String> {
                let text = findings
                    .iter()
                    .map(|found| found[key].as_str().unwrap().to_owned());
                text.collect()
            };
            last = all("what");
            (last == expected && output.code == if last.is_empty() { 0 } else { 4 }).then(|| all("fix"))
        });
        found.unwrap_or_else(|| panic!("{last:?} was found instead of {expected:?}"))
    }

    /// Provoked already: does what each finding says, after which there is none.
    fn mended(&mut self, expected: &[&str]) {
        let fixes = self.finds(expected);
        for fix in fixes {
            self.follow(&fix);
        }
        self.finds(&[]);
    }

    /// As an operator would.
    fn follow(&mut self, fix: &str) {
        // The agent was built where the server's user may not look: it has a copy of the program.
        let built = self.0.cluster.binaries().agent().canonicalize().unwrap();
        let copy = self.0.path("holdfast-agent");
        let fix = fix.replace(built.to_str().unwrap(), copy.to_str().unwrap());
        let last = fix.lines().last().unwrap();
        if fix.contains("agent.toml") {
            self.write_line(last, fix.contains("in the section [postgres.main]"));
        } else if fix.starts_with("stop the server") {
            self.0.server.stop();
            let _ = self.shell(last).ok();
            self.0.server.start();
        } else if let Some(by_hand) = last.strip_prefix("cd ") {
            let _ = self.shell(&format!("cd {by_hand}")).ok();
            let sql = fix.lines().find(|line| line.ends_with(';')).unwrap();
            self.0.server.execute(sql);
        } else if let Some(sql) = last.strip_suffix(" then restart the server") {
            self.sql(sql);
        } else {
            // One statement after the other: ALTER SYSTEM must stand alone.
            last.split_inclusive(';')
                .for_each(|statement| self.0.server.execute(statement));
        }
    }

    /// As the server's user, who has its programs at hand.
    fn shell(&self, line: &str) -> Output {
        let mut command = as_server(&self.0.server, Path::new("/bin/sh"));
        command
            .args(["-c", line])
            .env("PATH", "/usr/lib/postgresql/15/bin:/usr/bin:/bin");
        Output::of(command)
    }

    /// Runs statements one by one, and starts the server again.
    fn sql(&mut self, statements: &str) {
        statements
            .split_inclusive(';')
            .for_each(|statement| self.0.server.execute(statement));
        self.0.server.stop();
        self.0.server.start();
    }

    fn reload(&self, statement: &str) {
        self.0.server.execute(statement);
        self.0.server.execute("SELECT pg_reload_conf()");
    }

    /// Writes a line of agent.toml in the place of the one with that key, and starts the agent again.
    fn write_line(&mut self, line: &str, in_section: bool) {
        let key = line.split(" = ").next().unwrap();
        self.edit(|text| {
            let text = without(text, key, in_section);
            if in_section {
                text.replace("[postgres.main]\n", &format!("[postgres.main]\n{line}\n"))
            } else {
                format!("{line}\n{text}")
            }
        });
    }

    fn edit(&mut self, change: impl FnOnce(&str) -> String) {
        let cluster = &mut self.0.cluster;
        let path = cluster.agent(AGENT).config.clone();
        fs::write(&path, change(&fs::read_to_string(&path).unwrap())).unwrap();
        self.stop_agent();
        self.start_agent();
    }

    fn stop_agent(&mut self) {
        self.0.cluster.kill_agent(AGENT);
        wait::until("the agent's stream to be gone", || {
            (!self.0.cluster.is_connected(AGENT)).then_some(())
        });
    }

    fn start_agent(&mut self) {
        self.0.cluster.start_agent(AGENT, None);
        self.0.cluster.wait_connected(AGENT);
    }

    /// Ends a segment; its name.
    fn segment(&self) -> String {
        let server = &self.0.server;
        let name = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.execute("SELECT txid_current()");
        server.execute("SELECT pg_switch_wal()");
        name
    }
}

/// A configuration without that key, before its first section or in the cluster's own.
fn without(text: &str, key: &str, in_section: bool) -> String {
    let mut section = "";
    let mut kept = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let is_there = section == if in_section { "[postgres.main]" } else { "" };
        if !(is_there && line.starts_with(&format!("{key} = "))) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[test]
fn every_finding_is_mended_by_the_line_that_check_printed() {
    let mut world = World(Archiving::start("archive_timeout = '10min'"));
    world.finds(&[]);
    let refused = world.0.cluster.ctl(["check", "db1/none"]);
    assert_eq!(refused.code, 10, "{}", refused.stderr);

    settings_that_are_read_again(&mut world);
    the_archiver(&mut world);
    lines_of_the_agent(&mut world);
    settings_that_need_a_restart(&mut world);

    // With the remedies in force the archive and backups go on.
    world.0.archive_all();
    let _ = world.0.cluster.backup(SOURCE).ok();
    world.0.server.stop();
}

fn settings_that_are_read_again(world: &mut World) {
    let ours = world.0.server.query("SHOW archive_command");
    let other_socket = ours.replace("agent.sock", "other.sock");
    let other_program = ours.replacen("/holdfast-agent", "/no-such-agent", 1);
    let other_source = ours.replace("--source main", "--source other");
    for (what, set) in [
        ("full_page_writes", "full_page_writes = off".to_owned()),
        ("fsync", "fsync = off".to_owned()),
        ("archive_timeout", "archive_timeout = 0".to_owned()),
        ("archive_timeout", "archive_timeout = '16min'".to_owned()),
        ("archive_library", "archive_library = 'basic_archive'".to_owned()),
        ("archive_command", "archive_command = '/bin/true'".to_owned()),
        ("archive_command", format!("archive_command = '{other_socket}'")),
        ("archive_command", format!("archive_command = '{other_program}'")),
        ("archive_command", format!("archive_command = '{other_source}'")),
    ] {
        world.reload(&format!("ALTER SYSTEM SET {set}"));
        world.mended(&[what]);
    }
}

fn the_archiver(world: &mut World) {
    // The agent was away, and the archiver waits for a minute now.
    world.stop_agent();
    let name = world.segment();
    wait::until("the archiver to give up for now", || {
        let stat = "SELECT coalesce(last_failed_wal, '') FROM pg_stat_archiver WHERE failed_count >= 3";
        (world.0.server.query(stat) == name).then_some(())
    });
    world.start_agent();
    world.mended(&["archiver"]);
    world.0.wait_archived(&name);

    // Nothing was tried for an hour.
    world.reload("ALTER SYSTEM SET archive_command = ''");
    world.finds(&["archive_command"]);
    let name = world.segment();
    let ready = world
        .0
        .server
        .data()
        .join(format!("pg_wal/archive_status/{name}.ready"));
    wait::until("the segment to be ready", || ready.exists().then_some(()));
    let file = File::options().write(true).open(ready).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
    world.mended(&["archive_command", "archive_status"]);
    world.0.wait_archived(&name);
}

fn lines_of_the_agent(world: &mut World) {
    world.write_line("user = \"1\"", true);
    world.mended(&["user"]);
    world.edit(|text| without(text, "socket", false));
    world.mended(&["socket"]);

    let place = world.0.path("tablespace");
    Server::make_dir(&place);
    let create = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", place.display());
    world.0.server.execute(&create);
    world.mended(&["allow"]);
    world.write_line("allow = []", false);
    world.mended(&["allow"]);

    world.0.server.execute("CREATE ROLE \"Backup\" LOGIN");
    world.edit(|text| text.replace("user=postgres dbname", "user=Backup dbname"));
    world.mended(&["role \"Backup\""]);
    let _ = world.0.cluster.backup(SOURCE).ok();
}

fn settings_that_need_a_restart(world: &mut World) {
    world.sql("ALTER SYSTEM SET archive_mode = off;");
    world.mended(&["archive_mode"]);

    let server = &world.0.server;
    server.execute("SELECT pg_create_physical_replication_slot('mine')");
    world.sql("ALTER SYSTEM SET max_replication_slots = 1;");
    world.mended(&["max_replication_slots"]);
    let server = &world.0.server;
    server.execute("SELECT pg_drop_replication_slot('mine')");

    world.sql(
        "ALTER SYSTEM SET wal_level = minimal;ALTER SYSTEM SET max_wal_senders = 0;ALTER SYSTEM SET archive_mode = off;",
    );
    world.mended(&["wal_level", "archive_mode"]);

    world.0.server.stop();
    let data = world.0.server.data().display().to_string();
    let _ = world.shell(&format!("pg_checksums --disable -D {data}")).ok();
    world.0.server.start();
    world.mended(&["data_checksums"]);
}
