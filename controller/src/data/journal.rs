//! Journals: pages of files, appended once everything that they list is stored; and what is kept under a name.

use super::{
    Data, access, closure, millis, page_object,
    roots::{denied, is_final, missing_to_wire},
    tails, wire,
};
use crate::{
    api::wire::wire_postgres,
    catalog::{
        CatalogView, Command, NewFile, NewPage, Queries, Reply, keys,
        model::{Journal, JournalFile, JournalOutcome, Session},
    },
    error::{Error, Result},
};
use bytes::Bytes;
use holdfast_core::{ErrorKind, SessionId, SnapshotId, SourceRef, limits};
use holdfast_net::trace::current_traceparent;
use holdfast_proto::v1 as pb;
use holdfast_repo::Root;
use holdfast_store::ObjectName;

impl Data {
    pub(super) async fn open_a_journal(
        &self,
        peer: &access::Agent,
        request: pb::OpenJournalRequest,
    ) -> Result<pb::OpenJournalResponse> {
        let source = wire::source(request.source)?;
        let command = Command::OpenJournal {
            session: SessionId::generate(),
            source: source.clone(),
            agent: peer.name.clone(),
            incarnation: peer.incarnation,
            system_id: request.system_id,
        };
        let catalog = &self.parts.catalog;
        let (_, reply) = catalog
            .propose_traced(peer.actor(), None, current_traceparent(), command)
            .await?;
        let Reply::Journal {
            session,
            next_page,
            last_root,
        } = reply
        else {
            return Err(Error::Internal(format!(
                "opening a journal was answered by {reply:?}"
            )));
        };
        self.parts.leases.grant(session.id);
        let postgres = catalog.view().source(&source)?.and_then(|source| source.postgres);
        Ok(pb::OpenJournalResponse {
            session: Some(pb::SessionRef {
                session: Bytes::copy_from_slice(session.id.as_bytes()),
                fence: session.fence,
            }),
            postgres: postgres.as_ref().map(wire_postgres),
            next_page,
            previous: previous_to_wire(&last_root),
            lease_ttl_ms: millis(limits::LEASE_TTL),
            now: catalog.now(),
        })
    }

    pub(super) async fn append_to_journal(
        &self,
        peer: &access::Agent,
        request: pb::AppendJournalRequest,
    ) -> Result<pb::AppendJournalResponse> {
        let pb::AppendJournalRequest { session, root, files } = request;
        // A page that was appended before is known whatever became of its session.
        let session = self.shown_session(peer, session.as_ref()).await?;
        if !session.is_journal {
            return denied("a backup's session makes snapshots");
        }
        let clear = self.decode_root(&session, &root)?;
        let view = self.parts.catalog.read().await?;
        let is_repeated = view.journal_page(clear.snapshot)?.is_some();
        // Before the walk: a deletion after this index makes the append fail.
        let as_of_index = view.applied_index();
        if !is_repeated {
            self.parts.leases.check(session.id)?;
            tracing::debug!(target: "holdfast::phase", phase = "journal-check");
            let missing = closure::check(&self.link_reader(session.vault), &clear.links, None).await?;
            if missing.count > 0 {
                return Ok(pb::AppendJournalResponse {
                    missing: missing_to_wire(&missing),
                    ..pb::AppendJournalResponse::default()
                });
            }
        }
        let page = NewPage {
            id: clear.snapshot,
            number: clear.sequence,
            root_hash: Root::hash(&root),
            root_len: root.len() as u64,
            previous: clear.previous,
            files: files.into_iter().map(new_file).collect::<Result<_>>()?,
        };
        self.keep_page(peer, &session, root, as_of_index, page).await
    }

    async fn keep_page(
        &self,
        peer: &access::Agent,
        session: &Session,
        root: Bytes,
        as_of_index: u64,
        page: NewPage,
    ) -> Result<pb::AppendJournalResponse> {
        let name = ObjectName::root(&session.vault, &page.id);
        tracing::debug!(target: "holdfast::phase", phase = "journal-page");
        self.put_root(&name, &root).await?;
        let id = page.id;
        let command = Command::AppendJournal {
            session: session.id,
            fence: session.fence,
            as_of_index,
            page,
        };
        let catalog = &self.parts.catalog;
        match catalog
            .propose_traced(peer.actor(), None, current_traceparent(), command)
            .await
        {
            Ok((
                _,
                Reply::Appended {
                    outcomes,
                    next_page,
                    last_root,
                },
            )) => Ok(pb::AppendJournalResponse {
                outcomes: outcomes.into_iter().map(outcome_to_wire).collect(),
                missing: Bytes::new(),
                next_page,
                previous: previous_to_wire(&last_root),
            }),
            Ok((_, other)) => Err(Error::Internal(format!("an append was answered by {other:?}"))),
            Err(error) => {
                // An equal call beside this one may have been taken.
                if is_final(&error) && catalog.view().journal_page(id)?.is_none() {
                    self.take_root_back(&name).await;
                }
                Err(error)
            }
        }
    }

