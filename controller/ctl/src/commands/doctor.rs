//! `doctor`: looks for problems, first here, then in the cluster.

use super::{get, status};
use crate::{
    cluster::Cluster,
    context::Context,
    error::{Result, fault},
    output::{self, Format},
};
use holdfast_core::{Clock as _, ErrorKind, SystemClock};
use holdfast_net::{Fault, sealed};
use serde::Serialize;
use std::{path::PathBuf, time::SystemTime};

/// Clocks further apart than this make leases and times hard to understand.
const SKEW_MAX_MILLIS: u64 = 10_000;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    check: String,
    ok: bool,
    detail: String,
    next: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Check],
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn good(&mut self, check: &str, detail: impl Into<String>) {
        self.0.push(Check {
            check: check.into(),
            ok: true,
            detail: detail.into(),
            next: None,
        });
    }

    fn bad(&mut self, check: &str, detail: impl Into<String>, next: &str) {
        let (detail, next) = (detail.into(), Some(next.to_owned()));
        self.0.push(Check {
            check: check.into(),
            ok: false,
            detail,
            next,
        });
    }

    fn fault(&mut self, check: &str, fault: &Fault, next: &str) {
        self.bad(
            check,
            fault.message.clone(),
            fault.hint.as_deref().unwrap_or(next),
        );
    }
}

pub(super) async fn run(config_dir: PathBuf, format: Format) -> Result<()> {
    let mut checks = Checks::default();
    if let Some(context) = local(config_dir, &mut checks) {
        match Cluster::connect(context).await {
            Ok(cluster) => {
                checks.good("connection", cluster.context.addresses.join(", "));
                if let Err(fault) = remote(&cluster, &mut checks).await {
                    checks.fault("cluster", &fault, "look at the controller's log");
                }
            }
            Err(fault) => checks.fault(
                "connection",
                &fault,
                "check that the controller runs and can be reached",
            ),
        }
    }
    let Checks(checks) = checks;
    let problems = checks.iter().filter(|check| !check.ok).count();
    output::print(&match format {
        Format::Json | Format::Yaml => output::value(
            &Report {
                ok: problems == 0,
                checks: &checks,
            },
            format,
        )?,
        Format::Table | Format::Wide | Format::Name => checks.iter().map(line).collect(),
    })?;
    if problems == 0 {
        Ok(())
    } else {
        Err(fault(ErrorKind::Findings, format!("{problems} problems found")))
    }
}

fn line(check: &Check) -> String {
    let mark = if check.ok { "ok   " } else { "BAD  " };
    let next = check
        .next
        .as_ref()
        .map(|next| format!("\n       next: {next}"))
        .unwrap_or_default();
    format!("{mark}  {}: {}{next}\n", check.check, check.detail)
}

/// The admin's own files.
fn local(config_dir: PathBuf, checks: &mut Checks) -> Option<Context> {
    let context = match Context::load(config_dir) {
        Ok(context) => context,
        Err(fault) => {
            checks.fault("context", &fault, "holdfastctl init --help");
            return None;
        }
    };
    checks.good(
        "context",
        format!("cluster {} in {}", context.cluster_name, context.dir.display()),
    );
    let now = SystemTime::now();
    match (context.tls.renew_at(), context.tls.expires_at()) {
        (_, Ok(end)) if end <= now => {
            checks.bad("certificate", "has expired", "holdfastctl admin renew --kit FILE");
        }
        (Ok(renew), Ok(end)) => {
            let days = end
                .duration_since(now)
                .map_or(0, |left| left.as_secs() / (24 * 3600));
            let text = format!("{}, good for {days} days", context.tls.identity().actor());
            if renew <= now {
                checks.bad("certificate", text, "holdfastctl admin renew --kit FILE");
            } else {
                checks.good("certificate", text);
            }
        }
        (Err(e), _) | (_, Err(e)) => checks.bad("certificate", e.to_string(), "holdfastctl init --help"),
    }
    Some(context)
}

