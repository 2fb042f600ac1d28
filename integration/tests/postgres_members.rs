//! Primary and standby at two agents are one source: one archive, backups that refer to each other's pages, and a failover that the
//! archive goes on through. Who is no member gets nothing.

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
        as_server, transfers,
    },
    wait,
};
use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

const MEMBER: &str = "db2";
const STRANGER: &str = "db3";

/// A primary that archives, and its standby with an agent of its own in the same vault; beside them an agent of another vault.
struct World {
    archiving: Archiving,
    standby: Server,
}

impl World {
    /// The standby is not started, and the source has no members yet. `lines` go into the member's section.
    fn start(lines: &str) -> Self {
        let archiving = Archiving::start("");
        let primary = &archiving.server;
        transfers::make(primary, "");
        primary.execute(
            "CREATE TABLE filler AS SELECT i, md5(i::text) || md5((-i)::text) AS text FROM generate_series(1, 300000) i",
        );
        // Nothing is left that a server would write by itself into the one and not the other.
        primary.execute("VACUUM (FREEZE)");
        primary.execute("CHECKPOINT");
        let standby = primary.standby(archiving.base.path(), "standby");
        let mut world = Self { archiving, standby };
        world.join(MEMBER, Some(AGENT), lines);
        world.join(STRANGER, None, "");
        let command = format!(
            "{} wal push --source standby --socket {} %p",
            world.archiving.path("holdfast-agent").display(),
            world.socket(MEMBER).display()
        );
        let settings = format!("archive_mode = always\narchive_command = '{command}'\n");
        let path = world.standby.data().join("postgresql.conf");
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        world
    }

    fn socket(&self, agent: &str) -> std::path::PathBuf {
        self.archiving.path(&format!("{agent}.sock"))
    }

    /// An agent whose configuration says that the standby is of the source's cluster.
    fn join(&mut self, agent: &str, vault: Option<&str>, lines: &str) {
        let socket = self.socket(agent);
        let cluster = &mut self.archiving.cluster;
        let token = cluster.dir().join(format!("{agent}.token"));
        let mut args = vec!["token", "create", agent, "--out", token.to_str().unwrap()];
        args.extend(vault.iter().flat_map(|vault| ["--vault", vault]));
        let _ = cluster.ctl(args).ok();
        cluster.rejoin_agent(agent, &token, &[self.standby.data()]);
        let config = &cluster.agent(agent).config;
        let text = fs::read_to_string(config).unwrap();
        let user = std::os::unix::fs::MetadataExt::uid(&fs::metadata(self.standby.data()).unwrap());
        let text = format!(
            "socket = {socket:?}\n{text}\n[postgres.standby]\nconnection = \"{}\"\nuser = \"{user}\"\nsource = \"{SOURCE}\"\n{lines}\n",
            self.standby.connection()
        );
        fs::write(config, text).unwrap();
        cluster.start_agent(agent, None);
        cluster.wait_connected(agent);
    }

    fn set_members(&self, members: &str) {
        self.archiving.cluster.apply(&format!(
            "kind: Source\nname: {SOURCE}\npostgres: {{fast_checkpoint: true, members: [{members}]}}\n"
        ));
    }

    /// `wal push` or `wal fetch` as the standby's server runs it, at that agent.
    fn wal(&self, agent: &str, args: &[&str]) -> Output {
        let mut command = as_server(&self.standby, &self.archiving.path("holdfast-agent"));
        command.args(["wal", args[0], "--source", "standby", "--socket"]);
        command.arg(self.socket(agent)).args(&args[1..]);
        Output::of(command)
    }

    /// A segment that is in the standby's directory, wherever it came from.
    fn some_segment(&self) -> String {
        let entries = fs::read_dir(self.standby.data().join("pg_wal")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.len() == 24 && !name.contains('.'))
            .min()
            .unwrap()
    }

