//! A disk for tests: what was not synced may be lost or torn, syncs fail on demand, and space ends. The network is the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use connector_env::{Env, File, TokioEnv};

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process died: the page cache is kept.
    Process,
    /// Power was lost: unsynced names and bytes are kept in part, as the numbers say.
    Power {
        /// Chooses how much of each unsynced end is kept, and of what is kept, how much is garbage.
        seed: u64,
    },
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

type Node = Arc<Mutex<Content>>;

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    /// The names after each change since they were durable: file systems keep the order of such changes, and renames whole.
    unsynced_names: Vec<BTreeMap<PathBuf, Node>>,
    directories: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    fail_syncs: bool,
    syncs: u64,
    /// Appended bytes until the process dies.
    dies_after: Option<u64>,
    /// Changing calls until the process dies.
    dies_at: Option<u64>,
    dead: bool,
    millis: i64,
    random: u64,
}

/// The disk; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeDisk(Arc<Mutex<State>>);

impl FakeDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    pub(crate) fn used(&self) -> u64 {
        used(&self.state())
    }

    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.state().fail_syncs = fail;
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The process dies in the middle of the append that reaches so many more bytes.
    pub(crate) fn die_after(&self, bytes: u64) {
        self.state().dies_after = Some(bytes);
    }

    /// The process dies before the changing call of this number.
    pub(crate) fn die_at_call(&self, call: u64) {
        self.state().dies_at = Some(call);
    }

    /// Ends the process, if it is not dead yet, and starts the next one on what is left.
    pub(crate) fn crash(&self, crash: Crash) {
        let mut state = self.state();
        state.dead = false;
        state.dies_after = None;
        state.dies_at = None;
        state.fail_syncs = false;
        let Crash::Power { seed } = crash else { return };
        let mut random = seed;
        let mut histories = std::mem::take(&mut state.unsynced_names);
        histories.push(state.durable_names.clone());
        let left = histories.swap_remove(next(&mut random) as usize % histories.len());
        for node in left.values() {
            let mut content = node.lock().unwrap();
            let bytes = torn(&content, &mut random);
            content.durable.clone_from(&bytes);
            content.bytes = bytes;
        }
        state.names = left.clone();
        state.durable_names = left;
    }

    /// Another disk with the same on it.
    pub(crate) fn copy(&self) -> FakeDisk {
        let state = self.state();
        let nodes: Vec<(&Node, Node)> = state
            .names
            .values()
            .chain(state.durable_names.values())
            .map(|node| (node, Arc::new(Mutex::new(node.lock().unwrap().clone()))))
            .collect();
        let copied = |names: &BTreeMap<PathBuf, Node>| {
            let copy = |node: &Node| {
                nodes.iter().find(|(old, _)| Arc::ptr_eq(old, node)).map(|(_, new)| new.clone()).unwrap()
            };
            names.iter().map(|(name, node)| (name.clone(), copy(node))).collect()
        };
        FakeDisk(Arc::new(Mutex::new(State {
            names: copied(&state.names),
            durable_names: copied(&state.durable_names),
            directories: state.directories.clone(),
            ..State::default()
        })))
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        self.state().names[path].lock().unwrap().bytes.clone()
    }

    pub(crate) fn set_bytes(&self, path: &Path, bytes: Vec<u8>) {
        let state = self.state();
        let mut content = state.names[path].lock().unwrap();
        content.durable.clone_from(&bytes);
        content.bytes = bytes;
    }
}

fn next(random: &mut u64) -> u64 {
    // A linear congruential generator is plenty for choosing lengths.
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

fn torn(content: &Content, random: &mut u64) -> Vec<u8> {
    let Content { bytes, durable } = content;
    if !bytes.starts_with(durable) {
        // An unsynced cut: it happened or not.
        return if next(random).is_multiple_of(2) { bytes.clone() } else { durable.clone() };
    }
    let unsynced = bytes.len() - durable.len();
    let kept = (next(random) as usize) % (unsynced + 1);
    let mut left = bytes[..durable.len() + kept].to_vec();
    // The length may be there before the bytes are.
    let zeros = (next(random) as usize) % (kept + 1);
    if next(random).is_multiple_of(2) {
        let from = left.len() - zeros;
        left[from..].fill(0);
    }
    left
}

fn used(state: &State) -> u64 {
    state.names.values().map(|node| node.lock().unwrap().bytes.len() as u64).sum()
}

impl State {
    fn names_changed(&mut self) {
        let names = self.names.clone();
        self.unsynced_names.push(names);
    }

    /// A call that changes something begins.
    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.dies_at {
            self.dead |= *left == 0;
            *left = left.saturating_sub(1);
        }
        if self.dead { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

/// An open file.
#[derive(Debug)]
pub(crate) struct FakeFile {
    disk: FakeDisk,
    node: Node,
}

impl File for FakeFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step()?;
        let room = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(used(&state)));
        let mut fits = (bytes.len() as u64).min(room) as usize;
        if let Some(left) = state.dies_after {
            if left <= fits as u64 {
                fits = left as usize;
                state.dead = true;
            }
            state.dies_after = Some(left - fits as u64);
        }
        self.node.lock().unwrap().bytes.extend_from_slice(&bytes[..fits]);
        if state.dead {
            return Err(dead());
        }
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let content = self.node.lock().unwrap();
        let rest = content.bytes.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.node.lock().unwrap().bytes.len() as u64)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.disk.state().step()?;
        self.node.lock().unwrap().bytes.truncate(length as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step()?;
        state.syncs += 1;
        if state.fail_syncs {
            return Err(io::Error::other("the disk is gone"));
        }
        let mut content = self.node.lock().unwrap();
        content.durable = content.bytes.clone();
        Ok(())
    }
}

impl Env for FakeDisk {
    type Link = <TokioEnv as Env>::Link;
    type Listener = <TokioEnv as Env>::Listener;
    type File = FakeFile;

    async fn connect(&self, address: &str) -> io::Result<Self::Link> {
        TokioEnv.connect(address).await
    }

    async fn listen(&self, address: &str) -> io::Result<Self::Listener> {
        TokioEnv.listen(address).await
    }

    fn open(&self, path: &Path) -> io::Result<FakeFile> {
        let mut state = self.state();
        state.step()?;
        let new = !state.names.contains_key(path);
        let node = state.names.entry(path.to_owned()).or_default().clone();
        if new {
            state.names_changed();
        }
        Ok(FakeFile { disk: self.clone(), node })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.state().directories.insert(path.to_owned());
        Ok(())
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        let below = state.names.keys().chain(&state.directories).filter_map(|name| {
            let first = name.strip_prefix(path).ok()?.components().next()?;
            Some(path.join(first))
        });
        Ok(below.collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let moved = |name: &Path| {
            name.strip_prefix(from)
                .ok()
                .map(|rest| if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) })
        };
        let names = std::mem::take(&mut state.names);
        state.names = names.into_iter().map(|(name, node)| (moved(&name).unwrap_or(name), node)).collect();
        state.names_changed();
        let directories = std::mem::take(&mut state.directories);
        state.directories = directories.into_iter().map(|name| moved(&name).unwrap_or(name)).collect();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.names_changed();
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        let state = self.state();
        state.names.keys().chain(&state.directories).any(|name| name.starts_with(path))
    }

    fn random(&self) -> u64 {
        let mut state = self.state();
        let mut random = state.random;
        let drawn = next(&mut random) << 31 ^ next(&mut random);
        state.random = random;
        drawn
    }

    fn unix_millis(&self) -> i64 {
        let mut state = self.state();
        state.millis += 1;
        state.millis
    }
}
