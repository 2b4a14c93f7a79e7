//! All processes of a run, with what each last said.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::local::directory::{Directory, admin_file, config_file};
use crate::local::ending::{self, Observation, Stage};
use crate::local::plan::{DRAIN_TIMEOUT_SECONDS, Direction, Plan, RuntimePlan};
use crate::local::process::{LogLine, Process, ProcessSpec, ProcessState, Wish};
use crate::local::status::{self, EndpointStatus, RuntimeStatus};
use crate::local::view::{self, Rate};

/// The binaries that are started; they lie beside this one.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    runtime: PathBuf,
    endpoint: PathBuf,
}

impl Binaries {
    pub(super) fn beside_this_one() -> io::Result<Binaries> {
        let own = std::env::current_exe()?;
        Ok(Binaries {
            runtime: own.with_file_name("connector-runtime"),
            endpoint: own.with_file_name("wallaroo-endpoint"),
        })
    }
}

struct Member<'a> {
    plan: &'a RuntimePlan,
    process: Option<Process>,
    before: RuntimeStatus,
    status: Option<RuntimeStatus>,
    rate: Rate,
}

impl Member<'_> {
    /// Whether no process is left: ended, or never started.
    fn gone(&self) -> bool {
        self.process.as_ref().is_none_or(Process::is_over)
    }

    /// Whether a finite source is through.
    fn complete(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.complete)
    }
}

struct Wallaroo {
    process: Option<Process>,
    status: Option<EndpointStatus>,
    rate: Rate,
}

/// All processes.
pub(super) struct Fleet<'a> {
    plan: &'a Plan,
    members: Vec<Member<'a>>,
    wallaroo: Wallaroo,
    endpoint_config: PathBuf,
    endpoint_output: PathBuf,
    binaries: Binaries,
    log: mpsc::Sender<LogLine>,
    failures: Vec<String>,
}

