//! Rules of the source tree that neither the compiler nor clippy keeps: floors, file heads, file sizes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Longest source file, in lines. Past it nobody reads a file from top to bottom.
const LINES_MAX: usize = 600;

/// Which crates of ours each crate may use, in normal and build dependencies: lower floors know nothing of
/// higher ones. Test code may reach further (below).
const FLOORS: &[(&str, &[&str])] = &[
    ("holdfast-proto", &[]),
    ("holdfast-core", &[]),
    ("holdfast-repo", &["holdfast-core"]),
    ("holdfast-store", &["holdfast-core", "holdfast-repo"]),
    ("holdfast-net", &["holdfast-core", "holdfast-proto"]),
    ("holdfast-postgres", &["holdfast-core"]),
    (
        "holdfast-restore",
        &[
            "holdfast-core",
            "holdfast-postgres",
            "holdfast-repo",
            "holdfast-store",
            "holdfast-net",
            "holdfast-proto",
        ],
    ),
    (
        "holdfast-agent",
        &[
            "holdfast-core",
            "holdfast-repo",
            "holdfast-postgres",
            "holdfast-restore",
            "holdfast-net",
            "holdfast-proto",
        ],
    ),
    (
        "holdfast-controller",
        &[
            "holdfast-core",
            "holdfast-repo",
            "holdfast-store",
            "holdfast-net",
            "holdfast-proto",
        ],
    ),
    (
        "holdfastctl",
        &[
            "holdfast-core",
            "holdfast-repo",
            "holdfast-store",
            "holdfast-net",
            "holdfast-restore",
            "holdfast-proto",
        ],
    ),
    (
        "holdfast-integration",
        &[
            "holdfast-core",
            "holdfast-repo",
            "holdfast-store",
            "holdfast-net",
            "holdfast-restore",
            "holdfast-proto",
        ],
    ),
];

/// External crates that a floor must not have: the engine is pure, the bottom floor knows no transport.
const ABSENT: &[(&str, &[&str])] = &[
    (
        "holdfast-core",
        &["tokio", "tonic", "prost", "rustls", "sled", "openraft"],
    ),
    (
        "holdfast-repo",
        &["tokio", "tonic", "prost", "rustls", "sled", "openraft", "tracing"],
    ),
    (
        "holdfast-postgres",
        &[
            "tokio", "tonic", "prost", "rustls", "rustix", "sled", "openraft", "tracing",
        ],
    ),
    ("holdfast-store", &["tonic", "prost", "sled", "openraft"]),
    ("holdfast-net", &["sled", "openraft"]),
    ("holdfast-restore", &["sled", "openraft"]),
    ("holdfast-agent", &["sled", "openraft"]),
    ("holdfastctl", &["sled", "openraft"]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// Every file below `dir` with that ending, save what cargo or git made.
fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            // Fuzz targets are workspaces of their own, but sources like others.
            let is_other_workspace = name == "fuzz" && ending == "Cargo.toml";
            if name != "target" && !name.starts_with('.') && !is_other_workspace {
                files(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&workspace(), ".rs", &mut found);
    assert!(found.len() > 10, "the source tree was not found");
    found
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_file_says_in_its_first_line_what_it_is() {
    let problems: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| format!("{}: the first line must be a `//!` comment", path.display()))
        .collect();
    assert_none(&problems);
}

#[test]
fn no_file_is_longer_than_anyone_reads() {
    let problems: Vec<String> = sources()
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{}: {lines} lines, at most {LINES_MAX}", path.display()))
        .collect();
    assert_none(&problems);
}

#[test]
fn no_module_hides_in_mod_rs() {
    let problems: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| path.file_name().is_some_and(|name| name == "mod.rs"))
        .map(|(path, _)| format!("{}: name the file after its module", path.display()))
        .collect();
    assert_none(&problems);
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
    ];
    let mut problems = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                problems.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn every_crate_forbids_unsafe_code() {
    let mut manifests = Vec::new();
    files(&workspace(), "Cargo.toml", &mut manifests);
    let problems: Vec<String> = manifests
        .iter()
        .map(|manifest| manifest.with_file_name("src").join("lib.rs"))
        .filter(|lib| lib.exists() && !fs::read_to_string(lib).unwrap().contains("forbid(unsafe_code)"))
        .map(|lib| format!("{}: `#![forbid(unsafe_code)]` is missing", lib.display()))
        .collect();
    assert_none(&problems);
}

/// Crate name to (normal and build dependencies) of every member.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let mut manifests = Vec::new();
    files(&workspace(), "Cargo.toml", &mut manifests);
    let mut all = BTreeMap::new();
    for manifest in manifests {
        let table: toml::Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
        let Some(package) = table.get("package") else {
            continue;
        };
        let name = package["name"].as_str().unwrap().to_string();
        let mut names = Vec::new();
        for section in ["dependencies", "build-dependencies"] {
            if let Some(section) = table.get(section).and_then(toml::Value::as_table) {
                names.extend(section.keys().cloned());
            }
        }
        all.insert(name, names);
    }
    all
}

#[test]
fn lower_floors_know_nothing_of_higher_ones() {
    let mut problems = Vec::new();
    let all = dependencies();
    for (name, used) in &all {
        let Some((_, allowed)) = FLOORS.iter().find(|floor| floor.0 == name) else {
            problems.push(format!("{name}: not in the table of floors"));
            continue;
        };
        for ours in used.iter().filter(|used| all.contains_key(*used)) {
            if !allowed.contains(&ours.as_str()) {
                problems.push(format!("{name} must not depend on {ours}"));
            }
        }
        let absent = ABSENT
            .iter()
            .find(|row| row.0 == name)
            .map_or(&[][..], |row| row.1);
        problems.extend(
            used.iter()
                .filter(|used| absent.contains(&used.as_str()))
                .map(|used| format!("{name} must not depend on {used}")),
        );
    }
    assert_eq!(
        all.len(),
        FLOORS.len(),
        "a crate came or went: put it into the table of floors"
    );
    assert_none(&problems);
}

#[test]
fn every_dependency_comes_from_the_workspace_table() {
    let mut manifests = Vec::new();
    files(&workspace(), "Cargo.toml", &mut manifests);
    let mut problems = Vec::new();
    for manifest in manifests
        .iter()
        .filter(|manifest| manifest.parent() != Some(workspace().as_path()))
    {
        let table: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(section) = table.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, value) in section {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    problems.push(format!(
                        "{}: {name} must say `workspace = true`",
                        manifest.display()
                    ));
                }
            }
        }
    }
    assert_none(&problems);
}
