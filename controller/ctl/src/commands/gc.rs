//! `gc`.

use crate::{
    cluster::{Cluster, request_id},
    error::Result,
    output::{self, Format, bytes},
};
use holdfast_proto::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Freed {
    dry_run: bool,
    snapshots_forgotten: u64,
    packs_kept: u64,
    packs_deleted: u64,
    packs_rewritten: u64,
    bytes_freed: u64,
    chunks_live: u64,
    chunks_dead: u64,
}

pub(super) async fn run(
    cluster: &Cluster,
    dry_run: bool,
    ignore_undo_period: bool,
    format: Format,
) -> Result<()> {
    let request = v1::GcRequest {
        request_id: request_id(),
        dry_run,
        ignore_undo_period,
    };
    let v1::GcResponse {
        snapshots_forgotten,
        packs_kept,
        packs_deleted,
        packs_rewritten,
        bytes_freed,
        chunks_live,
        chunks_dead,
    } = cluster.control().gc(request).await?.into_inner();
    let freed = Freed {
        dry_run,
        snapshots_forgotten,
        packs_kept,
        packs_deleted,
        packs_rewritten,
        bytes_freed,
        chunks_live,
        chunks_dead,
    };
    output::print(&match format {
        Format::Json | Format::Yaml => output::value(&freed, format)?,
        Format::Table | Format::Wide | Format::Name => text(&freed),
    })
}

fn text(freed: &Freed) -> String {
    let verb = if freed.dry_run { "would free" } else { "freed" };
    format!(
        "{verb} {}: {} packs deleted, {} rewritten, {} kept; {} deleted snapshots forgotten; \
         {} chunks in use, {} not\n",
        bytes(freed.bytes_freed),
        freed.packs_deleted,
        freed.packs_rewritten,
        freed.packs_kept,
        freed.snapshots_forgotten,
        freed.chunks_live,
        freed.chunks_dead,
    )
}
