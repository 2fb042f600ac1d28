//! Carries a restore of a cluster out: tablespaces, data directory, WAL, labels, and the control file last.

use super::{
    Backup, DATA, PostgresError, Request, TablespaceTarget, WAL,
    backup::tree_of,
    files::{self, Owner},
    look, made_elsewhere, map, marker,
    marker::Phase,
    old_wal::OldWal,
    plan::{self, Begin, Plan},
    recovery::{self, RecoverTo, Way},
    site::{self, CONTROL_ASIDE, Site},
    space::{self, SEGMENTS_SPARE},
};
use crate::{
    BlobOpener, Layout, OnRemoval, RestoreError, RestoreOptions, RestoreReport, Result, Snapshot,
    place::{self, Destination},
};
use holdfast_postgres::RecoveryTarget;
use holdfast_repo::Entry;
use std::{
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// What became of it.
#[derive(Debug, Clone)]
pub struct PostgresReport {
    /// What was placed, in all trees together.
    pub report: RestoreReport,
    /// Whether a server starts from the directory. Not when something could not be restored, and not in a dry run.
    pub complete: bool,
    /// What was decided.
    pub plan: Plan,
    /// Where the WAL is kept that lay in the directory before.
    pub wal_aside: Option<PathBuf>,
    /// The way to the target of a recovery.
    pub way: Option<Way>,
}

/// See [`super::restore`]; on a thread that may wait.
pub(super) fn run(
    opener: &mut BlobOpener,
    snapshot: &Snapshot,
    backup: &Backup,
    request: &Request,
    options: &RestoreOptions,
) -> Result<PostgresReport> {
    let tablespaces = plan::targets(&backup.manifest, request)?;
    let map = map::moved(backup.map.as_deref(), &tablespaces)?;
    let looked = look::look(request, &tablespaces)?;
    let plan = plan::plan(&backup.manifest, request, tablespaces, &looked)?;
    if plan.begin == Begin::Replace && snapshot.root().clear.partial && backup.manifest.damaged_count == 0 {
        return Err(PostgresError::bad(
            "files of the cluster could not be read when it was made, and in place they would be removed: restore it to \
             an empty directory",
        )
        .into());
    }
    let old_wal = match &request.recover_to {
        Some(_) => OldWal::look(&plan, backup)?,
        None => None,
    };
    let way = match &request.recover_to {
        Some(to) => Some(recovery::find(opener, backup, to, old_wal.as_ref())?),
        None => None,
    };
    if let (Some(way), Some(to)) = (&way, &request.recover_to)
        && !request.accept_loss
    {
        refuse_loss(&plan, way, to)?;
    }
    let mut work = Work {
        snapshot,
        backup,
        plan: &plan,
        options,
        request,
        way: way.as_ref(),
        old_wal: old_wal.as_ref(),
        report: RestoreReport::default(),
    };
    let owner = owner(snapshot)?;
    if request.checks_space && !options.dry_run {
        let counting = RestoreOptions {
            dry_run: true,
            on_removal: OnRemoval::default(),
            progress: Arc::default(),
            ..options.clone()
        };
        let mut counting = Work {
            options: &counting,
            ..work.clone()
        };
        space::check(counting.coming(opener)?, plan.begin != Begin::Fresh)?;
    }
    let mut wal_aside = None;
    let complete = if options.dry_run {
        work.preview(opener)?;
        false
    } else {
        let (site, phase) = Site::begin(&plan, backup.manifest.system_id)?;
        if phase == Phase::Aside {
            wal_aside = site.set_aside()?.map(|name| plan.dir.join(name));
        }
        work.place(opener, &site, owner)?;
        let is_whole = work.report.problems.count == 0;
        if is_whole {
            if request.guards_tablespaces {
                made_elsewhere::refuse(&plan, &backup.manifest, || options.cancel.load(Relaxed))?;
            }
            let to = way.as_ref().map(|way| &way.recovery);
            site.complete(&backup.label, map.as_deref(), &backup.control, owner, to)?;
        }
        is_whole
    };
    let report = work.report;
    Ok(PostgresReport {
        report,
        complete,
        plan,
        wal_aside,
        way,
    })
}

/// Who asks for the latest state must not get an older one in silence.
fn refuse_loss(plan: &Plan, way: &Way, to: &RecoverTo) -> Result<(), PostgresError> {
    let wanted = to.recovery.target == RecoveryTarget::Latest;
    if !wanted || way.cut_off.is_empty() {
        return Ok(());
    }
    Err(PostgresError::WouldLose {
        dir: plan.dir.display().to_string(),
        segments: way.cut_off.named().join(", "),
    })
}

/// Whom the cluster belongs to, as its data directory said.
fn owner(snapshot: &Snapshot) -> Result<Owner> {
    let trees = snapshot.root().sealed.trees.iter();
    let tree = trees
        .filter(|tree| tree.path == DATA.as_bytes())
        .map(|tree| &tree.entry)
        .next();
    let Entry { mode, uid, gid, .. } = tree.ok_or_else(|| PostgresError::bad("it has no data directory"))?;
    Ok(Owner {
        uid: *uid,
        gid: *gid,
        group_reads: mode & 0o777 == 0o750,
    })
}

#[derive(Clone)]
struct Work<'w> {
    snapshot: &'w Snapshot,
    backup: &'w Backup,
    plan: &'w Plan,
    options: &'w RestoreOptions,
    request: &'w Request,
    way: Option<&'w Way>,
    old_wal: Option<&'w OldWal>,
    report: RestoreReport,
}

