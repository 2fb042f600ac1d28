//! What a restore may ask for.

use super::*;
use crate::catalog::model::RestoreSpec;

#[test]
fn paths_are_bounded_in_number_and_length() {
    let mut world = World::new();
    let snapshot = world.commit(1);
    let restore = |target: usize, number: usize, len: usize| {
        let spec = RestoreSpec {
            snapshot,
            target: "/".repeat(target),
            paths: vec!["p".repeat(len); number],
            in_place: false,
        };
        Command::CreateJob {
            job: JobId([2; 16]),
            work: JobWork::Restore(spec),
            source: source(),
            agent: name("web1"),
        }
    };
    for too_much in [restore(1, 1001, 1), restore(1, 2, 4097), restore(4097, 0, 0)] {
        world.refused(ErrorKind::TooLarge, too_much);
    }
    world.ok(restore(4096, 1000, 4096));
}
