//! `tap`: a few records of a source, shown and not committed.
//!
//! It reads the external system itself, beside a running connector. A Kafka group of its own (`<group>.tap`) keeps it
//! from taking partitions away; a UDP port can be bound only once, so a running connector's datagrams cannot be tapped.

use std::io::Write;
use std::time::Duration;

use connector_crds::{RuntimeConfig, SourceSpec};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::args::TapArgs;
use super::config::{self, System};
use super::run::context;
use crate::board::Board;
use crate::connectors;
use crate::record::Record;
use crate::secret::Secrets;
use crate::source::{ResumeFrom, Source, SourceEvent};

/// Bytes of a key or payload that are shown; the size is shown in full.
const SHOWN_BYTES: usize = 256;

/// How long leaving the system may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Shows up to `count` records, one JSON object a line.
pub fn tap(args: &TapArgs) -> anyhow::Result<()> {
    let (config, system) = config::read(&args.config)?;
    let System::Source(spec) = system else {
        anyhow::bail!("a sink has no records of its own to show: tap the source before it")
    };
    // Positions of the running connector stay untouched: the tap gets an empty state directory.
    let state = std::env::temp_dir().join(format!("wallaroo-tap-{}", std::process::id()));
    std::fs::create_dir_all(&state)?;
    let (secrets, _changes) = Secrets::new(&config.paths.secrets);
    let mut context = context(&config, secrets, Board::new());
    context.state.clone_from(&state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(async {
        let mut source = connectors::source(&beside(spec, &config), context)?;
        let shown = show(&mut *source, args, &mut std::io::stdout().lock()).await;
        source.close(Instant::now() + CLOSE_TIMEOUT).await?;
        shown
    });
    std::fs::remove_dir_all(&state)?;
    let shown = shown?;
    eprintln!("{shown} records shown, nothing committed");
    Ok(())
}

/// The same source without a claim on what a running connector holds.
fn beside(spec: SourceSpec, config: &RuntimeConfig) -> SourceSpec {
    match spec {
        SourceSpec::Kafka(mut kafka) => {
            let own = || format!("{}.{}", config.identity.namespace, config.identity.name);
            kafka.group = Some(format!("{}.tap", kafka.group.unwrap_or_else(own)));
            SourceSpec::Kafka(kafka)
        }
        other @ (SourceSpec::Custom(_)
        | SourceSpec::File(_)
        | SourceSpec::Generator(_)
        | SourceSpec::Udp(_)) => other,
    }
}

async fn show(source: &mut dyn Source, args: &TapArgs, out: &mut impl Write) -> anyhow::Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(u64::from(args.seconds));
    let mut shown = 0;
    let mut names = std::collections::BTreeMap::new();
    while shown < args.count {
        let Ok(next) = timeout_at(deadline, source.next()).await else { break };
        match next? {
            SourceEvent::Opened { stream, name, committed: _ } => {
                names.insert(stream, name);
                source.resume(stream, ResumeFrom::Committed).await?;
            }
            SourceEvent::Batch { stream, batch } => {
                let name = names.get(&stream).map_or("", String::as_str);
                for record in batch.iter().take((args.count - shown) as usize) {
                    writeln!(out, "{}", line(name, &record, args.redact))?;
                    shown += 1;
                }
            }
            SourceEvent::BadRecord { stream, position, reason, payload: _ } => {
                let name = names.get(&stream).map_or("", String::as_str);
                writeln!(
                    out,
                    "{}",
                    json!({"stream": name, "position": position, "bad": reason.to_string()})
                )?;
                shown += 1;
            }
            SourceEvent::Connected => {}
            SourceEvent::Stuck { reason, context, .. } => anyhow::bail!("{reason}: {context}"),
            SourceEvent::Revoking { stream, .. } | SourceEvent::Lost { stream } => {
                source.release(stream).await?;
            }
            SourceEvent::Ended { stream } => {
                source.release(stream).await?;
                names.remove(&stream);
                if names.is_empty() {
                    break;
                }
            }
        }
    }
    Ok(shown)
}

fn line(stream: &str, record: &Record<'_>, redact: bool) -> serde_json::Value {
    let text = |bytes: &[u8]| {
        let end = bytes.len().min(SHOWN_BYTES);
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
    };
    let mut line = json!({
        "stream": stream,
        "position": record.position,
        "time": record.time,
        "keyBytes": record.key.len(),
        "payloadBytes": record.payload.len(),
    });
    if !redact {
        line["key"] = text(record.key).into();
        line["payload"] = text(record.payload).into();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::NO_TIME;

    #[test]
    fn a_redacted_line_shows_sizes_alone() {
        let record = Record { position: 7, time: NO_TIME, key: b"canary", payload: b"canary\xff" };
        let redacted = line("s", &record, true).to_string();
        assert!(redacted.contains(r#""payloadBytes":7"#) && !redacted.contains("canary"), "{redacted}");
        assert!(line("s", &record, false).to_string().contains("canary"));
    }

    #[test]
    fn long_payloads_are_cut() {
        let payload = vec![b'x'; 10_000];
        let record = Record { position: 7, time: NO_TIME, key: b"", payload: &payload };
        let line = line("s", &record, false).to_string();
        assert!(line.len() < 2 * SHOWN_BYTES && line.contains("10000"), "{line}");
    }
}
