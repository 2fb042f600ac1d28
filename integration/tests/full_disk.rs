//! A disk fills up, at the controller and at the agent: a clear error, nothing acknowledged is lost, and it
//! goes on when there is space again. Named so: it mounts a tmpfs and needs root or sudo.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Archiving, Cluster, Options, Output, Server, archiving},
    scenario::{AGENT, SOURCE, Scenario},
    seed::{self, Rng},
    wait,
};
use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A small tmpfs, unmounted on drop.
struct SmallDisk {
    at: PathBuf,
}

fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.args(["-n", program]);
        command
    }
}

impl SmallDisk {
    fn new(at: &Path, mib: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let owner = format!(
            "size={mib}m,mode=700,uid={},gid={}",
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw()
        );
        let mut command = as_root("mount");
        command
            .args(["-t", "tmpfs", "-o", &owner, "holdfast-test"])
            .arg(at);
        let _ = Output::of(command).ok();
        Self { at: at.to_path_buf() }
    }

    fn resize(&self, mib: u32) {
        let mut command = as_root("mount");
        command
            .args(["-o", &format!("remount,size={mib}m")])
            .arg(&self.at);
        let _ = Output::of(command).ok();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut command = as_root("umount");
        command.arg("-l").arg(&self.at);
        let _ = Output::of(command);
    }
}

fn write_incompressible(path: &Path, mib: usize, seed: u64) {
    let mut bytes = vec![0; mib << 20];
    Rng::new(seed).fill(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn assert_says_no_space(output: &Output) {
    assert_ne!(output.code, 0, "a backup into a full disk succeeded");
    let said = format!("{}{}", output.text(), output.stderr).to_lowercase();
    assert!(
        said.contains("space"),
        "the error does not speak of space: {said}"
    );
}

#[test]
fn the_controllers_disk_fills_up() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&dir.path().join("store"), 48);
    let options = Options {
        store_dir: Some(disk.at.clone()),
        reserve: Some("4MiB".into()),
        ..Options::default()
    };
    let mut scenario = Scenario::start(options, seed::of_run("full_store"), 100);
    let first = scenario.backup();

    write_incompressible(&scenario.root().join("big"), 80, 1);
    scenario.look();
    assert_says_no_space(&scenario.cluster.backup(SOURCE));
    assert!(scenario.adopt().is_empty(), "a failed backup is visible");
    scenario.assert_restores(&first);
    // The reserve keeps operators able to act.
    let _ = scenario.cluster.ctl(["get", "snapshots"]).ok();
    let _ = scenario.cluster.ctl(["verify", "--read-data"]).ok();
    let _ = scenario.cluster.ctl(["gc", "--dry-run"]).ok();
    // Still clear, not worse, the second time.
    assert_says_no_space(&scenario.cluster.backup(SOURCE));

    disk.resize(256);
    scenario.backup();
    scenario.assert_all_restore();
}