impl<'a> Fleet<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        directory: &Directory,
        binaries: Binaries,
        log: mpsc::Sender<LogLine>,
    ) -> Fleet<'a> {
        Fleet {
            plan,
            members: plan
                .runtimes
                .iter()
                .map(|plan| Member {
                    plan,
                    process: None,
                    before: RuntimeStatus::default(),
                    status: None,
                    rate: Rate::default(),
                })
                .collect(),
            wallaroo: Wallaroo { process: None, status: None, rate: Rate::default() },
            endpoint_config: directory.endpoint_config(),
            endpoint_output: directory.endpoint_output(),
            binaries,
            log,
            failures: Vec::new(),
        }
    }

    /// Does what a stage begins with.
    pub(super) fn enter(&mut self, stage: Stage) {
        match stage {
            Stage::StartingSinks => self.start(Direction::Sink),
            Stage::StartingWallaroo => self.start_wallaroo(),
            Stage::Running => self.start(Direction::Source),
            Stage::StoppingSources => self.drain(Direction::Source),
            Stage::StoppingWallaroo => {
                if let Some(process) = &self.wallaroo.process {
                    process.wish(Wish::Drain);
                }
            }
            Stage::StoppingSinks => self.drain(Direction::Sink),
            Stage::SettlingWallaroo | Stage::SettlingSinks | Stage::Over => {}
        }
    }

    fn start(&mut self, direction: Direction) {
        for member in &mut self.members {
            if member.plan.direction == direction && member.plan.runs() {
                let address_file = admin_file(member.plan);
                let spec = ProcessSpec {
                    name: member.plan.label.clone(),
                    program: self.binaries.runtime.clone(),
                    arguments: vec![
                        "run".into(),
                        "--config".into(),
                        config_file(member.plan).into(),
                        "--admin-address-file".into(),
                        address_file.clone().into(),
                        "--instance".into(),
                        member.plan.label.clone().into(),
                    ],
                    address_file,
                    address_on_stdout: false,
                    drain_timeout: Duration::from_secs(member.plan.config.drain_timeout_seconds.into()),
                };
                member.process = Some(Process::start(spec, self.log.clone()));
            }
        }
    }

    fn start_wallaroo(&mut self) {
        if self.plan.endpoint.is_none() {
            return;
        }
        let spec = ProcessSpec {
            name: "wallaroo".into(),
            program: self.binaries.endpoint.clone(),
            arguments: vec!["--config".into(), self.endpoint_config.clone().into()],
            address_file: self.endpoint_output.clone(),
            address_on_stdout: true,
            drain_timeout: Duration::from_secs(DRAIN_TIMEOUT_SECONDS.into()),
        };
        self.wallaroo.process = Some(Process::start(spec, self.log.clone()));
    }

    fn drain(&mut self, direction: Direction) {
        for member in self.members.iter().filter(|member| member.plan.direction == direction) {
            if let Some(process) = &member.process {
                process.wish(Wish::Drain);
            }
        }
    }

    /// Ends everything at once.
    pub(super) fn kill(&mut self) {
        for process in self.members.iter().filter_map(|member| member.process.as_ref()) {
            process.wish(Wish::Kill);
        }
        if let Some(process) = &self.wallaroo.process {
            process.wish(Wish::Kill);
        }
    }

    /// Asks every running process how it is; who gives no answer keeps the last one.
    pub(super) async fn look(&mut self, now: Duration) {
        let mut answers = JoinSet::new();
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| !member.gone()) {
            let file = admin_file(member.plan);
            answers.spawn(async move {
                let address = status::runtime_address(&file);
                (index, status::fetch::<RuntimeStatus>(address).await)
            });
        }
        let wallaroo = async {
            match &self.wallaroo.process {
                Some(process) if process.is_over() => status::endpoint_last(&self.endpoint_output),
                Some(_) => status::fetch(status::endpoint_address(&self.endpoint_output)).await,
                None => None,
            }
        };
        let (wallaroo, answers): (Option<EndpointStatus>, _) = tokio::join!(wallaroo, answers.join_all());
        for (index, status) in answers {
            let Some(status) = status else { continue };
            let member = &mut self.members[index];
            member.rate.push(now, view::moved(member.plan.direction, &status));
            if let Some(before) = member.status.replace(status) {
                member.before = before;
            }
        }
        if let Some(status) = wallaroo {
            self.wallaroo.rate.push(now, status.records_in);
            self.wallaroo.status = Some(status);
        }
    }

    /// Notes a failure that is nobody's process.
    pub(super) fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    /// Everything that failed so far.
    pub(super) fn failures(&self, stage: Stage) -> Vec<String> {
        let early = |name: &str| Some(format!("{name}: ended before it was asked to"));
        let mut failures = self.failures.clone();
        for member in &self.members {
            failures.extend(match member.process.as_ref().map(Process::state) {
                Some(ProcessState::Over { failure: Some(failure) }) => Some(failure),
                Some(ProcessState::Over { failure: None }) => match member.plan.direction {
                    Direction::Sink if stage < Stage::StoppingSinks => early(&member.plan.label),
                    Direction::Source if stage < Stage::StoppingSources && !member.complete() => {
                        early(&member.plan.label)
                    }
                    Direction::Sink | Direction::Source => None,
                },
                Some(ProcessState::Running | ProcessState::Restarting { .. }) | None => None,
            });
        }
        failures.extend(match self.wallaroo.process.as_ref().map(Process::state) {
            Some(ProcessState::Over { failure: Some(failure) }) => Some(failure),
            Some(ProcessState::Over { failure: None }) if stage < Stage::StoppingWallaroo => {
                early("wallaroo")
            }
            Some(
                ProcessState::Over { failure: None }
                | ProcessState::Running
                | ProcessState::Restarting { .. },
            )
            | None => None,
        });
        failures
    }

    /// What is known for the next decision; time and signals are the caller's.
    pub(super) fn observation(&self) -> Observation {
        let all = |direction: Direction, holds: &dyn Fn(&Member<'_>) -> bool| {
            self.members.iter().filter(|member| member.plan.direction == direction).all(holds)
        };
        let endpoint = self.plan.endpoint.as_ref();
        Observation {
            sinks_listen: all(Direction::Sink, &|member| {
                !member.plan.runs() || member.status.as_ref().is_some_and(|status| status.listen.is_some())
            }),
            wallaroo_answers: endpoint.is_none() || self.wallaroo.status.is_some(),
            complete: self.plan.ends() && all(Direction::Source, &|member| member.complete()),
            sources_gone: all(Direction::Source, &|member| member.gone()),
            wallaroo_settled: endpoint.is_none_or(|config| {
                let status = self.wallaroo.status.as_ref();
                status.is_some_and(|status| ending::wallaroo_settled(config, status))
            }),
            wallaroo_gone: self.wallaroo.process.as_ref().is_none_or(Process::is_over),
            sinks_settled: all(Direction::Sink, &|member| {
                member.gone()
                    || member.status.as_ref().is_some_and(|now| ending::sink_settled(&member.before, now))
            }),
            sinks_gone: all(Direction::Sink, &|member| member.gone()),
            ..Observation::default()
        }
    }

    /// The table that is shown.
    pub(super) fn table(&self) -> Vec<String> {
        let mut rows = vec![view::head()];
        let of = |direction: Direction| {
            self.members.iter().filter(move |member| member.plan.direction == direction).map(|member| {
                let state = member.process.as_ref().map(Process::state);
                view::connector(member.plan, state.as_ref(), member.status.as_ref(), member.rate.per_second())
            })
        };
        rows.extend(of(Direction::Source));
        if self.plan.endpoint.is_some() {
            let state = self.wallaroo.process.as_ref().map(Process::state);
            let rate = self.wallaroo.rate.per_second();
            rows.push(view::wallaroo(state.as_ref(), self.wallaroo.status.as_ref(), rate));
        }
        rows.extend(of(Direction::Sink));
        view::table(&rows)
    }

    /// The Connectors that ran, with their last status.
    pub(super) fn connectors(&self) -> Vec<(&RuntimePlan, Option<&RuntimeStatus>)> {
        let ran = self.members.iter().filter(|member| member.process.is_some());
        ran.map(|member| (member.plan, member.status.as_ref())).collect()
    }

    /// The last status of the embedded Wallaroo.
    pub(super) fn wallaroo(&self) -> Option<&EndpointStatus> {
        self.wallaroo.status.as_ref()
    }
}
