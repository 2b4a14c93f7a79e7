//! One connection of a plain source: length-prefixed records in, nothing out (§1.1, §1.2).

use std::sync::Arc;

use bytes::Bytes;
use connector_env::Env;
use tokio::io::AsyncReadExt;
use wallaroo_protocol::framing::{Decoder, Endian, Framing, FramingError, Width};

use super::Shared;
use crate::cluster::{Batch, ConnectionId, SourceCommand, Wake};
use crate::config::SourceProtocol;

/// Serves the connection until it ends.
pub(crate) async fn run<E: Env>(shared: Arc<Shared<E>>, worker: String, source: usize, link: E::Link) {
    let id = shared.with(|cluster| cluster.source_connected(&worker, source));
    let (decoder, place) = shared.with(|cluster| {
        let source = &cluster.config().sources[source];
        (decoder(&source.protocol), format!("{worker}/{}", source.name))
    });
    let ended = serve(&shared, id, decoder, link).await;
    shared.with(|cluster| {
        if let Err(error) = ended {
            let section = match error {
                FramingError::Empty => "§7.16",
                FramingError::TooLarge { .. } | FramingError::TooShort { .. } => "§1.1",
                FramingError::Truncated { .. } => "",
            };
            if section.is_empty() {
                tracing::warn!(place, "{error}"); // a sender that died; no rule forbids that
            } else {
                let detail =
                    format!("{error} ({section}): a worker closes without a word or loses the framing");
                cluster.violation(&place, &detail, false);
            }
        }
        cluster.source_closed(id);
    });
    shared.forget(Wake::Source(id));
}

fn decoder(protocol: &SourceProtocol) -> Decoder {
    let (framing, limit) = match protocol {
        SourceProtocol::FramedTcp { framing, max_size } => {
            let width = match framing.width {
                1 => Width::One,
                2 => Width::Two,
                8 => Width::Eight,
                _ => Width::Four, // the configuration allows only these four
            };
            let endian = if framing.big_endian { Endian::Big } else { Endian::Little };
            (Framing::Raw { width, endian }, *max_size)
        }
        SourceProtocol::Stream05 { max_size } => (Framing::Stream05, *max_size),
        SourceProtocol::Stream06 { max_size } => (Framing::Stream06, *max_size),
        // The listener sends only plain sources here.
        SourceProtocol::Connector { .. } => (Framing::RAW_U32BE, crate::config::DEFAULT_MAX_SIZE),
    };
    Decoder::new(framing, limit as usize)
}

async fn serve<E: Env>(
    shared: &Shared<E>,
    id: ConnectionId,
    mut decoder: Decoder,
    mut link: E::Link,
) -> Result<(), FramingError> {
    let wake = shared.sleeper(Wake::Source(id));
    let mut payloads: Vec<Bytes> = Vec::new();
    loop {
        let mut over = false;
        let may_read = shared.with(|cluster| {
            while let Some(command) = cluster.next_source_command(id) {
                match command {
                    // A plain connection has no frames to send: what would end a session ends it too.
                    SourceCommand::Acknowledge(_) | SourceCommand::AcknowledgeEnded(_) => {}
                    SourceCommand::Shrink
                    | SourceCommand::Error(_)
                    | SourceCommand::Restart { .. }
                    | SourceCommand::Close => over = true,
                }
                if over {
                    break;
                }
            }
            cluster.may_read(id)
        });
        if over {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = wake.notified() => continue,
            read = link.read_buf(decoder.input()), if may_read => match read {
                Ok(0) => return decoder.finish(),
                Ok(_) => {}
                Err(_) => return Ok(()),
            },
        }
        payloads.clear();
        let mut bytes = 0;
        let error = loop {
            match decoder.next_record() {
                Ok(Some(record)) => {
                    bytes += record.payload.len();
                    payloads.push(record.payload);
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let batch = Batch {
            stream: None,
            len: payloads.len(),
            bytes,
            last_id: None,
            payloads: payloads.iter().map(Bytes::as_ref),
        };
        shared.with(|cluster| cluster.records(id, batch));
        if let Some(error) = error {
            return Err(error);
        }
    }
}
