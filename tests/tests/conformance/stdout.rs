//! Standard output: a buffer stands for it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};

use async_trait::async_trait;
use connector_crds::SinkSpec;
use connector_crds::systems::stdout::StdoutSink as Spec;
use connector_runtime::connectors::Context;
use connector_runtime::connectors::stdout::StdoutSink;
use connector_tests::conformance::sink::{Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::{Ability, Carries, World};
use tokio::io::AsyncWrite;

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    broken: bool,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Output>>);

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, _: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut output = self.0.lock().unwrap();
        if output.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        output.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub(crate) struct Sink {
    output: Shared,
}

impl Sink {
    pub(crate) async fn new(_world: &World) -> Sink {
        Sink { output: Shared::default() }
    }
}

#[async_trait]
impl SinkFixture for Sink {
    fn spec(&self) -> SinkSpec {
        SinkSpec::Stdout(Spec {})
    }

    fn sink(&mut self, _context: Context) -> Box<dyn connector_runtime::sink::Sink> {
        Box::new(StdoutSink::to(self.output.clone()))
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits { carries: Carries::AllButLineFeed, replay: Replay::Repeats }
    }

    fn record(&self, _number: u64, payload: &[u8]) -> Vec<u8> {
        payload.to_vec()
    }

    async fn delivered(&mut self, _count: usize) -> Vec<Vec<u8>> {
        let output = self.output.0.lock().unwrap();
        let lines = output.bytes.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| line.strip_suffix(b"\n").unwrap().to_vec()).collect()
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        Err("it takes any bytes")
    }

    async fn break_down(&mut self) -> Ability {
        self.output.0.lock().unwrap().broken = true;
        Ability::Done
    }

    async fn repair(&mut self) {
        self.output.0.lock().unwrap().broken = false;
    }

    fn loss_is_checked(&self) -> bool {
        // A pipe tells with the next write only.
        false
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SinkSpec, &'static str> {
        Err("it has no credentials")
    }
}
