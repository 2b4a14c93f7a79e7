//! What runs, with which files: decided before anything is started. Pure but for the ports that it asks for.

use std::io;
use std::path::{Path, PathBuf};

use connector_crds::systems::file::AtEnd;
use connector_crds::{Delivery, LiveConfig, Paths, Protocol, RuntimeConfig, SecretKeyRef, SourceSpec, State};
use wallaroo_endpoint::config::EndpointConfig;

use super::embedded::{self, EmbeddedError};
use crate::build::{self, Placement};
use crate::manifests::{LoadedConnector, Manifests, Place};
use crate::secret_references::secret_references;
use crate::validate::{DEFAULT_NAMESPACE, System};

/// Seconds that a runtime gets to drain: less than in a cluster, for somebody waits at the keyboard.
pub const DRAIN_TIMEOUT_SECONDS: u32 = 20;

/// What the plan needs to know of the machine and the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Absolute path that relative paths of manifests start from.
    pub working_directory: PathBuf,
    /// Absolute path below which state and run files are kept.
    pub state_directory: PathBuf,
    /// Log level of the runtimes.
    pub log_level: String,
    /// The embedded Wallaroo, if any.
    pub embedded: Option<Embedded>,
}

/// How the embedded Wallaroo is configured.
#[derive(Clone, Debug)]
pub enum Embedded {
    /// From the manifests.
    Derived {
        /// What it does with records.
        application: wallaroo_endpoint::config::Application,
    },
    /// As a file says.
    Given(Box<EndpointConfig>),
}

/// Direction of a Connector, seen from Wallaroo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into Wallaroo.
    Source,
    /// Out of Wallaroo.
    Sink,
}

/// A secret value that becomes a file.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// Its file is `<secrets>/<name>/<key>`.
    pub reference: SecretKeyRef,
    /// Its content.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// One runtime process.
#[derive(Clone, Debug)]
pub struct RuntimePlan {
    /// Name for people: with the namespace where it is not the default one.
    pub label: String,
    /// Where its manifest stands.
    pub place: Place,
    /// System and direction, e.g. `FileSource`.
    pub type_name: &'static str,
    /// What it promises.
    pub promise: Delivery,
    /// Direction.
    pub direction: Direction,
    /// Protocol of its Wallaroo end.
    pub protocol: Protocol,
    /// Whether its system comes to an end by itself.
    pub finite: bool,
    /// Replicas that the manifest asks for.
    pub replicas: i32,
    /// Its immutable file.
    pub config: RuntimeConfig,
    /// Its live file; a Connector that is to be `Stopped` gets no process.
    pub live: LiveConfig,
    /// Its secrets.
    pub secrets: Vec<SecretFile>,
    /// Directory of its run files.
    pub run_directory: PathBuf,
}

impl RuntimePlan {
    /// Whether it gets a process. More than one replica is for more than one machine: here one process does the work.
    pub fn runs(&self) -> bool {
        match self.live.state {
            State::Running | State::Paused => self.replicas > 0,
            State::Stopped => false,
        }
    }
}

/// Everything that runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The Connectors, in the order of the files.
    pub runtimes: Vec<RuntimePlan>,
    /// The embedded Wallaroo.
    pub endpoint: Option<EndpointConfig>,
}

impl Plan {
    /// Whether the run has an end of its own: every source is finite and runs, and it is known when results have reached
    /// the sinks.
    pub fn ends(&self) -> bool {
        let mut sources =
            self.runtimes.iter().filter(|runtime| runtime.direction == Direction::Source).peekable();
        let sinks = self.runtimes.iter().any(|runtime| runtime.direction == Direction::Sink);
        sources.peek().is_some()
            && sources.all(|source| source.finite && source.runs() && source.live.state == State::Running)
            && (self.endpoint.is_some() || !sinks)
    }
}

/// Why manifests that are valid cannot run together here.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A path is not UTF-8, which JSON cannot hold.
    #[error("{path}: the path is not UTF-8", path = path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A custom connector's process is not started here.
    #[error("{label} ({place}): a custom connector needs a cluster: `local` does not start its process yet")]
    Custom {
        /// The Connector.
        label: String,
        /// Where it stands.
        place: Place,
    },
    /// No free port could be had for `listen: 0`.
    #[error("{label} ({place}): spec.wallaroo.listen: no free port: {cause}")]
    NoPort {
        /// The Connector.
        label: String,
        /// Where it stands.
        place: Place,
        /// What came back.
        #[source]
        cause: io::Error,
    },
    /// Two sinks on one port.
    #[error("{label} ({place}): spec.wallaroo.listen: port {port} is taken by {other}")]
    SamePort {
        /// The second Connector.
        label: String,
        /// Where it stands.
        place: Place,
        /// The port.
        port: i32,
        /// The first Connector.
        other: String,
    },
    /// The embedded Wallaroo cannot serve the manifests.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
}

