//! Generator source: record number n is a pure function of n, at a given rate, up to a given count.

use std::future::pending;

use async_trait::async_trait;
use tokio::time::{Duration, Instant, sleep_until};

use super::super::Context;
use crate::record::{BatchBuilder, NO_TIME, Position, Record};
use crate::source::{ResumeFrom, Source, SourceEvent, StreamKey, SystemError};

/// The only stream.
const STREAM: StreamKey = StreamKey(0);

/// Name of the only stream.
const NAME: &str = "numbers";

/// Records of one batch at most.
const MAX_BATCH_RECORDS: usize = 8_192;

/// Payload bytes of one batch, aimed at.
const BATCH_BYTES: usize = 262_144;

/// Shortest wait between two batches of a given rate: a batch a record would cost a timer each.
const MIN_PACE: Duration = Duration::from_millis(1);

/// Records owed after a stall are made up for at most this long; what is beyond is never made, so that a rate stays a
/// rate.
const MAX_DEBT: Duration = Duration::from_millis(100);

/// Makes numbered records: the number in decimal, padded with dots to the size.
///
/// Position n is record n, the first is 1. The content depends on the number alone, so a resumed stream repeats
/// exactly. What Wallaroo acknowledged is remembered in memory only: after a restart of the process at a Wallaroo that
/// knows nothing, numbers start at 1 again.
#[derive(Debug)]
pub struct GeneratorSource {
    rate: Option<u64>,
    last: Position,
    batch_records: usize,
    state: State,
    next: Position,
    committed: Option<Position>,
    paused: bool,
    schedule: Option<Schedule>,
    builder: BatchBuilder,
    payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Opened,
    Running,
    Ended,
}

/// From when on how many records were due.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start: Instant,
    made: u64,
}

impl GeneratorSource {
    /// A generator; makes nothing before `resume`.
    pub fn new(
        spec: &connector_crds::systems::generator::GeneratorSource,
        context: &Context,
    ) -> GeneratorSource {
        let size = usize::try_from(spec.size).unwrap_or(1).max(20);
        let bound = usize::try_from(context.in_flight.records).unwrap_or(1).max(1);
        GeneratorSource {
            rate: spec.rate.and_then(|rate| u64::try_from(rate).ok()).filter(|rate| *rate > 0),
            last: spec.count.and_then(|count| u64::try_from(count).ok()).unwrap_or(Position::MAX - 1),
            batch_records: (BATCH_BYTES / size).clamp(1, MAX_BATCH_RECORDS).min(bound),
            state: State::New,
            next: 1,
            committed: None,
            paused: false,
            schedule: None,
            builder: BatchBuilder::default(),
            payload: vec![b'.'; size],
        }
    }

    /// How many records are due now, at most one batch; or when the next is.
    fn due(&mut self, now: Instant) -> Result<usize, Instant> {
        let Some(rate) = self.rate else { return Ok(self.batch_records) };
        let schedule = self.schedule.get_or_insert(Schedule { start: now, made: 0 });
        let elapsed = now.saturating_duration_since(schedule.start);
        let mut owed = records_in(elapsed, rate).saturating_sub(schedule.made);
        let most = records_in(MAX_DEBT, rate).max(1);
        if owed > most {
            // The debt is forgiven: the schedule starts anew as if exactly the bound were owed.
            *schedule = Schedule { start: now.checked_sub(MAX_DEBT).unwrap_or(now), made: 0 };
            owed = most;
        }
        if owed == 0 {
            let next = schedule.start + time_of(schedule.made + 1, rate);
            return Err(next.max(now + MIN_PACE));
        }
        Ok(usize::try_from(owed).unwrap_or(usize::MAX).min(self.batch_records))
    }

    fn make(&mut self, records: usize) -> SourceEvent {
        let left = self.last - self.next + 1;
        let records = (records as u64).min(left);
        self.builder.reserve(records as usize, records as usize * self.payload.len());
        for _ in 0..records {
            write_number(&mut self.payload, self.next);
            let record = Record { position: self.next, time: NO_TIME, key: &[], payload: &self.payload };
            self.builder.push(record);
            self.next += 1;
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.made += records;
        }
        SourceEvent::Batch { stream: STREAM, batch: self.builder.finish() }
    }
}

