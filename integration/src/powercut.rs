//! A file system that loses power: what was not synced is gone afterwards, as on a disk whose machine
//! stopped. Mounted through FUSE below the directories of real processes.
//!
//! The rules are the strict ones of POSIX, not those of one kind file system: a file's bytes survive an
//! `fsync` of that file, a name survives an `fsync` of its directory, and neither implies the other.

mod adapter;
mod model;

pub use model::{Lie, Model, Survival};

use anyhow::Context as _;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// A mounted file system that can be cut. Unmounted on drop.
#[derive(Debug)]
pub struct PowerCut {
    model: Arc<Mutex<Model>>,
    at: PathBuf,
    session: Option<fuser::BackgroundSession>,
}

impl PowerCut {
    /// Mounts `model` at the existing directory `at`.
    ///
    /// # Errors
    /// There is no `/dev/fuse`, or this user may not mount.
    pub fn mount(model: Model, at: &Path) -> anyhow::Result<Self> {
        let model = Arc::new(Mutex::new(model));
        let options = [
            fuser::MountOption::FSName("holdfast-powercut".into()),
            fuser::MountOption::NoSuid,
            fuser::MountOption::NoDev,
        ];
        let session = fuser::spawn_mount2(adapter::Adapter::new(model.clone()), at, &options).with_context(|| {
            format!(
                "mount a FUSE file system at {}: this needs /dev/fuse and either root or fusermount3 (Debian package fuse3)",
                at.display()
            )
        })?;
        Ok(Self {
            model,
            at: at.to_path_buf(),
            session: Some(session),
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Looks at or changes the model: arms a cut, counts boundaries, tells a lie.
    pub fn with<T>(&self, look: impl FnOnce(&mut Model) -> T) -> T {
        look(&mut self.model.lock().unwrap())
    }

    /// Unmounts and returns the model. Processes that use it must be gone.
    #[must_use]
    pub fn unmount(mut self) -> Model {
        self.session = None;
        self.model.lock().unwrap().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{self, File},
        io::Write as _,
        os::unix::fs::FileExt as _,
    };

    struct Place {
        // Before `dir`: a mounted directory cannot be removed.
        power: Option<PowerCut>,
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let power = PowerCut::mount(Model::new(), dir.path()).unwrap();
            Self {
                dir,
                power: Some(power),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn sync_dir(&self, name: &str) {
            File::open(self.path(name)).unwrap().sync_all().unwrap();
        }

        /// Pulls the plug and switches on again.
        fn cycle(&mut self, survival: Survival) {
            let mut model = self.power.take().unwrap().unmount();
            model.cut_now();
            self.power = Some(PowerCut::mount(model.after(survival), self.dir.path()).unwrap());
        }

        #[expect(
            clippy::disallowed_methods,
            reason = "its missing durability is what is tested"
        )]
        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }
    }

    #[test]
    fn what_was_not_synced_is_lost() {
        let mut place = Place::new();
        fs::write(place.path("unsynced"), b"data").unwrap();
        let file = File::create(place.path("no-entry")).unwrap();
        (&file).write_all(b"data").unwrap();
        file.sync_all().unwrap();
        drop(file);
        assert_eq!(fs::read(place.path("unsynced")).unwrap(), b"data");
        place.cycle(Survival::Nothing);
        assert!(!place.path("unsynced").exists());
        assert!(
            !place.path("no-entry").exists(),
            "an entry without a directory sync must not survive"
        );
    }

    #[test]
    fn an_entry_whose_file_was_not_synced_is_empty() {
        let mut place = Place::new();
        fs::write(place.path("file"), b"data").unwrap();
        place.sync_dir("");
        place.cycle(Survival::Nothing);
        assert_eq!(fs::read(place.path("file")).unwrap(), b"");
    }

    #[test]
    fn the_proper_sequence_survives_and_a_rename_without_it_does_not() {
        let mut place = Place::new();
        fs::create_dir(place.path("dir")).unwrap();
        place.sync_dir("");
        fs::write(place.path("dir/final"), b"old").unwrap();
        File::open(place.path("dir/final")).unwrap().sync_all().unwrap();
        place.sync_dir("dir");
        fs::write(place.path("dir/temp"), b"new").unwrap();
        File::open(place.path("dir/temp")).unwrap().sync_data().unwrap();
        place.rename("dir/temp", "dir/final");
        assert_eq!(fs::read(place.path("dir/final")).unwrap(), b"new");
        place.cycle(Survival::Nothing);
        assert_eq!(
            fs::read(place.path("dir/final")).unwrap(),
            b"old",
            "a rename without a directory sync"
        );
        fs::write(place.path("dir/temp"), b"new").unwrap();
        File::open(place.path("dir/temp")).unwrap().sync_data().unwrap();
        place.rename("dir/temp", "dir/final");
        place.sync_dir("dir");
        place.cycle(Survival::Nothing);
        assert_eq!(fs::read(place.path("dir/final")).unwrap(), b"new");
        assert!(!place.path("dir/temp").exists());
    }

    #[test]
    fn after_the_cut_everything_fails_and_the_sync_that_was_cut_had_no_effect() {
        let mut place = Place::new();
        let file = File::create(place.path("file")).unwrap();
        place.sync_dir("");
        file.write_all_at(b"one", 0).unwrap();
        file.sync_data().unwrap();
        let next = place.power.as_ref().unwrap().with(|model| model.boundaries() + 1);
        place.power.as_ref().unwrap().with(|model| model.cut_at(next));
        file.write_all_at(b"two", 0).unwrap();
        assert!(file.sync_data().is_err());
        assert!(File::create(place.path("more")).is_err());
        assert!(file.write_all_at(b"three", 0).is_err());
        drop(file);
        place.cycle(Survival::Nothing);
        assert_eq!(fs::read(place.path("file")).unwrap(), b"one");
    }

    #[test]
    fn a_lying_disk_loses_what_it_was_told_to_sync() {
        let mut place = Place::new();
        place
            .power
            .as_ref()
            .unwrap()
            .with(|model| model.lie(Lie::about("precious")));
        for name in ["precious", "plain"] {
            fs::write(place.path(name), b"data").unwrap();
            File::open(place.path(name)).unwrap().sync_all().unwrap();
        }
        place.sync_dir("");
        place.cycle(Survival::Nothing);
        assert_eq!(fs::read(place.path("plain")).unwrap(), b"data");
        assert_eq!(fs::read(place.path("precious")).unwrap(), b"");
    }

    #[test]
    fn it_behaves_as_a_file_system_otherwise() {
        let place = Place::new();
        fs::create_dir_all(place.path("a/b/c")).unwrap();
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(place.path("a/log"))
            .unwrap();
        file.write_all(b"one").unwrap();
        file.write_all(b"two").unwrap();
        assert_eq!(fs::read(place.path("a/log")).unwrap(), b"onetwo");
        file.set_len(4).unwrap();
        assert_eq!(fs::read(place.path("a/log")).unwrap(), b"onet");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 10).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 10);
        assert!(File::create_new(place.path("a/log")).is_err());
        file.try_lock().unwrap();
        assert!(File::open(place.path("a/log")).unwrap().try_lock().is_err());
        fs::hard_link(place.path("a/log"), place.path("a/b/same")).unwrap();
        fs::remove_file(place.path("a/log")).unwrap();
        file.write_all(b"!").unwrap();
        assert_eq!(fs::read(place.path("a/b/same")).unwrap(), b"onet\0\0\0\0\0\0!");
        assert!(fs::remove_dir(place.path("a/b")).is_err());
        fs::remove_dir(place.path("a/b/c")).unwrap();
        let names: Vec<_> = fs::read_dir(place.path("a/b"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["same"]);
        place.rename("a/b", "moved");
        assert!(place.path("moved/same").exists() && !place.path("a/b").exists());
        fs::remove_dir_all(place.path("moved")).unwrap();
        let many = 3_000;
        for number in 0..many {
            fs::write(place.path(&format!("a/{number}")), b"").unwrap();
        }
        assert_eq!(fs::read_dir(place.path("a")).unwrap().count(), many);
    }

    #[test]
    fn with_some_survival_synced_data_is_whole_and_the_rest_is_any_mixture() {
        let mut seen_lost = false;
        let mut seen_kept = false;
        for seed in 0..20 {
            let mut place = Place::new();
            fs::write(place.path("file"), vec![1; 64 * 1024]).unwrap();
            let file = File::options().write(true).open(place.path("file")).unwrap();
            file.sync_all().unwrap();
            place.sync_dir("");
            file.write_all_at(&vec![2; 32 * 1024], 0).unwrap();
            fs::write(place.path("other"), b"x").unwrap();
            drop(file);
            place.cycle(Survival::Some(seed));
            let bytes = fs::read(place.path("file")).unwrap();
            assert!(
                bytes[32 * 1024..].iter().all(|byte| *byte == 1),
                "synced bytes changed"
            );
            assert!(bytes.len() == 64 * 1024 && bytes.iter().all(|byte| matches!(byte, 1 | 2)));
            seen_kept |= bytes.contains(&2);
            seen_lost |= bytes[..32 * 1024].contains(&1);
        }
        assert!(seen_kept && seen_lost);
    }
}
