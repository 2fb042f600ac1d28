//! Invariant 7: an agent certificate deletes nothing and reads nothing foreign. The agent's own key and
//! certificate call everything that the wire offers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use holdfast_integration::{
    harness::Options,
    scenario::{AGENT, SOURCE, Scenario},
    seed,
};
use holdfast_net::{
    client::{ClientTls, ConnectOptions, Connection, connect, connect_join},
    pem,
    pki::{Fingerprint, TlsIdentity},
};
use holdfast_proto::v1::{
    self, control_service_client::ControlServiceClient, data_service_client::DataServiceClient,
};
use std::{fs, path::Path};
use tonic::Code;

/// The agent's identity as a thief of its files has it, and the root certificate beside it.
fn stolen(state_dir: &Path) -> (TlsIdentity, Vec<Vec<u8>>) {
    let mut identity = None;
    let mut certificates = Vec::new();
    for entry in fs::read_dir(state_dir.join("identity")).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(found) = TlsIdentity::load(&path) {
            identity = Some(found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            certificates.extend(
                pem::certificates(&text)
                    .unwrap_or_default()
                    .iter()
                    .map(|c| c.to_vec()),
            );
        }
    }
    (
        identity.expect("the agent's chain and key in its identity directory"),
        certificates,
    )
}

async fn connected(address: &str, identity: &TlsIdentity, roots: &[Vec<u8>]) -> Connection {
    for root in roots {
        let Ok(tls) = ClientTls::new(identity, &root.clone().into()) else {
            continue;
        };
        if let Ok(connection) = connect(&[address.to_string()], &tls, &ConnectOptions::default()).await {
            return connection;
        }
    }
    panic!("the agent's own certificate does not connect");
}

/// Calls each named method with an empty request, and collects those that were not refused.
macro_rules! not_refused {
    ($client:expr, $codes:expr, $($method:ident: $request:ident),+ $(,)?) => {{
        let mut through: Vec<String> = Vec::new();
        $(
            match $client.$method(v1::$request::default()).await {
                Err(status) if $codes.contains(&status.code()) => {}
                Err(status) => through.push(format!("{}: {:?} {}", stringify!($method), status.code(), status.message())),
                Ok(_) => through.push(format!("{}: answered", stringify!($method))),
            }
        )+
        through
    }};
}

async fn operators_calls(connection: Connection, codes: &[Code]) -> Vec<String> {
    let mut client = ControlServiceClient::new(connection);
    not_refused!(
        client,
        codes,
        status: StatusRequest,
        put_vault: PutVaultRequest,
        list_vaults: ListVaultsRequest,
        create_token: CreateTokenRequest,
        put_source: PutSourceRequest,
        delete_source: DeleteSourceRequest,
        list_agents: ListRequest,
        list_sources: ListRequest,
        list_snapshots: ListSnapshotsRequest,
        list_jobs: ListRequest,
        list_audit: ListRequest,
        list_members: ListRequest,
        run_backup: RunBackupRequest,
        run_restore: RunRestoreRequest,
        watch_job: WatchJobRequest,
        cancel_job: CancelJobRequest,
        delete_snapshot: DeleteSnapshotRequest,
        undelete_snapshot: UndeleteSnapshotRequest,
        gc: GcRequest,
        verify_stores: VerifyStoresRequest,
    )
}

