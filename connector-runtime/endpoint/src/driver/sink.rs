//! One link to a sink: dials, introduces itself, sends output, asks for votes, and dials again after a loss.

use std::sync::Arc;
use std::time::Duration;

use connector_env::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::{sleep, timeout};
use wallaroo_protocol::{
    Cookie, DEFAULT_FRAME_LIMIT, SinkClient, SinkClientConfig, SinkClientError, SinkClientEvent,
};

use super::Shared;
use super::write::Outgoing;
use crate::cluster::{Intro, LinkId, SinkCommand, Wake};
use crate::config::SinkProtocol;

/// Output that is fetched from the cluster only while fewer bytes than this wait for the socket.
const MAX_OUTGOING: usize = 256 * 1024;

/// Pause of a connector sink before it is dialled again (§4.1).
const CONNECTOR_RETRY: u64 = 1_000;

/// Pause of a plain sink before it is dialled again (§1.3).
const PLAIN_RETRY: u64 = 250;

/// How long a sink may take to close its side after ours (§4.9); a real worker would wait for ever.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

struct Settings {
    address: String,
    cookie: Option<Cookie>,
    application: String,
    worker: String,
    stream_name: String,
    key: String,
    pause: Duration,
}

/// How a connection ended.
enum End {
    /// The peer or the network ended it, or the cluster wants it gone at once.
    Gone,
    /// Our side is to be closed first; the sink then closes its own.
    Closing,
}

/// Keeps the link connected until its worker leaves the cluster.
pub(crate) async fn run<E: Env>(shared: Arc<Shared<E>>, id: LinkId) {
    let Some(settings) = shared.with(|cluster| {
        let link = cluster.link(id)?;
        let config = cluster.config();
        let sink = &config.sinks[link.sink()];
        let (cookie, pause) = match &sink.protocol {
            SinkProtocol::Connector { cookie } => {
                (Some(Cookie::new(cookie.expose().to_owned())), CONNECTOR_RETRY)
            }
            SinkProtocol::FramedTcp | SinkProtocol::Stream05 | SinkProtocol::Stream06 => (None, PLAIN_RETRY),
        };
        Some(Settings {
            address: sink.connect.clone(),
            cookie,
            application: config.name.clone(),
            worker: link.worker().to_owned(),
            stream_name: link.stream_name().to_owned(),
            key: link.key().to_owned(),
            pause: Duration::from_millis(sink.retry_ms.unwrap_or(pause)),
        })
    }) else {
        return;
    };
    let mut reported = false;
    while shared.with(|cluster| cluster.link(id).is_some()) {
        match shared.env.connect(&settings.address).await {
            Ok(link) => {
                reported = false;
                connected(&shared, id, &settings, link).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::info!(sink = settings.key, address = settings.address, %error, "sink is not there yet");
                }
            }
        }
        if shared.with(|cluster| cluster.link(id).is_some()) {
            sleep(settings.pause).await;
        }
    }
    shared.forget(Wake::Link(id));
}

async fn connected<E: Env>(shared: &Shared<E>, id: LinkId, settings: &Settings, link: E::Link) {
    let Some(intro) = shared.with(|cluster| cluster.sink_connected(id)) else { return };
    let connection = intro.connection;
    let (mut reader, mut writer) = split(link);
    let mut outgoing = Outgoing::default();
    let end = match &settings.cookie {
        Some(cookie) => {
            let config = SinkClientConfig {
                cookie: cookie.clone(),
                application: settings.application.clone(),
                worker: settings.worker.clone(),
                stream_name: settings.stream_name.clone(),
                notify_position: intro.offset,
                rtag: intro.rtag,
                max_frame: DEFAULT_FRAME_LIMIT,
            };
            connector(shared, id, &intro, config, settings, &mut reader, &mut writer, &mut outgoing).await
        }
        None => plain(shared, id, connection, &mut reader, &mut writer, &mut outgoing).await,
    };
    match end {
        End::Gone => drop((reader, writer)),
        End::Closing => close_gently(shared, settings, reader, writer).await,
    }
    let unwritten = outgoing.len() as u64;
    shared.with(|cluster| cluster.sink_lost(id, connection, unwritten));
}

/// Closes our side and waits for the sink to close its own, which it must (§4.9).
async fn close_gently<E: Env>(
    shared: &Shared<E>,
    settings: &Settings,
    mut reader: ReadHalf<E::Link>,
    mut writer: WriteHalf<E::Link>,
) {
    if writer.shutdown().await.is_err() {
        return;
    }
    let mut rest = [0; 1024];
    let drained = timeout(CLOSE_DEADLINE, async { while matches!(reader.read(&mut rest).await, Ok(1..)) {} });
    if drained.await.is_err() {
        let detail = "the sink did not close its side within 10 s (§4.9): a real worker would hang";
        shared.with(|cluster| cluster.violation(&settings.key, detail, false));
    }
}

