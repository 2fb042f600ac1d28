//! `audit`: who did what.

use crate::{
    cluster::{Cluster, pages},
    error::Result,
    output::{self, Format},
    rows::AuditRow,
};
use holdfast_proto::v1;

pub(super) async fn run(cluster: &Cluster, format: Format) -> Result<()> {
    let records = pages(|after| async {
        let answer = cluster
            .control()
            .list_audit(v1::ListRequest { after, limit: 0 })
            .await?
            .into_inner();
        Ok((answer.records, answer.next))
    })
    .await?;
    let rows: Vec<AuditRow> = records.into_iter().map(AuditRow::from).collect();
    output::print(&output::rows(&rows, format)?)
}