#[test]
fn an_agents_key_deletes_nothing_and_reads_nothing_foreign() {
    let mut scenario = Scenario::start(Options::default(), seed::of_run("powerless"), 60);
    let id = scenario.backup();
    let other_root = scenario.cluster.dir().join("other-source");
    fs::create_dir(&other_root).unwrap();
    fs::write(other_root.join("secret"), b"of another host").unwrap();
    scenario.cluster.add_agent("db1", &[&other_root]);
    scenario.cluster.apply_source("db1/files", &other_root);
    let _ = scenario.cluster.backup("db1/files").ok();
    let foreign = scenario.cluster.snapshots("db1/files").remove(0);
    let vaults = scenario.cluster.ctl(["get", "agents", "-o", "json"]).ok().rows();
    let vault_of = |name: &str| {
        let row = vaults.iter().find(|row| row["name"] == name).expect("an agent");
        row["vault"].as_str().expect("its vault").to_string()
    };
    assert_ne!(
        vault_of(AGENT),
        vault_of("db1"),
        "two agents share a vault without being told to"
    );

    let (identity, roots) = stolen(&scenario.cluster.agent(AGENT).state_dir);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = scenario.cluster.address().to_string();
        let connection = connected(&address, &identity, &roots).await;
        let through = operators_calls(connection.clone(), &[Code::PermissionDenied]).await;
        assert!(
            through.is_empty(),
            "an agent was not refused:\n{}",
            through.join("\n")
        );

        let mut data = DataServiceClient::new(connection.clone());
        let snapshot: holdfast_core::SnapshotId = foreign.parse().unwrap();
        let root = data
            .get_root(v1::GetRootRequest {
                snapshot: snapshot.as_bytes().to_vec().into(),
            })
            .await;
        let status = root.expect_err("the root of another vault was given out");
        assert!(
            matches!(status.code(), Code::PermissionDenied | Code::NotFound),
            "{status:?}"
        );

        let vault: holdfast_core::VaultId = vault_of("db1").parse().unwrap();
        let request = v1::FetchRequest {
            vault: vault.as_bytes().to_vec().into(),
            ids: vec![7; 32].into(),
            ..v1::FetchRequest::default()
        };
        let fetched = match data.fetch(request).await {
            Err(status) => Err(status),
            Ok(stream) => stream.into_inner().message().await,
        };
        let status = fetched.expect_err("another vault was read");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");

        let source = v1::SourceRef {
            agent: "db1".into(),
            source: "files".into(),
        };
        let opened = data
            .open_session(v1::OpenSessionRequest {
                source: Some(source),
                job: vec![1; 16].into(),
                attempt: 1,
                system_id: 0,
            })
            .await;
        let status = opened.expect_err("a session of another agent's source was opened");
        assert!(
            matches!(status.code(), Code::PermissionDenied | Code::NotFound),
            "{status:?}"
        );

        // Without any certificate there is the way in for new agents, and nothing else.
        for root in &roots {
            let fingerprint = Fingerprint::of(&root.clone().into());
            let cluster = identity.identity().cluster;
            let joined = connect_join(
                std::slice::from_ref(&address),
                fingerprint,
                cluster,
                &ConnectOptions::default(),
            )
            .await;
            if let Ok((anonymous, _)) = joined {
                let refusals = [Code::PermissionDenied, Code::Unauthenticated];
                let through = operators_calls(anonymous, &refusals).await;
                assert!(
                    through.is_empty(),
                    "without a certificate:\n{}",
                    through.join("\n")
                );
            }
        }
    });
    assert!(scenario.cluster.snapshots("db1/files").contains(&foreign));
    scenario.assert_restores(&id);
    // A replaced host: the old certificate is refused from now on, name and source live on.
    let token = scenario.cluster.dir().join("again.token");
    let _ = scenario
        .cluster
        .ctl([
            "token",
            "create",
            AGENT,
            "--replace",
            "--out",
            token.to_str().unwrap(),
        ])
        .ok();
    let old_state = scenario.cluster.agent(AGENT).state_dir.clone();
    scenario.cluster.kill_agent(AGENT);
    let kept = scenario.cluster.dir().join("old-state");
    let status = std::process::Command::new("mv")
        .arg(&old_state)
        .arg(&kept)
        .status()
        .unwrap();
    assert!(status.success());
    let root = scenario.root().to_path_buf();
    scenario.cluster.rejoin_agent(AGENT, &token, &[&root]);
    scenario.cluster.start_agent(AGENT, None);
    scenario.cluster.wait_connected(AGENT);
    scenario.change();
    scenario.backup();
    scenario.assert_all_restore();
    runtime.block_on(async {
        let address = scenario.cluster.address().to_string();
        for root in &roots {
            let Ok(tls) = ClientTls::new(&identity, &root.clone().into()) else {
                continue;
            };
            let Ok(connection) =
                connect(std::slice::from_ref(&address), &tls, &ConnectOptions::default()).await
            else {
                continue;
            };
            let source = v1::SourceRef {
                agent: AGENT.into(),
                source: SOURCE.split('/').nth(1).unwrap().into(),
            };
            let opened = DataServiceClient::new(connection)
                .open_session(v1::OpenSessionRequest {
                    source: Some(source),
                    job: vec![1; 16].into(),
                    attempt: 1,
                    system_id: 0,
                })
                .await;
            let status = opened.expect_err("a replaced certificate was accepted");
            // TLS 1.3 tells a client after its handshake: the connection just ends.
            let refused = [
                Code::PermissionDenied,
                Code::Unauthenticated,
                Code::Unavailable,
                Code::Cancelled,
                Code::Unknown,
            ];
            assert!(refused.contains(&status.code()), "{status:?}");
        }
    });
}
