//! Which of the numbered records are there, and how often.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use crate::kafka_topic::{number, payload};

/// How often each number was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    times: Vec<u16>,
    size: usize,
    strange: u64,
}

impl Seen {
    /// Nothing yet of `records` records of `size` bytes.
    pub fn new(records: u64, size: usize) -> Seen {
        Seen { times: vec![0; records as usize], size, strange: 0 }
    }

    /// One record as it was found.
    pub fn add(&mut self, record: &[u8]) {
        let known = number(record).filter(|number| payload(*number, self.size).as_bytes() == record);
        match known.and_then(|number| self.times.get_mut((number as usize).wrapping_sub(1))) {
            Some(times) => *times = times.saturating_add(1),
            None => self.strange += 1,
        }
    }

    /// The lines of a file; none when there is no file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn in_file(path: &Path, records: u64, size: usize) -> anyhow::Result<Seen> {
        let mut seen = Seen::new(records, size);
        if !path.exists() {
            return Ok(seen);
        }
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut line = Vec::new();
        while file.read_until(b'\n', &mut line)? > 0 {
            seen.add(line.strip_suffix(b"\n").unwrap_or(&line));
            line.clear();
        }
        Ok(seen)
    }

    /// The sums.
    pub fn account(&self) -> Account {
        let twice = self.times.iter().filter(|times| **times > 1);
        let repeats = twice.clone().map(|times| u64::from(*times) - 1).sum();
        Account {
            lost: self.times.iter().filter(|times| **times == 0).count() as u64,
            repeated: twice.count() as u64,
            repeats,
            strange: self.strange,
        }
    }
}

/// Sums over all records of a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Records that are not there.
    pub lost: u64,
    /// Records that are there more than once.
    pub repeated: u64,
    /// Times beyond the first, over all records.
    pub repeats: u64,
    /// What is there and was never sent.
    pub strange: u64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Account { lost, repeated, repeats, strange } = self;
        write!(f, "{lost} lost, {repeated} more than once ({repeats} repeats), {strange} never sent")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_repeated_and_strange_records_are_told_apart() {
        let mut seen = Seen::new(4, 20);
        for number in [1, 2, 2, 2, 4] {
            seen.add(payload(number, 20).as_bytes());
        }
        for strange in [&b"5..................."[..], b"3", b"", b"0...................", b"x"] {
            seen.add(strange);
        }
        assert_eq!(seen.account(), Account { lost: 1, repeated: 1, repeats: 2, strange: 5 });
    }
}
