//! Writes where the fuzzer begins, `corpus/TARGET/seed-*`: real tokens, kits, certificates, log segments,
//! records, a copy of a catalog, a cache, rows of the index, documents, patterns. `cargo run --example seeds`
//! beside this workspace's manifest.

#![forbid(unsafe_code)]

use holdfast_agent::engine::{Keep, RecordCache};
use holdfast_controller::{
    catalog::{
        Actor, Command, Proposal, dump, kv, model,
        store::{Applied, CatalogStore},
    },
    index::rows::{self, Row},
    raft::{frame, types::LogId},
};
use holdfast_core::{ChunkId, ClusterId, JobId, Name, PackId, SessionId, SnapshotId, StoreId, VaultId};
use holdfast_fuzz::file_of;
use holdfast_net::{
    Identity, Role,
    keys::{SealingKey, SigningKey, TlsKey},
    kit::RecoveryKit,
    pem,
    pki::{Fingerprint, RootCa, TlsIdentity},
    sealed::{self, SealedHeader, SealedKind},
    seed::ClusterSeed,
    token::JoinToken,
};
use serde::Serialize;
use std::{error::Error, fs, path::Path, time::SystemTime};

type Fallible = Result<(), Box<dyn Error>>;

const CLUSTER: ClusterId = ClusterId([0x66; 16]);
const VAULT: VaultId = VaultId([0x11; 16]);
const SNAPSHOT: SnapshotId = SnapshotId([0x44; 16]);

fn main() -> Fallible {
    joining()?;
    certificates()?;
    raft_log()?;
    records()?;
    dumped()?;
    cached()?;
    index_rows()?;
    documents()?;
    patterns()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Fallible {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join(format!("seed-{name}")), bytes)?)
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn joining() -> Fallible {
    let now = SystemTime::now();
    let root = RootCa::generate(CLUSTER, now)?;
    let admin = SigningKey::from_seed(&[7; 32])?.public();
    for (what, role, vault) in [
        ("agent", Role::Agent, Some((VAULT, name("web")))),
        ("controller", Role::Controller, None),
    ] {
        let token = JoinToken {
            cluster: CLUSTER,
            ca_fingerprint: Fingerprint::of(root.certificate()),
            addresses: vec!["ctl1:7443".into()],
            name: name("web1"),
            role,
            vault,
            secret: [9; 32].into(),
            expires_at: 1_700_000_000_000,
        };
        let text = token.to_text();
        let body = text.split('.').nth(1).ok_or("a token has three parts")?;
        use base64::Engine as _;
        let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body)?;
        write("join", &format!("token-{what}"), &json)?;
    }
    let seed = ClusterSeed {
        cluster: CLUSTER,
        name: name("prod"),
        recovery_recipient: SealingKey::generate().recipient(),
        admin_public_keys: vec![admin],
    };
    write("join", "cluster", seed.to_toml()?.as_bytes())?;
    let kit = RecoveryKit {
        cluster: CLUSTER,
        cluster_name: name("prod"),
        recovery_key: SealingKey::generate(),
        admin_keys: vec![admin],
        root,
    };
    write("join", "kit-whole", kit.to_text().as_bytes())?;
    write("join", "kit-lines", kit_lines(&kit.to_text()).as_bytes())?;
    let identity = format!("{}", identity());
    for (what, text) in [
        ("identity", identity.as_str()),
        ("source", "web1/uploads"),
        ("role", "agent"),
    ] {
        write("join", what, text.as_bytes())?;
    }
    Ok(())
}

/// The kit without its head and checksum, each value on the line of its key.
fn kit_lines(text: &str) -> String {
    let mut lines = Vec::<String>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match (line.strip_prefix("  "), lines.last_mut()) {
            (Some(more), Some(last)) => {
                if last.ends_with(':') {
                    last.push(' ');
                }
                last.push_str(more);
            }
            _ => lines.push(line.into()),
        }
    }
    lines.retain(|line| !line.starts_with("holdfast-recovery-kit:") && !line.starts_with("check:"));
    lines.join("\n")
}

fn identity() -> Identity {
    Identity {
        cluster: CLUSTER,
        role: Role::Agent,
        name: name("web1"),
        incarnation: 1,
    }
}

fn certificates() -> Fallible {
    let now = SystemTime::now();
    let issuing = RootCa::generate(CLUSTER, now)?.make_issuing_ca(CLUSTER, now)?;
    let key = TlsKey::generate()?;
    let chain = issuing.issue(&identity(), &key.certificate_request()?, now)?;
    let leaf = chain.first().ok_or("an empty chain")?;
    write("certificate", "leaf", leaf)?;
    write("certificate", "issuing", issuing.certificate())?;
    write("certificate", "key", key.pkcs8())?;
    write("certificate", "pem", pem::encode_certificate(leaf).as_bytes())?;
    write(
        "certificate",
        "identity",
        TlsIdentity::new(chain, key)?.to_pem().as_bytes(),
    )?;
    let header = SealedHeader {
        kind: SealedKind::VaultKeys,
        vault: VAULT,
        number: 1,
    };
    let to = SealingKey::generate().recipient();
    let object = sealed::seal_and_sign(b"keys", &[to.clone()], &SigningKey::from_seed(&[7; 32])?, header)?;
    write("certificate", "sealed", &object[..object.len() - 64])?;
    write("certificate", "age", &sealed::age_seal(b"keys", &[to])?)
}

