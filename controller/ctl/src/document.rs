//! YAML documents: what `apply`, `diff` and `delete` work on.

mod limits;
mod postgres;

use crate::error::{Result, invalid, lift_display};
use holdfast_core::SourceRef;
use holdfast_net::host_limits;
use holdfast_proto::v1::{self, FilesSpec, PostgresSpec};
use limits::Limits;
use postgres::Postgres;
use serde::{Deserialize, Serialize};

/// Largest file of documents.
pub(crate) const FILE_MAX: usize = 1024 * 1024;
/// Most roots or patterns of one source.
const LIST_MAX: usize = 256;
/// Longest path or pattern: PATH_MAX.
const TEXT_MAX: usize = 4096;
/// A suggestion further away than this is not one.
const SUGGESTION_DISTANCE: usize = 3;

/// A document of kind Source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceDocument {
    kind: Kind,
    /// `agent/name`.
    pub name: SourceRef,
    /// A file source's settings; may also stand below `spec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Files>,
    /// A PostgreSQL source's settings, instead of `files`; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<Postgres>,
    /// What its jobs may take of their host; stands beside `files` or `postgres`.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Source,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Files>,
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<Postgres>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    /// Absolute directories or files.
    roots: Vec<String>,
    /// Patterns in gitignore's form, relative to each root.
    #[serde(default)]
    exclude: Vec<String>,
    /// Descend into other file systems that are mounted below a root.
    #[serde(default)]
    cross_mounts: bool,
}

/// What a source protects, in the form of the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceSpec {
    /// Directories and files.
    Files(FilesSpec),
    /// A PostgreSQL cluster.
    Postgres(PostgresSpec),
}

/// The same as it is written.
enum Protected<'d> {
    Files(&'d Files),
    Postgres(&'d Postgres),
}

impl SourceDocument {
    fn protected(&self) -> Result<Protected<'_>> {
        let below = self.spec.as_ref();
        let all = [
            self.files.as_ref().map(Protected::Files),
            self.postgres.as_ref().map(Protected::Postgres),
            below.and_then(|spec| spec.files.as_ref()).map(Protected::Files),
            below
                .and_then(|spec| spec.postgres.as_ref())
                .map(Protected::Postgres),
        ];
        let mut found = all.into_iter().flatten();
        match (found.next(), found.next()) {
            (Some(protected), None) => Ok(protected),
            (None, _) => Err(
                invalid(format!("source {}: neither `files` nor `postgres` is there", self.name)).with_hint(
                    "say what to back up, for example: files: {roots: [/srv/uploads]}, or: postgres: {}",
                ),
            ),
            (Some(_), Some(_)) => Err(invalid(format!(
                "source {}: only one of `files` and `postgres` may be there, and only once, alone or below `spec`",
                self.name
            ))
            .with_hint("a host may have several sources: write a document for each")),
        }
    }

    /// The settings in the form of the wire.
    ///
    /// # Errors
    /// `Invalid` when they are missing or there twice.
    pub fn spec(&self) -> Result<SourceSpec> {
        Ok(match self.protected()? {
            Protected::Files(files) => {
                let Files {
                    roots,
                    exclude,
                    cross_mounts,
                } = files.clone();
                SourceSpec::Files(FilesSpec {
                    roots,
                    exclude,
                    cross_mounts,
                })
            }
            Protected::Postgres(postgres) => SourceSpec::Postgres(postgres.spec(&self.name)),
        })
    }

    fn limits(&self) -> Result<Option<&Limits>> {
        match (
            self.limits.as_ref(),
            self.spec.as_ref().and_then(|spec| spec.limits.as_ref()),
        ) {
            (Some(_), Some(_)) => Err(invalid(format!(
                "source {}: `limits` stands both alone and below `spec`",
                self.name
            ))),
            (alone, below) => Ok(alone.or(below)),
        }
    }

    /// The limits in the form of the wire; none when there are none.
    ///
    /// # Errors
    /// `Invalid` when one is out of its bounds or they are there twice.
    pub fn wire_limits(&self) -> Result<Option<v1::Limits>> {
        let Some(limits) = self.limits()? else {
            return Ok(None);
        };
        let limits = limits
            .host_limits()
            .map_err(|why| invalid(format!("source {}: limits: {why}", self.name)))?;
        Ok((!limits.is_none()).then(|| host_limits::to_wire(&limits)))
    }

    fn normal(&self) -> Result<Self> {
        let (files, postgres) = match self.protected()? {
            Protected::Files(files) => (Some(files.clone()), None),
            Protected::Postgres(postgres) => (None, Some(postgres.normal(&self.name))),
        };
        Ok(Self {
            kind: self.kind,
            name: self.name.clone(),
            files,
            postgres,
            limits: self.limits()?.cloned(),
            spec: None,
        })
    }

    /// The one JSON form that the catalog keeps, whichever way the document was written.
    ///
    /// # Errors
    /// As [`Self::spec`].
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(&self.normal()?).map_err(lift_display)
    }

    /// Reads [`SourceDocument::to_json`].
    ///
    /// # Errors
    /// `Invalid` with the place in the text.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(lift_display)
    }

    /// The document as people write it.
    ///
    /// # Errors
    /// As [`Self::spec`].
    pub fn to_yaml(&self) -> Result<String> {
        serde_norway::to_string(&self.normal()?).map_err(lift_display)
    }

    fn check(&self) -> Result<()> {
        if let Protected::Files(files) = self.protected()? {
            self.check_files(files)?;
        }
        self.wire_limits().map(|_| ())
    }

    fn check_files(&self, files: &Files) -> Result<()> {
        let Files {
            roots,
            exclude,
            cross_mounts: _,
        } = files;
        let bad = |why: String| Err(invalid(format!("source {}: {why}", self.name)));
        if roots.is_empty() {
            return bad("`roots` is empty: name at least one directory or file".into());
        }
        if roots.len() > LIST_MAX || exclude.len() > LIST_MAX {
            return bad(format!("more than {LIST_MAX} roots or patterns"));
        }
        for root in roots {
            if !root.starts_with('/') || root.len() > TEXT_MAX || root.contains('\0') {
                return bad(format!("root {root:?} is not an absolute path"));
            }
            if root.split('/').any(|part| part == ".." || part == ".") {
                return bad(format!("root {root:?} contains `.` or `..`"));
            }
        }
        if let Some((root, outer)) = overlap(roots) {
            return bad(format!("root {root:?} lies within root {outer:?}"));
        }
        match exclude
            .iter()
            .find(|pattern| pattern.is_empty() || pattern.len() > TEXT_MAX)
        {
            Some(pattern) => bad(format!("{pattern:?} is not a pattern")),
            None => Ok(()),
        }
    }
}

