//! UDP on loopback: each fixture has an address of its own in 127/8, so that no port is ever taken by another test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use connector_crds::systems::udp::{UdpSink, UdpSource};
use connector_crds::{SinkSpec, SourceSpec};
use connector_tests::conformance::sink::{Replay, SinkFixture, SinkTraits};
use connector_tests::conformance::source::{SourceFixture, SourceTraits};
use connector_tests::conformance::{Ability, Carries, PATIENCE, World};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// A free port on an address that only this process and fixture uses.
async fn own_address() -> (UdpSocket, SocketAddr) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id();
    let ip =
        Ipv4Addr::new(127, (process >> 8) as u8 | 1, process as u8, NEXT.fetch_add(1, Ordering::Relaxed));
    let socket = UdpSocket::bind((IpAddr::V4(ip), 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

pub(crate) struct Source {
    address: SocketAddr,
    sender: UdpSocket,
    occupied: Option<UdpSocket>,
}

impl Source {
    pub(crate) async fn new(_world: &World) -> Source {
        let (_, address) = own_address().await;
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Source { address, sender, occupied: None }
    }
}

#[async_trait]
impl SourceFixture for Source {
    fn spec(&self) -> SourceSpec {
        SourceSpec::Udp(UdpSource {
            port: i32::from(self.address.port()),
            bind: self.address.ip().to_string(),
            multicast_groups: Vec::new(),
            receive_buffer_bytes: 4_194_304,
        })
    }

    fn traits(&self) -> SourceTraits {
        SourceTraits { carries: Carries::Anything, replayable: false, keeps_commits: false, streams: 1 }
    }

    async fn produce(&mut self, payloads: &[Vec<u8>]) {
        for payload in payloads {
            self.sender.send_to(payload, self.address).await.unwrap();
        }
    }

    async fn break_down(&mut self) -> Ability {
        match UdpSocket::bind(self.address).await {
            Ok(socket) => {
                self.occupied = Some(socket);
                Ability::Done
            }
            Err(_) => Ability::NotApplicable("a bound socket stays bound"),
        }
    }

    async fn repair(&mut self) {
        self.occupied = None;
    }

    fn loss_is_noticed(&self) -> bool {
        true
    }

    fn wrong_credentials(&self, _world: &World) -> Result<SourceSpec, &'static str> {
        Err("UDP has no credentials")
    }

    fn finite(&self) -> Result<SourceSpec, &'static str> {
        Err("UDP has no end")
    }
}

pub(crate) struct Sink {
    target: UdpSocket,
    address: SocketAddr,
    received: Vec<Vec<u8>>,
}

impl Sink {
    pub(crate) async fn new(_world: &World) -> Sink {
        let (target, address) = own_address().await;
        Sink { target, address, received: Vec::new() }
    }
}

#[async_trait]
impl SinkFixture for Sink {
    fn spec(&self) -> SinkSpec {
        SinkSpec::Udp(UdpSink { host: self.address.ip().to_string(), port: i32::from(self.address.port()) })
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits { carries: Carries::Anything, replay: Replay::Repeats }
    }

    fn record(&self, _number: u64, payload: &[u8]) -> Vec<u8> {
        payload.to_vec()
    }

    async fn delivered(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        while self.received.len() < count {
            let length = timeout(PATIENCE, self.target.recv(&mut buffer)).await.expect("a datagram").unwrap();
            self.received.push(buffer[..length].to_vec());
        }
        while let Ok(length) = self.target.try_recv(&mut buffer) {
            self.received.push(buffer[..length].to_vec());
        }
        self.received.clone()
    }

    fn bad_record(&self) -> Result<Vec<u8>, &'static str> {
        Ok(vec![0; 65_508])
    }

    async fn break_down(&mut self) -> Ability {
        Ability::NotApplicable("a datagram leaves whether anyone listens or not")
    }

    async fn repair(&mut self) {}

    fn wrong_credentials(&self, _world: &World) -> Result<SinkSpec, &'static str> {
        Err("UDP has no credentials")
    }
}