fn raft_log() -> Fallible {
    let (mut frames, _) = frame::encode_entries(&[&b"one"[..], b"", b"three"])?;
    frames.extend_from_slice(&frame::encode_void_from(2));
    frames.extend_from_slice(&frame::encode_entries(&[b"two again"])?.0);
    write("raft_log", "frames", &frames)?;
    write(
        "raft_log",
        "segment",
        &[&frame::segment_header(7)[..], &frames].concat(),
    )?;
    write("raft_log", "torn", &frames[..frames.len() - 5])?;
    write("raft_log", "script", &[200, 1, 2, 3, 0, 90, 255, 7])
}

fn record<T: Serialize>(which: u8, what: &str, record: &T) -> Fallible {
    write("record", what, &[&[which], &kv::encode(record)?[..]].concat())
}

fn meta() -> model::Meta {
    model::Meta {
        cluster: CLUSTER,
        name: "prod".into(),
        generation: 1,
        recovery_recipient: "age1".into(),
        admin_keys: vec![model::AdminKey(vec![3; 32])],
        root_ca_fingerprint: vec![5; 32],
        founded_at: 1_700_000_000_000,
    }
}

fn records() -> Fallible {
    let proposal = Proposal {
        request: None,
        time: 1_700_000_000_000,
        actor: Actor::Admin(name("alice")),
        trace: String::new(),
        command: Command::Init { meta: meta() },
    };
    record(1, "init", &proposal)?;
    let put = Command::PutVault {
        vault: VAULT,
        name: name("web"),
        key_object: vec![1; 40],
    };
    record(
        1,
        "put-vault",
        &Proposal {
            command: put,
            actor: Actor::System,
            ..proposal
        },
    )?;
    record(3, "applied", &Applied::default())?;
    record(4, "log-id", &Some(LogId::default()))?;
    record(6, "meta", &meta())?;
    record(
        7,
        "vault",
        &model::Vault {
            id: VAULT,
            name: name("web"),
            key_objects: 2,
            created_at: 9,
        },
    )?;
    record(
        8,
        "use",
        &model::VaultUse {
            packs: 1,
            bytes: 70_000,
            last_deletion_index: 0,
        },
    )?;
    let session = model::Session {
        id: SessionId([1; 16]),
        source: "web1/uploads".parse()?,
        vault: VAULT,
        agent: name("web1"),
        incarnation: 1,
        job: JobId([2; 16]),
        attempt: 1,
        fence: 88,
        parent: Some(SNAPSHOT),
        snapshot: SNAPSHOT,
        sequence: 4,
        opened_at: 1,
        state: model::SessionState::Expired,
        ended_at: 2,
        reason: "its lease ended".into(),
        packs: 3,
    };
    record(13, "session", &session)?;
    let pack = model::Pack {
        id: PackId([4; 32]),
        vault: VAULT,
        len: 1 << 24,
        session: None,
        registered_index: 70,
        registered_at: 5,
    };
    record(15, "pack", &pack)?;
    record(
        16,
        "store",
        &model::Store {
            id: StoreId([8; 16]),
            site: name("primary"),
            path: "/srv".into(),
        },
    )?;
    record(
        17,
        "gc",
        &model::GcRun {
            fence: 1,
            started_at: 2,
        },
    )?;
    record(19, "admin-key", &model::AdminKey(vec![3; 32]))
}

fn dumped() -> Fallible {
    let dir = file_of("catalog", b"");
    fs::remove_file(&dir)?;
    let store = CatalogStore::open(&dir)?;
    let path = dir.join("dump");
    dump::write(&store, &path)?;
    write("dump", "empty", &fs::read(&path)?)?;
    // With two rows, by hand: between the header and the end, which is 48 bytes long.
    let empty = fs::read(&path)?;
    let mut rows = empty.get(..empty.len() - 48).ok_or("too short")?.to_vec();
    for (key, value) in [(&b"key"[..], &b"value"[..]), (b"l", b"")] {
        rows.extend_from_slice(&(key.len() as u32).to_le_bytes());
        rows.extend_from_slice(&(value.len() as u32).to_le_bytes());
        rows.extend_from_slice(&[key, value].concat());
    }
    rows.extend_from_slice(&[&[0; 8][..], &2_u64.to_le_bytes(), &[0; 32]].concat());
    write("dump", "rows", &rows)?;
    drop(store);
    Ok(fs::remove_dir_all(&dir)?)
}

fn cached() -> Fallible {
    let path = file_of("cache", b"");
    let cache = RecordCache::open(&path, Keep::Used, 1 << 20)?;
    for n in 0..4_u8 {
        cache.put(&ChunkId([n; 32]), &[&vec![n; usize::from(n) * 9]])?;
    }
    cache.finish()?;
    write("cache", "four", &fs::read(&path)?)?;
    write("cache", "torn", &fs::read(&path)?[..150])?;
    Ok(fs::remove_file(&path)?)
}

