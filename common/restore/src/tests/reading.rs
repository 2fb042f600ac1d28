//! Looking into a snapshot.

use crate::{Snapshot, testing::*};
use holdfast_core::{ErrorKind, HasKind};
use parking_lot::Mutex;
use std::{io::Write, ops::ControlFlow, sync::Arc};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn sample() -> Snapshot {
    let wide = (0..4000)
        .map(|n| (format!("f{n:05}").into_bytes(), file(n.to_string())))
        .collect();
    let tree = dir([
        ("a", dir([("x", file("x")), ("y", link("x"))])),
        ("large", file(noise(1, 20 << 20))),
        ("wide", Item::Dir(0o755, wide)),
    ]);
    let mut repo = Repo::new();
    repo.chunk_len = 300_000;
    snapshot(
        &mut repo,
        &[
            ("/srv/t", tree),
            ("/srv/u", dir([("a", file("other"))])),
            ("/f", file("f")),
        ],
    )
    .await
    .0
}

fn paths(entries: &[crate::TreeEntry]) -> Vec<String> {
    entries.iter().map(|found| crate::shown(&found.path)).collect()
}

#[tokio::test]
async fn paths_are_found_and_listed() {
    let snapshot = sample().await;
    assert_eq!(
        snapshot.lookup(b"/srv/t/wide/f02500").await.unwrap().entry.size(),
        4
    );
    assert_eq!(snapshot.lookup(b"srv/t/a/x").await.unwrap().path, b"/srv/t/a/x");
    assert_eq!(
        snapshot.lookup(b"wide/f00000").await.unwrap().path,
        b"/srv/t/wide/f00000"
    );
    assert_eq!(snapshot.lookup(b"/f").await.unwrap().path, b"/f");
    for bad in [
        "/srv",
        "/srv/t/b",
        "/wide",
        "/f/x",
        "/srv/t/wide/f99999",
        "/srv/t/wide/a",
        "..",
    ] {
        assert_eq!(
            snapshot.lookup(bad.as_bytes()).await.unwrap_err().kind(),
            ErrorKind::NotFound,
            "{bad}"
        );
    }
    assert_eq!(
        paths(&snapshot.list(b"/").await.unwrap()),
        ["/srv/t", "/srv/u", "/f"]
    );
    assert_eq!(
        paths(&snapshot.list(b"/srv").await.unwrap()),
        ["/srv/t", "/srv/u"]
    );
    assert_eq!(
        paths(&snapshot.list(b"/srv/t/a").await.unwrap()),
        ["/srv/t/a/x", "/srv/t/a/y"]
    );
    assert_eq!(
        paths(&snapshot.list(b"/srv/t/a/x").await.unwrap()),
        ["/srv/t/a/x"]
    );
    let wide = snapshot.list(b"/srv/t/wide").await.unwrap();
    assert_eq!(wide.len(), 4000);
    assert!(wide.is_sorted_by(|a, b| a.path < b.path));
    assert_eq!(
        snapshot.list(b"/no").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn files_are_read_whole() {
    let snapshot = sample().await;
    let sink = Sink::default();
    assert_eq!(
        snapshot.read_file(b"large", sink.clone()).await.unwrap(),
        20 << 20
    );
    assert!(*sink.0.lock() == noise(1, 20 << 20));
    for bad in ["a", "a/y"] {
        let error = snapshot
            .read_file(bad.as_bytes(), std::io::sink())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn everything_is_walked_in_order() {
    let snapshot = sample().await;
    let walk = |path: &'static str, most: usize| {
        let snapshot = snapshot.clone();
        async move {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let into = Arc::clone(&seen);
            let visit = move |found: crate::TreeEntry| {
                into.lock().push(crate::shown(&found.path));
                if into.lock().len() == most {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            snapshot.walk(path.as_bytes(), visit).await.unwrap();
            let seen = seen.lock();
            seen.clone()
        }
    };
    let all = walk("", usize::MAX).await;
    assert_eq!(all.len(), 6 + 4000 + 2 + 1);
    assert_eq!(
        &all[..5],
        ["/srv/t", "/srv/t/a", "/srv/t/a/x", "/srv/t/a/y", "/srv/t/large"]
    );
    assert_eq!(&all[all.len() - 3..], ["/srv/u", "/srv/u/a", "/f"]);
    assert_eq!(walk("/srv/u", usize::MAX).await, ["/srv/u", "/srv/u/a"]);
    assert_eq!(walk("/", 3).await.len(), 3);
}
