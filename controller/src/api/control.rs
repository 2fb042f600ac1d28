//! ControlService: what operators and automation ask.

mod jobs;
mod lists;
mod status;

use super::{
    authorise::{Right, require},
    fleet::Fleet,
    maintenance::Maintenance,
    wire::{id, invalid, source_limits, source_ref, source_spec},
};
use crate::{
    catalog::{
        Actor, Command, Queries as _, Reply,
        model::{JobState, SnapshotState, TokenRole},
    },
    error::{Error, Result},
    raft::Catalog,
};
use futures::{StreamExt as _, stream::BoxStream};
use holdfast_core::{ErrorKind, Name, NameError, RequestId, SnapshotId, SourceRef, VaultId, limits};
use holdfast_net::{host_limits, server::PeerIdentity, status::to_status};
use holdfast_proto::v1::{self, control_service_server::ControlService};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service; one for all connections.
#[derive(Clone)]
pub struct Control {
    pub(super) catalog: Catalog,
    pub(super) fleet: Arc<dyn Fleet>,
    pub(super) maintenance: Arc<dyn Maintenance>,
    /// This node's id and address.
    pub(super) node: (u64, String),
}

impl Control {
    /// The service over these parts.
    #[must_use]
    pub fn new(
        catalog: Catalog,
        fleet: Arc<dyn Fleet>,
        maintenance: Arc<dyn Maintenance>,
        node: (u64, String),
    ) -> Self {
        Self {
            catalog,
            fleet,
            maintenance,
            node,
        }
    }

    async fn put_vault(&self, actor: Actor, request: v1::PutVaultRequest) -> Result<v1::PutVaultResponse> {
        let v1::PutVaultRequest {
            request_id,
            vault,
            name,
            key_object,
        } = request;
        if key_object.is_empty() || key_object.len() > limits::KEY_OBJECT_MAX {
            return Err(invalid("the key object is empty or too long"));
        }
        let vault = id(&vault)?;
        self.maintenance.keep_key_object(vault, &key_object).await?;
        let command = Command::PutVault {
            vault,
            name: name_of(&name)?,
            key_object: key_object.into(),
        };
        self.catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?;
        Ok(v1::PutVaultResponse {})
    }

    async fn create_token(
        &self,
        actor: Actor,
        request: v1::CreateTokenRequest,
    ) -> Result<v1::CreateTokenResponse> {
        let v1::CreateTokenRequest {
            request_id,
            role,
            name,
            vault,
            join_auth_hash,
            wrapped_vault,
            ttl_ms,
            replace,
        } = request;
        let role = match role.as_str() {
            "agent" => TokenRole::Agent,
            "controller" => TokenRole::Controller,
            other => {
                return Err(invalid(format!(
                    "{other:?} is not a role: use agent or controller"
                )));
            }
        };
        let vault: Option<VaultId> = if vault.is_empty() { None } else { Some(id(&vault)?) };
        let longest = limits::TOKEN_TTL_MAX.as_millis();
        if ttl_ms == 0 || u128::from(ttl_ms) > longest {
            return Err(invalid(format!(
                "a token lives up to {} hours",
                limits::TOKEN_TTL_MAX.as_secs() / 3600
            )));
        }
        let command = Command::CreateToken {
            auth_hash: join_auth_hash[..]
                .try_into()
                .map_err(|_| invalid("join_auth_hash is not 32 bytes"))?,
            role,
            name: name_of(&name)?,
            vault,
            wrapped_vault: wrapped_vault.into(),
            ttl_ms,
            replace,
        };
        match self
            .catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?
        {
            Reply::Token { expires_at } => Ok(v1::CreateTokenResponse { expires_at }),
            other => Err(unexpected(&other)),
        }
    }

