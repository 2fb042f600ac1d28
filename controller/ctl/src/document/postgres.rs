//! The settings of a PostgreSQL source as people write them.

use holdfast_core::{Name, SourceRef};
use holdfast_proto::v1::PostgresSpec;
use serde::{Deserialize, Serialize};

/// `postgres` of a document. How to reach the server stands in agent.toml on its host, and nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Postgres {
    /// The section `[postgres.NAME]` of agent.toml; the source's own name unless it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Name>,
    /// Begin at once instead of after the next spread checkpoint.
    #[serde(default, alias = "fastCheckpoint")]
    fast_checkpoint: bool,
    /// Agents beside the source's own whose servers are of the same cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<Name>,
}

impl Postgres {
    /// The form of the wire.
    pub(super) fn spec(&self, source: &SourceRef) -> PostgresSpec {
        PostgresSpec {
            cluster: self.cluster.as_ref().unwrap_or(&source.source).to_string(),
            fast_checkpoint: self.fast_checkpoint,
            members: self.others(source).map(ToString::to_string).collect(),
        }
    }

    /// The members that are not the source's own agent, which always is one and may be named.
    fn others<'a>(&'a self, source: &'a SourceRef) -> impl Iterator<Item = &'a Name> {
        self.members.iter().filter(|member| **member != source.agent)
    }

    /// With what was left out, so that both ways of writing it are the same document.
    pub(super) fn normal(&self, source: &SourceRef) -> Self {
        Self {
            cluster: Some(self.cluster.clone().unwrap_or_else(|| source.source.clone())),
            fast_checkpoint: self.fast_checkpoint,
            members: self.others(source).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::document::{SourceDocument, SourceSpec, parse};

    const GOOD: &str = "kind: Source\nname: db1/main\npostgres: {cluster: main, fast_checkpoint: true}\n";

    fn spec(text: &str) -> (String, bool) {
        match parse(text).unwrap()[0].spec().unwrap() {
            SourceSpec::Postgres(spec) => (spec.cluster, spec.fast_checkpoint),
            SourceSpec::Files(_) => panic!("a PostgreSQL source was written"),
        }
    }

    #[test]
    fn all_ways_of_writing_a_postgres_source_mean_the_same() {
        let flat = parse(GOOD).unwrap().remove(0);
        for other in [
            "kind: Source\nname: db1/main\npostgres: {fast_checkpoint: true}\n",
            "kind: Source\nname: db1/main\nspec: {postgres: {fastCheckpoint: true, cluster: main}}\n",
        ] {
            assert_eq!(spec(other), ("main".into(), true));
            assert_eq!(
                parse(other).unwrap()[0].to_json().unwrap(),
                flat.to_json().unwrap()
            );
        }
        assert_eq!(SourceDocument::from_json(&flat.to_json().unwrap()).unwrap(), flat);
        assert_eq!(parse(&flat.to_yaml().unwrap()).unwrap().remove(0), flat);
        assert!(!flat.to_yaml().unwrap().contains("files"));
        let plain = "kind: Source\nname: db1/main\npostgres: {}\n";
        assert_eq!(spec(plain), ("main".into(), false));
        assert_eq!(
            spec(&plain.replace("{}", "{cluster: '15'}")),
            ("15".into(), false)
        );
    }

    #[test]
    fn the_sources_own_agent_may_be_named_among_its_members() {
        let members = |list: &str| {
            let text = GOOD.replace("cluster: main", &format!("members: {list}"));
            let document = parse(&text).unwrap().remove(0);
            match document.spec().unwrap() {
                SourceSpec::Postgres(spec) => (spec.members, document.to_json().unwrap()),
                SourceSpec::Files(_) => panic!("a PostgreSQL source was written"),
            }
        };
        assert_eq!(members("[db1, db2]"), members("[db2]"));
        assert_eq!(members("[db2, db3]").0, ["db2", "db3"]);
        assert_eq!(members("[]"), members("[db1]"));
        assert!(!members("[db1]").1.contains("members"));
        assert!(parse(&GOOD.replace("cluster: main", "members: ['a/b']")).is_err());
    }

    #[test]
    fn limits_stand_beside_postgres_too() {
        let limited = format!("{GOOD}limits: {{read_rate: 5MiB/s}}\n");
        let wire = parse(&limited).unwrap()[0].wire_limits().unwrap().unwrap();
        assert_eq!(wire.read_rate, 5 << 20);
    }

    #[test]
    fn a_source_is_of_one_kind_alone() {
        let files = "files: {roots: [/srv]}";
        for both in [
            format!("{GOOD}{files}\n"),
            format!("{GOOD}spec: {{{files}}}\n"),
            format!("{GOOD}spec: {{postgres: {{}}}}\n"),
            format!("kind: Source\nname: a/b\nspec: {{{files}, postgres: {{}}}}\n"),
        ] {
            let fault = parse(&both).unwrap_err();
            assert!(fault.message.contains("postgres"), "{fault}");
        }
        // Nothing, and what says nothing.
        for neither in ["", "postgres:\n", "spec: {}\n"] {
            let fault = parse(&format!("kind: Source\nname: a/b\n{neither}")).unwrap_err();
            assert!(fault.hint.is_some_and(|hint| hint.contains("postgres: {}")));
        }
    }

    #[test]
    fn what_is_wrong_in_it_is_told() {
        let fault = parse(&GOOD.replace("fast_checkpoint", "fast_checkpont")).unwrap_err();
        assert_eq!(fault.hint.as_deref(), Some("did you mean `fast_checkpoint`?"));
        let fault = parse(&GOOD.replace("postgres:", "postgress:")).unwrap_err();
        assert_eq!(fault.hint.as_deref(), Some("did you mean `postgres`?"));
        for cluster in ["''", "'a/b'", "Main", "[a]"] {
            assert!(parse(&GOOD.replace("cluster: main", &format!("cluster: {cluster}"))).is_err());
        }
    }
}
