//! One TLS provider: a client of an API server can be built once it is installed, as the binary does first thing.

#![allow(clippy::unwrap_used)] // the whole file is test code, also outside `#[test]` functions

use kube::{Client, Config};

#[tokio::test]
async fn a_client_over_tls_is_built_with_the_one_provider() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
    // An authority of its own, so that none of the machine's is needed.
    config.root_cert = Some(Vec::new());
    Client::try_from(config).unwrap();
}
