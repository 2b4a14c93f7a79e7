//! One connection of a connector source: moves bytes between socket and session, and records into the cluster.

use std::sync::Arc;
use std::time::Duration;

use connector_env::Env;
use tokio::io::{AsyncReadExt, split};
use tokio::time::{Instant, sleep_until};
use wallaroo_protocol::{
    Cookie, SourceServer, SourceServerConfig, SourceServerError, SourceServerEvent, StreamId, Tolerated,
};

use super::Shared;
use super::write::Outgoing;
use crate::cluster::{Batch, Cluster, ConnectionId, NotifyAnswer, SourceCommand, Wake};
use crate::config::SourceProtocol;

/// While so many bytes wait for a client that does not read, its requests are not read either.
const MAX_OUTGOING: usize = 1024 * 1024;

/// A client that lets so many bytes of acknowledgements pile up is cut off.
const MAX_UNREAD: usize = 16 * 1024 * 1024;

struct Session<'a, E> {
    shared: &'a Shared<E>,
    id: ConnectionId,
    place: String,
    server: SourceServer,
    /// When the OK that is held back is due.
    ok_at: Option<Instant>,
    /// A refused cookie was asked for by the fault plan.
    refusal_planned: bool,
    repeats: u64,
    orphaned: bool,
    closing: bool,
}

/// Serves the connection until it ends.
pub(crate) async fn run<E: Env>(shared: Arc<Shared<E>>, worker: String, source: usize, link: E::Link) {
    let id = shared.with(|cluster| cluster.source_connected(&worker, source));
    let (config, refusal_planned, place) = shared.with(|cluster| {
        let planned = cluster.faults().reject_cookie;
        let source = &cluster.config().sources[source];
        (server_config(&source.protocol, planned), planned, format!("{worker}/{}", source.name))
    });
    let session = Session {
        shared: &shared,
        id,
        place,
        server: SourceServer::new(config, shared.now()),
        ok_at: None,
        refusal_planned,
        repeats: 0,
        orphaned: false,
        closing: false,
    };
    serve(session, link).await;
    shared.with(|cluster| cluster.source_closed(id));
    shared.forget(Wake::Source(id));
}

fn server_config(protocol: &SourceProtocol, refuse: bool) -> SourceServerConfig {
    let (cookie, max_credits, refill_credits) = match protocol {
        SourceProtocol::Connector { cookie, max_credits, refill_credits } => {
            (cookie.expose().to_owned(), *max_credits, *refill_credits)
        }
        // The listener sends only connector sources here.
        SourceProtocol::FramedTcp { .. }
        | SourceProtocol::Stream05 { .. }
        | SourceProtocol::Stream06 { .. } => (String::new(), 1, 0),
    };
    let cookie = if refuse { format!("not {cookie}") } else { cookie };
    SourceServerConfig {
        max_credits,
        refill_credits,
        hold_ok: true,
        ..SourceServerConfig::new(Cookie::new(cookie))
    }
}

async fn serve<E: Env>(mut session: Session<'_, E>, link: E::Link) {
    let wake = session.shared.sleeper(Wake::Source(session.id));
    let (mut reader, mut writer) = split(link);
    let mut outgoing = Outgoing::default();
    loop {
        let (may_read, piece) = session.take_commands();
        if let Some(bytes) = session.server.poll_output() {
            outgoing.push(bytes);
        }
        if session.closing && outgoing.is_empty() || outgoing.len() > MAX_UNREAD {
            return;
        }
        let may_read =
            may_read && !session.closing && session.server.wants_input() && outgoing.len() < MAX_OUTGOING;
        let ok_at = session.ok_at;
        tokio::select! {
            biased;
            () = wake.notified() => {}
            written = outgoing.write(&mut writer, piece), if !outgoing.is_empty() => {
                if written.is_err() {
                    return;
                }
            }
            () = sleep_until(ok_at.unwrap_or_else(Instant::now)), if ok_at.is_some() => {
                session.ok_at = None;
                session.server.accept();
                session.handle_input();
            }
            read = reader.read_buf(session.server.input()), if may_read => match read {
                Ok(0) | Err(_) => return, // FIN is the end of the session (§7.29)
                Ok(_) => session.handle_input(),
            },
        }
    }
}

