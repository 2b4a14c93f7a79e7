//! `check`: is a configuration good, and with `--connect`, do both ends answer?

use std::time::Duration;

use anyhow::Context as _;
use connector_env::{Env as _, TokioEnv};
use tokio::time::timeout;

use super::args::CheckArgs;
use super::config::{self, System};
use super::run::context;
use crate::board::Board;
use crate::connectors;
use crate::secret::Secrets;

/// How long one end may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Prints one line for each thing that was checked; an error names the first that failed.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let (config, system) = config::read_strict(&args.config)?;
    println!("configuration: good ({})", system.type_name());
    if !args.connect {
        return Ok(());
    }
    let (secrets, _changes) = Secrets::new(&config.paths.secrets);
    let context = context(&config, secrets, Board::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &system {
            System::Source(spec) => {
                let mut source = connectors::source(spec, context)?;
                within("external system", source.check()).await?;
                for target in &config.wallaroo.connect {
                    within(&format!("Wallaroo at {target}"), TokioEnv.connect(target)).await?;
                }
            }
            System::Sink(spec) => {
                let mut sink = connectors::sink(spec, context)?;
                within("external system", sink.check()).await?;
                let port = config.wallaroo.listen.unwrap_or(0);
                within(&format!("port {port} for Wallaroo"), TokioEnv.listen(&format!("0.0.0.0:{port}")))
                    .await?;
            }
        }
        Ok(())
    })
}

async fn within<T, E>(what: &str, answer: impl Future<Output = Result<T, E>>) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match timeout(DIAL_TIMEOUT, answer).await {
        Ok(answer) => drop(answer.with_context(|| what.to_owned())?),
        Err(_) => anyhow::bail!("{what}: no answer within {} s", DIAL_TIMEOUT.as_secs()),
    }
    println!("{what}: answers");
    Ok(())
}
