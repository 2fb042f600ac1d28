//! A small PKI and a server that tells its callers who they are.

use holdfast_core::ClusterId;
use holdfast_net::{
    Fault, Identity, Role,
    client::{ClientTls, ConnectOptions, Connection, connect},
    keys::TlsKey,
    pki::{IssuingCa, RootCa, TlsIdentity, verify::Authorizer},
    server::{PeerIdentity, Server, ServerHandle, ServerTls},
    trace,
};
use holdfast_proto::v1::{
    AgentMessage, ControllerMessage, JoinRequest, JoinResponse, RenewRequest, RenewResponse,
    agent_service_client::AgentServiceClient,
    agent_service_server::{AgentService, AgentServiceServer},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

/// A condition that takes longer will never come.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Pki {
    pub cluster: ClusterId,
    pub root: RootCa,
    pub issuing: IssuingCa,
}

impl Pki {
    pub fn new() -> Self {
        let (cluster, now) = (ClusterId::generate(), SystemTime::now());
        let root = RootCa::generate(cluster, now).unwrap();
        let issuing = root.make_issuing_ca(cluster, now).unwrap();
        Self {
            cluster,
            root,
            issuing,
        }
    }

    /// The same authorities, as if they worked for another cluster.
    pub fn of_another_cluster(&self) -> Self {
        let cluster = ClusterId::generate();
        let issuing = IssuingCa::from_parts(
            self.issuing.certificate().clone(),
            self.issuing.key().clone(),
            self.root.certificate().clone(),
            cluster,
        );
        Self {
            cluster,
            root: self.root.clone(),
            issuing: issuing.unwrap(),
        }
    }

    pub fn identity(&self, role: Role, name: &str) -> Identity {
        Identity {
            cluster: self.cluster,
            role,
            name: name.parse().unwrap(),
            incarnation: 1,
        }
    }

    pub fn issue_at(&self, role: Role, name: &str, now: SystemTime) -> TlsIdentity {
        let key = TlsKey::generate().unwrap();
        let request = key.certificate_request().unwrap();
        let identity = self.identity(role, name);
        let chain = match role {
            Role::Admin => self.root.issue_admin(&identity, &request, now),
            Role::Agent | Role::Controller => self.issuing.issue(&identity, &request, now),
        };
        TlsIdentity::new(chain.unwrap(), key).unwrap()
    }

    pub fn issue(&self, role: Role, name: &str) -> TlsIdentity {
        self.issue_at(role, name, SystemTime::now())
    }

    pub fn server_tls(&self) -> ServerTls {
        ServerTls {
            identity: self.issue(Role::Controller, "ctl1"),
            root: self.root.certificate().clone(),
        }
    }

    /// Connects and asks who we are.
    pub async fn call_as(&self, running: &Running, identity: &TlsIdentity) -> Result<String, Fault> {
        let tls = ClientTls::new(identity, self.root.certificate()).unwrap();
        let connection = connect(
            std::slice::from_ref(&running.address),
            &tls,
            &ConnectOptions::default(),
        )
        .await?;
        who_am_i(connection).await
    }
}

/// What the server says: our identity.
pub async fn who_am_i(connection: Connection) -> Result<String, Fault> {
    let answer = AgentServiceClient::new(connection)
        .renew(RenewRequest::default())
        .await?;
    Ok(String::from_utf8(answer.into_inner().chain_der[0].to_vec()).unwrap())
}

pub struct Running {
    pub address: String,
    pub handle: ServerHandle,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

pub async fn serve(pki: &Pki, authorizer: Arc<dyn Authorizer>) -> Running {
    let server = Server::bind("127.0.0.1:0", &pki.server_tls(), authorizer)
        .await
        .unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (handle, stop) = (server.handle(), CancellationToken::new());
    let routes = Routes::new(AgentServiceServer::new(Mirror));
    let task = tokio::spawn(server.serve(routes, stop.clone()));
    Running {
        address,
        handle,
        stop,
        task,
    }
}

/// Answers with what it sees.
struct Mirror;

#[tonic::async_trait]
impl AgentService for Mirror {
    type ControlStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Ok(Response::new(JoinResponse {
            vault_name: "joined".into(),
            ..JoinResponse::default()
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let identity = PeerIdentity::of(&request)?.to_string();
        let chain_der = vec![identity.into(), trace::current_traceparent().into()];
        Ok(Response::new(RenewResponse { chain_der }))
    }

    /// A stream that says hello and then stays open for ever.
    async fn control(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            let _ = sender.send(Ok(ControllerMessage::default())).await;
            while let Ok(Some(_)) = incoming.message().await {}
            drop(sender);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
