//! How many records a second an endpoint takes on this machine: `cargo run --release -p wallaroo-endpoint --example
//! throughput [records] [bytes]`. The sender runs in the same process and writes frames that were encoded before.

use std::time::Instant;

use bytes::BytesMut;
use connector_env::TokioEnv;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wallaroo_endpoint::config::{
    CookieText, Encoder, SinkConfig, SinkProtocol, SourceConfig, SourceProtocol,
};
use wallaroo_endpoint::{Endpoint, EndpointConfig};
use wallaroo_protocol::framing::{Framing, PlainRecord};
use wallaroo_protocol::{
    Cookie, Millis, OutRecord, SourceClient, SourceClientConfig, SourceClientEvent, StreamId,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const STREAM: StreamId = StreamId(1);

async fn framed(address: &str, records: u64, payload: &[u8]) -> Result<(), Failure> {
    let mut socket = TcpStream::connect(address).await?;
    let mut chunk = BytesMut::new();
    let batch = 1_000.min(records);
    let record = PlainRecord { time: 0, payload };
    Framing::RAW_U32BE.encode((0..batch).map(|_| record), usize::MAX, &mut chunk)?;
    for _ in 0..records / batch {
        socket.write_all(&chunk).await?;
    }
    socket.shutdown().await?;
    Ok(())
}

/// Sends while credits last, and waits for the last acknowledgement.
async fn connector(address: &str, records: u64, payload: &[u8]) -> Result<(), Failure> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (mut reader, mut writer) = socket.into_split();
    let config = SourceClientConfig::new(Cookie::new("Dragons-Love-Tacos"), "throughput", "one");
    let mut session = SourceClient::new(config, Millis(0))?;
    session.open(STREAM, b"stream", None, Millis(0))?;
    let mut next = 0;
    loop {
        while let Some(event) = session.poll_event() {
            match event {
                SourceClientEvent::Opened { .. } => next = 1,
                SourceClientEvent::Acknowledged { position, .. } if position == records => return Ok(()),
                _ => {}
            }
        }
        if next > 0 {
            let end = (next + session.credits()).min(next + 5_000).min(records + 1);
            let batch = (next..end).map(|id| OutRecord { id, time: 0, key: &[], payload });
            next += session.send(STREAM, batch)? as u64;
        }
        if let Some(output) = session.poll_output() {
            writer.write_all(&output).await?;
            if session.credits() > 0 && next > 0 && next <= records {
                continue;
            }
        }
        if reader.read_buf(session.input()).await? == 0 {
            return Err("the endpoint closed".into());
        }
        session.handle_input(Millis(0))?;
    }
}

async fn measure(
    name: &str,
    records: u64,
    bytes: usize,
    sink: bool,
    credits: (u32, u32),
) -> Result<(), Failure> {
    let payload = vec![b'x'; bytes];
    let receiver = TcpListener::bind("127.0.0.1:0").await?;
    let mut sinks = Vec::new();
    if sink {
        let address = receiver.local_addr()?.to_string();
        let sink = SinkConfig::new("out", address, SinkProtocol::FramedTcp);
        sinks.push(SinkConfig { encoder: Encoder::LengthPrefixed, ..sink });
    }
    let drain = tokio::spawn(async move {
        let Ok((mut socket, _)) = receiver.accept().await else { return };
        let mut buffer = vec![0; 256 * 1024];
        while matches!(socket.read(&mut buffer).await, Ok(1..)) {}
    });
    let framed_source = SourceConfig::new("framed", "127.0.0.1:0", SourceProtocol::framed());
    let connector_source = SourceConfig::new(
        "connector",
        "127.0.0.1:0",
        SourceProtocol::Connector {
            cookie: CookieText::default(),
            max_credits: credits.0,
            refill_credits: credits.1,
        },
    );
    let sources = vec![framed_source, connector_source];
    let config = EndpointConfig { sources, sinks, checkpoint_interval_ms: 50, ..EndpointConfig::default() };
    let endpoint = Endpoint::start(TokioEnv, config).await?;
    let control = endpoint.control();
    let limit = std::time::Duration::from_mins(2);
    control.wait_for("the first checkpoint", limit, |status| status.checkpoint > 0).await?;
    let address = endpoint.address(name).ok_or("no such source")?;
    let begun = Instant::now();
    if name == "framed" {
        framed(&address, records, &payload).await?;
    } else {
        connector(&address, records, &payload).await?;
    }
    control.wait_for("every record", limit, |status| status.records_in == records).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let sink = if sink { "FramedTCP sink" } else { "no sink" };
    println!(
        "{name:>10} {credits:?} -> {sink:<14} {:>10.0} records/s of {bytes} bytes",
        records as f64 / seconds
    );
    endpoint.kill().await;
    drain.abort();
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let records = arguments.next().map_or(Ok(3_000_000), |text| text.parse())?;
    let bytes = arguments.next().map_or(Ok(100), |text| text.parse())?;
    for sink in [false, true] {
        measure("framed", records, bytes, sink, (500, 50)).await?;
        measure("connector", records, bytes, sink, (500, 50)).await?;
        measure("connector", records, bytes, sink, (50_000, 25_000)).await?;
    }
    Ok(())
}
