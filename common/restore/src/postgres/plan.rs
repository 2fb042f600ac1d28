//! What a restore of a cluster will do: which tree goes where, and whether it may. No I/O.

use super::{Manifest, PostgresError, Request, Tablespace, manifest::LOCATION_MAX};
use holdfast_postgres::SystemId;
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

/// A tablespace and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceTarget {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it goes: an absolute path, to which its link will lead.
    pub dir: PathBuf,
    /// Whether that is another place than its own.
    pub moved: bool,
    /// Whether something lies there that may be replaced; known once the targets were looked at.
    pub in_use: bool,
}

/// What lies where the data directory is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Nothing, or it is absent.
    Nothing,
    /// A restore that is not complete, of that cluster.
    Unfinished(SystemId),
    /// A cluster with its control file.
    Cluster(SystemId),
    /// Anything else.
    Something,
}

/// What was seen of the targets before anything is written. Paths have their links followed as far as they exist.
#[derive(Debug, Clone)]
pub(super) struct Looked {
    /// The data directory.
    pub(super) dir: PathBuf,
    /// What is in it.
    pub(super) holds: Holds,
    /// The process of a server that runs there.
    pub(super) running: Option<i32>,
    /// For each tablespace, in their order.
    pub(super) tablespaces: Vec<LookedAt>,
}

/// What was seen of a tablespace's target.
#[derive(Debug, Clone)]
pub(super) struct LookedAt {
    /// Where it really is.
    pub(super) dir: PathBuf,
    /// Whether nothing is in it.
    pub(super) is_empty: bool,
    /// Whether the data directory's link of that OID leads to it.
    pub(super) is_linked: bool,
}

/// How a restore begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// In an empty directory.
    Fresh,
    /// Where one was interrupted.
    Resume,
    /// Over another state of the same cluster.
    Replace,
}

/// A restore that may be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The data directory.
    pub dir: PathBuf,
    /// How it begins.
    pub begin: Begin,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<TablespaceTarget>,
}

/// Where each tablespace outside the data directory goes.
///
/// # Errors
/// `Invalid` for what names no tablespace, or several, or no absolute path.
pub(super) fn targets(
    manifest: &Manifest,
    request: &Request,
) -> Result<Vec<TablespaceTarget>, PostgresError> {
    let outside: Vec<&Tablespace> = manifest.tablespaces.iter().filter(|t| t.is_outside()).collect();
    let mut moved: Vec<Option<PathBuf>> = vec![None; outside.len()];
    for text in &request.tablespaces {
        let (at, dir) = mapping(&outside, text)?;
        if let Some(other) = moved[at].replace(dir.clone())
            && other != dir
        {
            return Err(PostgresError::Mapping(format!(
                "tablespace {} is sent to two places, {} and {}",
                outside[at].name,
                other.display(),
                dir.display()
            )));
        }
    }
    let targets = outside.into_iter().zip(moved).map(|(tablespace, moved)| {
        let own = PathBuf::from(&tablespace.location);
        TablespaceTarget {
            oid: tablespace.oid,
            name: tablespace.name.clone(),
            moved: moved.as_ref().is_some_and(|dir| *dir != own),
            dir: moved.unwrap_or(own),
            in_use: false,
        }
    });
    Ok(targets.collect())
}

/// Which tablespace a mapping is of, and where it leads. Names and paths may hold `=` themselves: each is tried.
fn mapping(outside: &[&Tablespace], text: &OsStr) -> Result<(usize, PathBuf), PostgresError> {
    let bytes = text.as_bytes();
    let splits = (0..bytes.len()).filter(|at| bytes[*at] == b'=');
    let mut found = Vec::new();
    for split in splits {
        let (key, dir) = (&bytes[..split], &bytes[split + 1..]);
        for (at, tablespace) in outside.iter().enumerate() {
            let oid = tablespace.oid.to_string();
            let keys = [
                oid.as_bytes(),
                tablespace.name.as_bytes(),
                tablespace.location.as_bytes(),
            ];
            if keys.contains(&key) {
                found.push((at, PathBuf::from(OsStr::from_bytes(dir))));
            }
        }
    }
    let shown = text.display();
    let known = || {
        let each = outside
            .iter()
            .map(|t| format!("{} ({}, at {})", t.name, t.oid, t.location));
        match each.collect::<Vec<_>>().join("; ") {
            none if none.is_empty() => "this backup has none".to_owned(),
            some => format!("this backup has {some}"),
        }
    };
    match &found[..] {
        [] => Err(PostgresError::Mapping(format!(
            "{shown} names no tablespace: write OID=DIR, NAME=DIR or LOCATION=DIR; {}",
            known()
        ))),
        [(at, dir)] => {
            // Versions of servers differ in how tablespace_map has these characters.
            let is_odd = |byte: &u8| matches!(byte, b'\\' | b'\n' | b'\r');
            let is_plain = dir.is_absolute()
                && !dir.components().any(|part| part == Component::ParentDir)
                && !dir.as_os_str().as_bytes().iter().any(is_odd);
            if !is_plain || dir.as_os_str().len() > LOCATION_MAX {
                return Err(PostgresError::Mapping(format!(
                    "{shown} does not lead to an absolute path of at most {LOCATION_MAX} bytes, without '..', \
                     backslashes and line breaks"
                )));
            }
            Ok((*at, dir.clone()))
        }
        _ => Err(PostgresError::Mapping(format!(
            "{shown} can mean several tablespaces: use the OID; {}",
            known()
        ))),
    }
}