#[allow(clippy::too_many_arguments)] // one call; the parts of a connection
async fn connector<E: Env>(
    shared: &Shared<E>,
    id: LinkId,
    intro: &Intro,
    config: SinkClientConfig,
    settings: &Settings,
    reader: &mut ReadHalf<E::Link>,
    writer: &mut WriteHalf<E::Link>,
    outgoing: &mut Outgoing,
) -> End {
    let wake = shared.sleeper(Wake::Link(id));
    let mut client = match SinkClient::new(config, shared.now()) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(sink = settings.key, %error, "cannot introduce the worker to the sink");
            return End::Gone;
        }
    };
    let mut closing = shared.with(crate::cluster::Cluster::closes_after_intro);
    loop {
        let mut stale = false;
        let piece = shared.with(|cluster| {
            while !closing && !stale && outgoing.len() + client.output_len() < MAX_OUTGOING {
                let Some(command) = cluster.next_sink_command(id, intro.connection) else { break };
                let done = match command {
                    SinkCommand::Output(block) => client.send(block.offset, block.iter()).map(|_| ()),
                    SinkCommand::Phase1 { transaction, start, end } => {
                        client.phase1(transaction.as_bytes(), start, end)
                    }
                    SinkCommand::Phase2 { transaction, commit } => {
                        client.phase2(transaction.as_bytes(), commit)
                    }
                    SinkCommand::WorkersLeft(names) => {
                        client.workers_left(names.into_iter().map(Into::into).collect())
                    }
                    SinkCommand::Close => {
                        closing = true;
                        Ok(())
                    }
                    SinkCommand::Abandon => {
                        stale = true;
                        Ok(())
                    }
                };
                if let Err(error) = done {
                    tracing::error!(sink = settings.key, %error, "cannot send to the sink");
                    stale = true;
                }
            }
            cluster.faults().split_writes.unwrap_or(usize::MAX)
        });
        if stale {
            return End::Gone; // a rollback drops the connection at once
        }
        if let Some(bytes) = client.poll_output() {
            outgoing.push(bytes);
        }
        if closing && outgoing.is_empty() {
            return End::Closing;
        }
        tokio::select! {
            biased;
            () = wake.notified() => {}
            written = outgoing.write(writer, piece), if !outgoing.is_empty() => {
                if written.is_err() {
                    return End::Gone;
                }
            }
            read = reader.read_buf(client.input()), if !closing => match read {
                Ok(0) | Err(_) => return End::Gone,
                Ok(_) => {
                    if let Err(error) = client.handle_input(shared.now()) {
                        report(shared, settings, &error);
                        closing = true;
                    }
                    take_events(shared, id, intro.connection, &mut client);
                }
            },
        }
    }
}

fn take_events<E: Env>(shared: &Shared<E>, id: LinkId, connection: u64, client: &mut SinkClient) {
    let text = |transaction: &[u8]| String::from_utf8_lossy(transaction).into_owned();
    shared.with(|cluster| {
        while let Some(event) = client.poll_event() {
            match event {
                SinkClientEvent::Ready => cluster.sink_listed(id, connection, &[]),
                SinkClientEvent::Uncommitted { transactions } => {
                    let transactions: Vec<String> = transactions.iter().map(|t| text(t)).collect();
                    cluster.sink_listed(id, connection, &transactions);
                }
                SinkClientEvent::Vote { transaction, commit } => {
                    cluster.sink_voted(id, connection, &text(&transaction), commit);
                }
            }
        }
    });
}

fn report<E: Env>(shared: &Shared<E>, settings: &Settings, error: &SinkClientError) {
    if let SinkClientError::Peer(text) = error {
        tracing::warn!(sink = settings.key, "the sink ended the session: {text}");
        return;
    }
    shared.with(|cluster| cluster.violation(&settings.key, &error.to_string(), error.kills_worker()));
}

async fn plain<E: Env>(
    shared: &Shared<E>,
    id: LinkId,
    connection: u64,
    reader: &mut ReadHalf<E::Link>,
    writer: &mut WriteHalf<E::Link>,
    outgoing: &mut Outgoing,
) -> End {
    let wake = shared.sleeper(Wake::Link(id));
    let mut ignored = [0; 4096];
    let mut closing = false;
    loop {
        let mut stale = false;
        let piece = shared.with(|cluster| {
            if outgoing.is_empty() {
                cluster.sink_written(id, connection);
            }
            while !closing && !stale && outgoing.len() < MAX_OUTGOING {
                match cluster.next_sink_command(id, connection) {
                    None => break,
                    Some(SinkCommand::Output(block)) => outgoing.push(block.into_bytes()),
                    Some(SinkCommand::Close) => closing = true,
                    Some(SinkCommand::Abandon) => stale = true,
                    // Plain sinks take no part in two-phase commit.
                    Some(
                        SinkCommand::Phase1 { .. } | SinkCommand::Phase2 { .. } | SinkCommand::WorkersLeft(_),
                    ) => {}
                }
            }
            cluster.faults().split_writes.unwrap_or(usize::MAX)
        });
        if stale {
            return End::Gone;
        }
        if closing && outgoing.is_empty() {
            return End::Closing;
        }
        tokio::select! {
            biased;
            () = wake.notified() => {}
            written = outgoing.write(writer, piece), if !outgoing.is_empty() => {
                if written.is_err() {
                    return End::Gone;
                }
            }
            // What the receiver sends is read and thrown away (§1.3).
            read = reader.read(&mut ignored) => match read {
                Ok(0) | Err(_) => return End::Gone,
                Ok(_) => {}
            },
        }
    }
}
