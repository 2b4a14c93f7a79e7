//! The outlet: owns the sink and the dead letter, does one thing at a time, and backs off after trouble. Only writes overlap: while
//! the system's answer to one is on its way, the next ones are given, up to a bound.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use connector_crds::OnError;
use connector_env::Env;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use super::stalls::{Stall, Stalls};
use crate::board::{Board, Side, SideState};
use crate::pump::dead_letter::{DeadLetter, Letter};
use crate::pump::retry::Backoff;
use crate::record::{Batch, Position};
use crate::sink::{Answer, Rejected, Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Pause between attempts that only a change by someone can help.
const PERMANENT_RETRY: Duration = Duration::from_secs(5);

/// Writes on their way at once: the system works on one while the next one is made and sent. Each holds its batch in memory, in some
/// systems' clients more than once.
const WRITES_IN_FLIGHT: usize = 2;

/// Something to do with the sink.
#[derive(Debug)]
pub(crate) enum Job {
    /// Dial, write nothing.
    Check,
    /// Announce a stream and ask for its position.
    Open(SinkStream),
    /// Write a batch; with `onError: DeadLetter` also the letters of what is refused. The only job that may be started while others of
    /// its kind are in flight.
    Write { stream: SinkStream, batch: Batch },
    /// Write the letters from number `from` on of a batch that was written.
    Letters { stream: SinkStream, batch: Batch, rejected: Vec<Rejected>, from: usize },
    /// Make everything accepted durable.
    Flush { deadline: Instant },
    /// Forget a stream.
    Archive(SinkStream),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Checked,
    Opened {
        stream: SinkStream,
        position: Option<Position>,
    },
    Written {
        stream: SinkStream,
        batch: Batch,
        rejected: Vec<Rejected>,
    },
    Flushed,
    Archived(SinkStream),
    /// A batch is in flight: `Written` or `Failed` follows, in the order of the writes.
    Sent,
    /// To be done again after the pause; the target has to be taken for reconnected. So have the writes `behind` it, in this order: what became of
    /// them does not count.
    Failed {
        job: Job,
        error: SystemError,
        behind: Vec<(SinkStream, Batch)>,
    },
}

/// A [`Done`], and what is durable at the target by then.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) done: Done,
    pub(crate) durable: Vec<(SinkStream, Position)>,
}

struct Tools {
    sink: Box<dyn Sink>,
    letters: Option<Box<dyn DeadLetter>>,
}

/// What a job ended with.
enum Outcome {
    Done(Done),
    /// A batch and what the sink said of it.
    Wrote(SinkStream, Batch, Result<Written, SystemError>),
}

/// What the turn of a write brings.
enum Landed {
    Done(Done),
    Letters(Job),
}

enum Slot {
    Idle(Tools),
    Busy(Pin<Box<dyn Future<Output = (Tools, Outcome)> + Send>>),
    /// Only while a job is put in or taken out.
    Moving,
}

/// A batch that the sink took, until its turn to be reported.
struct Flight {
    stream: SinkStream,
    batch: Batch,
    started: Instant,
    rejected: Vec<Rejected>,
    fate: Fate,
}

/// What is known of a batch.
enum Fate {
    Open(Answer),
    Accepted,
    Failed(SystemError),
}

/// See the module's first line.
pub(crate) struct Outlet {
    slot: Slot,
    /// In the order of their writes.
    flights: VecDeque<Flight>,
    on_error: OnError,
    backoff: Backoff,
    wait_until: Option<Instant>,
    started: Instant,
    failing: bool,
}

impl Outlet {
    pub(crate) fn new(
        sink: Box<dyn Sink>,
        letters: Option<Box<dyn DeadLetter>>,
        on_error: OnError,
    ) -> Outlet {
        let on_error = match on_error {
            // Nowhere to put them: nothing may be passed over.
            OnError::DeadLetter if letters.is_none() => OnError::Stop,
            asked => asked,
        };
        Outlet {
            slot: Slot::Idle(Tools { sink, letters }),
            flights: VecDeque::new(),
            on_error,
            backoff: Backoff::dialling(),
            wait_until: None,
            started: Instant::now(),
            failing: false,
        }
    }

    pub(crate) fn on_error(&self) -> OnError {
        self.on_error
    }