#[test]
fn the_controllers_own_state_has_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&dir.path().join("data"), 64);
    let options = Options {
        data_dir: Some(disk.at.clone()),
        ..Options::default()
    };
    let mut scenario = Scenario::start(options, seed::of_run("full_data"), 100);
    let first = scenario.backup();
    // Something else took all the space.
    let hog = disk.at.join("hog");
    let mut len = 64 << 20;
    while len > 4096 {
        let mut file = fs::File::options().create(true).append(true).open(&hog).unwrap();
        if std::io::Write::write_all(&mut file, &vec![0; len]).is_err() {
            len /= 2;
        }
    }
    scenario.change();
    let mut asking = scenario.cluster.command(&scenario.cluster.binaries().ctl());
    let mut asking = asking
        .args(["backup", "run", SOURCE, "--wait"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // A controller that cannot write its log stops rather than guess; it starts again when there is space.
    let refused = holdfast_integration::wait::poll(holdfast_integration::wait::PATIENCE, || {
        let stopped = scenario.cluster.controller().exited().is_some();
        (stopped || asking.try_wait().unwrap().is_some()).then_some(())
    });
    assert!(
        refused.is_some(),
        "a controller without space neither works nor stops"
    );
    fs::remove_file(&hog).unwrap();
    scenario.cluster.kill_controller();
    scenario.cluster.start_controller(None);
    scenario.cluster.wait_ready();
    // Whoever waited for the job rides over the restart, or was told why not.
    let acknowledged = asking.wait().unwrap().success();
    scenario.cluster.wait_connected(AGENT);
    // A job that was asked for before may run now: the source must not change under it.
    holdfast_integration::wait::until("jobs of before to end", || {
        let jobs = scenario.cluster.ctl(["get", "jobs", "-o", "json"]);
        let is_over = |state: &str| !matches!(state, "queued" | "offered" | "running");
        let all_over = jobs
            .rows()
            .iter()
            .all(|job| job["state"].as_str().is_some_and(is_over));
        (jobs.code == 0 && all_over).then_some(())
    });
    let new = scenario.adopt();
    assert!(
        !acknowledged || new.len() == 1,
        "an acknowledged snapshot is lost"
    );
    scenario.assert_restores(&first);
    scenario.change();
    let done = holdfast_integration::wait::poll(holdfast_integration::wait::PATIENCE, || {
        (scenario.cluster.backup(SOURCE).code == 0).then_some(())
    });
    assert!(done.is_some(), "no backup succeeds with space again");
    scenario.adopt();
    scenario.assert_all_restore();
}

#[test]
fn the_agents_disk_fills_up() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&dir.path().join("agents"), 32);
    let options = Options {
        agents_dir: Some(disk.at.clone()),
        ..Options::default()
    };
    let mut scenario = Scenario::start(options, seed::of_run("full_agent"), 100);
    let first = scenario.backup();
    let hog = disk.at.join("hog");
    let mut len = 32 << 20;
    while len > 4096 {
        let mut file = fs::File::options().create(true).append(true).open(&hog).unwrap();
        if std::io::Write::write_all(&mut file, &vec![0; len]).is_err() {
            len /= 2;
        }
    }
    write_incompressible(&scenario.root().join("big"), 80, 2);
    scenario.look();
    // Without room for caches or spool it may still succeed; if it does not, it says why.
    let output = scenario.cluster.backup(SOURCE);
    if output.code == 0 {
        assert_eq!(scenario.adopt().len(), 1);
    } else {
        assert_says_no_space(&output);
        assert!(scenario.adopt().is_empty(), "a failed backup is visible");
    }
    scenario.assert_restores(&first);
    fs::remove_file(&hog).unwrap();
    scenario.change();
    scenario.backup();
    scenario.assert_all_restore();
}

/// Takes all but so much of a file system.
fn leave_free(disk: &Path, mib: u64) {
    let hog = disk.join("hog");
    let _ = fs::remove_file(&hog);
    let about = rustix::fs::statvfs(disk).unwrap();
    let len = about.f_bavail * about.f_frsize - (mib << 20);
    fs::write(hog, vec![0; usize::try_from(len).unwrap()]).unwrap();
}

