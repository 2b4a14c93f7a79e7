//! The registry: one folder a system, one match arm each.

use connector_crds::{RuntimeConfig, SinkSpec, SourceSpec};

use crate::sink::Sink;
use crate::source::{Source, SystemError};