/// A root that lies within another one, or is the same, and that one.
fn overlap(roots: &[String]) -> Option<(&str, &str)> {
    // By names, since `/srv//a` is `/srv/a`. In their order the first of what lies within a root follows it at once.
    let mut sorted: Vec<(Vec<&str>, &str)> = roots
        .iter()
        .map(|root| {
            let names = root.split('/').filter(|name| !name.is_empty());
            (names.collect(), root.as_str())
        })
        .collect();
    sorted.sort();
    sorted.windows(2).find_map(|pair| match pair {
        [(outer, above), (names, root)] if names.starts_with(outer) => Some((*root, *above)),
        _ => None,
    })
}

/// Reads all documents of a text. Nothing is returned unless all are good.
///
/// # Errors
/// `Invalid` with line and suggestion.
pub fn parse(text: &str) -> Result<Vec<SourceDocument>> {
    let mut documents: Vec<SourceDocument> = Vec::new();
    for part in serde_norway::Deserializer::from_str(text) {
        let value = Option::<SourceDocument>::deserialize(part).map_err(|e| explain(&e.to_string()))?;
        // An empty document, as a trailing `---` makes one.
        let Some(document) = value else { continue };
        document.check()?;
        if documents.iter().any(|other| other.name == document.name) {
            return Err(invalid(format!("source {} is described twice", document.name)));
        }
        documents.push(document);
    }
    if documents.is_empty() {
        return Err(
            invalid("there is no document in this file").with_hint("a document begins with `kind: Source`")
        );
    }
    Ok(documents)
}

/// Adds the likeliest meant word to serde's message, which names the line.
fn explain(message: &str) -> holdfast_net::Fault {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.contains("unknown field") || message.contains("unknown variant");
    let suggestion = match quoted.next() {
        Some(wrong) if unknown => {
            let nearest = quoted.map(|known| (distance(wrong, known), known)).min();
            nearest
                .filter(|(distance, _)| *distance <= SUGGESTION_DISTANCE)
                .map(|(_, known)| known.to_owned())
        }
        _ => None,
    };
    match suggestion {
        Some(known) => invalid(message).with_hint(format!("did you mean `{known}`?")),
        None => invalid(message),
    }
}