    async fn put_source(&self, actor: Actor, request: v1::PutSourceRequest) -> Result<v1::PutSourceResponse> {
        let v1::PutSourceRequest {
            request_id,
            r#ref,
            document,
            files,
            limits,
            postgres,
        } = request;
        let source = source_ref(r#ref.as_ref())?;
        let (files, postgres) = source_spec(files, postgres)?;
        let command = Command::PutSource {
            source: source.clone(),
            document,
            files,
            postgres,
            limits: source_limits(limits)?,
        };
        match self
            .catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?
        {
            Reply::Put { created, changed } => {
                if changed {
                    self.tell_limits(&source)?;
                }
                Ok(v1::PutSourceResponse { created, changed })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Tells agents at once of limits that changed under their running jobs. One that is not reached now is told
    /// when it next says how its job goes on.
    fn tell_limits(&self, name: &SourceRef) -> Result<()> {
        let view = self.catalog.view();
        let Some(source) = view.source(name)? else {
            return Ok(());
        };
        let limits = host_limits::to_wire(&source.limits);
        for job in view.active_jobs(None)? {
            if job.source == *name && job.state == JobState::Running {
                self.fleet.limits_changed(job.id, &job.agent, limits.clone());
            }
        }
        Ok(())
    }

    async fn delete_source(
        &self,
        actor: Actor,
        request: v1::DeleteSourceRequest,
    ) -> Result<v1::DeleteSourceResponse> {
        let v1::DeleteSourceRequest { request_id, r#ref } = request;
        let command = Command::DeleteSource {
            source: source_ref(r#ref.as_ref())?,
        };
        self.catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?;
        Ok(v1::DeleteSourceResponse {})
    }

    async fn delete_snapshot(
        &self,
        actor: Actor,
        request: v1::DeleteSnapshotRequest,
    ) -> Result<v1::DeleteSnapshotResponse> {
        let v1::DeleteSnapshotRequest { request_id, snapshot } = request;
        let undo_ms = u64::try_from(limits::UNDO_PERIOD.as_millis()).unwrap_or(u64::MAX);
        let command = Command::DeleteSnapshot {
            snapshot: id(&snapshot)?,
            undo_ms,
        };
        match self
            .catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?
        {
            Reply::Deleted { undo_until } => Ok(v1::DeleteSnapshotResponse { undo_until }),
            other => Err(unexpected(&other)),
        }
    }

    async fn undelete_snapshot(
        &self,
        actor: Actor,
        request: v1::UndeleteSnapshotRequest,
    ) -> Result<v1::UndeleteSnapshotResponse> {
        let v1::UndeleteSnapshotRequest { request_id, snapshot } = request;
        let command = Command::UndeleteSnapshot {
            snapshot: id(&snapshot)?,
        };
        self.catalog
            .propose(actor, request_id_of(&request_id)?, command)
            .await?;
        Ok(v1::UndeleteSnapshotResponse {})
    }

    /// A snapshot that may be restored.
    async fn visible_snapshot(&self, snapshot: SnapshotId) -> Result<crate::catalog::model::Snapshot> {
        let found = self.catalog.read().await?.snapshot(snapshot)?;
        match found {
            Some(found) if found.state == SnapshotState::Visible => Ok(found),
            Some(_) => Err(Error::refused(
                ErrorKind::NotFound,
                format!(
                    "snapshot {snapshot} is deleted; bring it back with `holdfastctl snapshot undelete {snapshot}`"
                ),
            )),
            None => Err(Error::refused(
                ErrorKind::NotFound,
                format!("there is no snapshot {snapshot}"),
            )),
        }
    }
}

/// Who calls: an operator, by the certificate.
fn admin<T>(request: &Request<T>) -> Result<Actor, Status> {
    let identity = PeerIdentity::of(request)?;
    require(&identity, Right::Operate).map_err(|error| to_status(&error))?;
    Ok(Actor::Admin(identity.name.clone()))
}

/// The client's name for the request; absent for automation that does not care.
pub(super) fn request_id_of(bytes: &[u8]) -> Result<Option<RequestId>> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        id(bytes).map(Some)
    }
}

fn name_of(text: &str) -> Result<Name> {
    text.parse().map_err(|error: NameError| invalid(error))
}

fn unexpected(reply: &Reply) -> Error {
    Error::Internal(
        format!("the catalog gave an answer of another kind: {reply:?}")
            .chars()
            .take(200)
            .collect(),
    )
}

/// The service's implementation: each listed call goes to the method of the same name above, with
/// who calls. One macro around the whole, because `async_trait` does not look into macros.
macro_rules! control_service {
    ($($method:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl ControlService for Control {
            type WatchJobStream = BoxStream<'static, Result<v1::WatchJobResponse, Status>>;
            type VerifyStoresStream = BoxStream<'static, Result<v1::VerifyStoresResponse, Status>>;

            $(async fn $method(
                &self,
                request: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                let actor = admin(&request)?;
                let answer = Self::$method(self, actor, request.into_inner()).await;
                answer.map(Response::new).map_err(|error| to_status(&error))
            })*

            async fn watch_job(
                &self,
                request: Request<v1::WatchJobRequest>,
            ) -> Result<Response<Self::WatchJobStream>, Status> {
                admin(&request)?;
                let stream = self.watch(&request.into_inner()).await.map_err(|error| to_status(&error))?;
                Ok(Response::new(stream.map(|item| item.map_err(|error| to_status(&error))).boxed()))
            }

            async fn verify_stores(
                &self,
                request: Request<v1::VerifyStoresRequest>,
            ) -> Result<Response<Self::VerifyStoresStream>, Status> {
                admin(&request)?;
                let stream = self.maintenance.verify(request.into_inner().read_data);
                Ok(Response::new(stream.map(|item| item.map_err(|error| to_status(&error))).boxed()))
            }
        }
    };
}

control_service! {
    status: StatusRequest -> StatusResponse;
    put_vault: PutVaultRequest -> PutVaultResponse;
    list_vaults: ListVaultsRequest -> ListVaultsResponse;
    create_token: CreateTokenRequest -> CreateTokenResponse;
    put_source: PutSourceRequest -> PutSourceResponse;
    delete_source: DeleteSourceRequest -> DeleteSourceResponse;
    list_agents: ListRequest -> ListAgentsResponse;
    list_sources: ListRequest -> ListSourcesResponse;
    list_snapshots: ListSnapshotsRequest -> ListSnapshotsResponse;
    list_jobs: ListRequest -> ListJobsResponse;
    list_journal: ListJournalRequest -> ListJournalResponse;
    list_audit: ListRequest -> ListAuditResponse;
    list_members: ListRequest -> ListMembersResponse;
    run_backup: RunBackupRequest -> RunBackupResponse;
    run_restore: RunRestoreRequest -> RunRestoreResponse;
    run_check: RunCheckRequest -> RunCheckResponse;
    run_test_restore: RunTestRestoreRequest -> RunTestRestoreResponse;
    cancel_job: CancelJobRequest -> CancelJobResponse;
    delete_snapshot: DeleteSnapshotRequest -> DeleteSnapshotResponse;
    undelete_snapshot: UndeleteSnapshotRequest -> UndeleteSnapshotResponse;
    gc: GcRequest -> GcResponse;
}

impl Control {
    async fn gc(&self, actor: Actor, request: v1::GcRequest) -> Result<v1::GcResponse> {
        let request_id = request_id_of(&request.request_id)?;
        self.maintenance.gc(actor, request_id, &request).await
    }
}
