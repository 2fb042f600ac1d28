//! What can be done to a server while it runs: stuck handshakes, revocation, new certificates, shutdown.

use crate::fixture::{PATIENCE, Pki, serve, who_am_i};
use holdfast_core::{ErrorKind, limits};
use holdfast_net::{
    Identity, Role,
    client::{ClientTls, ConnectOptions, connect, connect_pool},
    pki::verify::{AllowAll, Authorizer},
};
use holdfast_proto::v1::{AgentMessage, agent_service_client::AgentServiceClient};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

/// Refuses names that were revoked.
#[derive(Default)]
struct Revoked(Mutex<BTreeSet<String>>);

impl Authorizer for Revoked {
    fn check(&self, identity: &Identity) -> Result<(), String> {
        match self.0.lock().unwrap().contains(identity.name.as_str()) {
            true => Err("a rebuilt host has taken over this name".into()),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn stuck_handshakes_are_cut_and_do_not_block_others() {
    let pki = Pki::new();
    let running = serve(&pki, Arc::new(AllowAll)).await;
    let mut stuck = Vec::new();
    for _ in 0..limits::HANDSHAKES_MAX + 8 {
        stuck.push(TcpStream::connect(&running.address).await.unwrap());
    }
    assert!(
        pki.call_as(&running, &pki.issue(Role::Agent, "web1"))
            .await
            .is_ok()
    );
    // The oldest gave way at once; the youngest is cut when its time is up.
    let youngest = stuck.pop().unwrap();
    for mut socket in [stuck.swap_remove(0), youngest] {
        let end = timeout(PATIENCE, socket.read_u8())
            .await
            .expect("a stuck handshake was never cut");
        assert!(end.is_err(), "the server spoke first");
    }
}

#[tokio::test]
async fn a_revoked_identity_is_cut_live_and_refused_from_then_on() {
    let pki = Pki::new();
    let revoked = Arc::new(Revoked::default());
    let running = serve(&pki, Arc::clone(&revoked) as _).await;
    let agent = pki.issue(Role::Agent, "web1");
    let tls = ClientTls::new(&agent, pki.root.certificate()).unwrap();
    let (addresses, options) = ([running.address.clone()], ConnectOptions::default());
    let connection = connect(&addresses, &tls, &options).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel::<AgentMessage>(1);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut stream = AgentServiceClient::new(connection.clone())
        .control(outgoing)
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().expect("a first message");
    let bystander = pki.issue(Role::Agent, "web2");
    assert!(pki.call_as(&running, &bystander).await.is_ok());

    revoked.0.lock().unwrap().insert("web1".into());
    // A call on the open connection is refused even before it is cut.
    let fault = who_am_i(connection.clone()).await.unwrap_err();
    assert_eq!(fault.kind, ErrorKind::Denied, "{fault}");
    assert!(fault.message.contains("rebuilt"), "{fault}");
    assert_eq!(running.handle.cut_revoked(), 1);
    let end = timeout(PATIENCE, stream.message())
        .await
        .expect("the stream of a revoked agent lives on");
    assert!(end.is_err(), "the stream ended as if all were well");
    drop(sender);
    assert!(
        pki.call_as(&running, &agent).await.is_err(),
        "a revoked certificate was let in"
    );
    assert!(pki.call_as(&running, &bystander).await.is_ok());
}

#[tokio::test]
async fn clients_try_each_address_and_connect_again_by_themselves() {
    let pki = Pki::new();
    let first = serve(&pki, Arc::new(AllowAll)).await;
    let second = serve(&pki, Arc::new(AllowAll)).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let agent = pki.issue(Role::Agent, "web1");
    let tls = ClientTls::new(&agent, pki.root.certificate()).unwrap();
    let addresses = [free.to_string(), first.address.clone(), second.address.clone()];
    let pool = connect_pool(&addresses, &tls, &ConnectOptions::default(), 3)
        .await
        .unwrap();
    assert_eq!(pool.len(), 3);
    assert!(who_am_i(pool[0].clone()).await.is_ok());
    first.stop.cancel();
    timeout(PATIENCE, first.task)
        .await
        .expect("a server with idle connections stops")
        .unwrap();
    // The broken connection may cost one call; then the second server answers.
    let again = async {
        while who_am_i(pool[0].clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again)
        .await
        .expect("no call succeeded after the first server had stopped");
    let none = connect(&[free.to_string()], &tls, &ConnectOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(none, holdfast_net::NetError::Unavailable(_)), "{none}");
}

#[tokio::test]
async fn certificates_are_replaced_while_the_server_runs() {
    let pki = Pki::new();
    let running = serve(&pki, Arc::new(AllowAll)).await;
    let agent = pki.issue(Role::Agent, "web1");
    assert!(running.handle.replace_certificate(&agent).is_err());
    let other = pki.of_another_cluster().issue(Role::Controller, "ctl1");
    assert!(running.handle.replace_certificate(&other).is_err());
    running
        .handle
        .replace_certificate(&pki.issue(Role::Controller, "ctl1"))
        .unwrap();
    assert!(pki.call_as(&running, &agent).await.is_ok());

    // A client's new certificate is shown by its next connection.
    let tls = ClientTls::new(&agent, pki.root.certificate()).unwrap();
    tls.replace_certificate(&pki.issue(Role::Agent, "web9")).unwrap();
    let connection = connect(
        std::slice::from_ref(&running.address),
        &tls,
        &ConnectOptions::default(),
    )
    .await
    .unwrap();
    assert!(who_am_i(connection).await.unwrap().contains("/web9/"));
}
