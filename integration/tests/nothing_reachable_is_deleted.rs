//! Invariant 3: nothing that a root reaches is ever deleted, and what nothing reaches is freed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    bench::measure::stored_bytes,
    harness::Options,
    scenario::{SOURCE, Scenario},
    seed::{self, Rng},
};
use std::fs;

#[test]
fn gc_frees_what_deleted_snapshots_held_alone_and_nothing_else() {
    let seed = seed::of_run("gc");
    let mut rng = Rng::new(seed);
    let mut scenario = Scenario::start(Options::default(), seed, 150);
    for number in 0..seed::count(4, 12) {
        // Shared, changed and unique content in every snapshot. No edit sees a unique file, which it could remove or rename.
        if number > 0 {
            fs::remove_file(scenario.root().join(format!("unique-{}", number - 1))).unwrap();
        }
        scenario.change();
        let mut bytes = vec![0; 3 << 20];
        rng.fill(&mut bytes);
        fs::write(scenario.root().join(format!("unique-{number}")), bytes).unwrap();
        scenario.look();
        scenario.backup();
    }
    let store = scenario.cluster.store_dir();
    while scenario.noted().len() > 1 {
        let noted = scenario.noted();
        let victim = noted[rng.index(noted.len())].clone();
        let _ = scenario
            .cluster
            .ctl(["snapshot", "delete", &format!("{SOURCE}@{victim}")])
            .ok();
        assert!(
            !scenario.cluster.snapshots(SOURCE).contains(&victim),
            "a deleted snapshot is shown as visible"
        );
        // Within the undo period it comes back whole, gc or not.
        let _ = scenario.cluster.ctl(["gc"]).ok();
        let _ = scenario.cluster.ctl(["snapshot", "undelete", &victim]).ok();
        scenario.assert_restores(&victim);
        let _ = scenario
            .cluster
            .ctl(["snapshot", "delete", &format!("{SOURCE}@{victim}")])
            .ok();
        scenario.forget(&victim);
        let before = stored_bytes(&store);
        let _ = scenario
            .cluster
            .ctl(["gc", "--dry-run", "--ignore-undo-period"])
            .ok();
        assert_eq!(stored_bytes(&store), before, "a dry run changed the store");
        let _ = scenario.cluster.ctl(["gc", "--ignore-undo-period"]).ok();
        let freed = before.saturating_sub(stored_bytes(&store));
        assert!(
            freed > 2 << 20,
            "gc freed {freed} of 3 MiB that nothing holds any more"
        );
        scenario.assert_all_restore();
        let _ = scenario.cluster.ctl(["verify", "--read-data"]).ok();
    }
    // What was freed is not believed to be there: the same content is sent again.
    scenario.change();
    scenario.backup();
    scenario.assert_all_restore();
}
