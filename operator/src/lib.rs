//! Reconciles Connector resources into pods, and runs the same manifests on one machine.
