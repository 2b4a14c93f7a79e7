//! Files as source and sink: a file in the world's directory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use async_trait::async_trait;
use connector_crds::systems::file::{AtEnd, FileFormat, FileSink, FileSource};
use connector_crds::{SinkSpec, SourceSpec};
use connector_tests::conformance::sink::{Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::source::{SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, Carries, World};

fn carries(format: FileFormat) -> Carries {
    match format {
        FileFormat::Lines => Carries::AllButLineFeed,
        FileFormat::LengthPrefixed => Carries::Anything,
    }
}

pub(crate) struct Source {
    path: PathBuf,
    format: FileFormat,
}

impl Source {
    pub(crate) async fn lines(world: &World) -> Source {
        Source::new(world, FileFormat::Lines)
    }

    pub(crate) async fn prefixed(world: &World) -> Source {
        Source::new(world, FileFormat::LengthPrefixed)
    }

    fn new(world: &World, format: FileFormat) -> Source {
        let path = world.path().join("in");
        fs::write(&path, "").unwrap();
        Source { path, format }
    }

    fn source(&self, at_end: AtEnd) -> SourceSpec {
        SourceSpec::File(FileSource {
            path: "in".into(),
            format: self.format,
            at_end,
            max_record_bytes: 16_384,
        })
    }
}

#[async_trait]
impl SourceFixture for Source {
    fn spec(&self) -> SourceSpec {
        self.source(AtEnd::Follow)
    }

    fn traits(&self) -> SourceTraits {
        SourceTraits { carries: carries(self.format), replayable: true, keeps_commits: true, streams: 1 }
    }

    async fn produce(&mut self, payloads: &[Vec<u8>]) {
        let mut bytes = Vec::new();
        for payload in payloads {
            match self.format {
                FileFormat::Lines => {
                    bytes.extend(payload);
                    bytes.push(b'\n');
                }
                FileFormat::LengthPrefixed => {
                    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
                    bytes.extend(payload);
                }
            }
        }
        let mut file = OpenOptions::new().append(true).open(&self.path).unwrap();
        // In two parts, so that a record is seen half.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first).unwrap();
        file.write_all(second).unwrap();
    }

    async fn break_down(&mut self) -> Ability {
        fs::rename(&self.path, self.path.with_extension("away")).unwrap();
        Ability::Done
    }

    async fn repair(&mut self) {
        fs::rename(self.path.with_extension("away"), &self.path).unwrap();
    }

    fn loss_is_noticed(&self) -> bool {
        true
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SourceSpec, &'static str> {
        Err("a file has no credentials, only permissions, which do not bind root")
    }

    fn finite(&self) -> Result<SourceSpec, &'static str> {
        Ok(self.source(AtEnd::Finish))
    }
}

pub(crate) struct Sink {
    path: PathBuf,
    format: FileFormat,
}

impl Sink {
    pub(crate) async fn lines(world: &World) -> Sink {
        Sink::new(world, FileFormat::Lines)
    }

    pub(crate) async fn prefixed(world: &World) -> Sink {
        Sink::new(world, FileFormat::LengthPrefixed)
    }

    fn new(world: &World, format: FileFormat) -> Sink {
        Sink { path: world.path().join("out/of"), format }
    }
}

#[async_trait]
impl SinkFixture for Sink {
    fn spec(&self) -> SinkSpec {
        SinkSpec::File(FileSink { path: "out/of".into(), format: self.format })
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits { carries: carries(self.format), replay: Replay::ExactlyOnce }
    }

    fn record(&self, _number: u64, payload: &[u8]) -> Vec<u8> {
        payload.to_vec()
    }

    async fn delivered(&mut self, _count: usize) -> Vec<Vec<u8>> {
        let bytes = fs::read(&self.path).unwrap();
        match self.format {
            FileFormat::Lines => bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(|line| line.strip_suffix(b"\n").unwrap().to_vec())
                .collect(),
            FileFormat::LengthPrefixed => {
                let mut rest = &bytes[..];
                let mut payloads = Vec::new();
                while let Some((length, after)) = rest.split_first_chunk() {
                    let (payload, after) = after.split_at(u32::from_be_bytes(*length) as usize);
                    payloads.push(payload.to_vec());
                    rest = after;
                }
                payloads
            }
        }
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        match self.format {
            FileFormat::Lines => Ok(b"two\nlines".to_vec()),
            FileFormat::LengthPrefixed => Err("any record has a length"),
        }
    }

    async fn break_down(&mut self) -> Ability {
        Ability::NotApplicable("a file that is open stays writable")
    }

    async fn repair(&mut self) {}

    fn wrong_credentials(&self, _world: &World) -> Result<SinkSpec, &'static str> {
        Err("a file has no credentials, only permissions, which do not bind root")
    }
}