/// Edit distance (Levenshtein), case aside.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "kind: Source\nname: web1/uploads\nfiles:\n  roots: [/srv/uploads]\n  exclude: ['*.tmp']\n";

    #[test]
    fn both_ways_of_writing_a_source_mean_the_same() {
        let flat = parse(GOOD).unwrap().remove(0);
        let nested =
            "kind: Source\nname: web1/uploads\nspec: {files: {roots: [/srv/uploads], exclude: ['*.tmp']}}";
        let nested = parse(nested).unwrap().remove(0);
        assert_eq!(flat.to_json().unwrap(), nested.to_json().unwrap());
        let SourceSpec::Files(spec) = flat.spec().unwrap() else {
            panic!("files were written");
        };
        assert_eq!(
            (spec.roots, spec.exclude),
            (vec!["/srv/uploads".to_owned()], vec!["*.tmp".to_owned()])
        );
        assert!(!spec.cross_mounts);
        assert_eq!(SourceDocument::from_json(&flat.to_json().unwrap()).unwrap(), flat);
        assert_eq!(parse(&flat.to_yaml().unwrap()).unwrap().remove(0), flat);
    }

    #[test]
    fn limits_stand_beside_files_and_are_checked() {
        let limits = "{bandwidth: 2MiB/s, io_class: idle}";
        let flat = parse(&format!("{GOOD}limits: {limits}\n")).unwrap().remove(0);
        let files = "files: {roots: [/srv/uploads], exclude: ['*.tmp']}";
        let nested = format!("kind: Source\nname: web1/uploads\nspec: {{{files}, limits: {limits}}}");
        assert_eq!(
            parse(&nested).unwrap()[0].to_json().unwrap(),
            flat.to_json().unwrap()
        );
        let wire = flat.wire_limits().unwrap().unwrap();
        assert_eq!((wire.bandwidth, wire.io_class.as_str()), (2 << 20, "idle"));
        assert_eq!(parse(GOOD).unwrap()[0].wire_limits().unwrap(), None);
        assert!(flat.to_yaml().unwrap().contains("bandwidth: 2MiB/s"));
        let fault = parse(&format!("{GOOD}limits: {{cpu_weight: 0}}\n")).unwrap_err();
        assert!(
            fault.message.contains("web1/uploads") && fault.message.contains("CPU weight"),
            "{fault}"
        );
        let fault = parse(&format!("{GOOD}limits: {{bandwith: 1MiB}}\n")).unwrap_err();
        assert_eq!(fault.hint.as_deref(), Some("did you mean `bandwidth`?"));
    }

    #[test]
    fn several_documents_are_read_and_doubles_refused() {
        let two = format!("{GOOD}---\n{}---\n", GOOD.replace("uploads", "etc"));
        assert_eq!(parse(&two).unwrap().len(), 2);
        assert!(parse(&format!("{GOOD}---\n{GOOD}")).is_err());
        assert!(parse("").is_err());
        assert!(parse("---\n").is_err());
    }

    #[test]
    fn unknown_keys_are_refused_with_line_and_suggestion() {
        let fault = parse(&GOOD.replace("exclude", "exlude")).unwrap_err();
        assert!(
            fault.message.contains("line 5") && fault.message.contains("exlude"),
            "{fault}"
        );
        assert_eq!(fault.hint.as_deref(), Some("did you mean `exclude`?"));
        let fault = parse(&GOOD.replace("kind: Source", "kind: source")).unwrap_err();
        assert_eq!(fault.hint.as_deref(), Some("did you mean `Source`?"));
        let fault = parse(&GOOD.replace("files", "postgres")).unwrap_err();
        assert!(fault.hint.is_none_or(|hint| !hint.contains("mean")));
    }

    #[test]
    fn bad_settings_are_refused() {
        for roots in [
            "[]",
            "[srv]",
            "[/srv/../etc]",
            "[/srv, /srv/uploads]",
            "[/srv, /srv/]",
            "[/srv//uploads/a, /srv/b, /srv/uploads]",
            "[/srv, /, /var]",
            "[/a, /a]",
            "['/a/./b']",
        ] {
            let text = GOOD.replace("[/srv/uploads]", roots);
            assert!(parse(&text).is_err(), "{roots}");
        }
        assert!(parse(&GOOD.replace("[/srv/uploads]", "[/srv, /srv2]")).is_ok());
        assert!(parse(&GOOD.replace("web1/uploads", "uploads")).is_err());
        assert!(parse(&GOOD.replace("'*.tmp'", "''")).is_err());
        assert!(
            parse("kind: Source\nname: a/b\n")
                .unwrap_err()
                .message
                .contains("files")
        );
    }
}
