//! A second backup costs what changed.

use crate::{backup::Backups, server::Server};
use holdfast_agent::engine::Outcome;
use holdfast_repo::{Entry, EntryKind, Strategy, Timestamp};
use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

const PAGE: usize = 8192;

/// The entry of a file of the data directory.
fn entry(server: &Server, backups: &Backups, outcome: &Outcome, file: &Path) -> Entry {
    let tree = outcome.trees.iter().find(|tree| tree.path == b"/postgresql/data");
    let mut entry = tree.unwrap().entry.clone();
    for name in file.strip_prefix(server.data()).unwrap() {
        let EntryKind::Dir { node, .. } = entry.kind else {
            panic!("not a directory")
        };
        let entries = backups.host.entries(node);
        let found = entries.into_iter().find(|entry| entry.name == name.as_bytes());
        entry = found.unwrap();
    }
    entry
}

#[test]
fn scattered_updates_cost_about_their_pages() {
    let server = Server::new();
    server.sql(
        "CREATE TABLE wide WITH (fillfactor = 90) AS SELECT n, md5(n::text) || md5((n + 1)::text) AS text \
         FROM generate_series(1, 100000) AS n",
    );
    server.sql("VACUUM FREEZE wide");
    server.sql("CREATE INDEX ON wide (n)");
    let mut backups = Backups::of(&server);
    backups.take();
    let pages = 60;
    let every = 100_000 / pages;
    server.sql(&format!(
        "UPDATE wide SET text = reverse(text) WHERE n % {every} = 7"
    ));
    let (outcome, stats) = backups.take();
    assert_eq!(stats.snapshot().unreadable, 0);
    let grown = backups.grown.lock().unwrap().clone();
    // The heap's pages, some of the index and of the catalogs, and nodes.
    assert!(
        grown[1] < 4 * pages * PAGE && grown[1] * 4 < grown[0],
        "{grown:?}"
    );
    let restored = Server::of(|data| backups.restore(&outcome, data));
    restored.start();
    let sum = "SELECT count(*), sum(hashtext(text)::int8) FROM wide";
    assert_eq!(restored.sql(sum), server.sql(sum));
}

#[test]
fn relations_are_cut_in_segments_whatever_their_size_and_content() {
    let server = Server::new();
    server.sql("CREATE TABLE t AS SELECT n, repeat('text ', 20) AS text FROM generate_series(1, 3000) AS n");
    let path = server.file_of("t");
    let len = fs::metadata(&path).unwrap().len();
    assert!((200_000..1 << 20).contains(&len), "{len}");
    let mut backups = Backups::of(&server);
    let (outcome, _) = backups.take();
    let EntryKind::File { strategy, size, .. } = entry(&server, &backups, &outcome, &path).kind else {
        panic!("not a file")
    };
    assert_eq!((strategy, size), (Strategy::Fixed, len));
}

#[test]
fn what_changes_while_it_is_read_is_no_news_and_is_read_again_next_time() {
    let server = Server::new();
    server.sql("CREATE TABLE small AS SELECT generate_series(1, 1000) AS n");
    server.sql("CREATE TABLE large AS SELECT generate_series(1, 20000) AS n");
    let paths = [server.file_of("small"), server.file_of("large")];
    let mut backups = Backups::of(&server);
    let is_over = AtomicBool::new(false);
    let (outcome, stats) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let files = paths
                .each_ref()
                .map(|path| File::options().write(true).read(true).open(path).unwrap());
            let mut byte = [0];
            while !is_over.load(Ordering::Relaxed) {
                for file in &files {
                    file.read_exact_at(&mut byte, 0).unwrap();
                    file.write_all_at(&byte, 0).unwrap();
                }
            }
        });
        let taken = backups.take();
        is_over.store(true, Ordering::Relaxed);
        taken
    });
    let counts = stats.snapshot();
    assert_eq!((counts.files_changing, counts.unreadable), (0, 0));
    for path in &paths {
        let entry = entry(&server, &backups, &outcome, path);
        assert!(!entry.changed_while_read);
        assert_eq!(entry.ctime, Timestamp::default(), "nothing is as old as that");
    }
    let (_, stats) = backups.take();
    let len: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(stats.snapshot().bytes_read >= len);
}
