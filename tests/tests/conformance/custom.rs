//! Custom connectors: processes of the protocol's Rust side, as tasks of the test, over the file systems.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use connector_crds::systems::custom::{
    CustomProcess, CustomSink, CustomSource, SinkPositions, SourcePositions,
};
use connector_crds::systems::file::{AtEnd, FileFormat};
use connector_crds::{Resources, SinkSpec, SourceSpec};
use connector_runtime::connectors::custom::guest::{serve_sink, serve_source};
use connector_runtime::connectors::{self, Context};
use connector_tests::conformance::sink::{Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::source::{SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, World};
use tokio::task::JoinHandle;

use crate::file_fixture;

fn process(entries: &[(&str, &str)]) -> CustomProcess {
    CustomProcess {
        image: "registry.example/files:1".into(),
        command: Vec::new(),
        args: Vec::new(),
        config: entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        secrets: Vec::new(),
        resources: Resources::default(),
    }
}

/// The context of a process: it has a state directory of its own.
fn inner(world: &World) -> (PathBuf, Context) {
    let mut context = world.context();
    let socket = std::mem::take(&mut context.socket);
    context.state = world.path().join("inner");
    std::fs::create_dir_all(&context.state).unwrap();
    (socket, context)
}

pub(crate) struct Source {
    file: file_fixture::Source,
    context: (PathBuf, Context),
    process: JoinHandle<()>,
}

impl Source {
    pub(crate) async fn new(world: &World) -> Source {
        let context = inner(world);
        let process = start_source(&context);
        Source { file: file_fixture::Source::prefixed(world).await, context, process }
    }
}

fn start_source((socket, context): &(PathBuf, Context)) -> JoinHandle<()> {
    let (socket, context) = (socket.clone(), context.clone());
    tokio::spawn(async move {
        // A process that was told to leave is started again, as a kubelet does.
        loop {
            let mut make = |start: &connectors::custom::guest::Start| {
                let at_end = if start.config.contains_key("finish") { AtEnd::Finish } else { AtEnd::Follow };
                let spec = connector_crds::systems::file::FileSource {
                    path: "in".into(),
                    format: FileFormat::LengthPrefixed,
                    at_end,
                    max_record_bytes: 16_384,
                };
                connectors::source(&SourceSpec::File(spec), context.clone())
            };
            let _ = serve_source(Path::new(&socket), "files", &mut make).await;
        }
    })
}

#[async_trait]
impl SourceFixture for Source {
    fn spec(&self) -> SourceSpec {
        SourceSpec::Custom(CustomSource { process: process(&[]), positions: SourcePositions::Ordered })
    }

    fn traits(&self) -> SourceTraits {
        self.file.traits()
    }

    async fn produce(&mut self, payloads: &[Vec<u8>]) {
        self.file.produce(payloads).await;
    }

    async fn break_down(&mut self) -> Ability {
        self.process.abort();
        Ability::Done
    }

    async fn repair(&mut self) {
        self.process = start_source(&self.context);
    }

    fn loss_is_noticed(&self) -> bool {
        true
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SourceSpec, &'static str> {
        Err("who may open the socket may speak")
    }

    fn finite(&self) -> Result<SourceSpec, &'static str> {
        let process = process(&[("finish", "true")]);
        Ok(SourceSpec::Custom(CustomSource { process, positions: SourcePositions::Ordered }))
    }
}

pub(crate) struct Sink {
    file: file_fixture::Sink,
    context: (PathBuf, Context),
    process: JoinHandle<()>,
}

impl Sink {
    pub(crate) async fn new(world: &World) -> Sink {
        let file = file_fixture::Sink::lines(world).await;
        let context = inner(world);
        let process = start_sink(&context, file.spec());
        Sink { file, context, process }
    }
}

fn start_sink((socket, context): &(PathBuf, Context), spec: SinkSpec) -> JoinHandle<()> {
    let (socket, context) = (socket.clone(), context.clone());
    tokio::spawn(async move {
        loop {
            let mut make = |_: &connectors::custom::guest::Start| connectors::sink(&spec, context.clone());
            let _ = serve_sink(Path::new(&socket), "files", &mut make).await;
        }
    })
}

#[async_trait]
impl SinkFixture for Sink {
    fn spec(&self) -> SinkSpec {
        SinkSpec::Custom(CustomSink { process: process(&[]), positions: SinkPositions::Ordered })
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits { replay: Replay::ExactlyOnce, ..self.file.traits() }
    }

    fn record(&self, number: u64, payload: &[u8]) -> Vec<u8> {
        self.file.record(number, payload)
    }

    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>> {
        self.file.delivered(count).await
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        self.file.bad_record()
    }

    async fn break_down(&mut self) -> Ability {
        self.process.abort();
        Ability::Done
    }

    async fn repair(&mut self) {
        self.process = start_sink(&self.context, self.file.spec());
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SinkSpec, &'static str> {
        Err("who may open the socket may speak")
    }
}