    /// True when a write may be started, and with [`Outlet::is_busy`] false any job.
    pub(crate) fn is_free(&self, now: Instant) -> bool {
        // Nothing follows a refused record or a failure before the pump knows of it.
        let clear = self.flights.iter().all(|flight| {
            flight.rejected.is_empty() && matches!(flight.fate, Fate::Open(_) | Fate::Accepted)
        });
        matches!(self.slot, Slot::Idle(_))
            && self.wait_until.is_none_or(|until| until <= now)
            && clear
            && self.flights.len() < WRITES_IN_FLIGHT
    }

    /// True while something is done or in flight.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.slot, Slot::Busy(_)) || !self.flights.is_empty()
    }

    /// When a pause ends.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        self.wait_until
    }

    /// No job is started before.
    pub(crate) fn pause_until(&mut self, until: Instant) {
        self.wait_until = Some(until);
    }

    /// Starts a job; nothing happens while another one is done.
    pub(crate) fn start(&mut self, job: Job) {
        self.wait_until = None;
        self.started = Instant::now();
        self.slot = match std::mem::replace(&mut self.slot, Slot::Moving) {
            Slot::Idle(tools) => Slot::Busy(Box::pin(perform(tools, job))),
            other => other,
        };
    }

    /// What came of a job or of a write in flight; pending without either. A job is polled to its end: sinks are not cancel-safe.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        loop {
            let mut sent = false;
            if let Slot::Busy(future) = &mut self.slot
                && let Poll::Ready((tools, outcome)) = future.as_mut().poll(cx)
            {
                self.slot = Slot::Idle(tools);
                match outcome {
                    Outcome::Done(done) => return Poll::Ready(self.report(done)),
                    Outcome::Wrote(stream, batch, written) => {
                        let (rejected, fate) = match written {
                            Ok(Written { rejected, answer: Some(answer) }) => (rejected, Fate::Open(answer)),
                            Ok(Written { rejected, answer: None }) => (rejected, Fate::Accepted),
                            Err(error) => (Vec::new(), Fate::Failed(error)),
                        };
                        sent = true;
                        self.flights.push_back(Flight {
                            stream,
                            batch,
                            started: self.started,
                            rejected,
                            fate,
                        });
                    }
                }
            }
            // All are polled, so that each one wakes this task.
            for flight in &mut self.flights {
                if let Fate::Open(answer) = &mut flight.fate
                    && let Poll::Ready(answered) = answer.as_mut().poll(cx)
                {
                    flight.fate = answered.map_or_else(Fate::Failed, |()| Fate::Accepted);
                }
            }
            match self.landed() {
                Some(Landed::Done(done)) => return Poll::Ready(self.report(done)),
                Some(Landed::Letters(job)) => self.start(job),
                // The pump may have another write.
                None if sent => return Poll::Ready(self.report(Done::Sent)),
                None => return Poll::Pending,
            }
        }
    }

    /// The oldest write in flight, if its turn has come.
    fn landed(&mut self) -> Option<Landed> {
        match self.flights.front()?.fate {
            Fate::Open(_) => return None,
            Fate::Accepted => {}
            Fate::Failed(_) => {
                // What is still out could reach the system after the repetition.
                let out = self.flights.iter().any(|flight| matches!(flight.fate, Fate::Open(_)));
                if out || matches!(self.slot, Slot::Busy(_)) {
                    return None;
                }
            }
        }
        let Flight { stream, batch, started, rejected, fate } = self.flights.pop_front()?;
        self.started = started;
        match fate {
            Fate::Failed(error) => {
                let behind = self.flights.drain(..).map(|flight| (flight.stream, flight.batch)).collect();
                Some(Landed::Done(Done::Failed { job: Job::Write { stream, batch }, error, behind }))
            }
            // Nothing was started behind a refused record, so the tools are here.
            Fate::Open(_) | Fate::Accepted
                if self.on_error == OnError::DeadLetter && !rejected.is_empty() =>
            {
                Some(Landed::Letters(Job::Letters { stream, batch, rejected, from: 0 }))
            }
            Fate::Open(_) | Fate::Accepted => Some(Landed::Done(Done::Written { stream, batch, rejected })),
        }
    }

    fn report(&self, done: Done) -> Report {
        // While the sink is at work it is asked by the next report.
        let durable = match &self.slot {
            Slot::Idle(tools) => tools.sink.durable(),
            Slot::Busy(_) | Slot::Moving => Vec::new(),
        };
        Report { done, durable }
    }

    /// Tells the board how the external end is after a job, and sets the pause after a failure.
    pub(crate) fn note<E: Env>(&mut self, env: &E, board: &Board, stalls: &mut Stalls, done: &Done) {
        if matches!(done, Done::Sent) {
            return; // nothing is known yet
        }
        let Done::Failed { job, error, behind: _ } = done else {
            if self.failing {
                info!("The external system works again.");
            }
            if let Done::Written { batch, .. } = done {
                board.histograms().batch(batch.len(), batch.bytes());
                board.histograms().write_seconds.observe(self.started.elapsed().as_secs_f64());
            }
            self.failing = false;
            self.backoff.reset();
            board.set_side(Side::External, SideState::Connected);
            stalls.clear(board, &Stall::Target);
            stalls.clear(board, &Stall::DeadLetter);
            return;
        };
        let letters = matches!(job, Job::Letters { .. });
        let message = error.to_string();
        let (reason, class, pause) = match error {
            SystemError::Transient { class, .. } => {
                (reason_of(*class), *class, self.backoff.pause(env.random()))
            }
            SystemError::Permanent { reason, .. } => (*reason, ErrorClass::Rejected, PERMANENT_RETRY),
        };
        self.wait_until = Some(Instant::now() + pause);
        board.error(Side::External, class, &message, env.unix_millis());
        if !self.failing {
            warn!(reason, "The external system fails: {message}.");
        }
        self.failing = true;
        if letters {
            stalls.set(board, Stall::DeadLetter, "DeadLetterFailed", message);
            return;
        }
        if matches!(error, SystemError::Permanent { .. }) {
            stalls.set(board, Stall::Target, reason, message.clone());
        }
        board.set_side(Side::External, SideState::Failed { reason: reason.to_owned(), message });
    }
}