fn index_rows() -> Fallible {
    let row = |pack| Row {
        pack,
        offset: 48 + pack * 100,
        len: 100,
    };
    write("index_row", "one", &rows::encode(&[row(0)]))?;
    let many: Vec<Row> = (0..9).map(row).collect();
    write("index_row", "many", &rows::encode(&many))?;
    write("index_row", "torn", &rows::encode(&many)[..50])?;
    let largest = Row {
        pack: u32::MAX,
        offset: u32::MAX,
        len: u32::MAX,
    };
    write("index_row", "largest", &rows::encode(&[largest]))?;
    // Two keys without the byte in front, of one vault and of two.
    for (what, other) in [("one-vault", 7), ("two-vaults", 8)] {
        let keys = [
            rows::key(7, &ChunkId([1; 32])),
            rows::key(other, &ChunkId([0; 32])),
        ];
        write("index_row", what, &[&keys[0][1..], &keys[1][1..]].concat())?;
    }
    Ok(())
}

fn documents() -> Fallible {
    const HEAD: &str = "kind: Source\nname: web1/uploads\n";
    const POSTGRES: &str = "kind: Source\nname: db1/main\npostgres: {fastCheckpoint: true}\n";
    let flat = format!("{HEAD}files:\n  roots: [/srv/uploads, '/srv/a b']\n  exclude:\n    - '*.tmp'\n");
    let limits = "limits: {bandwidth: 20MiB/s, read_rate: 1500000, cpu_weight: 10, io_class: best-effort, \
                  io_priority: 7}\n";
    for (what, text) in [
        ("flat", flat.clone()),
        ("limits", format!("{HEAD}files: {{roots: [/]}}\n{limits}")),
        (
            "spec",
            format!(
                "{HEAD}spec: {{files: {{roots: [/a], cross_mounts: true}}, limits: {{ioClass: idle}}}}\n"
            ),
        ),
        (
            "two",
            format!("{flat}---\n{}---\n", flat.replace("uploads", "etc")),
        ),
        (
            "json",
            r#"{"kind":"Source","name":"a/b","files":{"roots":["/a"],"exclude":[],"cross_mounts":false}}"#
                .into(),
        ),
        ("postgres", POSTGRES.into()),
        (
            "postgres-json",
            r#"{"kind":"Source","name":"a/b","postgres":{"cluster":"main","fast_checkpoint":true}}"#.into(),
        ),
        ("both", format!("{POSTGRES}spec: {{files: {{roots: [/a]}}}}\n")),
        // Alike but for a slash too many.
        ("within", format!("{HEAD}files: {{roots: [/srv/a, /srv//a/b]}}\n")),
        ("alias", format!("{HEAD}files: {{roots: &a [/a], exclude: *a}}\n")),
        (
            "block",
            format!("{HEAD}files:\n  roots:\n  - |-\n    /a\n    ---\n  - >\n    /b\n    c\n"),
        ),
        ("unknown-key", flat.replace("exclude", "exlude")),
        ("rate", "20 MiB/s".into()),
        ("rate-plain", "2048".into()),
        ("path", "\u{fc}/\u{85}\u{feff}: #'\"\t".into()),
        ("latest", "web1/uploads@latest".into()),
        ("snapshot", format!("web1/uploads@{SNAPSHOT}")),
        ("id", SNAPSHOT.to_string()),
        ("time", "web1/uploads@2024-11-20T19:30:00+01:00".into()),
        ("zoned", "web1/uploads@2024-11-20T19:30:00[Europe/Berlin]".into()),
        ("no-zone", "web1/uploads@2024-11-20 18:30".into()),
    ] {
        write("document", what, text.as_bytes())?;
    }
    Ok(())
}

/// A pattern and paths, each behind a zero byte.
fn patterns() -> Fallible {
    let long = format!("{}b\0{}", "*a".repeat(100), "a".repeat(255));
    let deep = format!("/{}z\0/{}y", "**/a*/".repeat(60), "a/".repeat(200));
    for (what, text) in [
        ("name", "/srv/*/log\0/srv/www/log\0/srv/www/x/log"),
        ("depth", "/a/**/b/**/c\0/a/x/b/y/z/c\0/a/c/b"),
        ("below", "/srv/**\0/srv\0/srv/a/b"),
        ("relative", "**/*.log\0/x.log\0/a/b/c.log"),
        ("stars", "a*b*c\0a__b__b_c\0a__c__b"),
        ("one", "a?c/*??\0/a\u{1f30a}c/\u{1f30a}\0a\u{fc}c/xy"),
        ("escaped", "/\\*/\\?/\\\\/a\\\0/*/?/\\/a\\"),
        ("slashes", "//a/./b//\0a/b\0/\0."),
        ("long", &long),
        ("deep", &deep),
    ] {
        write("pattern", what, text.as_bytes())?;
    }
    write(
        "pattern",
        "bytes",
        b"\xff?\xc3*\xfc\0\xff\xfe\xc3x\xfc\0\xff\xc3\xbc\xfc",
    )
}