    pub(super) async fn find_in_journal(
        &self,
        reader: &access::Reader,
        request: pb::FindJournalRequest,
    ) -> Result<pb::FindJournalResponse> {
        let source = wire::source(request.source)?;
        if request.names.len() > limits::JOURNAL_NAMES_ASKED {
            return Err(Error::refused(
                ErrorKind::TooLarge,
                format!("at most {} names in one question", limits::JOURNAL_NAMES_ASKED),
            ));
        }
        let view = self.readable(reader, &source).await?;
        let find = |view: &CatalogView| {
            let mut files = Vec::new();
            for name in &request.names {
                files.extend(view.journal_file(&source, name)?.map(file_to_wire));
            }
            Ok::<_, Error>(files)
        };
        let files = find(&view)?;
        if !request.with_tails || files.len() == request.names.len() {
            return Ok(pb::FindJournalResponse {
                files,
                tails: Vec::new(),
            });
        }
        // Looked at again after the agents were asked: what they say is gone from there has come here.
        let tails = tails::ask(&view, &*self.parts.fleet, &source, reader.agent()).await?;
        let files = find(&self.parts.catalog.read().await?)?;
        Ok(pb::FindJournalResponse {
            files,
            tails: tails.into_iter().filter(|tail| tail.is_open).collect(),
        })
    }

    pub(super) async fn mark_a_tail(
        &self,
        peer: &access::Agent,
        request: pb::MarkTailRequest,
    ) -> Result<pb::MarkTailResponse> {
        let pb::MarkTailRequest {
            source,
            system_id,
            mark,
            is_open,
        } = request;
        let source = wire::source(source)?;
        let mark = mark[..]
            .try_into()
            .map_err(|_| Error::refused(ErrorKind::Invalid, "the mark of a tail is not 16 bytes"))?;
        let command = Command::MarkTail {
            source,
            agent: peer.name.clone(),
            incarnation: peer.incarnation,
            system_id,
            mark,
            is_open,
        };
        self.parts.catalog.propose(peer.actor(), None, command).await?;
        Ok(pb::MarkTailResponse {})
    }

    pub(super) async fn browse_the_journal(
        &self,
        reader: &access::Reader,
        request: pb::BrowseJournalRequest,
    ) -> Result<pb::BrowseJournalResponse> {
        let pb::BrowseJournalRequest { source, after } = request;
        let source = wire::source(source)?;
        let view = self.readable(reader, &source).await?;
        let after = (!after.is_empty()).then(|| keys::journal_file(&source, &after));
        let page = view.journal_files(&source, after.as_deref(), limits::LIST_PAGE)?;
        Ok(pb::BrowseJournalResponse {
            more: page.next.is_some(),
            files: page.items.into_iter().map(file_to_wire).collect(),
        })
    }

    /// The catalog of this moment, if the source is there and the reader's to read.
    async fn readable(&self, reader: &access::Reader, source: &SourceRef) -> Result<CatalogView> {
        let view = self.parts.catalog.read().await?;
        let unknown = || Error::refused(ErrorKind::NotFound, format!("there is no source {source}"));
        let agent = view.agent(&source.agent)?.ok_or_else(unknown)?;
        // To an agent, another vault's source is one that is not there.
        if !reader.may_read(&view, agent.vault)? || view.source(source)?.is_none() {
            return Err(unknown());
        }
        Ok(view)
    }

    /// The root object of a page, if there is one of that id which the reader may see.
    pub(super) async fn page_root(&self, reader: &access::Reader, id: SnapshotId) -> Result<Option<Bytes>> {
        let view = self.parts.catalog.read().await?;
        let Some(page) = view.journal_page(id)? else {
            return Ok(None);
        };
        if !reader.may_read(&view, page.vault)? {
            return Ok(None);
        }
        page_object(&*self.parts.store, &page).await.map(Some)
    }
}

/// Zeros stand for none.
fn previous_to_wire(hash: &[u8; 32]) -> Bytes {
    if *hash == [0; 32] {
        Bytes::new()
    } else {
        Bytes::copy_from_slice(hash)
    }
}

fn new_file(entry: pb::JournalEntry) -> Result<NewFile> {
    let pb::JournalEntry { name, len, content } = entry;
    let content = content[..]
        .try_into()
        .map_err(|_| Error::refused(ErrorKind::Invalid, "the hash of a content is not 32 bytes"))?;
    Ok(NewFile { name, len, content })
}

fn outcome_to_wire(outcome: JournalOutcome) -> pb::JournalOutcome {
    let state = match outcome {
        JournalOutcome::Kept => "kept",
        JournalOutcome::There => "there",
        JournalOutcome::Divergent => "divergent",
    };
    pb::JournalOutcome { state: state.into() }
}

/// A file for the wire.
pub(crate) fn file_to_wire(file: JournalFile) -> pb::JournalFile {
    let JournalFile {
        name,
        len,
        content,
        page,
        at,
        divergent,
    } = file;
    pb::JournalFile {
        name,
        len,
        content: Bytes::copy_from_slice(&content),
        page: Bytes::copy_from_slice(page.as_bytes()),
        kept_at: at,
        divergent: divergent
            .iter()
            .map(|other| Bytes::copy_from_slice(&other.content))
            .collect(),
    }
}

/// A journal for the wire.
pub(crate) fn journal_to_wire(journal: &Journal) -> pb::Journal {
    let Journal {
        system_id,
        next_page,
        last_root: _,
        files,
        bytes,
        last_file,
        last_at,
        divergent,
        open_session,
        tails,
        more_sessions,
    } = journal.clone();
    pb::Journal {
        system_id,
        pages: next_page - 1,
        files,
        bytes,
        last_file,
        last_at,
        divergent,
        is_open: open_session.is_some() || !more_sessions.is_empty(),
        spooled_at: tails.into_iter().map(|tail| tail.agent.to_string()).collect(),
    }
}