async fn remote(cluster: &Cluster, checks: &mut Checks) -> Result<()> {
    let status = status::ask(cluster).await?;
    match status.leader {
        0 => checks.bad(
            "leader",
            "there is none",
            "bring controllers back: holdfastctl get members",
        ),
        leader => checks.good("leader", format!("node {leader}")),
    }
    let skew = status.now_millis.abs_diff(SystemClock.wall());
    if skew > SKEW_MAX_MILLIS {
        checks.bad(
            "clock",
            format!("differs from the cluster's by {} s", skew / 1000),
            "check NTP on both sides",
        );
    } else {
        checks.good("clock", "agrees with the cluster's");
    }
    for store in &status.stores {
        let what = format!("store {} {}", store.site, store.location);
        let free = output::bytes(store.free_bytes);
        match store.state.as_str() {
            "ok" => checks.good(&what, format!("{free} free")),
            "reserve" => checks.bad(
                &what,
                format!("only {free} free: new data is refused"),
                "add space, or free some: holdfastctl gc --dry-run",
            ),
            state => checks.bad(
                &what,
                state,
                "look at the store's directory and at the controller's log",
            ),
        }
    }
    for warning in &status.warnings {
        checks.bad("warning", warning.clone(), "look at the controller's log");
    }
    match status.jobs_failed_last_day {
        0 => checks.good("jobs", "none failed within a day"),
        failed => checks.bad(
            "jobs",
            format!("{failed} failed within a day"),
            "holdfastctl get jobs",
        ),
    }
    if status.sources_unprotected > 0 {
        let text = format!("{} without any snapshot", status.sources_unprotected);
        checks.bad(
            "sources",
            text,
            "holdfastctl get sources, then: holdfastctl backup run SOURCE",
        );
    } else {
        checks.good("sources", "each has a snapshot");
    }
    agents(cluster, checks).await?;
    vaults(cluster, checks).await
}

async fn agents(cluster: &Cluster, checks: &mut Checks) -> Result<()> {
    for agent in get::agents(cluster).await? {
        let what = format!("agent {}", agent.name);
        if !agent.connected {
            checks.bad(
                &what,
                "is not connected",
                "on its host: systemctl status holdfast-agent",
            );
            continue;
        }
        let keys = &agent.keys;
        match cluster.vault_keys(agent.vault).await {
            Ok(vault) if vault.is_endorsed(&keys.signing, &keys.sealing, &keys.mac) => {
                checks.good(&what, "connected, its keys are endorsed");
            }
            Ok(_) => checks.bad(
                &what,
                "its keys are not endorsed by its vault: they may be someone else's",
                "join the host again: holdfastctl token create NAME --replace",
            ),
            Err(fault) => checks.fault(&what, &fault, "holdfastctl get vaults"),
        }
    }
    Ok(())
}

/// Every vault's keys can be opened with the recovery kit only if an admin signed what the cluster keeps.
async fn vaults(cluster: &Cluster, checks: &mut Checks) -> Result<()> {
    let trusted = &cluster.context.admin_public_keys;
    for vault in get::vaults(cluster).await? {
        let what = format!("vault {}", vault.name);
        match sealed::verify_signature_only(&vault.key_object, trusted, vault.id) {
            Ok(_) => checks.good(&what, "its key object is signed by an admin"),
            Err(e) => checks.bad(&what, e.to_string(), "holdfastctl audit"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_context_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let fault = run(dir.path().join("none"), Format::Json).await.unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Findings);
    }

    #[tokio::test]
    async fn an_unreachable_cluster_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let context = crate::context::tests::context(dir.path());
        context.save().unwrap();
        let fault = run(context.dir, Format::Table).await.unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Findings);
    }

    #[test]
    fn lines_say_what_to_do_next() {
        let mut checks = Checks::default();
        checks.good("a", "fine");
        checks.bad("b", "broken", "repair it");
        let text: String = checks.0.iter().map(line).collect();
        assert_eq!(text, "ok     a: fine\nBAD    b: broken\n       next: repair it\n");
    }
}