impl Work<'_> {
    /// Places all trees, each through a handle of its own target.
    fn place(&mut self, opener: &mut BlobOpener, site: &Site, owner: Owner) -> Result<()> {
        let plan = self.plan;
        let dir = Destination::handle(&plan.dir, site.handle()?);
        site.link(&plan.tablespaces, owner)?;
        for target in &plan.tablespaces {
            let handle = site::make(&target.dir)?;
            let is_empty = files::is_empty_but(handle.as_fd(), b"");
            if !target.in_use && !is_empty.unwrap_or(false) {
                return Err(PostgresError::TablespaceNotEmpty {
                    name: target.name.clone(),
                    dir: target.dir.display().to_string(),
                }
                .into());
            }
            let destination = Destination::handle(&target.dir, handle);
            self.tablespace(opener, target, &destination)?;
        }
        self.data(opener, &dir, site::kept_names(site.dir())?)?;
        site.make_wal()?;
        self.wal(opener, &dir)?;
        self.journal(opener, site)?;
        site.own_wal(owner)
    }

    /// Bytes that come to each directory.
    fn coming(&mut self, opener: &mut BlobOpener) -> Result<Vec<(PathBuf, u64)>> {
        let plan = self.plan;
        let mut coming = Vec::with_capacity(1 + plan.tablespaces.len());
        for target in &plan.tablespaces {
            let before = self.report.bytes;
            self.tablespace(opener, target, &Destination::path(&target.dir))?;
            coming.push((target.dir.clone(), self.report.bytes - before));
        }
        let before = self.report.bytes;
        let dir = Destination::path(&plan.dir);
        self.data(opener, &dir, Vec::new())?;
        self.wal(opener, &dir)?;
        let segment = u64::from(self.backup.manifest.wal_segment_size.bytes());
        let journal = self.way.map_or(0, |way| way.bytes);
        let wal = journal.saturating_add(segment.saturating_mul(SEGMENTS_SPARE));
        coming.push((plan.dir.clone(), (self.report.bytes - before).saturating_add(wal)));
        Ok(coming)
    }

    /// Counts all trees, and what would be removed.
    fn preview(&mut self, opener: &mut BlobOpener) -> Result<()> {
        let plan = self.plan;
        for target in &plan.tablespaces {
            self.tablespace(opener, target, &Destination::path(&target.dir))?;
        }
        let dir = Destination::path(&plan.dir);
        let kept = match look::open(&plan.dir)? {
            Some(there) => site::kept_names(there.as_fd())?,
            None => Vec::new(),
        };
        self.data(opener, &dir, kept)?;
        self.wal(opener, &dir)
    }

    /// Other versions' directories may lie in a tablespace's location: only in what the snapshot has at its top is
    /// removed what the snapshot lacks.
    fn tablespace(
        &mut self,
        opener: &mut BlobOpener,
        target: &TablespaceTarget,
        to: &Destination,
    ) -> Result<()> {
        let tree = tree_of(target.oid);
        let mut options = self.options_of(&tree, Vec::new());
        if target.in_use {
            let entries = self.snapshot.list_blocking(opener, tree.as_bytes())?;
            options.paths = entries.into_iter().map(|found| found.path).collect();
            options.delete = !options.paths.is_empty();
        }
        options.on_removal = self.options.on_removal.below(&target.dir);
        self.tree(opener, to, &options)
    }

    fn data(&mut self, opener: &mut BlobOpener, to: &Destination, kept: Vec<Vec<u8>>) -> Result<()> {
        let mut options = self.options_of(DATA, Vec::new());
        let way = |names: &[&[u8]]| names.iter().map(|name| name.to_vec()).collect::<Vec<_>>();
        options.except = vec![
            way(&[marker::NAME.as_bytes()]),
            // It is made, and filled, by itself.
            way(&[b"pg_wal"]),
            // Whatever a snapshot holds there: it comes last or not at all.
            way(&[b"global", b"pg_control"]),
            way(&[b"global", CONTROL_ASIDE.as_bytes()]),
        ];
        options.except.extend(kept.iter().map(|name| way(&[name])));
        // Links that lead out of the directory are made by the plan alone.
        let links = self.backup.links.iter();
        options
            .except
            .extend(links.map(|link| way(&[b"pg_tblspc", link])));
        let planned = self.plan.tablespaces.iter().map(|target| target.oid.to_string());
        options
            .except
            .extend(planned.map(|oid| way(&[b"pg_tblspc", oid.as_bytes()])));
        options.delete = self.plan.begin != Begin::Fresh;
        self.tree(opener, to, &options)
    }

    fn wal(&mut self, opener: &mut BlobOpener, to: &Destination) -> Result<()> {
        let mut options = self.options_of(WAL, vec![b"pg_wal".to_vec()]);
        options.except = vec![vec![b"archive_status".to_vec()]];
        // Of a cluster that is replaced the whole directory goes aside.
        options.delete = self.plan.begin == Begin::Resume;
        self.tree(opener, to, &options)
    }

    /// WAL from behind the backup, up to the target: from the archive, and what only the old cluster has.
    fn journal(&mut self, opener: &mut BlobOpener, site: &Site) -> Result<()> {
        let (Some(way), Some(to)) = (self.way, &self.request.recover_to) else {
            return Ok(());
        };
        let wal = site.wal()?;
        let (cancel, report) = (&self.options.cancel, &mut self.report);
        let mut placed = |len| {
            if cancel.load(Relaxed) {
                return Err(RestoreError::Interrupted);
            }
            report.files += 1;
            report.bytes += len;
            Ok(())
        };
        recovery::place(opener, &to.journal, way, wal.as_fd(), &mut placed)?;
        for segment in way.taken_over.iter() {
            if let Some(old) = self.old_wal {
                placed(old.copy(segment, wal.as_fd())?)?;
            }
        }
        Ok(())
    }

    /// Always in place: the targets were looked at already, and the note lies in one of them.
    fn options_of(&self, path: &str, below: Vec<Vec<u8>>) -> RestoreOptions {
        RestoreOptions {
            paths: Vec::new(),
            except: Vec::new(),
            layout: Layout::Tree {
                path: path.as_bytes().to_vec(),
                below,
            },
            in_place: true,
            delete: false,
            on_removal: self.options.on_removal.below(&self.plan.dir),
            ..self.options.clone()
        }
    }

    fn tree(&mut self, opener: &mut BlobOpener, to: &Destination, options: &RestoreOptions) -> Result<()> {
        if self.options.cancel.load(Relaxed) {
            return Err(RestoreError::Interrupted);
        }
        let report = place::run(opener, self.snapshot, to, options)?;
        self.report.add(report);
        Ok(())
    }
}
