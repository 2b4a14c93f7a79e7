//! A disk that keeps what was synced and may lose or tear what was not.
//!
//! A process that is killed leaves everything it wrote. A power loss leaves what was synced: bytes by `sync`, names
//! (created, renamed, removed) by `sync_dir`; of the unsynced rest of a file a random prefix may survive (a torn write).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connector_env::File;

use super::random::Random;

/// One host's disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Debug)]
struct Content {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    directories: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    failing_syncs: u32,
    trip: Option<Trip>,
    random: Random,
    torn: u64,
    refused: u64,
    cut_off: Vec<Vec<u8>>,
}

/// The host goes down at an operation to come.
#[derive(Clone, Copy, Debug)]
struct Trip {
    /// Changes until then, that one included.
    left: u32,
    /// What the process still does before it notices fails.
    stops: bool,
}

#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Up to here both are the same.
    same: usize,
}

impl Inode {
    fn sync(&mut self) {
        self.durable.truncate(self.same);
        self.durable.extend_from_slice(&self.bytes[self.same..]);
        self.same = self.bytes.len();
    }
}

impl Disk {
    /// An empty disk without a limit.
    pub fn new(random: Random) -> Disk {
        Disk(Arc::new(Mutex::new(Content {
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            directories: BTreeSet::new(),
            capacity: None,
            failing_syncs: 0,
            trip: None,
            random,
            torn: 0,
            refused: 0,
            cut_off: Vec::new(),
        })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes: unsynced bytes and names are lost, or torn.
    pub fn lose_power(&self) {
        let mut guard = self.content();
        let content = &mut *guard;
        content.trip = None;
        content.names = content.durable_names.clone();
        for inode in content.inodes.values_mut() {
            let unsynced = inode.bytes.len().saturating_sub(inode.same);
            let appended = inode.same == inode.durable.len() && unsynced > 0;
            if appended && content.random.chance(50) {
                let kept = content.random.below(unsynced as u64 + 1) as usize;
                let end = inode.same + kept;
                inode.durable.extend_from_slice(&inode.bytes[inode.same..end]);
                content.torn += u64::from(kept > 0 && kept < unsynced);
            }
            inode.bytes = inode.durable.clone();
            inode.same = inode.bytes.len();
        }
    }

    /// The next `count` syncs fail.
    pub fn fail_syncs(&self, count: u32) {
        self.content().failing_syncs = count;
    }

    /// The host is to go down once so many changes were made from now on; with `stops` nothing changes any more after that.
    pub fn trip_after(&self, changes: u32, stops: bool) {
        self.content().trip = Some(Trip { left: changes.max(1), stops });
    }

    /// True once the host is to go down.
    pub fn has_tripped(&self) -> bool {
        self.content().trip.is_some_and(|trip| trip.left == 0)
    }

    /// The host is down.
    pub fn forget_trip(&self) {
        self.content().trip = None;
    }

    /// Limits what the disk holds, in bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.content().capacity = bytes;
    }

    /// Writes that survived a power loss in part.
    pub fn torn_writes(&self) -> u64 {
        self.content().torn
    }

    /// Writes that found no room.
    pub fn refused_writes(&self) -> u64 {
        self.content().refused
    }

    /// The ends that were ever cut off a file, one by one; a power loss may have brought some of them back.
    pub fn cut_off(&self) -> Vec<Vec<u8>> {
        self.content().cut_off.clone()
    }

    /// Bytes in all files.
    pub fn used(&self) -> u64 {
        self.content().used()
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<SimFile> {
        let mut content = self.content();
        content.parent(path)?;
        let known = content.names.get(path).copied();
        let inode = known.unwrap_or_else(|| {
            let inode = content.next_inode;
            content.next_inode += 1;
            content.inodes.insert(inode, Inode::default());
            content.names.insert(path.to_owned(), inode);
            inode
        });
        drop(content);
        Ok(SimFile { disk: self.clone(), inode })
    }

    pub(super) fn create_dir_all(&self, path: &Path) {
        let mut content = self.content();
        for ancestor in path.ancestors() {
            content.directories.insert(ancestor.to_owned());
        }
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let content = self.content();
        if !content.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let files = content.names.keys().filter(|name| name.parent() == Some(path));
        let directories = content.directories.iter().filter(|name| name.parent() == Some(path));
        let entries: BTreeSet<PathBuf> = files.chain(directories).cloned().collect();
        Ok(entries.into_iter().collect())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        if content.directories.contains(from) {
            content.rename_directory(from, to);
            return Ok(());
        }
        content.parent(to)?;
        let inode = content.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        content.names.insert(to.to_owned(), inode);
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        content.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut content = self.content();
        content.change()?;
        content.sync_fails()?;
        let here = |name: &Path| name.parent() == Some(path);
        content.durable_names.retain(|name, _| !here(name));
        let now: Vec<_> =
            content.names.iter().filter(|(name, _)| here(name)).map(|(n, i)| (n.clone(), *i)).collect();
        content.durable_names.extend(now);
        Ok(())
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        let content = self.content();
        content.names.contains_key(path) || content.directories.contains(path)
    }
}

impl Content {
    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|inode| self.inodes.get(inode))
            .map(|inode| inode.bytes.len() as u64)
            .sum()
    }

    fn parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if self.directories.contains(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Something is about to change.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.trip {
            Some(Trip { left: 0, stops: true }) => Err(io::Error::other("the host is going down")),
            Some(trip) => {
                trip.left = trip.left.saturating_sub(1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync_fails(&mut self) -> io::Result<()> {
        if self.failing_syncs == 0 {
            return Ok(());
        }
        self.failing_syncs -= 1;
        Err(io::Error::other("simulated failure of a sync"))
    }

    /// Directories are durable at once, also when renamed: the code under test moves whole directories aside only in
    /// archives, and syncs the parent right after.
    fn rename_directory(&mut self, from: &Path, to: &Path) {
        let moved = |name: &Path| name.strip_prefix(from).ok().map(|rest| to.join(rest));
        for names in [&mut self.names, &mut self.durable_names] {
            *names = std::mem::take(names)
                .into_iter()
                .map(|(name, inode)| (moved(&name).unwrap_or(name), inode))
                .collect();
        }
        self.directories = std::mem::take(&mut self.directories)
            .into_iter()
            .map(|name| if name == from { to.to_owned() } else { moved(&name).unwrap_or(name) })
            .collect();
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// An open file of a [`Disk`].
#[derive(Debug)]
pub struct SimFile {
    disk: Disk,
    inode: u64,
}

impl File for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.disk.content();
        content.change()?;
        let room = content.capacity.map(|capacity| capacity.saturating_sub(content.used()));
        let taken = room.map_or(bytes.len(), |room| bytes.len().min(room as usize));
        content.inode(self.inode)?.bytes.extend_from_slice(&bytes[..taken]);
        // A full disk takes what fits, as `write` does, and then says so.
        if taken < bytes.len() {
            content.refused += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut content = self.disk.content();
        let bytes = &content.inode(self.inode)?.bytes;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let length = buffer.len().min(bytes.len() - start);
        buffer[..length].copy_from_slice(&bytes[start..start + length]);
        Ok(length)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.content().inode(self.inode)?.bytes.len() as u64)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut content = self.disk.content();
        content.change()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let inode = content.inode(self.inode)?;
        let end = inode.bytes.get(length..).unwrap_or_default().to_vec();
        inode.bytes.resize(length, 0);
        inode.same = inode.same.min(inode.bytes.len());
        content.cut_off.push(end);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut content = self.disk.content();
        content.change()?;
        content.sync_fails()?;
        content.inode(self.inode)?.sync();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &Disk) -> SimFile {
        disk.create_dir_all(Path::new("/state"));
        disk.open(Path::new("/state/log")).unwrap()
    }

    fn content(disk: &Disk) -> Option<Vec<u8>> {
        disk.exists(Path::new("/state/log")).then(|| {
            let file = disk.open(Path::new("/state/log")).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(0, &mut bytes).unwrap();
            bytes
        })
    }

    #[test]
    fn power_loss_keeps_what_was_synced_and_at_most_a_prefix_of_the_rest() {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let disk = Disk::new(Random::new(seed));
            let mut log = file(&disk);
            log.append(b"ab").unwrap();
            log.sync().unwrap();
            disk.sync_dir(Path::new("/state")).unwrap();
            log.append(b"cde").unwrap();
            disk.lose_power();
            let left = content(&disk).unwrap();
            assert!(b"abcde".starts_with(&left) && left.len() >= 2);
            seen.insert(left.len());
        }
        assert_eq!(seen, BTreeSet::from([2, 3, 4, 5]));
    }

    #[test]
    fn a_name_that_was_not_synced_is_lost_with_its_file() {
        let disk = Disk::new(Random::new(1));
        let mut log = file(&disk);
        log.append(b"ab").unwrap();
        log.sync().unwrap();
        disk.lose_power();
        assert_eq!(content(&disk), None);
    }

    #[test]
    fn a_cut_that_was_not_synced_comes_back() {
        let disk = Disk::new(Random::new(1));
        let mut log = file(&disk);
        log.append(b"abcd").unwrap();
        log.sync().unwrap();
        disk.sync_dir(Path::new("/state")).unwrap();
        log.truncate(1).unwrap();
        log.append(b"x").unwrap();
        assert_eq!(content(&disk).unwrap(), b"ax");
        disk.lose_power();
        assert_eq!(content(&disk).unwrap(), b"abcd");
    }

    #[test]
    fn a_host_that_goes_down_at_a_change_makes_that_one_and_no_more() {
        let disk = Disk::new(Random::new(1));
        let mut log = file(&disk);
        disk.trip_after(2, true);
        log.append(b"a").unwrap();
        assert!(!disk.has_tripped());
        log.append(b"b").unwrap();
        assert!(disk.has_tripped());
        assert!(log.sync().is_err());
        disk.forget_trip();
        log.sync().unwrap();
        disk.sync_dir(Path::new("/state")).unwrap();
        disk.lose_power();
        assert_eq!(content(&disk).unwrap(), b"ab");
    }

    #[test]
    fn a_full_disk_and_a_failing_sync_say_so() {
        let disk = Disk::new(Random::new(1));
        let mut log = file(&disk);
        disk.set_capacity(Some(3));
        assert_eq!(log.append(b"abcd").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(content(&disk).unwrap(), b"abc");
        disk.fail_syncs(1);
        assert!(log.sync().is_err());
        assert!(log.sync().is_ok());
    }
}
