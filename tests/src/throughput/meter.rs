//! What a run of one process is measured by: records a second, processor time, memory.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::processes::Process;

/// Pause between two looks at a counter; short against any run, and free of cost beside it.
const LOOK: Duration = Duration::from_millis(2);

/// A run that does not get on for so long has failed.
const SILENCE: Duration = Duration::from_mins(1);

/// Figures of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// From the first record seen at the far end to the last.
    pub records_per_second: f64,
    /// Processor seconds of the process for a million records, over the same time; `None` where the work is done in this
    /// process.
    pub cpu_per_million: Option<f64>,
    /// Resident memory at its peak, since the process started; `None` as above.
    pub peak_rss: Option<u64>,
}

/// Measures `process` while `seen` (records at the far end) goes up to `records`.
///
/// # Errors
/// When the process ends, or nothing moves for a minute.
pub fn measure(
    process: &mut Process,
    records: u64,
    mut seen: impl FnMut() -> anyhow::Result<u64>,
) -> anyhow::Result<Figures> {
    let mut first = None;
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        process.alive()?;
        let (count, now) = (seen()?, Instant::now());
        if count > 0 && first.is_none() {
            first = Some((count, now, process.cpu_seconds()?));
        }
        if let (true, Some((before, begun, cpu))) = (count >= records, first) {
            let moved = (records - before.min(records - 1)) as f64;
            return Ok(Figures {
                records_per_second: moved / now.duration_since(begun).as_secs_f64().max(1e-9),
                cpu_per_million: Some((process.cpu_seconds()? - cpu) / moved * 1e6),
                peak_rss: Some(process.peak_rss()?),
            });
        }
        if count > last {
            (last, moved) = (count, now);
        }
        ensure!(moved.elapsed() < SILENCE, "{count} of {records} records, and no more for {SILENCE:?}");
        std::thread::sleep(LOOK);
    }
}
