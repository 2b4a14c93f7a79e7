//! Secrets are files: read when needed, watched for change, never shown.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use connector_crds::SecretKeyRef;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::source::SystemError;

/// Longest secret that is read, in bytes: a Kubernetes Secret holds at most 1 MiB in all.
const MAX_SECRET_BYTES: u64 = 1_048_576;

/// How often the mounted files are looked at. The kubelet swaps them within about a minute of a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// The mounted Secrets of this Connector.
#[derive(Clone, Debug)]
pub struct Secrets {
    directory: Arc<Path>,
    generation: watch::Receiver<u64>,
}

/// A reference that cannot be resolved now; the file may appear later.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The Secret or the key does not exist.
    #[error("key {key:?} of Secret {name:?} does not exist")]
    Missing {
        /// Name of the Secret.
        name: String,
        /// Key.
        key: String,
    },
    /// The file cannot be read, is too long, or is no UTF-8.
    #[error("key {key:?} of Secret {name:?} cannot be read: {cause}")]
    Unreadable {
        /// Name of the Secret.
        name: String,
        /// Key.
        key: String,
        /// What went wrong; never the content.
        cause: io::Error,
    },
}

impl SecretError {
    /// The condition reason that the status shows.
    pub fn reason(&self) -> &'static str {
        match self {
            SecretError::Missing { .. } => "SecretMissing",
            SecretError::Unreadable { .. } => "SecretUnreadable",
        }
    }
}

impl From<SecretError> for SystemError {
    fn from(error: SecretError) -> Self {
        // Transient: the pod goes on when the Secret appears.
        SystemError::Transient {
            context: error.to_string(),
            class: crate::source::ErrorClass::Auth,
            cause: None,
        }
    }
}

impl Secrets {
    /// Secrets below `directory`, and a sender that counts their changes (see [`watch_files`]).
    pub fn new(directory: impl Into<PathBuf>) -> (Secrets, watch::Sender<u64>) {
        let (sender, generation) = watch::channel(0);
        (Secrets { directory: directory.into().into(), generation }, sender)
    }

    /// The file of a reference: what clients take that read files themselves.
    pub fn path(&self, reference: &SecretKeyRef) -> PathBuf {
        self.directory.join(&reference.name).join(&reference.key)
    }

    /// The value as text, without a line feed at its end.
    pub fn read(&self, reference: &SecretKeyRef) -> Result<SecretString, SecretError> {
        let unreadable = |cause| SecretError::Unreadable {
            name: reference.name.clone(),
            key: reference.key.clone(),
            cause,
        };
        let path = self.path(reference);
        let metadata = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SecretError::Missing {
                    name: reference.name.clone(),
                    key: reference.key.clone(),
                });
            }
            other => other.map_err(unreadable)?,
        };
        if metadata.len() > MAX_SECRET_BYTES {
            return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB")));
        }
        let mut text = std::fs::read_to_string(&path).map_err(unreadable)?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(SecretString::from(text))
    }

    /// A receiver that changes whenever a mounted file does. New connections use the new value; a connector that holds a
    /// connection open decides for itself whether to renew it.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }
}

/// Watches the files below the directory of `secrets` for ever and counts changes of their content.
///
/// Cancel-safe. Compares hashes, so that touching a file without changing it does nothing.
pub async fn watch_files(secrets: Secrets, sender: watch::Sender<u64>) {
    let mut last = fingerprint(&secrets.directory);
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let now = fingerprint(&secrets.directory);
        if now != last {
            last = now;
            sender.send_modify(|generation| *generation += 1);
            tracing::info!("Secrets changed, new connections use them");
        }
    }
}

/// A hash over names and contents two levels below `directory`; absent or unreadable files count as empty.
fn fingerprint(directory: &Path) -> [u8; 32] {
    let mut hash = Sha256::new();
    let entries = |path: &Path| {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
            .map(|entries| entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
            .unwrap_or_default();
        entries.sort();
        entries
    };
    for secret in entries(directory) {
        for key in entries(&secret) {
            if key.metadata().is_ok_and(|m| m.is_file() && m.len() <= MAX_SECRET_BYTES) {
                hash.update(key.as_os_str().as_encoded_bytes());
                hash.update([0]);
                hash.update(Sha256::digest(std::fs::read(&key).unwrap_or_default()));
            }
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn reference() -> SecretKeyRef {
        SecretKeyRef { name: "kafka".into(), key: "password".into() }
    }

    #[test]
    fn a_missing_key_is_named_and_its_value_is_read_once_it_appears() {
        let directory = tempfile::tempdir().unwrap();
        let (secrets, _sender) = Secrets::new(directory.path());
        let error = secrets.read(&reference()).unwrap_err();
        assert_eq!(error.to_string(), r#"key "password" of Secret "kafka" does not exist"#);

        std::fs::create_dir(directory.path().join("kafka")).unwrap();
        std::fs::write(secrets.path(&reference()), "canary\n").unwrap();
        let value = secrets.read(&reference()).unwrap();
        assert_eq!(value.expose_secret(), "canary");
        assert!(!format!("{value:?} {secrets:?}").contains("canary"));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_changed_content_counts_as_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let (secrets, sender) = Secrets::new(directory.path());
        std::fs::create_dir(directory.path().join("kafka")).unwrap();
        std::fs::write(secrets.path(&reference()), "one").unwrap();
        let mut changes = secrets.changes();
        let watcher = tokio::spawn(watch_files(secrets.clone(), sender));
        tokio::time::sleep(WATCH_INTERVAL * 3 / 2).await;
        std::fs::write(secrets.path(&reference()), "one").unwrap();
        tokio::time::sleep(WATCH_INTERVAL * 2).await;
        assert!(!changes.has_changed().unwrap());
        std::fs::write(secrets.path(&reference()), "two").unwrap();
        tokio::time::timeout(WATCH_INTERVAL * 3, changes.changed()).await.unwrap().unwrap();
        watcher.abort();
    }
}
