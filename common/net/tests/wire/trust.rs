//! Who is let in: every way of not being who one should be is tried.

use crate::fixture::{PATIENCE, Pki, Running, serve, who_am_i};
use holdfast_core::{ErrorKind, HasKind as _};
use holdfast_net::{
    CONTROLLER_DNS_NAME, NetError, Role,
    client::{ClientTls, ConnectOptions, connect, connect_join},
    keys::TlsKey,
    pki::{Fingerprint, TlsIdentity, verify::AllowAll},
    server::{Server, ServerTls},
};
use holdfast_proto::v1::{JoinRequest, agent_service_client::AgentServiceClient};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

async fn open_server(pki: &Pki) -> Running {
    serve(pki, Arc::new(AllowAll)).await
}

#[tokio::test]
async fn good_certificates_are_let_in_under_their_own_name() {
    let pki = Pki::new();
    let running = open_server(&pki).await;
    for (role, name) in [
        (Role::Agent, "web1"),
        (Role::Controller, "ctl2"),
        (Role::Admin, "alice"),
    ] {
        let identity = pki.issue(role, name);
        assert_eq!(
            pki.call_as(&running, &identity).await.unwrap(),
            identity.identity().to_string()
        );
    }
}

#[tokio::test]
async fn another_root_is_refused_on_both_sides() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let running = open_server(&ours).await;
    // Their agent trusts our root but shows their certificate.
    assert!(
        ours.call_as(&running, &theirs.issue(Role::Agent, "web1"))
            .await
            .is_err()
    );
    // Our agent meets their server.
    let fault = theirs
        .call_as(&running, &theirs.issue(Role::Agent, "web1"))
        .await
        .unwrap_err();
    assert_eq!(fault.kind, ErrorKind::Unauthenticated, "{fault}");
}

#[tokio::test]
async fn another_cluster_under_the_same_root_is_refused_on_both_sides() {
    let ours = Pki::new();
    let other = ours.of_another_cluster();
    let running = open_server(&ours).await;
    // The client's own rule expects the cluster of its own certificate.
    let fault = ours
        .call_as(&running, &other.issue(Role::Agent, "web1"))
        .await
        .unwrap_err();
    assert_eq!(fault.kind, ErrorKind::Unauthenticated, "{fault}");
    // A client without that rule is refused by the server.
    assert!(
        raw_call(&running, &other.issue(Role::Agent, "web1"), &ours)
            .await
            .is_err()
    );
    // The same raw client is let in with a certificate of ours: the refusal above had the right cause.
    assert!(
        raw_call(&running, &ours.issue(Role::Agent, "web1"), &ours)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn expired_and_early_certificates_are_refused() {
    let pki = Pki::new();
    let running = open_server(&pki).await;
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    for role in [Role::Agent, Role::Admin] {
        assert!(
            pki.call_as(&running, &pki.issue_at(role, "a", now - 400 * day))
                .await
                .is_err()
        );
        assert!(
            pki.call_as(&running, &pki.issue_at(role, "a", now + 2 * day))
                .await
                .is_err()
        );
    }
    let identity = pki.issue_at(Role::Agent, "a", now);
    let renew_in = identity.renew_at().unwrap().duration_since(now).unwrap();
    assert!(renew_in > 59 * day && renew_in < 61 * day, "{renew_in:?}");
}

#[tokio::test]
async fn an_issuing_ca_cannot_make_an_admin() {
    let pki = Pki::new();
    let running = open_server(&pki).await;
    let key = TlsKey::generate().unwrap();
    let admin = pki.identity(Role::Admin, "mallory");
    let request = key.certificate_request().unwrap();
    let error = pki
        .issuing
        .issue(&admin, &request, SystemTime::now())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    // Whoever captured the CA's key is not bound by our code.
    let forged = |role| forge(&pki, &key, &pki.identity(role, "mallory").to_string());
    assert!(pki.call_as(&running, &forged(Role::Admin)).await.is_err());
    // The same forgery of an agent passes: the refusal above had the right cause.
    assert!(pki.call_as(&running, &forged(Role::Agent)).await.is_ok());
}

/// A leaf made with the issuing CA's key by other means than ours.
fn forge(pki: &Pki, key: &TlsKey, uri: &str) -> TlsIdentity {
    let pair = |key: &TlsKey| KeyPair::try_from(key.pkcs8()).unwrap();
    let issuer = Issuer::from_ca_cert_der(pki.issuing.certificate(), pair(pki.issuing.key())).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&pair(key), &issuer).unwrap();
    TlsIdentity::new(vec![leaf.into(), pki.issuing.certificate().clone()], key.clone()).unwrap()
}

#[tokio::test]
async fn an_agents_certificate_cannot_serve() {
    let pki = Pki::new();
    let agent = pki.issue(Role::Agent, "web1");
    let tls = ServerTls {
        identity: agent.clone(),
        root: pki.root.certificate().clone(),
    };
    assert!(matches!(
        Server::bind("127.0.0.1:0", &tls, Arc::new(AllowAll)).await,
        Err(NetError::Invalid(_))
    ));
    // An impostor with a server of its own, with the right DNS name or without.
    let mut with_name = CertificateParams::new(vec![CONTROLLER_DNS_NAME.to_owned()]).unwrap();
    with_name
        .subject_alt_names
        .push(SanType::URI(agent.identity().to_string().try_into().unwrap()));
    with_name.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let issuer_key = KeyPair::try_from(pki.issuing.key().pkcs8()).unwrap();
    let issuer = Issuer::from_ca_cert_der(pki.issuing.certificate(), issuer_key).unwrap();
    let leaf = with_name
        .signed_by(&KeyPair::try_from(agent.key().pkcs8()).unwrap(), &issuer)
        .unwrap();
    let dressed_up = TlsIdentity::new(
        vec![leaf.into(), pki.issuing.certificate().clone()],
        agent.key().clone(),
    )
    .unwrap();
    for impostor in [agent.clone(), dressed_up] {
        let address = impostor_server(&impostor).await;
        let tls = ClientTls::new(&agent, pki.root.certificate()).unwrap();
        let error = connect(&[address], &tls, &ConnectOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    }
}

async fn impostor_server(identity: &TlsIdentity) -> String {
    let config = ServerConfig::builder_with_provider(holdfast_net::pki::verify::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain().to_vec(), private_key(identity))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        while let Ok((socket, _)) = listener.accept().await {
            let _ = acceptor.accept(socket).await;
        }
    });
    address
}

