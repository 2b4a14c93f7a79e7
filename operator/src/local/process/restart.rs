//! What follows on the end of a process: pure.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use super::Ended;

/// First pause before a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A process that ran this long is taken for one that started well.
const SETTLED: Duration = Duration::from_secs(10);

/// So many failed starts in a row are no accident: somebody has to change something.
const MAX_FAILED_STARTS: u32 = 5;

/// Exit code of a runtime or an endpoint whose command line or configuration is wrong: trying again cannot help.
const USAGE: i32 = 2;

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It ended as it should.
    Over,
    /// It failed, and is not started again.
    Failed,
    /// It is started again after a pause.
    Restart(Duration),
}

/// What is known of earlier ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restarts {
    in_a_row: u32,
    failed_starts: u32,
}

impl Restarts {
    /// Decides; `wanted` says whether the process should still be running.
    pub(super) fn after(&mut self, ended: &Ended, wanted: bool, uptime: Duration) -> Next {
        let status = match ended {
            Ended::NotStarted(..) | Ended::Lost(_) | Ended::KilledAfter(_) => return Next::Failed,
            Ended::Killed => return Next::Over,
            Ended::Exited(status) => status,
        };
        match (status.success(), wanted) {
            (true, _) => return Next::Over,
            (false, false) => return Next::Failed,
            (false, true) if status.code() == Some(USAGE) => return Next::Failed,
            (false, true) => {}
        }
        if uptime >= SETTLED {
            *self = Restarts::default();
        }
        // A kill from outside says nothing about the process.
        if status.signal().is_none() {
            self.failed_starts += 1;
        }
        if self.failed_starts >= MAX_FAILED_STARTS {
            return Next::Failed;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.in_a_row.min(16)).min(LONGEST_PAUSE);
        self.in_a_row += 1;
        Next::Restart(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::{Duration, Ended, LONGEST_PAUSE, MAX_FAILED_STARTS, Next, Restarts, SETTLED, USAGE};

    fn code(code: i32) -> Ended {
        Ended::Exited(ExitStatus::from_raw(code << 8))
    }

    fn signal(signal: i32) -> Ended {
        Ended::Exited(ExitStatus::from_raw(signal))
    }

    #[test]
    fn a_clean_end_is_no_failure_wanted_or_not() {
        for wanted in [true, false] {
            assert_eq!(Restarts::default().after(&code(0), wanted, Duration::ZERO), Next::Over);
        }
    }

    #[test]
    fn a_wrong_configuration_is_not_tried_again() {
        assert_eq!(Restarts::default().after(&code(USAGE), true, Duration::ZERO), Next::Failed);
    }

    #[test]
    fn a_process_that_cannot_start_fails_after_some_tries() {
        let mut restarts = Restarts::default();
        for _ in 1..MAX_FAILED_STARTS {
            assert!(matches!(restarts.after(&code(1), true, Duration::ZERO), Next::Restart(_)));
        }
        assert_eq!(restarts.after(&code(1), true, Duration::ZERO), Next::Failed);
    }

    #[test]
    fn a_killed_process_is_started_for_ever_with_growing_pauses() {
        let mut restarts = Restarts::default();
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let Next::Restart(pause) = restarts.after(&signal(9), true, Duration::ZERO) else {
                panic!("gave up")
            };
            assert!(pause >= last && pause <= LONGEST_PAUSE);
            last = pause;
        }
        assert_eq!(last, LONGEST_PAUSE);
    }

    #[test]
    fn a_process_that_ran_well_starts_over_with_the_shortest_pause() {
        let mut restarts = Restarts::default();
        let Next::Restart(first) = restarts.after(&code(1), true, Duration::ZERO) else { panic!() };
        let Next::Restart(second) = restarts.after(&code(1), true, Duration::ZERO) else { panic!() };
        assert!(second > first);
        assert_eq!(restarts.after(&code(1), true, SETTLED), Next::Restart(first));
    }

    #[test]
    fn a_failing_drain_is_a_failure() {
        assert_eq!(Restarts::default().after(&code(1), false, Duration::ZERO), Next::Failed);
        assert_eq!(
            Restarts::default().after(&Ended::KilledAfter(Duration::ZERO), false, Duration::ZERO),
            Next::Failed
        );
    }
}
