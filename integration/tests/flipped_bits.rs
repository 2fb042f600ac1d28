//! Invariant 6: wrong bytes are never returned. Bits are flipped and files cut short in everything that the
//! store and the state directories hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::Options,
    scenario::{AGENT, SOURCE, Scenario},
    seed::{self, Rng},
    wait,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Regular files below `dir`, in a fixed order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => pending.push(entry.path()),
                kind if kind.is_file() && entry.metadata().unwrap().len() > 0 => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Damage to one file, undone on drop.
struct Damage {
    path: PathBuf,
    good: Vec<u8>,
    what: String,
}

impl Damage {
    fn new(path: &Path, rng: &mut Rng) -> Self {
        let good = fs::read(path).unwrap();
        let mut bad = good.clone();
        let what = if rng.chance(0.2) {
            let len = rng.index(bad.len());
            bad.truncate(len);
            format!("cut {} to {len} of {} bytes", path.display(), good.len())
        } else {
            let (at, bit) = (rng.index(bad.len()), rng.below(8));
            bad[at] ^= 1 << bit;
            format!(
                "flipped bit {bit} of byte {at} of {} in {}",
                good.len(),
                path.display()
            )
        };
        let damage = Self {
            path: path.to_path_buf(),
            good,
            what,
        };
        damage.put(&bad);
        damage
    }

    /// In place, as a disk does it: whoever has the file open sees it too. A file that its owner removed
    /// meanwhile stays removed.
    fn put(&self, bytes: &[u8]) {
        let Ok(file) = fs::File::options().write(true).open(&self.path) else {
            return;
        };
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }
}

impl Drop for Damage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.put(&self.good);
        }
    }
}

#[test]
fn every_flip_in_the_store_is_found_and_no_wrong_byte_comes_back() {
    let seed = seed::of_run("flipped_bits");
    let mut rng = Rng::new(seed);
    let mut scenario = Scenario::start(Options::default(), seed, 150);
    let first = scenario.backup();
    scenario.change();
    let second = scenario.backup();
    let store = scenario.cluster.store_dir();
    // One kind after the other: packs are many, and roots and keys matter as much.
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files(&store) {
        let kind = path.strip_prefix(&store).unwrap().components().next().unwrap();
        let kind = kind.as_os_str().to_string_lossy().into_owned();
        // The marker is read when a store is opened, and `tmp` holds nothing that anyone was promised.
        if ["packs", "roots", "keys", "catalog"].contains(&kind.as_str()) {
            kinds.entry(kind).or_default().push(path);
        }
    }
    for wanted in ["packs", "roots", "keys"] {
        assert!(
            kinds.contains_key(wanted),
            "the store has no {wanted}: {:?}",
            kinds.keys()
        );
    }
    let _ = scenario.cluster.ctl(["verify", "--read-data"]).ok();
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let names: Vec<&String> = kinds.keys().collect();
    for round in 0..seed::count(100, 1_000) {
        let kind = names[round % names.len()];
        let path = &kinds[kind][rng.index(kinds[kind].len())];
        let damage = Damage::new(path, &mut rng);
        eprintln!("{}", damage.what);
        let found = scenario.cluster.ctl(["verify", "--read-data"]);
        assert_eq!(
            found.code,
            4,
            "verify did not find it: {}\n{}{}",
            damage.what,
            found.text(),
            found.stderr
        );
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(
            found.text().contains(&name[..name.len().min(16)])
                || found.stderr.contains(&name[..name.len().min(16)]),
            "verify found something else than {}: {}",
            damage.what,
            found.text()
        );
        let count = counts.entry(kind).or_default();
        count.0 += 1;
        let id = if rng.chance(0.5) { &first } else { &second };
        let restored = scenario.restore_is_right_or_fails(id);
        if restored.code != 0 {
            count.1 += 1;
            assert!(
                !restored.stderr.trim().is_empty(),
                "it failed and did not say why: {}",
                damage.what
            );
        }
    }
    println!("flips and truncations, found by verify, of which restores refused: {counts:?}");
    scenario.assert_all_restore();
}

#[test]
fn damage_to_other_state_is_found_or_harmless() {
    let seed = seed::of_run("flipped_state");
    let mut rng = Rng::new(seed);
    let mut scenario = Scenario::start(Options::default(), seed, 60);
    scenario.backup();
    scenario.change();
    scenario.backup();
    scenario.cluster.kill_agent(AGENT);
    scenario.cluster.stop_controller();
    let places = [
        scenario.cluster.data_dir(),
        scenario.cluster.agent(AGENT).state_dir.clone(),
        scenario.cluster.store_dir(),
    ];
    // Every round begins with the same state of all of them: a disk that went back in time is another story.
    let saved: Vec<PathBuf> = (0..places.len())
        .map(|number| scenario.cluster.dir().join(format!("saved-{number}")))
        .collect();
    places
        .iter()
        .zip(&saved)
        .for_each(|(place, saved)| copy(place, saved));
    let (mut refused, mut harmless, mut agents_refused) = (0, 0, 0);
    for round in 0..seed::count(20, 200) {
        // The store has its own test above.
        let candidates = files(&places[round % 2]);
        let damage = Damage::new(&candidates[rng.index(candidates.len())], &mut rng);
        eprintln!("{}", damage.what);
        scenario.cluster.start_controller(None);
        scenario.cluster.start_agent(AGENT, None);
        let up = wait::poll(wait::PATIENCE, || {
            let controller = scenario.cluster.controller();
            if controller.exited().is_some() {
                return Some(false);
            }
            (scenario.cluster.ctl(["status"]).code == 0).then_some(true)
        })
        .unwrap_or_else(|| panic!("neither up nor refused: {}", damage.what));
        if up {
            harmless += 1;
            scenario.assert_all_restore();
            // The agent may refuse its damaged state, but what it backs up must be right.
            let connected = wait::poll(Duration::from_secs(5), || {
                let gone = scenario.cluster.agent_process(AGENT).exited().is_some();
                (gone || scenario.cluster.is_connected(AGENT)).then_some(!gone)
            });
            if connected != Some(true) {
                agents_refused += 1;
            } else if scenario.cluster.backup(SOURCE).code == 0 {
                let new = scenario.adopt();
                new.iter().for_each(|id| scenario.assert_restores(id));
                new.iter().for_each(|id| scenario.forget(id));
            }
        } else {
            refused += 1;
            let said = scenario.cluster.controller().tail(20);
            assert!(
                !said.contains("panicked"),
                "a panic instead of an error: {}\n{said}",
                damage.what
            );
        }
        scenario.cluster.kill_agent(AGENT);
        scenario.cluster.kill_controller();
        drop(damage);
        places
            .iter()
            .zip(&saved)
            .for_each(|(place, saved)| copy(saved, place));
    }
    println!(
        "damaged state files: {refused} refused by the controller, {agents_refused} by the agent, {} harmless",
        harmless - agents_refused
    );
}

/// A fresh copy of a directory.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}
