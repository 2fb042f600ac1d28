//! `token create`: invites a host, and for an agent hands its vault's keys past the controllers.

use crate::{
    cli::TokenArgs,
    cluster::{Cluster, bytes_of, pages, request_id, retry},
    error::{Result, fault, lift},
    output,
    rows::{AgentRow, VaultRow},
};
use holdfast_core::{ErrorKind, Name, VaultId};
use holdfast_net::{Role, durable, pki::Fingerprint, token::JoinToken};
use holdfast_proto::v1;
use holdfast_repo::VaultKeys;

pub(super) async fn create(cluster: &Cluster, args: &TokenArgs) -> Result<()> {
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        return Err(
            fault(ErrorKind::Conflict, format!("{} exists already", out.display()))
                .with_hint("choose another file for --out"),
        );
    }
    let vault = match args.role {
        Role::Agent => Some(vault(cluster, args).await?),
        Role::Controller | Role::Admin => None,
    };
    let context = &cluster.context;
    let mut token = JoinToken {
        cluster: context.cluster,
        ca_fingerprint: Fingerprint::of(&context.root),
        addresses: context.addresses.clone(),
        name: args.name.clone(),
        role: args.role,
        vault: vault.as_ref().map(|(keys, name)| (keys.vault(), name.clone())),
        secret: JoinToken::new_secret().map_err(lift)?,
        expires_at: 0,
    };
    let wrapped = match &vault {
        Some((keys, _)) => token.wrap(&keys.encode()).map_err(lift)?,
        None => Vec::new(),
    };
    let request = v1::CreateTokenRequest {
        request_id: request_id(),
        role: args.role.to_string(),
        name: args.name.to_string(),
        vault: token
            .vault
            .as_ref()
            .map(|(id, _)| bytes_of(id.as_bytes()))
            .unwrap_or_default(),
        join_auth_hash: bytes_of(&token.join_auth_hash()),
        wrapped_vault: wrapped.into(),
        ttl_ms: u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX),
        replace: args.replace,
    };
    let answer = retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.create_token(request).await }
    })
    .await?;
    token.expires_at = answer.into_inner().expires_at;
    hand_out(args, &token)
}

fn hand_out(args: &TokenArgs, token: &JoinToken) -> Result<()> {
    let mut text = token.to_text();
    text.push('\n');
    let until = output::short_time(token.expires_at);
    match &args.out {
        Some(out) => {
            durable::create(out, text.as_bytes(), durable::PRIVATE_FILE).map_err(lift)?;
            eprintln!(
                "Token for {} {} in {}, good once, until {until}.\n\
                 Next, on that host: holdfast-agent join --token-file {} --allow DIR",
                args.role,
                args.name,
                out.display(),
                out.display()
            );
            Ok(())
        }
        None => {
            eprintln!("Token for {} {}, good once, until {until}:", args.role, args.name);
            output::print(&text)
        }
    }
}

/// The vault of the invited agent, which is made if it is not there.
async fn vault(cluster: &Cluster, args: &TokenArgs) -> Result<(VaultKeys, Name)> {
    let known = cluster
        .control()
        .list_vaults(v1::ListVaultsRequest {})
        .await?
        .into_inner()
        .vaults;
    let known: Vec<VaultRow> = known.into_iter().map(VaultRow::try_from).collect::<Result<_>>()?;
    let wanted = match &args.vault {
        Some(name) => known.iter().find(|vault| vault.name == name.as_str()),
        // A rebuilt host keeps the vault that its name has.
        None => match agents_vault(cluster, &args.name).await? {
            Some(id) => known.iter().find(|vault| vault.id == id),
            None => known.iter().find(|vault| vault.name == args.name.as_str()),
        },
    };
    if let Some(found) = wanted {
        let keys = match cluster.context.keys(found.id)? {
            Some(keys) => keys,
            None => cluster.context.open_keys(found.id, &found.key_object)?,
        };
        let name = found.name.parse().map_err(crate::error::lift_display)?;
        return Ok((keys, name));
    }
    let name = args.vault.clone().unwrap_or_else(|| args.name.clone());
    let keys = VaultKeys::generate(VaultId::generate())
        .map_err(|e| fault(ErrorKind::Internal, format!("make a vault's keys: {e}")))?;
    // Kept here before anyone hears of the vault: keys that exist nowhere cannot be asked for again.
    cluster.context.keep_keys(&keys)?;
    let request = v1::PutVaultRequest {
        request_id: request_id(),
        vault: bytes_of(keys.vault().as_bytes()),
        name: name.to_string(),
        key_object: cluster.context.seal_keys(&keys)?.into(),
    };
    retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.put_vault(request).await }
    })
    .await?;
    Ok((keys, name))
}

async fn agents_vault(cluster: &Cluster, name: &Name) -> Result<Option<VaultId>> {
    let agents = pages(|after| async {
        let answer = cluster
            .control()
            .list_agents(v1::ListRequest { after, limit: 0 })
            .await?
            .into_inner();
        Ok((answer.agents, answer.next))
    })
    .await?;
    let found = agents.into_iter().find(|agent| agent.name == name.as_str());
    found
        .map(|agent| AgentRow::try_from(agent).map(|row| row.vault))
        .transpose()
}
