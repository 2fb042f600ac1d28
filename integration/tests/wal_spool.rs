//! WAL that waits at the agent: bounded, never lost in silence, and nobody calls the archive complete meanwhile. One test mounts a
//! small tmpfs and needs root.

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
        transfers,
    },
    seed, wait,
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// What the tests here do with a server whose WAL is spooled.
struct World(Archiving);

impl std::ops::Deref for World {
    type Target = Archiving;
    fn deref(&self) -> &Archiving {
        &self.0
    }
}

impl std::ops::DerefMut for World {
    fn deref_mut(&mut self) -> &mut Archiving {
        &mut self.0
    }
}

impl World {
    fn start(size: &str) -> Self {
        let world = Archiving::start_spooling(size);
        world.server.execute("CREATE TABLE rows (i int, text text)");
        Self(world)
    }

    /// Writes, and ends the segment; its name.
    fn segment(&self) -> String {
        self.server.execute(
            "INSERT INTO rows SELECT i, md5(i::text || random()::text) FROM generate_series(1, 2000) i",
        );
        let name = self
            .server
            .query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.server.execute("SELECT pg_switch_wal()");
        name
    }

    /// The same with so much in it that compression does not make it small.
    fn large_segment(&self) -> String {
        self.server
            .execute("INSERT INTO rows SELECT i, md5(random()::text) FROM generate_series(1, 120000) i");
        self.segment()
    }

    /// A segment that the server was told to be archived.
    fn archived(&self) -> String {
        let name = self.segment();
        self.wait_archived(&name);
        name
    }

    fn pushed(&self, name: &str) -> Output {
        self.agent(&["wal", "push", &format!("pg_wal/{name}")])
    }

    fn in_pg_wal(&self, name: &str) -> PathBuf {
        self.server.data().join("pg_wal").join(name)
    }

    fn fetch(&self, name: &str, more: &[&str]) -> (Output, PathBuf) {
        let dir = self.path("fetched");
        Server::make_dir(&dir);
        let to = dir.join(name);
        let _ = fs::remove_file(&to);
        let mut args = vec!["wal", "fetch", "--fetch-timeout", "1"];
        args.extend(more);
        args.extend([name, to.to_str().unwrap()]);
        (self.agent(&args), to)
    }

    fn assert_fetched(&self, name: &str, expected: &[u8]) {
        let (output, to) = self.fetch(name, &[]);
        let _ = output.ok();
        assert!(
            fs::read(to).unwrap() == expected,
            "{name} came back with another content"
        );
    }

    fn start_controller_again(&mut self) {
        self.cluster.start_controller(None);
        self.cluster.wait_ready();
    }

    fn start_agent_again(&mut self) {
        self.cluster.start_agent(AGENT, None);
        self.cluster.wait_connected(AGENT);
    }

    fn restore(&self, to: &str, more: &[&str]) -> Output {
        let to = self.path(to);
        let fixed = ["restore", SOURCE, "--to", to.to_str().unwrap()];
        self.cluster.ctl(fixed.iter().chain(more))
    }

    fn tails(&self) -> serde_json::Value {
        let described = self.cluster.ctl(["describe", "journal", SOURCE, "-o", "json"]);
        described.ok().json()["tails"].clone()
    }

    fn wait_status(&self, said: &str) {
        wait::until("the status to say so", || {
            self.cluster.ctl(["status"]).text().contains(said).then_some(())
        });
    }

