//! Harness shared by the tests, fault programs and benchmarks of the workspace.