/// Decides what runs. `free_port` is asked once for each sink with `listen: 0`, so that a restarted sink keeps its port.
///
/// # Errors
///
/// Everything that keeps these Connectors from running together.
pub fn plan(
    manifests: &Manifests,
    settings: &Settings,
    mut free_port: impl FnMut() -> io::Result<u16>,
) -> Result<Plan, Vec<PlanError>> {
    let mut errors = Vec::new();
    let mut runtimes = Vec::new();
    for loaded in &manifests.connectors {
        match runtime(manifests, loaded, settings, &mut free_port) {
            Ok(runtime) => runtimes.push(runtime),
            Err(error) => errors.push(error),
        }
    }
    errors.extend(shared_ports(&runtimes));
    let endpoint = match &settings.embedded {
        None => None,
        Some(embedded) => match embedded::config(embedded, &mut runtimes, &settings.state_directory) {
            Ok(config) => Some(config),
            Err(found) => {
                errors.extend(found.into_iter().map(PlanError::Embedded));
                None
            }
        },
    };
    if errors.is_empty() { Ok(Plan { runtimes, endpoint }) } else { Err(errors) }
}

fn runtime(
    manifests: &Manifests,
    loaded: &LoadedConnector,
    settings: &Settings,
    free_port: &mut impl FnMut() -> io::Result<u16>,
) -> Result<RuntimePlan, PlanError> {
    let LoadedConnector { connector, place } = loaded;
    let identity = &connector.identity;
    let label = if identity.namespace == DEFAULT_NAMESPACE {
        identity.name.clone()
    } else {
        format!("{}/{}", identity.namespace, identity.name)
    };
    let below = |directory: &str| {
        settings
            .state_directory
            .join(directory)
            .join("connectors")
            .join(&identity.namespace)
            .join(&identity.name)
    };
    let run_directory = below("run");
    let base = settings.working_directory.join(place.file.parent().unwrap_or(Path::new("")));
    let placement = Placement {
        paths: Paths {
            secrets: text(run_directory.join("secrets"))?,
            state: text(below("state"))?,
            live: text(run_directory.join("live.json"))?,
            base: text(base)?,
            socket: String::new(),
        },
        admin: "127.0.0.1:0".to_owned(),
        drain_timeout_seconds: DRAIN_TIMEOUT_SECONDS,
    };
    if build::custom_process(connector).is_some() {
        return Err(PlanError::Custom { label, place: place.clone() });
    }
    let mut config = build::runtime_config(connector, &placement);
    if config.wallaroo.listen == Some(0) {
        let port = free_port().map_err(|cause| PlanError::NoPort {
            label: label.clone(),
            place: place.clone(),
            cause,
        })?;
        config.wallaroo.listen = Some(port.into());
    }
    let mut secrets: Vec<SecretFile> = Vec::new();
    for reference in secret_references(connector) {
        // A reference without a value was refused before (`manifests::missing_secrets`).
        if let Some(value) = manifests.secret(&identity.namespace, &reference.secret) {
            let file = SecretFile { reference: reference.secret, value: value.to_vec() };
            if !secrets.contains(&file) {
                secrets.push(file);
            }
        }
    }
    Ok(RuntimePlan {
        label,
        place: place.clone(),
        type_name: connector.system.type_name(),
        promise: connector.promise(),
        direction: match &connector.system {
            System::Source(_) => Direction::Source,
            System::Sink(_) => Direction::Sink,
        },
        protocol: connector.wallaroo.protocol,
        finite: match &connector.system {
            System::Source(SourceSpec::File(file)) => match file.at_end {
                AtEnd::Finish => true,
                AtEnd::Follow => false,
            },
            System::Source(SourceSpec::Generator(generator)) => generator.count.is_some(),
            System::Source(SourceSpec::Custom(_) | SourceSpec::Kafka(_) | SourceSpec::Udp(_))
            | System::Sink(_) => false,
        },
        replicas: connector.replicas,
        live: build::live_config(connector, &settings.log_level),
        config,
        secrets,
        run_directory,
    })
}

fn shared_ports(runtimes: &[RuntimePlan]) -> Vec<PlanError> {
    let mut errors = Vec::new();
    for (index, runtime) in runtimes.iter().enumerate() {
        let Some(port) = runtime.config.wallaroo.listen else { continue };
        let first = runtimes[..index].iter().find(|other| other.config.wallaroo.listen == Some(port));
        if let Some(other) = first {
            errors.push(PlanError::SamePort {
                label: runtime.label.clone(),
                place: runtime.place.clone(),
                port,
                other: other.label.clone(),
            });
        }
    }
    errors
}

fn text(path: PathBuf) -> Result<String, PlanError> {
    path.into_os_string().into_string().map_err(|path| PlanError::Path { path: path.into() })
}