/// Decides whether, and how.
///
/// # Errors
/// `Conflict` when something lies in the way, `Invalid` when targets lie in each other.
pub(super) fn plan(
    manifest: &Manifest,
    request: &Request,
    mut tablespaces: Vec<TablespaceTarget>,
    looked: &Looked,
) -> Result<Plan, PostgresError> {
    let dir = || request.dir.display().to_string();
    if let Some(pid) = looked.running {
        return Err(PostgresError::Running { dir: dir(), pid });
    }
    let ours = manifest.system_id;
    let begin = match (looked.holds, request.in_place) {
        (Holds::Nothing, _) => Begin::Fresh,
        (_, false) => return Err(PostgresError::NotEmpty { dir: dir() }),
        (Holds::Something, true) => return Err(PostgresError::Foreign { dir: dir() }),
        (Holds::Unfinished(theirs) | Holds::Cluster(theirs), true) if theirs != ours => {
            return Err(PostgresError::OtherCluster {
                dir: dir(),
                theirs,
                ours,
            });
        }
        (Holds::Unfinished(_), true) => Begin::Resume,
        (Holds::Cluster(_), true) => Begin::Replace,
    };
    check_nesting(request, &tablespaces, looked)?;
    for (target, found) in tablespaces.iter_mut().zip(&looked.tablespaces) {
        // In place, what the directory's own link leads to is part of the cluster that is replaced.
        let is_ours = begin != Begin::Fresh && found.is_linked;
        target.in_use = !found.is_empty;
        if target.in_use && !is_ours {
            return Err(PostgresError::TablespaceNotEmpty {
                name: target.name.clone(),
                dir: target.dir.display().to_string(),
            });
        }
    }
    Ok(Plan {
        dir: request.dir.clone(),
        begin,
        tablespaces,
    })
}

