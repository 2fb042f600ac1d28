//! From FUSE's requests to the model's operations. Nothing is decided here.

use super::model::{Content, Inode, Model};
use fuser::{
    FileAttr, FileType, Filesystem, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The kernel may believe attributes this long: nothing changes behind its back.
const TTL: Duration = Duration::from_secs(1);
const BLOCK: u32 = 4096;
/// Space that `statfs` shows: enough that nobody's reserve is touched.
const BLOCKS: u64 = 1 << 24;
/// `renameat2`: fail when the new name exists. The other flags are refused.
const RENAME_NOREPLACE: u32 = 1;
const FALLOC_KEEP_SIZE: i32 = 1;
const FALLOC_PUNCH_HOLE: i32 = 2;

#[derive(Debug)]
pub(super) struct Adapter {
    model: Arc<Mutex<Model>>,
}

type Result<T> = std::result::Result<T, Errno>;

impl Adapter {
    pub(super) fn new(model: Arc<Mutex<Model>>) -> Self {
        Self { model }
    }

    /// The model while there is power.
    fn powered(&self) -> Result<MutexGuard<'_, Model>> {
        let model = self.model.lock().map_err(|_| Errno::IO)?;
        model.powered()?;
        Ok(model)
    }

    fn make(
        &self,
        request: &Request<'_>,
        parent: u64,
        name: &OsStr,
        content: Content,
        mode: u32,
    ) -> Result<FileAttr> {
        let mut model = self.powered()?;
        let number = model.create(
            parent,
            name,
            content,
            mode & 0o7777,
            (request.uid(), request.gid()),
        )?;
        model.get_mut(number)?.mtime_ns = now_ns();
        Ok(attr(number, model.get(number)?))
    }

    fn attr(&self, number: u64) -> Result<FileAttr> {
        Ok(attr(number, self.powered()?.get(number)?))
    }

    fn done(result: Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn entry(result: Result<FileAttr>, reply: ReplyEntry) {
        match result {
            Ok(attr) => reply.entry(&TTL, &attr, 0),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn sync(&self, number: u64) -> Result<()> {
        self.model.lock().map_err(|_| Errno::IO)?.sync(number)
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}

fn new_file() -> Content {
    Content::File {
        now: Vec::new(),
        durable: Vec::new(),
        unsynced: Vec::new(),
    }
}

fn new_dir() -> Content {
    Content::Dir {
        now: BTreeMap::new(),
        durable: BTreeMap::new(),
    }
}

fn kind_of(inode: &Inode) -> FileType {
    match &inode.content {
        Content::File { .. } => FileType::RegularFile,
        Content::Dir { .. } => FileType::Directory,
        Content::Link(_) => FileType::Symlink,
    }
}

fn attr(number: u64, inode: &Inode) -> FileAttr {
    let size = match &inode.content {
        Content::File { now, .. } => now.len() as u64,
        Content::Dir { .. } => u64::from(BLOCK),
        Content::Link(target) => target.len() as u64,
    };
    let time = UNIX_EPOCH + Duration::from_nanos(inode.mtime_ns);
    FileAttr {
        ino: number,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind_of(inode),
        perm: (inode.mode & 0o7777) as u16,
        nlink: inode.links,
        uid: inode.uid,
        gid: inode.gid,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

impl Filesystem for Adapter {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let found = self.powered().and_then(|model| {
            let number = model.lookup(parent, name)?;
            Ok(attr(number, model.get(number)?))
        });
        Self::entry(found, reply);
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        match self.attr(number) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        number: u64,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<u64>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<u32>,
        reply: ReplyAttr,
    ) {
        let changed = self.powered().and_then(|mut model| {
            if let Some(size) = size {
                model.set_len(number, size as usize)?;
            }
            let inode = model.get_mut(number)?;
            inode.mode = mode.unwrap_or(inode.mode);
            inode.uid = uid.unwrap_or(inode.uid);
            inode.gid = gid.unwrap_or(inode.gid);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => {
                    inode.mtime_ns = time
                        .duration_since(UNIX_EPOCH)
                        .map_or(0, |time| time.as_nanos() as u64);
                }
                Some(TimeOrNow::Now) => inode.mtime_ns = now_ns(),
                None => {}
            }
            Ok(attr(number, inode))
        });
        match changed {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn readlink(&mut self, _: &Request<'_>, number: u64, reply: ReplyData) {
        let target = self
            .powered()
            .and_then(|model| match &model.get(number)?.content {
                Content::Link(target) => Ok(target.clone()),
                _ => Err(Errno::INVAL),
            });
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn mkdir(&mut self, r: &Request<'_>, parent: u64, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        Self::entry(self.make(r, parent, name, new_dir(), mode), reply);
    }

    fn mknod(
        &mut self,
        r: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        Self::entry(self.make(r, parent, name, new_file(), mode), reply);
    }

    fn symlink(&mut self, r: &Request<'_>, parent: u64, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let content = Content::Link(target.as_os_str().to_os_string());
        Self::entry(self.make(r, parent, name, content, 0o777), reply);
    }

    fn link(&mut self, _: &Request<'_>, number: u64, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let linked = self.powered().and_then(|mut model| {
            model.link(number, parent, name)?;
            Ok(attr(number, model.get(number)?))
        });
        Self::entry(linked, reply);
    }

    fn create(
        &mut self,
        r: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.make(r, parent, name, new_file(), mode) {
            Ok(attr) => reply.created(&TTL, &attr, 0, 0, 0),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn unlink(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        Self::done(
            self.powered()
                .and_then(|mut model| model.remove(parent, name, false)),
            reply,
        );
    }

    fn rmdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        Self::done(
            self.powered()
                .and_then(|mut model| model.remove(parent, name, true)),
            reply,
        );
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        if flags & !RENAME_NOREPLACE != 0 {
            return reply.error(Errno::INVAL.raw_os_error());
        }
        let renamed = self.powered().and_then(|mut model| {
            model.rename(
                (parent, name),
                (new_parent, new_name),
                flags & RENAME_NOREPLACE != 0,
            )
        });
        Self::done(renamed, reply);
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        match self.powered() {
            Ok(_) => reply.opened(0, 0),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let read = self.powered().and_then(|model| {
            model
                .read(number, offset as usize, size as usize)
                .map(<[u8]>::to_vec)
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _: u64,
        offset: i64,
        data: &[u8],
        _: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyWrite,
    ) {
        let written = self.powered().and_then(|mut model| {
            model.write(number, offset as usize, data)?;
            model.get_mut(number)?.mtime_ns = now_ns();
            Ok(())
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn flush(&mut self, _: &Request<'_>, _: u64, _: u64, _: u64, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, number: u64, _: u64, _: bool, reply: ReplyEmpty) {
        Self::done(self.sync(number), reply);
    }

    fn fsyncdir(&mut self, _: &Request<'_>, number: u64, _: u64, _: bool, reply: ReplyEmpty) {
        Self::done(self.sync(number), reply);
    }

    fn readdir(&mut self, _: &Request<'_>, number: u64, _: u64, offset: i64, mut reply: ReplyDirectory) {
        let listed = self.powered().and_then(|model| {
            let mut all = vec![
                (number, FileType::Directory, ".".into()),
                (number, FileType::Directory, "..".into()),
            ];
            for (name, child) in model.entries(number)? {
                all.push((child, kind_of(model.get(child)?), name));
            }
            Ok(all)
        });
        match listed {
            Ok(all) => {
                for (at, (child, kind, name)) in all.into_iter().enumerate().skip(offset as usize) {
                    if reply.add(child, at as i64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(e.raw_os_error()),
        }
    }

    fn statfs(&mut self, _: &Request<'_>, _: u64, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 1 << 20, 1 << 20, BLOCK, 255, BLOCK);
    }

    fn fallocate(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _: u64,
        offset: i64,
        length: i64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (offset, length) = (offset as usize, length as usize);
        let done = self.powered().and_then(|mut model| {
            let now = model.read(number, 0, usize::MAX / 2)?.len();
            if mode & FALLOC_PUNCH_HOLE != 0 {
                let end = (offset + length).min(now);
                let zeros = vec![0; end.saturating_sub(offset)];
                model.write(number, offset, &zeros)
            } else if mode & FALLOC_KEEP_SIZE == 0 && offset + length > now {
                model.set_len(number, offset + length)
            } else {
                Ok(())
            }
        });
        Self::done(done, reply);
    }
}
