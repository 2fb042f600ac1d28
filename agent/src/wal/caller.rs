//! Who is at the other end of the socket, and whether it may ask.

use crate::{
    error::{AgentError, Result},
    postgres::ClusterConfig,
};
use std::path::Path;

/// Whom servers run as unless told otherwise.
const USER: &str = "postgres";
const ACCOUNTS: &str = "/etc/passwd";
/// Longest account file that is read.
const ACCOUNTS_MAX: usize = 4 << 20;

/// Refuses a caller that is neither root nor the user whom the configuration names for the cluster.
///
/// # Errors
/// `NotAllowed` with the line that would allow it, `Invalid` when there is no such user.
pub(crate) fn check(uid: u32, cluster: &ClusterConfig, name: &str) -> Result<()> {
    if uid == 0 {
        return Ok(());
    }
    let user = cluster.user.as_deref().unwrap_or(USER);
    let allowed = match user.parse() {
        Ok(number) => number,
        Err(_) => uid_of(user, Path::new(ACCOUNTS))?.ok_or_else(|| {
            AgentError::Invalid(format!(
                "there is no user {user} on this host; name the one whom the server runs as, or its number, in \
                 agent.toml:\n[postgres.{name}]\nuser = \"NAME\""
            ))
        })?,
    };
    if uid == allowed {
        return Ok(());
    }
    Err(AgentError::NotAllowed(format!(
        "the user with number {uid} may not push or fetch WAL of {name}; only {user} may. If the server runs as another user, \
         name that in agent.toml and restart the agent:\n[postgres.{name}]\nuser = \"NAME\""
    )))
}

/// The name of a user in this host's accounts.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    let bytes = holdfast_net::durable::read(Path::new(ACCOUNTS), ACCOUNTS_MAX).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The number of a user in a file of the form of passwd. Names of remote directories are not looked up: that could hang.
fn uid_of(user: &str, accounts: &Path) -> Result<Option<u32>> {
    let bytes = holdfast_net::durable::read(accounts, ACCOUNTS_MAX)?;
    let found = bytes.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let is_it = fields.next() == Some(user.as_bytes());
        let number = std::str::from_utf8(fields.nth(1)?).ok()?;
        if is_it { number.parse().ok() } else { None }
    });
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(user: &str) -> ClusterConfig {
        ClusterConfig {
            user: Some(user.into()),
            ..ClusterConfig::default()
        }
    }

    #[test]
    fn only_root_and_the_named_user_may_ask() {
        assert!(check(0, &cluster("4711"), "main").is_ok());
        assert!(check(4711, &cluster("4711"), "main").is_ok());
        let error = check(4712, &cluster("4711"), "main").unwrap_err().to_string();
        assert!(error.contains("[postgres.main]"), "{error}");
        assert!(check(0, &cluster("root"), "main").is_ok());
        assert!(check(1, &cluster("root"), "main").is_err());
        let error = check(1, &cluster("no such user"), "main")
            .unwrap_err()
            .to_string();
        assert!(error.contains("no user"), "{error}");
    }

    #[test]
    fn numbers_stand_in_the_third_field() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "root:x:0:0:root:/root:/bin/sh\npost:x:7:1\npostgres:x:26:26::/:\nbad\n",
        )
        .unwrap();
        let uid = |user| uid_of(user, file.path()).unwrap();
        assert_eq!(
            (uid("postgres"), uid("post"), uid("postgre")),
            (Some(26), Some(7), None)
        );
        assert_eq!((uid("bad"), uid("")), (None, None));
    }
}