fn private_key(identity: &TlsIdentity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key().pkcs8().to_vec()))
}

/// A TLS client of rustls alone, which trusts our root and shows `identity`; reads one byte of the server's
/// HTTP/2 settings, which come only after the client's certificate was accepted.
async fn raw_call(running: &Running, identity: &TlsIdentity, ours: &Pki) -> std::io::Result<()> {
    let mut stream = raw_client(running, Some(identity), ours, &[&rustls::version::TLS13]).await?;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await?;
    stream.read_u8().await.map(|_| ())
}

async fn raw_client(
    running: &Running,
    identity: Option<&TlsIdentity>,
    ours: &Pki,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ours.root.certificate().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(holdfast_net::pki::verify::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain().to_vec(), private_key(identity))
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(&running.address).await?;
    let name = ServerName::try_from(CONTROLLER_DNS_NAME).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

#[tokio::test]
async fn tls_1_2_is_refused_and_the_key_exchange_is_hybrid() {
    let pki = Pki::new();
    let running = open_server(&pki).await;
    let agent = pki.issue(Role::Agent, "web1");
    let old = raw_client(&running, Some(&agent), &pki, &[&rustls::version::TLS12]).await;
    let error = old.expect_err("TLS 1.2 was accepted").to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    let new = raw_client(&running, Some(&agent), &pki, &[&rustls::version::TLS13])
        .await
        .unwrap();
    let group = new.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn plaintext_is_not_answered() {
    let pki = Pki::new();
    let running = open_server(&pki).await;
    let mut socket = TcpStream::connect(&running.address).await.unwrap();
    socket
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer))
        .await
        .unwrap();
    // A TLS alert at most.
    assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
}

#[tokio::test]
async fn without_a_certificate_one_can_join_and_nothing_else() {
    let pki = Pki::new();
    let running = open_server(&pki).await;
    let fingerprint = Fingerprint::of(pki.root.certificate());
    let addresses = [running.address.clone()];
    let options = ConnectOptions::default();
    let (connection, root) = connect_join(&addresses, fingerprint, pki.cluster, &options)
        .await
        .unwrap();
    assert_eq!(&root, pki.root.certificate());
    let joined = AgentServiceClient::new(connection.clone())
        .join(JoinRequest::default())
        .await
        .unwrap();
    assert_eq!(joined.into_inner().vault_name, "joined");
    let fault = who_am_i(connection).await.unwrap_err();
    assert_eq!(fault.kind, ErrorKind::Unauthenticated);
    assert!(fault.hint.is_some());

    let wrong = connect_join(&addresses, Fingerprint([1; 32]), pki.cluster, &options).await;
    assert_eq!(wrong.err().unwrap().kind(), ErrorKind::Unauthenticated);
    let other = Pki::new().cluster;
    let wrong = connect_join(&addresses, fingerprint, other, &options).await;
    assert_eq!(wrong.err().unwrap().kind(), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn requests_for_certificates_are_checked() {
    let pki = Pki::new();
    let agent = pki.identity(Role::Agent, "web1");
    let now = SystemTime::now();
    let good = TlsKey::generate().unwrap().certificate_request().unwrap();
    assert!(pki.issuing.issue(&agent, &good, now).is_ok());
    let mut unsigned = good.clone();
    let last = unsigned.len() - 1;
    unsigned[last] ^= 1;
    assert_eq!(
        pki.issuing.issue(&agent, &unsigned, now).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert!(pki.issuing.issue(&agent, b"nonsense", now).is_err());
    assert!(pki.issuing.issue(&agent, &vec![0x30; 64 * 1024], now).is_err());
    // What a request says about its owner counts for nothing.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![CONTROLLER_DNS_NAME.to_owned()]).unwrap();
    let admin = pki.identity(Role::Admin, "mallory").to_string();
    params
        .subject_alt_names
        .push(SanType::URI(admin.try_into().unwrap()));
    let greedy = params.serialize_request(&key).unwrap();
    let chain = pki.issuing.issue(&agent, greedy.der(), now).unwrap();
    assert_eq!(
        holdfast_net::Identity::from_certificate(&chain[0]).unwrap(),
        agent
    );
    let text = String::from_utf8_lossy(&chain[0]).into_owned();
    assert!(!text.contains(CONTROLLER_DNS_NAME) && !text.contains("mallory"));
    assert!(
        pki.issuing
            .issue(&Pki::new().identity(Role::Agent, "a"), &good, now)
            .is_err()
    );
    assert!(pki.root.issue_admin(&agent, &good, now).is_err());
}
