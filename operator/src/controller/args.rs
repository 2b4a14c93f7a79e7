//! The command line of `run`.

use std::net::SocketAddr;

use super::run::{ElectionOptions, Options};
use crate::settings::{Allow, OperatorSettings};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    /// Image of the runtime for Connectors that name none
    #[arg(long, value_name = "IMAGE", env = "CONNECTOR_RUNTIME_IMAGE")]
    runtime_image: String,
    /// Namespaces to watch; absent: all
    #[arg(long = "namespace", value_name = "NAME", env = "WATCH_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9180")]
    admin: SocketAddr,
    /// Let Connectors name their own runtime image
    #[arg(long)]
    allow_runtime_image: bool,
    /// Let Connectors run a process of their own beside the runtime (`custom`)
    #[arg(long)]
    allow_custom: bool,
    /// Let Connectors run as a `ServiceAccount` that they name
    #[arg(long)]
    allow_service_account_name: bool,
    /// Give each Connector a `NetworkPolicy` that lets in what it is made for, and nothing else
    #[arg(long)]
    network_policies: bool,
    /// Work without leader election: this process is the only operator
    #[arg(long)]
    no_leader_election: bool,
    /// Namespace of the Lease
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", required_unless_present = "no_leader_election")]
    lease_namespace: Option<String>,
    /// Name of the Lease
    #[arg(long, value_name = "NAME", default_value = "connector-operator")]
    lease_name: String,
    /// Name of this process in the Lease, which no other has
    #[arg(long, value_name = "NAME", env = "POD_NAME", required_unless_present = "no_leader_election")]
    identity: Option<String>,
}

impl From<RunArguments> for Options {
    fn from(arguments: RunArguments) -> Options {
        let election = arguments.lease_namespace.zip(arguments.identity);
        Options {
            settings: OperatorSettings {
                runtime_image: arguments.runtime_image,
                allow: Allow {
                    runtime_image: arguments.allow_runtime_image,
                    custom: arguments.allow_custom,
                    service_account_name: arguments.allow_service_account_name,
                },
                network_policies: arguments.network_policies,
            },
            namespaces: arguments.namespaces.into_iter().filter(|name| !name.is_empty()).collect(),
            admin: arguments.admin,
            election: election.filter(|_| !arguments.no_leader_election).map(|(namespace, identity)| {
                ElectionOptions { namespace, name: arguments.lease_name, identity }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArguments,
    }

    fn options(words: &[&str]) -> Result<Options, clap::Error> {
        Line::try_parse_from(["run"].iter().chain(words)).map(|line| line.run.into())
    }

    #[test]
    fn an_election_needs_a_place_and_a_name() {
        assert!(options(&["--runtime-image", "i"]).is_err());
        let alone = options(&["--runtime-image", "i", "--no-leader-election"]).unwrap();
        assert!(alone.election.is_none() && alone.namespaces.is_empty());
        let words =
            ["--runtime-image", "i", "--lease-namespace", "n", "--identity", "p", "--namespace", "a,b"];
        let elected = options(&words).unwrap();
        assert_eq!(elected.namespaces, ["a", "b"]);
        assert_eq!(elected.election.unwrap().identity, "p");
    }
}
