//! `apply`, `diff`, `delete`: documents and the catalog.

use crate::{
    cli::DeleteKind,
    cluster::{Cluster, pages, request_id, retry, wire_source},
    document::{self, SourceDocument, SourceSpec},
    error::{Result, fault, invalid, io, lift},
    output,
    rows::SourceRow,
};
use holdfast_core::{ErrorKind, SourceRef};
use holdfast_net::durable;
use holdfast_proto::v1;
use std::{collections::BTreeMap, io::Read as _, path::Path};

pub(super) async fn apply(cluster: &Cluster, file: &Path) -> Result<()> {
    for document in read(file)? {
        let (files, postgres) = match document.spec()? {
            SourceSpec::Files(files) => (Some(files), None),
            SourceSpec::Postgres(postgres) => (None, Some(postgres)),
        };
        let request = v1::PutSourceRequest {
            request_id: request_id(),
            r#ref: Some(wire_source(&document.name)),
            document: document.to_json()?,
            files,
            postgres,
            limits: document.wire_limits()?,
        };
        let answer = retry(|| {
            let (mut control, request) = (cluster.control(), request.clone());
            async move { control.put_source(request).await }
        })
        .await?
        .into_inner();
        let what = match (answer.created, answer.changed) {
            (true, _) => "created",
            (false, true) => "changed",
            (false, false) => "unchanged",
        };
        output::print(&format!("source {}: {what}\n", document.name))?;
    }
    Ok(())
}

pub(super) async fn diff(cluster: &Cluster, file: &Path) -> Result<()> {
    let documents = read(file)?;
    let mut current: BTreeMap<SourceRef, SourceRow> = sources(cluster)
        .await?
        .into_iter()
        .map(|row| (row.name.clone(), row))
        .collect();
    let mut text = String::new();
    for document in documents {
        let old = match current.remove(&document.name) {
            Some(row) => Some(SourceDocument::from_json(&row.document_text)?),
            None => None,
        };
        text.push_str(&difference(old.as_ref(), &document)?);
    }
    output::print(&text)?;
    if text.is_empty() {
        Ok(())
    } else {
        Err(fault(ErrorKind::Findings, "the cluster differs from the file")
            .with_hint(format!("holdfastctl apply -f {}", file.display())))
    }
}

pub(super) async fn delete(cluster: &Cluster, kind: DeleteKind, name: &SourceRef) -> Result<()> {
    let DeleteKind::Source = kind;
    let request = v1::DeleteSourceRequest {
        request_id: request_id(),
        r#ref: Some(wire_source(name)),
    };
    retry(|| {
        let (mut control, request) = (cluster.control(), request.clone());
        async move { control.delete_source(request).await }
    })
    .await?;
    output::print(&format!("source {name}: deleted; its snapshots stay\n"))
}

/// Every source in the catalog.
pub(super) async fn sources(cluster: &Cluster) -> Result<Vec<SourceRow>> {
    let found = pages(|after| async {
        let answer = cluster
            .control()
            .list_sources(v1::ListRequest { after, limit: 0 })
            .await?
            .into_inner();
        Ok((answer.sources, answer.next))
    })
    .await?;
    found.into_iter().map(SourceRow::try_from).collect()
}

fn read(file: &Path) -> Result<Vec<SourceDocument>> {
    let bytes = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let limit = document::FILE_MAX as u64 + 1;
        std::io::stdin()
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(io("read standard input"))?;
        if bytes.len() > document::FILE_MAX {
            return Err(fault(
                ErrorKind::TooLarge,
                "standard input is too long for documents",
            ));
        }
        bytes
    } else {
        durable::read(file, document::FILE_MAX).map_err(lift)?
    };
    let text = String::from_utf8(bytes).map_err(|_| invalid(format!("{} is not UTF-8", file.display())))?;
    document::parse(&text).map_err(|mut fault| {
        fault.message = format!("{}: {}", file.display(), fault.message);
        fault
    })
}

/// What `apply` would change, line by line; empty when nothing.
fn difference(old: Option<&SourceDocument>, new: &SourceDocument) -> Result<String> {
    let lines = |document: &SourceDocument| -> Result<Vec<String>> {
        Ok(document.to_yaml()?.lines().map(str::to_owned).collect())
    };
    let (old, new_lines) = (old.map(lines).transpose()?.unwrap_or_default(), lines(new)?);
    if old == new_lines {
        return Ok(String::new());
    }
    let mut text = format!("source {}:\n", new.name);
    for (mark, line) in line_diff(&old, &new_lines) {
        text.push_str(&format!("{mark} {line}\n"));
    }
    Ok(text)
}

/// Longest common subsequence by the textbook's table; documents have a few hundred lines at most.
fn line_diff<'a>(old: &'a [String], new: &'a [String]) -> Vec<(char, &'a str)> {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i].as_str()));
            i += 1;
        } else {
            lines.push(('+', new[j].as_str()));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(roots: &str) -> SourceDocument {
        document::parse(&format!("kind: Source\nname: web1/a\nfiles: {{roots: {roots}}}"))
            .unwrap()
            .remove(0)
    }

    #[test]
    fn differences_are_shown_line_by_line() {
        let (old, new) = (document("[/a, /b]"), document("[/a, /c]"));
        assert_eq!(difference(Some(&old), &old).unwrap(), "");
        let text = difference(Some(&old), &new).unwrap();
        assert!(
            text.contains("-   - /b\n") || text.contains("-     - /b\n") || text.contains("- - /b"),
            "{text}"
        );
        assert_eq!(
            text.lines().filter(|line| line.starts_with('-')).count(),
            1,
            "{text}"
        );
        assert_eq!(
            text.lines().filter(|line| line.starts_with('+')).count(),
            1,
            "{text}"
        );
        let created = difference(None, &new).unwrap();
        assert!(
            created.lines().skip(1).all(|line| line.starts_with('+')),
            "{created}"
        );
    }
}