    /// A server on a restored directory, once it takes writes.
    fn recovered(&self, to: &str) -> Server {
        let mut server = Server::at(&self.path(to), &self.path("restored.socket"));
        server.start();
        wait::until("the server to be promoted", || {
            (server.query("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
        server
    }
}

/// What is kept came in the order of its names.
fn assert_in_order(world: &World) {
    let rows = world
        .cluster
        .ctl(["get", "journal", SOURCE, "-o", "json"])
        .ok()
        .rows();
    // Notes of backups come when the backup ends, whichever segment they are named after.
    let segments = rows
        .iter()
        .filter(|row| row["name"].as_str().unwrap().len() == 24);
    let times: Vec<&str> = segments.map(|row| row["kept_at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{rows:?}");
    let described = world
        .cluster
        .ctl(["describe", "journal", SOURCE, "-o", "json"])
        .ok();
    assert_eq!(described.rows()[0]["missing"], serde_json::json!([]));
}

#[test]
fn with_the_controllers_away_commits_go_on_and_all_of_it_arrives_in_order() {
    const LIMIT: u64 = 64 << 20;
    let mut world = World::start("64MiB");
    transfers::make(&world.server, "");
    let workload = world.workload(4, 400);
    let _ = world.cluster.backup(SOURCE).ok();
    world.archived();
    world.wait_drained();

    world.cluster.kill_controller();
    let away = Instant::now();
    let long = Duration::from_secs(if seed::long() { 600 } else { 0 });
    let (mut most, mut moved) = (0, transfers::count(&world.server));
    // Until the spool is full and the server keeps its WAL.
    loop {
        world.large_segment();
        most = most.max(world.spooled().1);
        assert!(most <= LIMIT, "{most} bytes in a spool of {LIMIT}");
        let now = transfers::count(&world.server);
        assert!(now > moved, "no money moves while the controllers are away");
        moved = now;
        if world.ready() >= 6 && away.elapsed() >= long {
            break;
        }
        if world.ready() >= 6 {
            // Not so fast that ten minutes of it fill the disk.
            wait::pause_for(Duration::from_secs(5));
        }
    }
    println!(
        "away for {:?}: at most {} MiB spooled, {} files ready at the server",
        away.elapsed(),
        most >> 20,
        world.ready()
    );
    assert!(most > LIMIT / 2, "the spool was never used: {most}");

    world.start_controller_again();
    world.cluster.wait_connected(AGENT);
    workload.terminate();
    let total = transfers::count(&world.server);
    let last = world.segment();
    world.wait_archived(&last);
    world.wait_drained();
    assert_in_order(&world);
    assert!(world.kept().contains(&last));

    let _ = world.restore("restored", &["--latest"]).ok();
    let mut restored = world.recovered("restored");
    assert_eq!(transfers::count(&restored), total);
    transfers::check(&restored);
    restored.stop();
    world.server.stop();
}

#[test]
fn what_waits_in_a_spool_keeps_its_tail_open() {
    let mut world = World::start("1GiB");
    let _ = world.cluster.backup(SOURCE).ok();
    let first = world.archived();
    world.wait_drained();
    assert_eq!(world.tails()[0]["open"], false, "{}", world.tails());
    let _ = world.restore("closed", &["--latest"]).ok();
    let rows = world.server.number("SELECT count(*) FROM rows");

    world.cluster.kill_controller();
    let waiting = world.archived();
    assert_eq!(world.spooled().0, [waiting.as_str()]);
    // On its own host it is found all the same, and what is in neither place is not called absent without the controllers.
    let content = fs::read(world.in_pg_wal(&waiting)).unwrap();
    world.assert_fetched(&waiting, &content);
    let (unknown, _) = world.fetch("00000009.history", &[]);
    assert_eq!(unknown.code, 126, "{}", unknown.stderr);

    world.cluster.kill_agent(AGENT);
    world.start_controller_again();
    let refused = world.restore("refused", &["--latest"]).expect_code(11);
    assert!(refused.stderr.contains("agent db1"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--accept-loss"), "{}", refused.stderr);
    // That is what is meant without a target, too.
    let _ = world.restore("refused", &[]).expect_code(11);
    assert!(!world.path("refused").exists());
    assert_eq!(world.tails()[0]["open"], true);
    world.wait_status("may hold WAL that is not here");

    let _ = world.restore("accepted", &["--latest", "--accept-loss"]).ok();
    let mut accepted = world.recovered("accepted");
    assert_eq!(accepted.number("SELECT count(*) FROM rows"), rows);
    accepted.stop();
    // What the archive has reaches the end of the backup, whatever waits elsewhere.
    let _ = world.restore("covered", &["--immediate"]).ok();

    world.start_agent_again();
    world.wait_drained();
    let _ = world.restore("complete", &["--latest"]).ok();
    let mut complete = world.recovered("complete");
    assert_eq!(complete.number("SELECT count(*) FROM rows"), rows + 2000);
    complete.stop();
    assert!(world.kept().contains(&first) && world.kept().contains(&waiting));
    // The spool is empty, so 'absent' is certain again.
    let (absent, _) = world.fetch("00000009.history", &[]);
    assert_eq!(absent.code, 1, "{}", absent.stderr);
    world.server.stop();
}

#[test]
fn a_spool_that_is_taken_out_of_the_configuration_is_drained_and_closed() {
    let mut world = World::start("1GiB");
    world.archived();
    world.wait_drained();
    world.cluster.kill_controller();
    let waiting = world.archived();
    world.cluster.kill_agent(AGENT);
    let config = world.cluster.agent(AGENT).config.clone();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("spool = \"1GiB\"", "")).unwrap();
    world.start_controller_again();
    assert_eq!(world.tails()[0]["open"], true);
    world.start_agent_again();
    world.wait_drained();
    assert!(world.kept().contains(&waiting));
    wait::until("the controllers to hear of it", || {
        world.tails().is_null().then_some(())
    });
    let next = world.archived();
    assert!(
        world.kept().contains(&next),
        "it was called archived and is not there"
    );
    world.server.stop();
}

fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();
}

#[test]
fn a_flipped_byte_in_the_spool_is_seen_and_healed_where_it_can_be() {
    let mut world = World::start("1GiB");
    let _ = world.cluster.backup(SOURCE).ok();
    world.archived();
    world.wait_drained();
    world.cluster.kill_controller();
    let healed = world.archived();
    let lost = world.archived();
    let after = world.archived();
    assert_eq!(world.spooled().0.len(), 3);
    world.cluster.kill_agent(AGENT);
    flip(&world.spool().join(&healed));
    flip(&world.spool().join(&lost));
    let original = fs::read(world.in_pg_wal(&healed)).unwrap();
    let wrong = fs::read(world.in_pg_wal(&lost)).unwrap();
    world.server.stop();
    fs::remove_file(world.in_pg_wal(&lost)).unwrap();

    world.start_controller_again();
    world.start_agent_again();
    world.wait_drained();
    let kept = world.kept();
    assert!(
        kept.contains(&healed) && kept.contains(&after) && !kept.contains(&lost),
        "{kept:?}"
    );
    world.assert_fetched(&healed, &original);
    let aside = world.spool().join("aside");
    let set_aside: Vec<_> = fs::read_dir(&aside)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    assert!(set_aside[0].to_str().unwrap().contains(&lost));
    world.wait_status("set aside");
    assert_eq!(world.tails()[0]["open"], true);
    let _ = world.restore("refused", &["--latest"]).expect_code(11);

    // Whoever has it elsewhere puts it back, and takes the damaged one away.
    fs::write(world.in_pg_wal(&lost), wrong).unwrap();
    let owner = fs::metadata(world.server.data()).unwrap();
    let (uid, gid) = (
        std::os::unix::fs::MetadataExt::uid(&owner),
        std::os::unix::fs::MetadataExt::gid(&owner),
    );
    std::os::unix::fs::chown(world.in_pg_wal(&lost), Some(uid), Some(gid)).unwrap();
    let _ = world.pushed(&lost).ok();
    fs::remove_file(&set_aside[0]).unwrap();
    world.wait_drained();
    assert!(world.kept().contains(&lost));
    wait::until("the tail to be closed", || {
        (world.tails()[0]["open"] == false).then_some(())
    });
}

#[test]
fn another_content_under_a_name_is_refused_or_set_aside() {
    let mut world = World::start("1GiB");
    let name = world.archived();
    world.wait_drained();
    let second = world.segment();
    world.wait_archived(&second);
    world.wait_drained();
    let original = fs::read(world.in_pg_wal(&name)).unwrap();
    world.server.stop();
    // The same again is archived, in the journal as in the spool.
    assert_eq!(world.pushed(&name).ok().code, 0);
    let file = File::options().write(true).open(world.in_pg_wal(&name)).unwrap();
    file.write_all_at(b"scribbled", original.len() as u64 / 2)
        .unwrap();
    let refused = world.pushed(&name);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("another content"), "{}", refused.stderr);

    // With nobody to ask, the spool takes it; then it is refused there, too, when it changes.
    world.cluster.kill_controller();
    file.write_all_at(b"scribbled again", original.len() as u64 / 2)
        .unwrap();
    let _ = world.pushed(&name).ok();
    let _ = world.pushed(&name).ok();
    file.write_all_at(b"and otherwise", original.len() as u64 / 4)
        .unwrap();
    assert_eq!(world.pushed(&name).code, 1);
    world.start_controller_again();
    world.cluster.wait_connected(AGENT);
    world.wait_drained();
    world.assert_fetched(&name, &original);
    let aside = fs::read_dir(world.spool().join("aside")).unwrap().count();
    assert_eq!(aside, 1);
    world.wait_status("set aside");
    world.wait_status("another content than is kept");
    assert_eq!(world.tails()[0]["open"], true);
}

/// A small tmpfs, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Self {
        let mut command = Command::new("mount");
        command
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m,mode=700"),
                "holdfast-test",
            ])
            .arg(at);
        let _ = Output::of(command).ok();
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.0);
        let _ = Output::of(command);
    }
}

