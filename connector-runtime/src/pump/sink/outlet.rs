//! The outlet: owns the sink and the dead letter, does one thing at a time, and backs off after trouble.

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
use crate::sink::{Rejected, Sink, SinkStream, SystemError};
use crate::source::ErrorClass;

/// Pause between attempts that only a change by someone can help.
const PERMANENT_RETRY: Duration = Duration::from_secs(5);

/// Something to do with the sink.
#[derive(Debug)]
pub(crate) enum Job {
    /// Dial, write nothing.
    Check,
    /// Announce a stream and ask for its position.
    Open(SinkStream),
    /// Write a batch; with `onError: DeadLetter` also the letters of what is refused.
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
    /// To be done again after the pause; the target has to be taken for reconnected.
    Failed {
        job: Job,
        error: SystemError,
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

enum Slot {
    Idle(Tools),
    Busy(Pin<Box<dyn Future<Output = (Tools, Report)> + Send>>),
    /// Only while a job is put in or taken out.
    Moving,
}

/// See the module's first line.
pub(crate) struct Outlet {
    slot: Slot,
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

    /// True when a job may be started.
    pub(crate) fn is_free(&self, now: Instant) -> bool {
        matches!(self.slot, Slot::Idle(_)) && self.wait_until.is_none_or(|until| until <= now)
    }

    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.slot, Slot::Busy(_))
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
        let on_error = self.on_error;
        self.slot = match std::mem::replace(&mut self.slot, Slot::Moving) {
            Slot::Idle(tools) => Slot::Busy(Box::pin(perform(tools, job, on_error))),
            other => other,
        };
    }

    /// What came of the job; pending without one. A job is polled to its end: sinks are not cancel-safe.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        let Slot::Busy(future) = &mut self.slot else { return Poll::Pending };
        match future.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((tools, report)) => {
                self.slot = Slot::Idle(tools);
                Poll::Ready(report)
            }
        }
    }

    /// Tells the board how the external end is after a job, and sets the pause after a failure.
    pub(crate) fn note<E: Env>(&mut self, env: &E, board: &Board, stalls: &mut Stalls, done: &Done) {
        let Done::Failed { job, error } = done else {
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

async fn perform(mut tools: Tools, job: Job, on_error: OnError) -> (Tools, Report) {
    let done = match job {
        Job::Check => match tools.sink.check().await {
            Ok(()) => Done::Checked,
            Err(error) => Done::Failed { job: Job::Check, error },
        },
        Job::Open(stream) => match tools.sink.open(&stream).await {
            Ok(position) => Done::Opened { stream, position },
            Err(error) => Done::Failed { job: Job::Open(stream), error },
        },
        Job::Write { stream, batch } => match tools.sink.write(&stream, &batch).await {
            Ok(written) if on_error == OnError::DeadLetter => {
                write_letters(&mut tools, stream, batch, written.rejected, 0).await
            }
            Ok(written) => Done::Written { stream, batch, rejected: written.rejected },
            Err(error) => Done::Failed { job: Job::Write { stream, batch }, error },
        },
        Job::Letters { stream, batch, rejected, from } => {
            write_letters(&mut tools, stream, batch, rejected, from).await
        }
        Job::Flush { deadline } => match tools.sink.flush(deadline).await {
            Ok(()) => Done::Flushed,
            Err(error) => Done::Failed { job: Job::Flush { deadline }, error },
        },
        Job::Archive(stream) => match tools.sink.archive(&stream).await {
            Ok(()) => Done::Archived(stream),
            Err(error) => Done::Failed { job: Job::Archive(stream), error },
        },
    };
    let durable = tools.sink.durable();
    (tools, Report { done, durable })
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
                return Done::Failed { job, error };
            }
        }
    }
    Done::Written { stream, batch, rejected }
}
