//! What differs between two snapshots: both trees side by side, without what they share. A node that
//! stands in both is not read, so that the cost is that of the difference and not of the trees.

use super::{Snapshot, TreeEntry, ordered};
use crate::{BlobOpener, Fetched, RestoreError, Result, path::join_path};
use holdfast_core::{
    ChunkId,
    limits::{DIR_DEPTH_MAX, NODE_DEPTH_MAX},
};
use holdfast_repo::{DirNode, Entry, EntryKind, Node, RootTree};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    vec,
};

/// Directories that differ and whose nodes are asked for together.
const AHEAD: usize = 32;
/// Differences of one directory that are found before they are told: it may be of any size.
const FOUND_MAX: usize = 1024;

/// In what respects one entry changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// It is of another type.
    pub kind: bool,
    /// Content, target or device number; for directories what is in them is told by itself.
    pub content: bool,
    /// Permission bits.
    pub mode: bool,
    /// Owner or group.
    pub owner: bool,
    /// Time of the last change of content.
    pub mtime: bool,
}

/// One path that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Only the second has it.
    Added(TreeEntry),
    /// Only the first has it.
    Removed(TreeEntry),
    /// Both have it.
    Changed {
        /// Absolute path; bytes, not UTF-8.
        path: Vec<u8>,
        /// As it was.
        before: Entry,
        /// As it is.
        after: Entry,
        /// In what respects.
        change: Change,
    },
}

/// Tells `visit` everything that differs from `before` to `after`: directory by directory, names in order.
/// Content is compared by ids, so content that was recorded in another form counts as changed. `visit` runs
/// on a blocking thread.
///
/// # Errors
/// `Invalid` for snapshots of different vaults, whose ids cannot be compared; those of reading nodes.
pub async fn compare(
    before: &Snapshot,
    after: &Snapshot,
    mut visit: impl FnMut(Difference) -> ControlFlow<()> + Send + 'static,
) -> Result<()> {
    if before.root.clear.vault != after.root.clear.vault {
        return Err(RestoreError::Invalid(
            "snapshots of different vaults cannot be compared: the same content has another name in each",
        ));
    }
    let (before, after) = (before.clone(), after.clone());
    let reader = before.reader.clone();
    reader
        .blocking(move |opener| {
            // Both are of one vault, and its blobs come from wherever the first one's do.
            let mut comparison = Comparison {
                opener,
                visit: &mut visit,
            };
            comparison.trees(&before, &after).map(|_| ())
        })
        .await
}

struct Comparison<'c> {
    opener: &'c mut BlobOpener,
    visit: &'c mut dyn FnMut(Difference) -> ControlFlow<()>,
}

/// A directory in both that differs.
struct Pair {
    path: Vec<u8>,
    nodes: [ChunkId; 2],
    depth: usize,
}

/// What is left to tell of one directory.
struct Frame {
    /// Found already.
    rest: vec::IntoIter<Found>,
    /// Nodes of directories among that.
    ahead: HashMap<ChunkId, Fetched>,
    /// Not looked at yet.
    sides: Option<Sides>,
}

/// A directory in both while it is compared.
struct Sides {
    path: Vec<u8>,
    cursors: [Cursor; 2],
    /// Its top nodes.
    ahead: HashMap<ChunkId, Fetched>,
    depth: usize,
}

enum Found {
    Told(Box<Difference>),
    /// Everything below one that only one side has.
    Whole(TreeEntry, Side),
    Below(Pair),
}

#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

type Flow = Result<ControlFlow<()>>;