#[test]
fn wal_is_taken_when_data_is_refused_until_half_of_the_reserve_is_used() {
    let base = Server::base();
    let disk = SmallDisk::new(&base.path().join("store"), 64);
    let mut cluster = Cluster::start_with(Options {
        store_dir: Some(disk.at.clone()),
        reserve: Some("32MiB".into()),
        ..Options::default()
    });
    let mut server = Server::init(base.path(), "main");
    let command = archiving::attach(&mut cluster, &server, base.path());
    server.start();
    server.execute("ALTER SYSTEM SET archive_mode = on");
    server.execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    server.stop();
    server.start();
    let segment = || {
        server.execute("CREATE TABLE IF NOT EXISTS rows AS SELECT i FROM generate_series(1, 1000) i");
        let name = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.execute("INSERT INTO rows VALUES (1); SELECT pg_switch_wal()");
        name
    };
    let archived = |name: &str| {
        let done = server.data().join(format!("pg_wal/archive_status/{name}.done"));
        wait::until("the segment to be archived", || done.exists().then_some(()));
    };

    leave_free(&disk.at, 24);
    assert_says_no_space(&cluster.backup(archiving::SOURCE));
    archived(&segment());
    assert_says_no_space(&cluster.backup(archiving::SOURCE));

    leave_free(&disk.at, 8);
    let waiting = segment();
    wait::until("the server to be refused", || {
        let failed = server.query("SELECT coalesce(last_failed_wal, '') FROM pg_stat_archiver");
        (failed == waiting).then_some(())
    });
    fs::remove_file(disk.at.join("hog")).unwrap();
    server.execute("SELECT pg_reload_conf()");
    archived(&waiting);
    let _ = cluster.backup(archiving::SOURCE).ok();
    server.stop();
}

#[test]
fn a_full_disk_of_the_wal_is_found_by_check() {
    let mut world = Archiving::start("archive_timeout = '10min'");
    let disk = SmallDisk::new(&world.path("wal"), 192);
    world.server.stop();
    // As it is told: moved to another file system, and allowed there.
    let wal = world.server.data().join("pg_wal");
    let moved = disk.at.join("pg_wal");
    let mut command = as_root("cp");
    command.arg("--archive").arg(&wal).arg(&moved);
    let _ = Output::of(command).ok();
    let owner = fs::metadata(&wal).unwrap();
    std::os::unix::fs::chown(&disk.at, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::remove_dir_all(&wal).unwrap();
    std::os::unix::fs::symlink(&moved, &wal).unwrap();
    world.server.start();
    let agent = &world.cluster.agent(archiving::AGENT).config;
    let text = fs::read_to_string(agent).unwrap();
    let allow = format!("allow = [{:?}, ", moved.to_str().unwrap());
    fs::write(agent, text.replacen("allow = [", &allow, 1)).unwrap();
    world.cluster.kill_agent(archiving::AGENT);
    wait::until("the agent's stream to be gone", || {
        (!world.cluster.is_connected(archiving::AGENT)).then_some(())
    });
    world.cluster.start_agent(archiving::AGENT, None);
    world.cluster.wait_connected(archiving::AGENT);

    let check = || world.cluster.ctl(["check", archiving::SOURCE, "-o", "json"]);
    let _ = check().ok();
    leave_free(&disk.at, 10);
    let found = check().expect_code(4).json()["findings"].clone();
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found[0]["what"], "pg_wal");
    let fix = found[0]["fix"].as_str().unwrap();
    assert!(fix.starts_with("free space there"), "{fix}");
    fs::remove_file(disk.at.join("hog")).unwrap();
    let _ = check().ok();
    world.server.stop();
}

#[test]
fn a_cluster_for_which_there_is_no_room_is_not_begun() {
    let mut world = Archiving::start("");
    world.archive_all();
    let _ = world.cluster.backup(archiving::SOURCE).ok();
    // Less than the files alone take.
    let disk = SmallDisk::new(&world.path("small"), 32);
    let to = disk.at.join("pg");
    let restore = |more: &[&str]| {
        let to = to.to_str().unwrap();
        let fixed = ["restore", archiving::SOURCE, "--latest", "--to", to];
        world.cluster.ctl(fixed.iter().chain(more))
    };
    let refused = restore(&[]).expect_code(1);
    let said = &refused.stderr;
    assert!(said.contains("MiB are needed in"), "{said}");
    assert!(said.contains("--tablespace"), "it says what to do: {said}");
    assert!(!to.exists(), "nothing was written");
    // Whoever knows better finds out later, and can go on when there is room.
    assert_ne!(restore(&["--no-space-check"]).code, 0);
    disk.resize(512);
    let _ = restore(&["--in-place"]).ok();
    assert!(to.join("global/pg_control").exists());
    world.server.stop();
}
