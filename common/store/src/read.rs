//! Reads many blobs with few reads: sorted by place, neighbours together.

use crate::{ObjectName, Store, StoreError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use holdfast_core::{HasKind, PackId};

/// Reading so many unwanted bytes costs less than another read.
const GAP_MAX: u64 = 64 * 1024;
/// Longest single read.
const RUN_MAX: u64 = 4 * 1024 * 1024;
/// Reads under way for one caller.
const READS_AT_ONCE: usize = 4;

/// Where one blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Where the blob begins in it.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// Neighbouring blobs, read in one go.
struct Run {
    pack: PackId,
    offset: u64,
    len: u64,
    /// (place in the answer, offset in the run, length)
    parts: Vec<(usize, usize, usize)>,
}

/// The bytes at each place, in the order asked; none where they cannot be read, which is logged.
///
/// # Errors
/// When the store is away as a whole.
pub async fn read_places(store: &dyn Store, places: &[Location]) -> Result<Vec<Option<Bytes>>, StoreError> {
    let mut found: Vec<Option<Bytes>> = vec![None; places.len()];
    let mut reads = stream::iter(runs(places))
        .map(|run| async move {
            let name = ObjectName::pack(&run.pack);
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            (store.get_range(&name, run.offset, len).await, run)
        })
        .buffer_unordered(READS_AT_ONCE);
    while let Some((bytes, run)) = reads.next().await {
        match bytes {
            Ok(bytes) => {
                for (at, offset, len) in run.parts {
                    found[at] = Some(bytes.slice(offset..offset + len));
                }
            }
            Err(error) if error.kind() == holdfast_core::ErrorKind::Unavailable => return Err(error),
            Err(error) if run.parts.len() == 1 => {
                tracing::error!(pack = %run.pack, %error, "a blob cannot be read");
            }
            // One bad sector or a short end must not hide its neighbours.
            Err(error) => {
                tracing::error!(pack = %run.pack, %error, "blobs cannot be read together; reading them one by one");
                for (at, offset, len) in run.parts {
                    let read = store
                        .get_range(&ObjectName::pack(&run.pack), run.offset + offset as u64, len)
                        .await;
                    found[at] = read.ok();
                }
            }
        }
    }
    Ok(found)
}

fn runs(places: &[Location]) -> Vec<Run> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_unstable_by_key(|at| places[*at]);
    let mut runs: Vec<Run> = Vec::new();
    for at in order {
        let place = places[at];
        let (offset, len) = (u64::from(place.offset), u64::from(place.len));
        let end = offset + len;
        match runs.last_mut() {
            Some(run)
                if run.pack == place.pack
                    && offset <= run.offset + run.len + GAP_MAX
                    && end - run.offset <= RUN_MAX =>
            {
                run.len = run.len.max(end - run.offset);
                run.parts.push((at, (offset - run.offset) as usize, len as usize));
            }
            _ => runs.push(Run {
                pack: place.pack,
                offset,
                len,
                parts: vec![(at, 0, len as usize)],
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStore;
    use holdfast_core::StoreId;
    use proptest::prelude::*;

    fn place(pack: u8, offset: u32, len: u32) -> Location {
        Location {
            pack: PackId([pack; 32]),
            offset,
            len,
        }
    }

    #[test]
    fn neighbours_are_read_together() {
        let shape = |places: &[Location]| {
            runs(places)
                .iter()
                .map(|run| (run.pack.0[0], run.offset, run.len))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shape(&[place(1, 500, 10), place(1, 0, 100), place(2, 0, 1)]),
            [(1, 0, 510), (2, 0, 1)]
        );
        let far = 100 + GAP_MAX as u32;
        assert_eq!(
            shape(&[place(1, 0, 100), place(1, far, 1)]),
            [(1, 0, u64::from(far) + 1)]
        );
        assert_eq!(shape(&[place(1, 0, 100), place(1, far + 1, 1)]).len(), 2);
        assert_eq!(
            shape(&[place(1, 0, 4 << 20), place(1, 4 << 20, 1)]).len(),
            2,
            "runs are bounded"
        );
    }

    proptest! {
        #[test]
        fn any_places_are_answered_in_order(places in proptest::collection::vec((0_u8..3, 0_u32..300_000, 0_u32..50_000), 0..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let store = MemStore::new(StoreId([1; 16]), 64 << 20);
                let body = |pack: u8| -> Vec<u8> { (0..250_000_u32).map(|i| (i / 7) as u8 ^ pack).collect() };
                for pack in 0..2 {
                    store.put(&ObjectName::pack(&PackId([pack; 32])), Bytes::from(body(pack))).await.unwrap();
                }
                let places: Vec<_> = places.into_iter().map(|(p, o, l)| place(p, o, l)).collect();
                let read = read_places(&store, &places).await.unwrap();
                for (place, read) in places.iter().zip(read) {
                    let whole = body(place.pack.0[0]);
                    let range = place.offset as usize..(place.offset + place.len) as usize;
                    let wanted = (place.pack.0[0] < 2).then(|| whole.get(range)).flatten();
                    assert_eq!(read.as_deref(), wanted, "{place:?}");
                }
            });
        }
    }
}
