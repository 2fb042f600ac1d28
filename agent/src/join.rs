//! `join`: turns a token into an identity, the vault's keys and a configuration.

use crate::{
    error::{AgentError, Result},
    state::{Layout, Membership},
};
use holdfast_net::{
    Fault,
    client::{ConnectOptions, connect_join},
    durable,
    keys::{SealingKey, TlsKey},
    pem,
    pki::TlsIdentity,
    token::JoinToken,
};
use holdfast_proto::v1::{JoinRequest, agent_service_client::AgentServiceClient};
use holdfast_repo::{SigningKey, VaultKeys};
use std::path::{Path, PathBuf};

/// What `join` was asked to do.
#[derive(Debug)]
pub struct Join {
    /// The token's file, or `-`.
    pub token_file: PathBuf,
    /// What may be backed up.
    pub allow: Vec<PathBuf>,
    /// The configuration to write unless it exists.
    pub config: PathBuf,
    /// Where to keep identity and keys.
    pub state_dir: PathBuf,
}

/// Joins the cluster. Says whether the configuration was written (or existed already).
///
/// # Errors
/// When the token is refused or used, the controllers are away, or this host has joined already.
pub async fn join(request: &Join) -> Result<(Membership, bool)> {
    let token = JoinToken::load(&request.token_file)?;
    let Some((vault, vault_name)) = token.vault.clone() else {
        return Err(AgentError::Invalid(
            "this token is for a controller, not for an agent".into(),
        ));
    };
    let layout = Layout(&request.state_dir);
    if layout.membership().exists() {
        return Err(AgentError::Invalid(format!(
            "{} holds an identity already; to join anew, move that directory away first",
            request.state_dir.display()
        )));
    }
    durable::create_private_dir(&request.state_dir)?;
    durable::create_private_dir(&layout.identity())?;
    let key = TlsKey::generate()?;
    let (connection, root) = connect_join(
        &token.addresses,
        token.ca_fingerprint,
        token.cluster,
        &ConnectOptions::default(),
    )
    .await?;
    let answer = AgentServiceClient::new(connection)
        .join(JoinRequest {
            join_auth: token.join_auth().to_vec().into(),
            name: token.name.to_string(),
            csr_der: key.certificate_request()?.into(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
        .await
        .map_err(Fault::from)?
        .into_inner();
    let chain = answer.chain_der.iter().map(|der| der.to_vec()).collect();
    let tls = TlsIdentity::from_der_chain(chain, key)?;
    let keys = VaultKeys::decode(&token.unwrap(&answer.wrapped_vault)?)?;
    if keys.vault() != vault {
        return Err(AgentError::Invalid(
            "the keys that came back are of another vault than the token's".into(),
        ));
    }
    let membership = Membership {
        cluster: token.cluster,
        addresses: token.addresses.clone(),
        name: token.name.clone(),
        vault,
        vault_name,
    };
    let private = durable::PRIVATE_FILE;
    durable::write(&layout.vault(), &keys.encode(), private)?;
    durable::write(&layout.signing(), SigningKey::generate()?.pkcs8(), private)?;
    durable::write(
        &layout.sealing(),
        SealingKey::generate().to_text().as_bytes(),
        private,
    )?;
    durable::write(&layout.root(), pem::encode_certificate(&root).as_bytes(), private)?;
    tls.save(&layout.tls())?;
    // Last: its presence says that the rest is there.
    let text = serde_json::to_vec_pretty(&membership).map_err(|e| AgentError::Internal(e.to_string()))?;
    durable::write(&layout.membership(), &text, private)?;
    let written = write_config(request)?;
    Ok((membership, written))
}

fn write_config(request: &Join) -> Result<bool> {
    if request.config.exists() {
        return Ok(false);
    }
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let allow: Vec<_> = request.allow.iter().map(|path| quoted(path)).collect();
    let text = format!(
        "# Written by `holdfast-agent join`. Whatever a controller asks, this agent does only what this file allows.\n\
         state_dir = {}\n\
         # Directories that may be backed up.\n\
         allow = [{}]\n\
         # Directories that restores may write to.\n\
         restore_targets = []\n",
        quoted(&request.state_dir),
        allow.join(", ")
    );
    if let Some(parent) = request
        .config
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent).map_err(AgentError::io("create", parent))?;
    }
    durable::create(&request.config, text.as_bytes(), 0o644)?;
    Ok(true)
}