fn reason_of(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Connect => "Unreachable",
        ErrorClass::Auth => "AuthFailed",
        ErrorClass::Timeout => "Timeout",
        ErrorClass::Protocol => "ProtocolError",
        ErrorClass::Throttled => "Throttled",
        ErrorClass::Rejected => "Rejected",
    }
}

async fn perform(mut tools: Tools, job: Job) -> (Tools, Outcome) {
    let failed = |job, error| Done::Failed { job, error, behind: Vec::new() };
    let done = match job {
        Job::Check => match tools.sink.check().await {
            Ok(()) => Done::Checked,
            Err(error) => failed(Job::Check, error),
        },
        Job::Open(stream) => match tools.sink.open(&stream).await {
            Ok(position) => Done::Opened { stream, position },
            Err(error) => failed(Job::Open(stream), error),
        },
        Job::Write { stream, batch } => {
            let written = tools.sink.write(&stream, &batch).await;
            return (tools, Outcome::Wrote(stream, batch, written));
        }
        Job::Letters { stream, batch, rejected, from } => {
            write_letters(&mut tools, stream, batch, rejected, from).await
        }
        Job::Flush { deadline } => match tools.sink.flush(deadline).await {
            Ok(()) => Done::Flushed,
            Err(error) => failed(Job::Flush { deadline }, error),
        },
        Job::Archive(stream) => match tools.sink.archive(&stream).await {
            Ok(()) => Done::Archived(stream),
            Err(error) => failed(Job::Archive(stream), error),
        },
    };
    (tools, Outcome::Done(done))
}

async fn write_letters(
    tools: &mut Tools,
    stream: SinkStream,
    batch: Batch,
    rejected: Vec<Rejected>,
    from: usize,
) -> Done {
    if let Some(letters) = &mut tools.letters {
        for (number, refused) in rejected.iter().enumerate().skip(from) {
            let Some(record) = batch.get(refused.index) else { continue };
            let letter = Letter {
                stream: &stream.worker,
                position: record.position,
                time: record.time,
                key: record.key,
                payload: record.payload,
                reason: &refused.reason,
            };
            if let Err(error) = letters.write(letter).await {
                let job = Job::Letters { stream, batch, rejected, from: number };
                return Done::Failed { job, error, behind: Vec::new() };
            }
        }
    }
    Done::Written { stream, batch, rejected }
}