/// No target may lie in another one: each would remove what it does not know of the other.
fn check_nesting(
    request: &Request,
    tablespaces: &[TablespaceTarget],
    looked: &Looked,
) -> Result<(), PostgresError> {
    let dirs = tablespaces.iter().map(|target| &target.dir);
    let real = looked.tablespaces.iter().map(|found| &found.dir);
    let mut all: Vec<(&Path, &Path)> = vec![(&looked.dir, &request.dir)];
    all.extend(real.zip(dirs).map(|(real, dir)| (real.as_path(), dir.as_path())));
    // In this order the first of what lies within a directory follows it at once.
    all.sort_by(|(a, _), (b, _)| a.components().cmp(b.components()));
    for pair in all.windows(2) {
        if let [(outer, shown), (inner, inner_shown)] = pair
            && inner.starts_with(outer)
        {
            return Err(PostgresError::Nested {
                inner: inner_shown.display().to_string(),
                outer: shown.display().to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::manifest;
    use holdfast_core::{ErrorKind, HasKind as _};
    use serde_json::json;
    use std::ffi::OsString;

    fn backup() -> Manifest {
        let mut example = manifest::tests::example();
        example["tablespaces"] = json!([
            {"oid": 16384, "name": "x", "location": "/srv/ts"},
            {"oid": 16385, "name": "a=b", "location": "/srv/other"},
            {"oid": 16386, "name": "16384", "location": "/srv/third"},
            {"oid": 16387, "name": "inner", "location": "pg_tblspc/16387"},
        ]);
        Manifest::parse(example.to_string().as_bytes()).unwrap().unwrap()
    }

    fn request(tablespaces: &[&str], in_place: bool) -> Request {
        Request {
            dir: "/pg".into(),
            tablespaces: tablespaces.iter().map(OsString::from).collect(),
            in_place,
            recover_to: None,
            guards_tablespaces: true,
            accept_loss: false,
            checks_space: true,
        }
    }

    fn dirs(tablespaces: &[&str]) -> Result<Vec<String>, PostgresError> {
        let targets = targets(&backup(), &request(tablespaces, false))?;
        Ok(targets
            .into_iter()
            .map(|t| format!("{}{}", t.dir.display(), if t.moved { "!" } else { "" }))
            .collect())
    }

    #[test]
    fn tablespaces_stay_or_go_where_they_are_sent() {
        assert_eq!(dirs(&[]).unwrap(), ["/srv/ts", "/srv/other", "/srv/third"]);
        assert_eq!(
            dirs(&["x=/new", "a=b=/n=w", "/srv/third=/srv/third"]).unwrap(),
            ["/new!", "/n=w!", "/srv/third"]
        );
        assert_eq!(dirs(&["16385=/new", "16385=/new"]).unwrap()[1], "/new!");
        for bad in [
            &["y=/new"][..],
            &["x"],
            &["x=new"],
            &["x=/a/../b"],
            &["x=/a\\b"],
            &["x=/a", "16386=/b", "/srv/ts=/c"],
            // The OID of one, the name of another.
            &["16384=/new"],
            // It has no place of its own.
            &["16387=/new"],
        ] {
            assert_eq!(dirs(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        let told = dirs(&["y=/new"]).unwrap_err().to_string();
        assert!(told.contains("a=b (16385, at /srv/other)"), "{told}");
    }

    fn looked(holds: Holds) -> Looked {
        Looked {
            dir: "/pg".into(),
            holds,
            running: None,
            tablespaces: ["/srv/ts", "/srv/other", "/srv/third"]
                .map(|dir| LookedAt {
                    dir: dir.into(),
                    is_empty: true,
                    is_linked: false,
                })
                .into(),
        }
    }

    fn decide(in_place: bool, looked: &Looked) -> Result<Begin, PostgresError> {
        let (backup, request) = (backup(), request(&[], in_place));
        let targets = targets(&backup, &request)?;
        plan(&backup, &request, targets, looked).map(|plan| plan.begin)
    }

    #[test]
    fn only_what_is_empty_or_the_same_cluster_is_written_to() {
        let (ours, other) = (backup().system_id, SystemId(5));
        for (holds, fresh, in_place) in [
            (Holds::Nothing, Some(Begin::Fresh), Some(Begin::Fresh)),
            (Holds::Unfinished(ours), None, Some(Begin::Resume)),
            (Holds::Cluster(ours), None, Some(Begin::Replace)),
            (Holds::Unfinished(other), None, None),
            (Holds::Cluster(other), None, None),
            (Holds::Something, None, None),
        ] {
            assert_eq!(decide(false, &looked(holds)).ok(), fresh, "{holds:?}");
            assert_eq!(decide(true, &looked(holds)).ok(), in_place, "{holds:?}");
            let running = Looked {
                running: Some(7),
                ..looked(holds)
            };
            assert_eq!(decide(true, &running).unwrap_err().kind(), ErrorKind::Conflict);
        }
    }

    #[test]
    fn a_tablespace_in_use_is_refused_unless_it_is_the_clusters_own() {
        let ours = backup().system_id;
        let used = |holds, is_linked| {
            let mut looked = looked(holds);
            looked.tablespaces[1].is_empty = false;
            looked.tablespaces[1].is_linked = is_linked;
            looked
        };
        assert!(decide(true, &used(Holds::Cluster(ours), true)).is_ok());
        assert!(decide(true, &used(Holds::Cluster(ours), false)).is_err());
        assert!(decide(true, &used(Holds::Nothing, true)).is_err());
    }

    #[test]
    fn targets_never_lie_in_each_other() {
        for (at, real) in [
            (0, "/pg/ts"),
            (0, "/"),
            (0, "/pg"),
            (1, "/srv/ts"),
            (2, "/srv/ts/x/y"),
        ] {
            let mut looked = looked(Holds::Nothing);
            looked.tablespaces[at].dir = real.into();
            assert_eq!(
                decide(false, &looked).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{real}"
            );
        }
        let mut beside = looked(Holds::Nothing);
        beside.tablespaces[0].dir = "/pg2".into();
        assert!(decide(false, &beside).is_ok());
    }
}
