//! Where the numbered records come from, at a rate at which the kills hit them on their way.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use connector_crds::SourceSpec;
use connector_crds::systems::kafka::{KafkaSource, StartPosition};
use serde_json::json;

use crate::kafka_topic::{self, Writer, payload};

/// Partitions of the topic.
pub const PARTITIONS: i32 = 4;

/// Time between two portions.
const PORTION: Duration = Duration::from_millis(20);

/// Topics made by this process.
static TOPICS: AtomicU32 = AtomicU32::new(0);

/// A kind of source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// A topic of these brokers.
    Kafka {
        /// `host:port`.
        brokers: String,
    },
    /// A file that grows.
    File,
    /// The generator.
    Generator,
}

/// Writes records in a thread of its own; stops when dropped.
#[derive(Debug)]
pub struct Feeding {
    /// What a connector reads them with.
    pub source: SourceSpec,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Feeding {
    /// Starts. Without a rate everything is there when this returns.
    ///
    /// # Errors
    /// When the system is not there.
    pub fn start(
        feed: &Feed,
        directory: &Path,
        records: u64,
        size: usize,
        rate: Option<u64>,
    ) -> anyhow::Result<Feeding> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (source, write): (_, Option<Box<Write>>) = match feed {
            Feed::Kafka { brokers } => {
                let topic = format!("kill-{}-{}", std::process::id(), TOPICS.fetch_add(1, Relaxed));
                kafka_topic::create(brokers, &topic, PARTITIONS)?;
                let writer = Writer::new(brokers, &topic, PARTITIONS, size)?;
                let write = move |numbers: Option<std::ops::RangeInclusive<u64>>| match numbers {
                    Some(numbers) => writer.write(numbers),
                    None => writer.finish(),
                };
                let source = SourceSpec::Kafka(KafkaSource {
                    bootstrap_servers: vec![brokers.clone()],
                    // A killed member of another run would hold its partitions for 45 s.
                    group: Some(topic.clone()),
                    topics: vec![topic],
                    topic_pattern: None,
                    start_position: StartPosition::default(),
                    tls: None,
                    sasl: None,
                });
                (source, Some(Box::new(write)))
            }
            Feed::File => {
                let path: PathBuf = directory.join("input.txt");
                let mut file = File::create(&path)?;
                let write = move |numbers: Option<std::ops::RangeInclusive<u64>>| {
                    let lines: Vec<String> =
                        numbers.into_iter().flatten().map(|number| payload(number, size) + "\n").collect();
                    Ok(file.write_all(lines.concat().as_bytes())?)
                };
                (serde_json::from_value(json!({"file": {"path": path}}))?, Some(Box::new(write)))
            }
            Feed::Generator => {
                let mut spec = json!({"generator": {"size": size, "count": records}});
                if let Some(rate) = rate {
                    spec["generator"]["rate"] = json!(rate);
                }
                (serde_json::from_value(spec)?, None)
            }
        };
        let mut feeding = Feeding { source, stop, thread: None };
        if let Some(mut write) = write {
            match rate {
                None => {
                    write(Some(1..=records))?;
                    write(None)?;
                }
                Some(rate) => {
                    feeding.thread =
                        Some(std::thread::spawn(move || paced(&mut *write, records, rate, &stopped)));
                }
            }
        }
        Ok(feeding)
    }

    /// The consumer group, for Kafka.
    pub fn group(&self) -> Option<&str> {
        match &self.source {
            SourceSpec::Kafka(spec) => spec.group.as_deref(),
            SourceSpec::Custom(_) | SourceSpec::File(_) | SourceSpec::Generator(_) | SourceSpec::Udp(_) => {
                None
            }
        }
    }

    /// True once everything is written, and for a source that makes its records itself.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Fails when writing failed.
    ///
    /// # Errors
    /// Why.
    pub fn works(&mut self) -> anyhow::Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(thread) = self.thread.take()
        {
            return thread.join().map_err(|_| anyhow!("the feeding thread panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("feeding: {error:#}");
        }
    }
}

/// Writes these records, or makes sure that all are written.
type Write = dyn FnMut(Option<std::ops::RangeInclusive<u64>>) -> anyhow::Result<()> + Send;

fn paced(write: &mut Write, records: u64, rate: u64, stopped: &AtomicBool) -> anyhow::Result<()> {
    let (begun, mut done) = (Instant::now(), 0);
    while done < records && !stopped.load(Relaxed) {
        let millis = u64::try_from(begun.elapsed().as_millis())?;
        let due = (millis.saturating_mul(rate) / 1_000).min(records);
        if due > done {
            write(Some(done + 1..=due))?;
            done = due;
        }
        std::thread::sleep(PORTION);
    }
    write(None)
}
