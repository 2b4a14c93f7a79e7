//! Dead letters in a file: one JSON object a line, synced one by one.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connector_env::{Env, File};
use serde::Serialize;

use super::{DeadLetter, Letter};
use crate::source::{ErrorClass, SystemError};

/// Appends each letter as one line of JSON:
///
/// ```json
/// {"stream":"worker-1","position":42,"time":0,"key":"","payload":"AAEC","reason":"..."}
/// ```
///
/// `payload` and `key` are base64, for they may be any bytes. The line is on stable storage when `write` returns. A line that
/// a crash or a full disk cut off is ended by the next one and stands as it is. A file that was moved away is begun anew.
#[derive(Debug)]
pub struct FileDeadLetter<E: Env> {
    env: E,
    path: PathBuf,
    file: Option<E::File>,
}

#[derive(Serialize)]
struct Line<'a> {
    stream: &'a str,
    position: u64,
    time: i64,
    key: String,
    payload: String,
    reason: &'a str,
}

impl<E: Env> FileDeadLetter<E> {
    /// Letters in the file at `path`, which is made, with its directory, by the first one.
    pub fn new(env: E, path: PathBuf) -> FileDeadLetter<E> {
        FileDeadLetter { env, path, file: None }
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let mut file = match self.file.take().filter(|_| self.env.exists(&self.path)) {
            Some(file) => file,
            None => open(&self.env, &self.path)?,
        };
        let length = file.len()?;
        if let Err(error) = file.append(line) {
            // Without room what was written of the line goes; if that fails, the next line ends it.
            let _ = file.truncate(length);
            return Err(error);
        }
        // After a failed sync the file is not kept: the letter comes again, into newly written pages.
        file.sync()?;
        self.file = Some(file);
        Ok(())
    }
}

fn open<E: Env>(env: &E, path: &Path) -> io::Result<E::File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        env.create_dir_all(parent)?;
    }
    let mut file = env.open(path)?;
    let length = file.len()?;
    if length > 0 {
        let mut last = [0];
        file.read_at(length - 1, &mut last)?;
        if last != *b"\n" {
            file.append(b"\n")?;
        }
    }
    env.sync_dir(parent.unwrap_or(Path::new(".")))?;
    Ok(file)
}

#[async_trait]
impl<E: Env> DeadLetter for FileDeadLetter<E> {
    async fn write(&mut self, letter: Letter<'_>) -> Result<(), SystemError> {
        let line = Line {
            stream: letter.stream,
            position: letter.position,
            time: letter.time,
            key: STANDARD.encode(letter.key),
            payload: STANDARD.encode(letter.payload),
            reason: letter.reason,
        };
        let written = serde_json::to_vec(&line).map_err(io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            self.append(&line)
        });
        written.map_err(|error| SystemError::Transient {
            context: format!("writing a dead letter to {}: {error}", self.path.display()),
            class: match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::Throttled,
                io::ErrorKind::PermissionDenied => ErrorClass::Auth,
                _ => ErrorClass::Rejected,
            },
            cause: Some(error.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use connector_env::TokioEnv;
    use serde_json::{Value, json};

    fn letter(payload: &[u8], position: u64) -> Letter<'_> {
        Letter { stream: "worker-1", position, time: 5, key: b"k", payload, reason: "no \"such\" field\n" }
    }

    fn lines(path: &Path) -> Vec<Result<Value, String>> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).map_err(|_| line.to_owned())).collect()
    }

    #[tokio::test]
    async fn a_letter_is_one_line_with_everything_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/letters.jsonl");
        let mut letters = FileDeadLetter::new(TokioEnv, path.clone());
        letters.write(letter(&[0, 1, 255], 42)).await.unwrap();
        letters.write(letter(b"", 43)).await.unwrap();
        let expected = json!({
            "stream": "worker-1", "position": 42, "time": 5, "key": "aw==", "payload": "AAH/", "reason": "no \"such\" field\n"
        });
        let lines = lines(&path);
        assert_eq!((lines.len(), &lines[0]), (2, &Ok(expected)));
    }

    #[tokio::test]
    async fn a_line_that_was_cut_off_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("letters");
        std::fs::write(&path, "{\"stream\":\"wor").unwrap();
        FileDeadLetter::new(TokioEnv, path.clone()).write(letter(b"x", 1)).await.unwrap();
        let lines = lines(&path);
        assert_eq!(lines[0], Err("{\"stream\":\"wor".to_owned()));
        assert_eq!(lines[1].as_ref().unwrap()["position"], 1);
    }

    #[tokio::test]
    async fn a_file_that_was_moved_away_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("letters");
        let mut letters = FileDeadLetter::new(TokioEnv, path.clone());
        letters.write(letter(b"x", 1)).await.unwrap();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        letters.write(letter(b"y", 2)).await.unwrap();
        assert_eq!(lines(&path).len(), 1);
    }

    #[tokio::test]
    async fn a_failure_names_the_file_and_passes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("letters");
        std::fs::create_dir(&path).unwrap();
        let error = FileDeadLetter::new(TokioEnv, path.clone()).write(letter(b"x", 1)).await.unwrap_err();
        assert!(matches!(&error, SystemError::Transient { .. }));
        assert!(error.to_string().contains(&*path.to_string_lossy()));
    }
}
