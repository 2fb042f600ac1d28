//! Any text as YAML documents, as the JSON that the catalog keeps of them, as what stands in them, and as the
//! address of a snapshot: an error, or what means the same when it is written again.

#![no_main]

use holdfast_core::limits::{RATE_MAX, RATE_MIN};
use holdfast_net::host_limits;
use holdfast_restore::names;
use holdfastctl::{
    address::{Address, At, snapshot_id},
    document::{self, SourceDocument, SourceSpec},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    documents(text);
    kept(text);
    held(text);
    rate(text);
    address(text);
});

/// A file of documents.
fn documents(text: &str) {
    let Ok(read) = document::parse(text) else { return };
    assert!(!read.is_empty());
    let mut written = String::new();
    for document in &read {
        sound(document);
        written.push_str("---\n");
        written.push_str(&document.to_yaml().expect("a checked document"));
    }
    let again = document::parse(&written).expect("what was written");
    let all = |read: &[SourceDocument]| read.iter().map(json).collect::<Vec<_>>();
    assert_eq!(all(&again), all(&read), "{written}");
    for (at, document) in read.iter().enumerate() {
        assert!(read[at + 1..].iter().all(|other| other.name != document.name));
    }
}

fn json(document: &SourceDocument) -> String {
    document.to_json().expect("a checked document")
}

/// What is promised of a document that was read.
fn sound(document: &SourceDocument) {
    let kept = SourceDocument::from_json(&json(document)).expect("what was written");
    assert_eq!(json(&kept), json(document));
    let spec = document.spec().expect("a checked document");
    assert_eq!(kept.spec().expect("the same"), spec);
    let limits = document.wire_limits().expect("a checked document");
    assert_eq!(kept.wire_limits().expect("the same"), limits);
    let taken = host_limits::from_wire(limits.clone()).expect("what a controller takes");
    assert_eq!(limits, (!taken.is_none()).then(|| host_limits::to_wire(&taken)));
    let files = match spec {
        SourceSpec::Files(files) => files,
        SourceSpec::Postgres(postgres) => {
            assert!(postgres.cluster.parse::<holdfast_core::Name>().is_ok());
            return;
        }
    };
    let roots: Vec<_> = files.roots.iter().map(|root| names(root.as_bytes())).collect();
    assert!(files.roots.iter().all(|root| root.starts_with('/')));
    for (at, root) in roots.iter().enumerate() {
        assert!(!root.iter().any(|name| name == b".."));
        let is_within = |(other, outer): (usize, &Vec<_>)| other != at && root.starts_with(outer);
        assert!(!roots.iter().enumerate().any(is_within), "{files:?}");
    }
    assert!(!files.roots.is_empty() && files.exclude.iter().all(|pattern| !pattern.is_empty()));
}

/// What comes back from the catalog, which checked it when it was put there.
fn kept(text: &str) {
    let Ok(document) = SourceDocument::from_json(text) else {
        return;
    };
    let Ok(json) = document.to_json() else { return };
    let again = SourceDocument::from_json(&json).expect("what was written");
    assert_eq!(again.to_json().expect("the same"), json);
    let yaml = document.to_yaml().expect("what has a JSON form");
    if let Ok(again) = document::parse(&yaml) {
        assert_eq!(again[0].to_json().expect("the same"), json);
    }
}

/// The text as a path and as a pattern: YAML has a form of every text that means the same.
fn held(text: &str) {
    let root = format!("/{text}");
    let files = serde_json::json!({ "roots": [root], "exclude": [text] });
    let json = serde_json::json!({ "kind": "Source", "name": "a/b", "files": files }).to_string();
    let document = SourceDocument::from_json(&json).expect("a document");
    let yaml = document.to_yaml().expect("a document");
    let is_path = !text.contains('\0') && !text.split('/').any(|name| matches!(name, "." | ".."));
    if is_path && (1..4096).contains(&text.len()) {
        let again = document::parse(&yaml).expect("what was written");
        assert_eq!(again[0].to_json().ok(), document.to_json().ok(), "{yaml}");
    } else {
        assert!(document::parse(&yaml).is_err());
    }
}

/// The text as a rate.
fn rate(text: &str) {
    let quoted = serde_json::Value::from(text);
    let yaml = format!("kind: Source\nname: a/b\nfiles: {{roots: [/a]}}\nlimits: {{bandwidth: {quoted}}}");
    let bounds = RATE_MIN..=RATE_MAX;
    let Ok(read) = document::parse(&yaml) else {
        assert!(!text.parse().is_ok_and(|rate: u64| bounds.contains(&rate)));
        return;
    };
    let rate = |document: &SourceDocument| {
        let limits = document.wire_limits().expect("a checked document");
        limits.expect("a limit").bandwidth
    };
    assert!(bounds.contains(&rate(&read[0])));
    // White space around a number means nothing.
    let bare = text.trim();
    assert!(
        bare.parse().is_ok_and(|bytes: u64| bytes == rate(&read[0])) || !bare.ends_with(char::is_numeric)
    );
    let written = read[0].to_yaml().expect("a checked document");
    let again = document::parse(&written).expect("what was written");
    assert_eq!(rate(&again[0]), rate(&read[0]), "{written}");
}

fn address(text: &str) {
    let alone = snapshot_id(text);
    let Ok(address) = text.parse::<Address>() else {
        assert!(alone.is_err() || !text.contains('@'));
        return;
    };
    let at = match address.at {
        At::Latest => "latest".to_owned(),
        At::Snapshot(id) => {
            assert_eq!(alone.expect("an id"), (Some(address.source.clone()), id));
            id.to_string()
        }
        At::Time(time) => {
            let time = i64::try_from(time).expect("a time that was read");
            let time = jiff::Timestamp::from_millisecond(time);
            time.expect("a time that was read").to_string()
        }
    };
    let again: Address = format!("{}@{at}", address.source).parse().expect("an address");
    assert_eq!(again, address);
}
