//! Invariant 11: no secret in a log, an argument list, a metric or an error, at any log level.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::{Options, Output},
    scenario::{AGENT, SOURCE, Scenario},
    seed,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Shorter strings are not worth hiding, and would be found by chance.
const SECRET_LEN: usize = 24;

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Everything in a file that looks like a key: long words of base64, hexadecimal or Bech32, which certificates
/// are taken out of; and the file itself when it is binary.
fn secrets_of(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let Ok(text) = String::from_utf8(bytes.clone()) else {
        let whole = [bytes.clone(), hex(&bytes).into_bytes()];
        return whole
            .into_iter()
            .map(|secret| (path.display().to_string(), secret))
            .collect();
    };
    let mut secrets = Vec::new();
    let mut public = false;
    for line in text.lines() {
        if line.contains("BEGIN CERTIFICATE") || line.contains("BEGIN PUBLIC") {
            public = true;
        }
        if !public {
            let words =
                line.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '/' | '-' | '_'));
            for word in words.filter(|word| word.len() >= SECRET_LEN && !word.starts_with('/')) {
                if is_key_like(line, word) {
                    secrets.push((path.display().to_string(), word.as_bytes().to_vec()));
                }
            }
        }
        if line.contains("END CERTIFICATE") || line.contains("END PUBLIC") {
            public = false;
        }
    }
    secrets
}

/// Public keys, fingerprints, ids and addresses stand beside secrets and are no secrets.
fn is_key_like(line: &str, word: &str) -> bool {
    let line = line.to_lowercase();
    let is_public = [
        "public",
        "fingerprint",
        "cluster",
        "vault =",
        "recipient",
        "age1",
        "verifying",
        "id =",
    ]
    .iter()
    .any(|mark| line.contains(mark));
    // Ids are no secrets: they stand in every log on purpose.
    let is_id = word.len() == 26 && word.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    let mixed = word.bytes().any(|b| b.is_ascii_digit()) && word.bytes().any(|b| b.is_ascii_alphabetic());
    !is_public && !is_id && mixed
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn secrets_stay_in_their_files() {
    let options = Options {
        log: Some("trace".into()),
        ..Options::default()
    };
    let mut scenario = Scenario::start(options, seed::of_run("no_secret_leaks"), 60);
    scenario.backup();
    scenario.change();
    scenario.backup();
    let cluster = &scenario.cluster;

    let mut said = String::new();
    // Answers and errors of many calls, some of them wrong.
    let kit = cluster.kit();
    let kit_text = kit.to_string_lossy().into_owned();
    let token = cluster.dir().join("web1.token");
    let token_text = token.to_string_lossy().into_owned();
    let store = format!("file://{}", cluster.store_dir().display());
    for args in [
        &["get", "agents", "-o", "json"][..],
        &["get", "snapshots", "-o", "yaml"],
        &["describe", "agents", AGENT],
        &["describe", "sources", SOURCE],
        &["status", "-o", "json"],
        &["doctor"],
        &["verify", "--read-data"],
        &["ls", SOURCE],
        &["recover", "--from", &store, "--kit", &kit_text, "--list"],
        &["recover", "--from", &store, "--kit", &token_text, "--list"],
        &[
            "recover",
            "--from",
            "file:///nonexistent",
            "--kit",
            &kit_text,
            "--list",
        ],
        &["token", "create", AGENT, "--out", "again.token"],
        &["restore", "web1/nothing", "--to", "nowhere"],
    ] {
        let output = cluster.ctl(args);
        said += &format!("{}\n{}\n{}\n", output.call, output.text(), output.stderr);
    }
    // A used token is refused, without being repeated.
    let mut command = cluster.command(&cluster.binaries().agent());
    command.args(["join", "--token-file"]).arg(&token);
    command.args([
        "--allow",
        "/nonexistent",
        "--config",
        "again.toml",
        "--state-dir",
        "again-state",
    ]);
    let output = Output::of(command);
    assert_ne!(output.code, 0, "a token was used twice");
    said += &format!("{}\n{}\n", output.text(), output.stderr);
    for process in [cluster.controller(), cluster.agent_process(AGENT)] {
        said += &process.lines().join("\n");
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{}/{file}", process.pid())).unwrap();
            said += &String::from_utf8_lossy(&bytes);
        }
    }
    assert!(
        said.lines().count() > 100,
        "log level trace says more than {} lines",
        said.lines().count()
    );

    let mut secret_files = vec![kit, token];
    for dir in [
        cluster.controller_dir().join("identity"),
        cluster.agent(AGENT).state_dir.join("identity"),
        cluster.config_dir(),
    ] {
        files(&dir, &mut secret_files);
    }
    let mut secrets = BTreeSet::new();
    for file in secret_files.iter().filter(|file| file.exists()) {
        secrets.extend(secrets_of(file));
    }
    assert!(
        secrets.len() >= 5,
        "only {} secrets were found to look for",
        secrets.len()
    );
    let leaked: Vec<&String> = secrets
        .iter()
        .filter(|(_, secret)| contains(said.as_bytes(), secret))
        .map(|(file, _)| file)
        .collect();
    assert!(leaked.is_empty(), "secrets of these files were shown: {leaked:?}");

    // And nobody else on the machine can read them.
    use std::os::unix::fs::MetadataExt as _;
    for file in secret_files.iter().filter(|file| file.exists()) {
        let mode = fs::metadata(file).unwrap().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", file.display());
    }
}
