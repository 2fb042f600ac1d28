//! Paths by pattern.

use crate::{RestoreError, RestoreOptions, restore, testing::*};
use holdfast_core::{ErrorKind, HasKind};
use std::{fs, path::Path, sync::Arc};

fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                found.push(name + "/");
                stack.push(path);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_fits_comes_back_and_nothing_else() {
    let logs = || {
        dir([
            ("a.log", file("1")),
            ("b.txt", file("2")),
            ("old", dir([("c.log", file("3"))])),
        ])
    };
    let tree = dir([
        ("web", logs()),
        ("db", dir([("data", file("4"))])),
        ("star*", file("5")),
        ("top.log", file("6")),
    ]);
    let trees = [("/srv/t", tree), ("/etc", dir([("z", file("z"))]))];
    let (snapshot, counts) = counted(&mut Repo::new(), &trees).await;
    for (patterns, expected) in [
        (
            &["/srv/t/web/*.log"][..],
            &["srv/", "srv/t/", "srv/t/web/", "srv/t/web/a.log"][..],
        ),
        (
            &["web/*.log"],
            &["srv/", "srv/t/", "srv/t/web/", "srv/t/web/a.log"],
        ),
        (
            &["**/*.log"],
            &[
                "srv/",
                "srv/t/",
                "srv/t/top.log",
                "srv/t/web/",
                "srv/t/web/a.log",
                "srv/t/web/old/",
                "srv/t/web/old/c.log",
            ],
        ),
        (&["/srv/t/d?"], &["srv/", "srv/t/", "srv/t/db/", "srv/t/db/data"]),
        (
            &["/srv/t/db/**", "/e*"],
            &["etc/", "etc/z", "srv/", "srv/t/", "srv/t/db/", "srv/t/db/data"],
        ),
        // A name that has a star in it is that name.
        (&["/srv/t/star*"], &["srv/", "srv/t/", "srv/t/star*"]),
        (
            &["web/o*/c.log", "web/old"],
            &[
                "srv/",
                "srv/t/",
                "srv/t/web/",
                "srv/t/web/old/",
                "srv/t/web/old/c.log",
            ],
        ),
    ] {
        let to = tempfile::tempdir().unwrap();
        let options = RestoreOptions {
            paths: patterns
                .iter()
                .map(|pattern| pattern.as_bytes().to_vec())
                .collect(),
            ..Default::default()
        };
        let progress = Arc::clone(&options.progress);
        let report = restore(&snapshot, to.path(), options).await.unwrap();
        assert_eq!(files(to.path()), expected, "{patterns:?}");
        let regular = expected.iter().filter(|name| !name.ends_with('/')).count() as u64;
        assert_eq!((report.files, progress.files().0), (regular, regular));
    }
    let to = tempfile::tempdir().unwrap();
    for bad in ["/srv/t/*.conf", "nothing*", "/etc/z/*", "/srv/t/star\\*x"] {
        let options = RestoreOptions {
            paths: vec![bad.as_bytes().to_vec()],
            ..Default::default()
        };
        let error = restore(&snapshot, &to.path().join("none"), options)
            .await
            .unwrap_err();
        assert!(matches!(error, RestoreError::NoMatch(_)), "{bad}: {error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!to.path().join("none").exists());
    }
    assert!(counts.nodes.load(std::sync::atomic::Ordering::Relaxed) > 0);
}
