//! The model of a dead-letter file: outlives every process, and fails now and then.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use connector_runtime::pump::dead_letter::{DeadLetter, Letter};
use connector_runtime::source::{ErrorClass, SystemError};
use tokio::time::Duration;

use super::random::Random;

/// Names of records that became dead letters. Clones are the same file.
#[derive(Clone, Debug, Default)]
pub struct ModelLetters(Arc<Mutex<BTreeSet<String>>>);

impl ModelLetters {
    /// True if this record became a dead letter.
    pub fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// A writer, new as after a start of its process.
    pub fn writer(&self, random: Random) -> Box<dyn DeadLetter> {
        Box::new(Writer { letters: self.clone(), random })
    }
}

struct Writer {
    letters: ModelLetters,
    random: Random,
}

#[async_trait]
impl DeadLetter for Writer {
    async fn write(&mut self, letter: Letter<'_>) -> Result<(), SystemError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.random.chance(30) {
            let context = "writing to the model dead letter".to_owned();
            return Err(SystemError::Transient { context, class: ErrorClass::Connect, cause: None });
        }
        // Padding makes a record too large; its name is what is before it.
        let name = String::from_utf8_lossy(letter.payload).trim_end_matches('x').to_owned();
        self.letters.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        Ok(())
    }
}