    /// Ends the segment that a server writes to; its name.
    fn end_segment(server: &Server) -> String {
        server.execute("UPDATE accounts SET balance = balance + 0 WHERE id = 1");
        let name = server.query("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.execute("SELECT pg_switch_wal()");
        name
    }

    fn wait_done(server: &Server, name: &str) {
        wait::until("the segment to be archived", || {
            let done = format!("pg_wal/archive_status/{name}.done");
            server.data().join(done).exists().then_some(())
        });
    }

    fn catch_up(&self) {
        let lsn = self.archiving.server.query("SELECT pg_current_wal_flush_lsn()");
        wait::until("the standby to replay", || {
            let has = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
            (self.standby.query(&has) == "t").then_some(())
        });
    }

    /// Backs up; what it said, and the bytes that were stored.
    fn backup(&self, more: &[&str]) -> (Output, u64) {
        let fixed = ["backup", "run", SOURCE, "--wait"];
        let cluster = &self.archiving.cluster;
        let output = cluster.ctl(fixed.iter().chain(more)).ok();
        let rows = cluster.ctl(["get", "snapshots", "-o", "json"]).ok().rows();
        (output, rows[0]["stats"]["bytes_stored"].as_u64().unwrap())
    }

    fn divergent(&self) -> serde_json::Value {
        let rows = self
            .archiving
            .cluster
            .ctl(["get", "sources", "-o", "json"])
            .ok()
            .rows();
        rows[0]["journal"]["divergent"].clone()
    }

    fn restore(&self, to: &Path, more: &[&str]) -> Output {
        let fixed = ["restore", SOURCE, "--to", to.to_str().unwrap()];
        self.archiving.cluster.ctl(fixed.iter().chain(more))
    }
}

fn refused(output: &Output, why: &str) {
    assert!(
        output.code != 0 && output.stderr.contains(why),
        "{}: {} {}",
        output.call,
        output.code,
        output.stderr
    );
}

#[test]
fn primary_and_standby_are_one_source_through_a_failover() {
    let mut world = World::start("");
    let cluster = &world.archiving.cluster;

    // Before it is a member, its own configuration alone gets it nothing; nor does it ever get the other one anything.
    let segment = world.some_segment();
    let path = format!("pg_wal/{segment}");
    let fetched = world.archiving.path("fetched");
    for agent in [MEMBER, STRANGER] {
        refused(&world.wal(agent, &["push", &path]), "does not serve");
        refused(
            &cluster.ctl(["backup", "run", SOURCE, "--agent", agent]),
            "does not serve",
        );
    }
    let file = cluster.dir().join("foreign.yaml");
    let document = format!("kind: Source\nname: {SOURCE}\npostgres: {{members: [{STRANGER}]}}\n");
    fs::write(&file, document).unwrap();
    refused(
        &cluster.ctl(["apply", "-f", file.to_str().unwrap()]),
        "another vault",
    );

    // Both archive into one journal, and either brings what the other did not.
    world.set_members(MEMBER);
    world.standby.start();
    let name = World::end_segment(&world.archiving.server);
    world.archiving.wait_archived(&name);
    World::wait_done(&world.standby, &name);
    for agent in [MEMBER, STRANGER] {
        let target = fetched.to_str().unwrap();
        let got = world.wal(agent, &["fetch", "--fetch-timeout", "1", &name, target]);
        if agent == MEMBER {
            let _ = got.ok();
            let original = world.archiving.server.data().join("pg_wal").join(&name);
            assert!(fs::read(&fetched).unwrap() == fs::read(original).unwrap());
            fs::remove_file(&fetched).unwrap();
        } else {
            refused(&got, "there is no source");
            assert!(!fetched.exists());
        }
    }

    // Whoever backs up second refers to what the first one stored.
    let (_, all) = world.backup(&[]);
    world
        .archiving
        .server
        .execute("INSERT INTO transfers (a, b, n) VALUES (1, 1, 0)");
    world.catch_up();
    let (_, by_member) = world.backup(&["--agent", MEMBER]);
    assert!(by_member * 5 < all, "{by_member} of {all} bytes");
    let (_, by_owner) = world.backup(&["--agent", AGENT]);
    assert!(by_owner * 5 < all, "{by_owner} of {all} bytes");

    // One at a time, whichever agent it is.
    let cluster = &world.archiving.cluster;
    let member = cluster.agent_process(MEMBER);
    member.suspend();
    let _ = cluster.ctl(["backup", "run", SOURCE, "--agent", MEMBER]).ok();
    let _ = cluster.ctl(["backup", "run", SOURCE]).expect_code(11);
    member.resume();
    wait::until("the member's backup to be done", || {
        (cluster.snapshots(SOURCE).len() == 4).then_some(())
    });

    // While the source's own agent is away, a member does it, and the archive goes on.
    world.archiving.cluster.kill_agent(AGENT);
    let cluster = &world.archiving.cluster;
    wait::until("the agent to be missed", || {
        (!cluster.is_connected(AGENT)).then_some(())
    });
    let (said, _) = world.backup(&[]);
    assert!(
        said.stderr.contains("db2, a member of db1/main"),
        "{}",
        said.stderr
    );
    let name = World::end_segment(&world.archiving.server);
    World::wait_done(&world.standby, &name);
    assert!(world.archiving.kept().contains(&name));
    world.archiving.cluster.start_agent(AGENT, None);
    world.archiving.cluster.wait_connected(AGENT);
    world.archiving.wait_archived(&name);
    assert_eq!(world.divergent(), 0);

    // The primary is lost. What follows is archived by the standby, and is what a restore comes to.
    world.archiving.server.stop();
    world.archiving.cluster.kill_agent(AGENT);
    assert_eq!(world.standby.query("SELECT pg_promote()"), "t");
    world
        .standby
        .execute("CREATE TABLE after AS SELECT i FROM generate_series(1, 1234) i");
    let name = World::end_segment(&world.standby);
    World::wait_done(&world.standby, &name);
    assert!(name.starts_with("00000002"), "{name}");
    let to = world.archiving.path("restored");
    let _ = world.restore(&to, &["--latest"]).ok();
    let mut restored = Server::at(&to, &world.archiving.path("restored.socket"));
    restored.start();
    wait::until("the server to take writes", || {
        (restored.query("SELECT pg_is_in_recovery()") == "f").then_some(())
    });
    assert_eq!(restored.number("SELECT count(*) FROM after"), 1234);
    assert_eq!(restored.number("SELECT count(*) FROM filler"), 300_000);
    transfers::check(&restored);
    restored.stop();

    // Who is no member any more is refused, keeps its WAL, and goes on when it is one again.
    world.set_members("");
    let name = World::end_segment(&world.standby);
    let pushed = world.wal(MEMBER, &["push", &format!("pg_wal/{name}")]);
    refused(&pushed, "does not serve");
    let backup = world
        .archiving
        .cluster
        .ctl(["backup", "run", SOURCE, "--agent", MEMBER]);
    refused(&backup, "does not serve");
    assert!(!world.archiving.kept().contains(&name));
    world.set_members(MEMBER);
    World::wait_done(&world.standby, &name);
    assert!(world.archiving.kept().contains(&name));
    world.standby.stop();
    let _ = world.archiving.cluster.ctl(["verify", "--read-data"]).ok();
}

#[test]
fn a_members_spool_keeps_the_tail_open_until_it_says_that_it_is_empty() {
    let mut world = World::start("spool = \"256MiB\"");
    world.set_members(MEMBER);
    world.standby.start();
    let _ = world.backup(&[]);
    let name = World::end_segment(&world.archiving.server);
    World::wait_done(&world.standby, &name);
    world.archiving.wait_archived(&name);
    let cluster = &world.archiving.cluster;
    let tails = || {
        let rows = cluster.ctl(["get", "sources", "-o", "json"]).ok().rows();
        assert_eq!(rows[0]["members"], serde_json::json!([MEMBER]));
        rows[0]["journal"]["spooled_at"].clone()
    };
    wait::until("the member's spool to be known", || {
        (tails() == serde_json::json!([MEMBER])).then_some(())
    });
    assert!(
        cluster.agent(MEMBER).state_dir.join("spool/db1=main").is_dir(),
        "its spool is not called after the source"
    );
    // It is asked, and says that there is nothing.
    wait::until("the member's spool to be empty", || {
        let to = world.archiving.path("asked");
        let restored = world.restore(&to, &["--latest"]);
        if restored.code == 0 {
            return Some(());
        }
        refused(&restored, MEMBER);
        None
    });
    // It cannot be asked.
    world.archiving.cluster.kill_agent(MEMBER);
    refused(
        &world.restore(&world.archiving.path("away"), &["--latest"]),
        MEMBER,
    );
    // A new process finds its spool by its name.
    world.archiving.cluster.start_agent(MEMBER, None);
    world.archiving.cluster.wait_connected(MEMBER);
    let _ = world.restore(&world.archiving.path("back"), &["--latest"]).ok();
    world.standby.stop();
    world.archiving.server.stop();
}