impl Comparison<'_> {
    fn trees(&mut self, before: &Snapshot, after: &Snapshot) -> Flow {
        let mut all: BTreeMap<&[u8], [Option<&RootTree>; 2]> = BTreeMap::new();
        for (side, snapshot) in [before, after].into_iter().enumerate() {
            for tree in &snapshot.root.sealed.trees {
                all.entry(&tree.path).or_default()[side] = Some(tree);
            }
        }
        for (path, [before, after]) in all {
            let mut found = Vec::new();
            let entry = |tree: &RootTree| tree.entry.clone();
            pair(path.to_vec(), before.map(entry), after.map(entry), 0, &mut found);
            if self.tell(found)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn tell(&mut self, found: Vec<Found>) -> Flow {
        let mut stack = vec![Frame {
            rest: found.into_iter(),
            ahead: HashMap::new(),
            sides: None,
        }];
        while let Some(frame) = stack.last_mut() {
            let Some(next) = frame.rest.next() else {
                let Some(mut sides) = frame.sides.take() else {
                    stack.pop();
                    continue;
                };
                let found = self.compare_some(&mut sides);
                let found = found.map_err(|error| error.at(&sides.path))?;
                frame.rest = found.into_iter();
                frame.ahead.clear();
                frame.sides = (!sides.is_over()).then_some(sides);
                continue;
            };
            let flow = match next {
                Found::Told(difference) => (self.visit)(*difference),
                Found::Whole(entry, side) => self.whole(entry, side)?,
                Found::Below(pair) => {
                    if pair.nodes.iter().any(|node| !frame.ahead.contains_key(node)) {
                        let siblings = frame.rest.as_slice().iter().filter_map(|found| match found {
                            Found::Below(pair) => Some(pair.nodes),
                            _ => None,
                        });
                        let nodes = std::iter::once(pair.nodes).chain(siblings.take(AHEAD - 1));
                        frame.ahead = self.opener.fetch(nodes.flatten())?;
                    }
                    if pair.depth > DIR_DEPTH_MAX {
                        return Err(RestoreError::BadTree("directories are nested too deeply").at(&pair.path));
                    }
                    let fetched = |node| Some((node, frame.ahead.get(&node)?.clone()));
                    let sides = Sides {
                        ahead: pair.nodes.into_iter().filter_map(fetched).collect(),
                        cursors: pair.nodes.map(Cursor::new),
                        path: pair.path,
                        depth: pair.depth,
                    };
                    stack.push(Frame {
                        rest: Vec::new().into_iter(),
                        ahead: HashMap::new(),
                        sides: Some(sides),
                    });
                    ControlFlow::Continue(())
                }
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Everything at and below something that only one side has.
    fn whole(&mut self, entry: TreeEntry, side: Side) -> Flow {
        let visit = &mut self.visit;
        ordered::walk(self.opener, entry, &mut |entry| match side {
            Side::Before => visit(Difference::Removed(entry)),
            Side::After => visit(Difference::Added(entry)),
        })
    }

    /// What differs in one directory, from where it was left.
    fn compare_some(&mut self, sides: &mut Sides) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let Sides {
            path,
            cursors: [before, after],
            ahead,
            depth,
        } = sides;
        while found.len() < FOUND_MAX {
            let order = match (before.head(), after.head()) {
                (None, None) => break,
                (Some(Item::Node(a)), Some(Item::Node(b))) if a.id == b.id => {
                    before.pop();
                    after.pop();
                    continue;
                }
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => a.first().cmp(b.first()),
            };
            // A node is opened where it may hold what comes next: the one that begins first; of two that
            // begin alike the one that holds more, which may have the other one in it.
            let (open_before, open_after) = match (before.head(), after.head()) {
                (Some(Item::Node(a)), Some(Item::Node(b))) if order == Ordering::Equal => {
                    (a.count >= b.count, b.count >= a.count)
                }
                (a, b) => (
                    matches!(a, Some(Item::Node(_))) && order != Ordering::Greater,
                    matches!(b, Some(Item::Node(_))) && order != Ordering::Less,
                ),
            };
            if open_before {
                before.open(self.opener, ahead)?;
            }
            if open_after {
                after.open(self.opener, ahead)?;
            }
            if open_before || open_after {
                continue;
            }
            let old = if order == Ordering::Greater {
                None
            } else {
                before.entry()
            };
            let new = if order == Ordering::Less {
                None
            } else {
                after.entry()
            };
            let name = old.as_ref().or(new.as_ref()).map(|entry| entry.name.clone());
            let path = join_path(path, &name.unwrap_or_default());
            pair(path, old, new, *depth, &mut found);
        }
        Ok(found)
    }
}

/// What there is to tell of one path.
fn pair(path: Vec<u8>, before: Option<Entry>, after: Option<Entry>, depth: usize, found: &mut Vec<Found>) {
    let (before, after) = match (before, after) {
        (None, None) => return,
        (Some(entry), None) => return found.push(Found::Whole(TreeEntry { path, entry }, Side::Before)),
        (None, Some(entry)) => return found.push(Found::Whole(TreeEntry { path, entry }, Side::After)),
        (Some(before), Some(after)) => (before, after),
    };
    let change = change(&before, &after);
    let kinds = (before.kind.clone(), after.kind.clone());
    if change.kind && matches!(kinds, (EntryKind::Dir { .. }, _) | (_, EntryKind::Dir { .. })) {
        // What is in the directory goes or comes with it.
        let entry = |entry| TreeEntry {
            path: path.clone(),
            entry,
        };
        found.push(Found::Whole(entry(before), Side::Before));
        found.push(Found::Whole(entry(after), Side::After));
        return;
    }
    if change != Change::default() {
        found.push(Found::Told(Box::new(Difference::Changed {
            path: path.clone(),
            before,
            after,
            change,
        })));
    }
    if let (EntryKind::Dir { node: a, .. }, EntryKind::Dir { node: b, .. }) = kinds
        && a != b
    {
        found.push(Found::Below(Pair {
            path,
            nodes: [a, b],
            depth: depth + 1,
        }));
    }
}

fn change(before: &Entry, after: &Entry) -> Change {
    let (kind, content) = match (&before.kind, &after.kind) {
        (EntryKind::Dir { .. }, EntryKind::Dir { .. }) => (false, false),
        (
            EntryKind::File { size, content, .. },
            EntryKind::File {
                size: new_size,
                content: new_content,
                ..
            },
        ) => (false, (size, content) != (new_size, new_content)),
        (a, b) => (std::mem::discriminant(a) != std::mem::discriminant(b), a != b),
    };
    Change {
        kind,
        content: content && !kind,
        mode: before.mode != after.mode,
        owner: (before.uid, before.gid) != (after.uid, after.gid),
        mtime: before.mtime != after.mtime,
    }
}

/// One side of a directory: entries in order, and nodes that were not opened.
struct Cursor {
    /// The next one is last.
    stack: Vec<Item>,
}

enum Item {
    Node(Unopened),
    Entry(Box<Entry>),
}

struct Unopened {
    id: ChunkId,
    first: Vec<u8>,
    count: u64,
    level: usize,
}

impl Item {
    /// Nothing in it has a lower name.
    fn first(&self) -> &[u8] {
        match self {
            Self::Node(node) => &node.first,
            Self::Entry(entry) => &entry.name,
        }
    }
}

impl Sides {
    fn is_over(&self) -> bool {
        self.cursors.iter().all(|cursor| cursor.head().is_none())
    }
}

impl Cursor {
    fn new(top: ChunkId) -> Self {
        Self {
            stack: vec![Item::Node(Unopened {
                id: top,
                first: Vec::new(),
                count: u64::MAX,
                level: 1,
            })],
        }
    }

    fn head(&self) -> Option<&Item> {
        self.stack.last()
    }

    fn pop(&mut self) -> Option<Item> {
        self.stack.pop()
    }

    fn entry(&mut self) -> Option<Entry> {
        match self.pop() {
            Some(Item::Entry(entry)) => Some(*entry),
            _ => None,
        }
    }

    /// Puts what is in the next node into its place.
    fn open(&mut self, opener: &mut BlobOpener, ahead: &HashMap<ChunkId, Fetched>) -> Result<()> {
        let Some(Item::Node(node)) = self.pop() else {
            return Ok(());
        };
        if node.level > NODE_DEPTH_MAX {
            return Err(RestoreError::BadTree("a directory's nodes are nested too deeply"));
        }
        match opener.open_node(node.id, ahead.get(&node.id))? {
            Node::Dir(DirNode::Leaf(entries)) => {
                let entries = entries.into_iter().rev();
                self.stack
                    .extend(entries.map(|entry| Item::Entry(Box::new(entry))));
            }
            Node::Dir(DirNode::Index(children)) => {
                let children = children.into_iter().rev().map(|child| {
                    Item::Node(Unopened {
                        id: child.id,
                        first: child.first_name.to_vec(),
                        count: child.entries,
                        level: node.level + 1,
                    })
                });
                self.stack.extend(children);
            }
            Node::File(_) => {
                return Err(RestoreError::BadTree(
                    "a file's node stands where a directory belongs",
                ));
            }
        }
        Ok(())
    }
}