/// Whole records of `rate` a second that fit into `time`.
fn records_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// The time after which `records` are due, rounded up.
fn time_of(records: u64, rate: u64) -> Duration {
    let nanos = (u128::from(records) * 1_000_000_000).div_ceil(u128::from(rate));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Writes `number` in decimal at the start of `payload` and dots behind it as far as an earlier, longer one reached.
fn write_number(payload: &mut [u8], number: u64) {
    let mut digits = [b'.'; 20];
    let mut length = 0;
    let mut rest = number;
    loop {
        digits[length] = b'0' + (rest % 10) as u8;
        length += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits[..length].reverse();
    payload[..20].copy_from_slice(&digits);
}

#[async_trait]
impl Source for GeneratorSource {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        loop {
            match self.state {
                State::New => {
                    self.state = State::Opened;
                    return Ok(SourceEvent::Opened {
                        stream: STREAM,
                        name: NAME.to_owned(),
                        committed: self.committed,
                    });
                }
                State::Running if !self.paused => {
                    if self.next > self.last {
                        self.state = State::Ended;
                        return Ok(SourceEvent::Ended { stream: STREAM });
                    }
                    match self.due(Instant::now()) {
                        Ok(records) => return Ok(self.make(records)),
                        Err(when) => sleep_until(when).await,
                    }
                }
                State::Opened | State::Running | State::Ended => pending().await,
            }
        }
    }

    async fn resume(&mut self, _stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        let after = match from {
            ResumeFrom::After(position) => position,
            ResumeFrom::Committed => self.committed.unwrap_or(0),
        };
        self.next = after.saturating_add(1);
        self.schedule = None;
        self.state = State::Running;
        Ok(())
    }

    async fn commit(&mut self, positions: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        self.committed = positions.iter().map(|(_, position)| *position).chain(self.committed).max();
        Ok(())
    }

    async fn release(&mut self, _stream: StreamKey) -> Result<(), SystemError> {
        self.state = State::Ended;
        Ok(())
    }

    fn pause(&mut self, _stream: StreamKey) {
        self.paused = true;
    }

    fn unpause(&mut self, _stream: StreamKey) {
        self.paused = false;
        self.schedule = None;
    }

    async fn close(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectors::testing::context;
    use connector_crds::systems::generator::GeneratorSource as Spec;

    fn generator(rate: Option<i32>, size: i32, count: Option<i64>) -> GeneratorSource {
        GeneratorSource::new(&Spec { rate, size, count }, &context(std::path::Path::new(".")))
    }

    async fn opened(source: &mut GeneratorSource, from: ResumeFrom) {
        assert!(matches!(source.next().await.unwrap(), SourceEvent::Opened { .. }));
        source.resume(STREAM, from).await.unwrap();
    }

    #[tokio::test]
    async fn content_depends_on_the_number_alone_and_the_count_ends_the_stream() {
        let mut source = generator(None, 24, Some(100));
        opened(&mut source, ResumeFrom::After(98)).await;
        let SourceEvent::Batch { batch, .. } = source.next().await.unwrap() else { panic!() };
        let payloads: Vec<_> = batch.iter().map(|r| (r.position, r.payload.to_vec())).collect();
        let text = |n: &str| format!("{n:.<24}").into_bytes();
        assert_eq!(payloads, [(99, text("99")), (100, text("100"))]);
        assert!(matches!(source.next().await.unwrap(), SourceEvent::Ended { .. }));
        source.resume(STREAM, ResumeFrom::After(99)).await.unwrap();
        let SourceEvent::Batch { batch, .. } = source.next().await.unwrap() else { panic!() };
        assert_eq!(batch.get(0).unwrap().payload, text("100"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_seconds_and_a_stall_is_not_made_up_for() {
        let mut source = generator(Some(5_000), 20, None);
        opened(&mut source, ResumeFrom::Committed).await;
        let count = async |source: &mut GeneratorSource, seconds: u64| {
            let end = Instant::now() + Duration::from_secs(seconds);
            let mut records = 0;
            while let Ok(event) = tokio::time::timeout_at(end, source.next()).await {
                let SourceEvent::Batch { batch, .. } = event.unwrap() else { panic!() };
                records += batch.len();
            }
            records
        };
        let records = count(&mut source, 2).await;
        assert!((9_900..=10_000).contains(&records), "{records}");
        tokio::time::advance(Duration::from_mins(1)).await;
        let records = count(&mut source, 1).await;
        assert!((4_900..=5_600).contains(&records), "{records}");
    }

    #[test]
    fn the_largest_number_fits_the_smallest_record() {
        let mut payload = vec![b'.'; 20];
        write_number(&mut payload, u64::MAX);
        assert_eq!(payload, b"18446744073709551615");
        write_number(&mut payload, 7);
        assert_eq!(payload, b"7...................");
    }
}
