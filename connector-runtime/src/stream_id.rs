//! The identity of a stream at Wallaroo, which has to be the same after every restart.

use std::collections::BTreeMap;

use connector_crds::ConnectorIdentity;
use sha2::{Digest, Sha256};
use wallaroo_protocol::StreamId;

/// The id of a system's stream: the first 8 bytes, big-endian, of SHA-256 over namespace, connector, stream and epoch.
///
/// Each part is preceded by its length, so that no two different lists of parts hash alike. Ids 0 and 1 mean something on
/// sink connections and are kept free: the digest is hashed again until it gives another.
pub fn stream_id(identity: &ConnectorIdentity, stream: &str) -> StreamId {
    let mut hash = Sha256::new();
    for part in [&identity.namespace, &identity.name, stream, &identity.epoch] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut digest = hash.finalize();
    loop {
        let id = digest.iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte));
        if id > 1 {
            return StreamId(id);
        }
        digest = Sha256::digest(digest);
    }
}

/// The name that goes over the wire, for Wallaroo's logs: never empty (an empty one kills a worker), at most 255 bytes.
pub fn wire_name(identity: &ConnectorIdentity, stream: &str) -> String {
    let mut name = format!("{}/{}/{stream}", identity.namespace, identity.name);
    let mut end = name.len().min(MAX_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

/// Longest name on the wire, in bytes: logs stay readable, and NOTIFY is far below the frame limit.
const MAX_NAME_BYTES: usize = 255;

/// Two streams of one connector have the same id: only one of them can be told apart at Wallaroo.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "streams {first:?} and {second:?} have the same id {id} at Wallaroo; `positionReset` with a new value gives \
     every stream another"
)]
pub struct IdCollision {
    /// The stream that has the id.
    pub first: String,
    /// The stream that is refused.
    pub second: String,
    /// The id.
    pub id: StreamId,
}

/// The ids that are in use, with the stream of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamIds(BTreeMap<StreamId, String>);

impl StreamIds {
    /// Takes an id for a stream; taking it again for the same stream is fine.
    pub fn claim(&mut self, id: StreamId, stream: &str) -> Result<(), IdCollision> {
        match self.0.get(&id) {
            None => {
                self.0.insert(id, stream.to_owned());
                Ok(())
            }
            Some(first) if first == stream => Ok(()),
            Some(first) => Err(IdCollision { first: first.clone(), second: stream.to_owned(), id }),
        }
    }

    /// Gives an id back.
    pub fn give_back(&mut self, id: StreamId) {
        self.0.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(namespace: &str, name: &str, epoch: &str) -> ConnectorIdentity {
        ConnectorIdentity { namespace: namespace.into(), name: name.into(), epoch: epoch.into() }
    }

    #[test]
    fn the_id_of_a_stream_never_changes_between_versions_of_this_program() {
        // Computed once with `sha256sum` over the length-prefixed parts; another value would open every stream anew.
        assert_eq!(
            stream_id(&identity("default", "temps", ""), "readings.csv"),
            StreamId(0x158d_29c9_aa49_006e)
        );
    }

    #[test]
    fn every_part_counts_and_parts_do_not_run_into_each_other() {
        let base = stream_id(&identity("a", "b", ""), "c");
        for other in [
            stream_id(&identity("a", "b", "1"), "c"),
            stream_id(&identity("ab", "", ""), "c"),
            stream_id(&identity("", "ab", ""), "c"),
            stream_id(&identity("a", "bc", ""), ""),
            stream_id(&identity("a", "b", "c"), ""),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn names_on_the_wire_are_neither_empty_nor_long() {
        assert_eq!(wire_name(&identity("ns", "c", ""), ""), "ns/c/");
        let long = wire_name(&identity("ns", "c", ""), &"é".repeat(400));
        assert!(long.len() <= MAX_NAME_BYTES && long.len() >= MAX_NAME_BYTES - 1, "{}", long.len());
    }

    #[test]
    fn a_second_stream_with_an_id_in_use_is_refused_by_name() {
        let mut ids = StreamIds::default();
        ids.claim(StreamId(7), "topic/0").unwrap();
        ids.claim(StreamId(7), "topic/0").unwrap();
        let refused = ids.claim(StreamId(7), "topic/1").unwrap_err();
        assert_eq!((refused.first.as_str(), refused.second.as_str()), ("topic/0", "topic/1"));
        ids.give_back(StreamId(7));
        ids.claim(StreamId(7), "topic/1").unwrap();
    }
}