#[test]
fn with_a_full_disk_wal_goes_to_the_controllers_or_stays_at_the_server() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a tmpfs needs root");
        return;
    }
    let mut world = World::start("1GiB");
    world.archived();
    world.wait_drained();
    world.cluster.kill_agent(AGENT);
    // 64 MiB of it are left free: there is room for a segment or two.
    let disk = SmallDisk::mount(&world.spool(), 90);
    world.start_agent_again();
    let before = world.archived();
    world.wait_drained();
    world.cluster.kill_controller();
    let names: Vec<String> = (0..6).map(|_| world.large_segment()).collect();
    wait::until("the disk to be full", || {
        let (spooled, _) = world.spooled();
        (!spooled.is_empty() && world.ready() > 0).then_some(())
    });
    let refused = world.pushed(names.last().unwrap());
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    world.start_controller_again();
    for name in &names {
        world.wait_archived(name);
    }
    world.wait_drained();
    // Not even one fits: straight to the controllers.
    fs::write(world.spool().join("ballast"), vec![0; 24 << 20]).unwrap();
    let straight = world.archived();
    assert!(world.spooled().0.is_empty());
    let kept = world.kept();
    for name in names.iter().chain([&before, &straight]) {
        assert!(kept.contains(name), "{name} of {kept:?}");
    }
    assert_in_order(&world);
    world.server.stop();
    world.cluster.kill_agent(AGENT);
    drop(disk);
}
