//! Damaged pages are told from those that are being written.

use crate::{backup::Backups, server::Server};
use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

const PAGE: u64 = 8192;

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

#[test]
fn flipped_bytes_are_reported_with_file_and_block_until_they_are_mended() {
    let server = Server::new();
    server.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 50000) AS n");
    server.sql("CREATE TABLE small AS SELECT generate_series(1, 1000) AS n");
    let (large, small) = (server.file_of("t"), server.file_of("small"));
    let named = |path: &Path| format!("data/{}", path.strip_prefix(server.data()).unwrap().display());
    flip(&large, 300 * PAGE + 5000);
    flip(&small, PAGE + 8000);
    let mut backups = Backups::of(&server);
    for round in 0..2 {
        let (outcome, stats) = backups.take();
        assert_eq!(stats.snapshot().unreadable, 2, "round {round}");
        let mut problems: Vec<_> = outcome
            .problems
            .iter()
            .map(|problem| {
                (
                    String::from_utf8(problem.path.to_vec()).unwrap(),
                    problem.reason.clone(),
                )
            })
            .collect();
        problems.sort();
        let mut expected = [(named(&large), 300_u32), (named(&small), 1)];
        expected.sort();
        for ((path, reason), (file, block)) in problems.iter().zip(&expected) {
            assert_eq!(*path, format!("/postgresql/{file}"));
            assert!(reason.contains(&format!("block {block} ")), "{reason}");
        }
        let manifest = backups.manifest(&outcome);
        assert_eq!(manifest["damaged_count"], 2);
        let mut listed: Vec<(String, u32)> = manifest["damaged"]
            .as_array()
            .unwrap()
            .iter()
            .map(|page| {
                (
                    page["file"].as_str().unwrap().into(),
                    page["block"].as_u64().unwrap() as u32,
                )
            })
            .collect();
        listed.sort();
        assert_eq!(listed, expected);
    }
    flip(&large, 300 * PAGE + 5000);
    flip(&small, PAGE + 8000);
    let (outcome, stats) = backups.take();
    assert_eq!((outcome.problems.len(), stats.snapshot().unreadable), (0, 0));
    assert_eq!(backups.manifest(&outcome)["damaged_count"], 0);
}

#[test]
fn a_page_that_claims_a_change_of_the_future_is_damaged() {
    let server = Server::new();
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let path = server.file_of("t");
    // The upper half of its position.
    flip(&path, 2 * PAGE + 1);
    let mut backups = Backups::of(&server);
    let (outcome, stats) = backups.take();
    assert_eq!(stats.snapshot().unreadable, 1);
    assert!(
        outcome.problems[0].reason.contains("block 2 "),
        "{:?}",
        outcome.problems
    );
    assert_eq!(backups.manifest(&outcome)["damaged"][0]["block"], 2);
}

#[test]
fn without_checksums_nothing_is_known_of_pages() {
    let server = Server::with(&[], "");
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let path = server.file_of("t");
    flip(&path, 5000);
    let mut backups = Backups::of(&server);
    let (outcome, stats) = backups.take();
    assert_eq!(stats.snapshot().unreadable, 0);
    assert_eq!(backups.manifest(&outcome)["data_checksums"], false);
}