impl<E: Env> Session<'_, E> {
    /// Carries out what the cluster ordered. Returns whether the socket is to be read, and the size of a write.
    fn take_commands(&mut self) -> (bool, usize) {
        let Session { shared, id, server, closing, orphaned, .. } = self;
        shared.with(|cluster| {
            while !*closing {
                let Some(command) = cluster.next_source_command(*id) else { break };
                match command {
                    SourceCommand::Acknowledge(positions) => server.acknowledge(&positions),
                    SourceCommand::AcknowledgeEnded(positions) => server.acknowledge_ended(&positions),
                    SourceCommand::Error(text) => {
                        server.error(&text);
                        *closing = true;
                    }
                    SourceCommand::Restart { address, close } => {
                        server.restart(Some(&address));
                        *closing = close;
                    }
                    SourceCommand::Shrink => {
                        server.set_shrinking();
                        *orphaned = true;
                    }
                    SourceCommand::Close => *closing = true,
                }
            }
            (cluster.may_read(*id), cluster.faults().split_writes.unwrap_or(usize::MAX))
        })
    }

    fn handle_input(&mut self) {
        let result = self.server.handle_input(self.shared.now());
        let Session { shared, id, server, place, ok_at, repeats, .. } = self;
        shared.with(|cluster| {
            while let Some(event) = server.poll_event() {
                on_event(cluster, server, *id, place, ok_at, event);
            }
            let seen = server.counters().repeats;
            cluster.repeats(seen - *repeats);
            *repeats = seen;
        });
        // OK without a delay goes out at once, and what was read behind HELLO is looked at.
        if self.ok_at.is_some_and(|at| at <= Instant::now()) {
            self.ok_at = None;
            self.server.accept();
            self.handle_input();
            return;
        }
        if let Err(error) = result {
            self.closing = true;
            self.report(&error);
        }
    }

    fn report(&self, error: &SourceServerError) {
        let planned = match error {
            SourceServerError::Peer(text) => {
                tracing::warn!(place = self.place, "the connector ended the session: {text}");
                true
            }
            SourceServerError::BadCookie => self.refusal_planned,
            // Not the client's fault: it could not know that the worker leaves.
            SourceServerError::BadState { .. } => self.orphaned,
            SourceServerError::BadVersion { .. }
            | SourceServerError::SecondHello
            | SourceServerError::BadStream { .. }
            | SourceServerError::BadEos { .. }
            | SourceServerError::InvalidMessage { .. }
            | SourceServerError::EmptyName { .. }
            | SourceServerError::Decode(_)
            | SourceServerError::Frame(_) => false,
        };
        if !planned {
            let kills = matches!(error, SourceServerError::SecondHello | SourceServerError::EmptyName { .. });
            self.shared.with(|cluster| cluster.violation(&self.place, &error.to_string(), kills));
        }
    }
}

fn on_event(
    cluster: &mut Cluster,
    server: &mut SourceServer,
    id: ConnectionId,
    place: &str,
    ok_at: &mut Option<Instant>,
    event: SourceServerEvent,
) {
    match event {
        SourceServerEvent::Hello { program, instance } => {
            tracing::debug!(place, ?program, ?instance, "connector said hello");
            *ok_at = Some(Instant::now() + Duration::from_millis(cluster.faults().delay_ok_ms));
        }
        SourceServerEvent::Notify { stream, name, position } => {
            match cluster.notify(id, stream.0, &name, position) {
                NotifyAnswer::Accepted(position) => server.notify_ack(stream, true, position),
                NotifyAnswer::Refused => server.notify_ack(stream, false, position),
                NotifyAnswer::Silence => server.ignore_notify(stream),
            }
        }
        SourceServerEvent::Records(run) => {
            let StreamId(stream) = run.stream();
            cluster.records(
                id,
                Batch {
                    stream: Some(stream),
                    len: run.len(),
                    bytes: run.payload_bytes(),
                    last_id: Some(run.last_id()),
                    payloads: run.iter().map(|record| record.payload),
                },
            );
        }
        SourceServerEvent::Eos { stream } => cluster.end_of_stream(id, stream.0),
        SourceServerEvent::Tolerated(tolerated) => {
            if let Tolerated::EmptyRecord { stream, id: record } = tolerated {
                cluster.empty_record(id, stream.0, record);
            }
            cluster.violation(place, &tolerated.to_string(), false);
        }
    }
}
