//! What a worker's host was handed over the plain framings, and when: what a commit may rely on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of the length header.
const HEADER: usize = 4;

/// Records read by the worker's host with the simulated time of the first reading. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Receipts(Arc<Mutex<BTreeMap<String, Duration>>>);

impl Receipts {
    /// Why a record must not be committed yet, `delay` after its receipt at the earliest.
    pub fn misses(&self, name: &str, delay: Duration) -> Option<&'static str> {
        let received = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        let now = turmoil::sim_elapsed().unwrap_or_default();
        match received {
            None => Some("never reached the worker's host"),
            Some(at) if now < at + delay => Some("is younger than the commit delay"),
            Some(_) => None,
        }
    }

    /// Records that never came.
    pub fn missing<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
        let received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.filter(|name| !received.contains_key(*name)).collect()
    }

    /// A listener for one connection.
    pub fn tap(&self) -> Tap {
        Tap { receipts: self.clone(), bytes: Vec::new() }
    }
}

/// Reads along on one connection.
#[derive(Debug)]
pub struct Tap {
    receipts: Receipts,
    bytes: Vec<u8>,
}

impl Tap {
    /// The host read these bytes.
    pub fn read(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let mut received = self.receipts.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() {
            let length = u32::from_be_bytes(*header) as usize;
            let Some(payload) = rest.get(..length) else { return };
            let name = String::from_utf8_lossy(payload).into_owned();
            received.entry(name).or_insert(now);
            self.bytes.drain(..HEADER + length);
        }
    }
}
