//! UDP source: one datagram, one record, received many at a time, kernel drops counted.

use std::collections::VecDeque;
use std::future::pending;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, getsockopt, recvmmsg, setsockopt,
    sockopt::{RcvBuf, RcvBufForce, RxqOvfl},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::super::Context;
use crate::board::{Board, DropReason};
use crate::record::{BatchBuilder, NO_TIME, Position, Record};
use crate::source::{BadRecord, ErrorClass, ResumeFrom, Source, SourceEvent, StreamKey, SystemError};

/// The only stream.
const STREAM: StreamKey = StreamKey(0);

/// Datagrams taken with one system call. With 128, the call's own cost is below a tenth of the copying at 100 bytes.
const SLOTS: usize = 128;

/// Bytes of one slot: no datagram is longer, so none can be cut. Pages that no datagram reaches stay unused.
const SLOT_BYTES: usize = 65_536;

/// System calls whose datagrams make one batch at most, while more wait in the kernel.
const CALLS_PER_BATCH: usize = 8;

/// Payload bytes of one batch, aimed at.
const BATCH_BYTES: usize = 262_144;

/// Receives datagrams, each unchanged and whole (up to 65,507 bytes).
///
/// The system is volatile: what was received and not acknowledged is not repeated. Positions count the datagrams of the
/// stream and go on after the resume position, never back within a process. While the stream is paused or not resumed,
/// datagrams wait in the kernel's receive buffer; what does not fit there is counted on the board as
/// [`DropReason::KernelOverflow`] (seen with the next datagram that is received after the loss).
#[derive(Debug)]
pub struct UdpSource {
    address: SocketAddr,
    groups: Vec<IpAddr>,
    receive_buffer: usize,
    batch_records: usize,
    board: Board,
    socket: Option<UdpSocket>,
    state: State,
    paused: bool,
    last: Position,
    kernel_drops: u32,
    slots: Vec<u8>,
    builder: BatchBuilder,
    ready: VecDeque<SourceEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Opened,
    Running,
    Released,
}

impl UdpSource {
    /// A source that binds with the first `next` or `check`.
    ///
    /// # Errors
    /// `Permanent/InvalidAddress` when the address to bind or a group is no IP address, or a group is not multicast.
    pub fn new(
        spec: &connector_crds::systems::udp::UdpSource,
        context: &Context,
    ) -> Result<UdpSource, SystemError> {
        let invalid = |field: &str, text: &str, what: &str| SystemError::Permanent {
            reason: "InvalidAddress",
            context: format!("{field} {text:?} is {what}"),
        };
        let ip: IpAddr = spec.bind.parse().map_err(|_| invalid("bind", &spec.bind, "no IP address"))?;
        let port =
            u16::try_from(spec.port).map_err(|_| invalid("port", &spec.port.to_string(), "no port"))?;
        let mut groups = Vec::with_capacity(spec.multicast_groups.len());
        for text in &spec.multicast_groups {
            let group: IpAddr =
                text.parse().map_err(|_| invalid("multicastGroups", text, "no IP address"))?;
            if !group.is_multicast() {
                return Err(invalid("multicastGroups", text, "no multicast address"));
            }
            if group.is_ipv4() != ip.is_ipv4() {
                return Err(invalid("multicastGroups", text, "of another IP version than `bind`"));
            }
            groups.push(group);
        }
        Ok(UdpSource {
            address: SocketAddr::new(ip, port),
            groups,
            receive_buffer: usize::try_from(spec.receive_buffer_bytes).unwrap_or(0),
            batch_records: usize::try_from(context.in_flight.records)
                .unwrap_or(1)
                .clamp(1, SLOTS * CALLS_PER_BATCH),
            board: context.board.clone(),
            socket: None,
            state: State::New,
            paused: false,
            last: 0,
            kernel_drops: 0,
            slots: Vec::new(),
            builder: BatchBuilder::default(),
            ready: VecDeque::new(),
        })
    }

    fn bind(&mut self) -> Result<(), SystemError> {
        if self.socket.is_some() {
            return Ok(());
        }
        let socket = bind(self.address, &self.groups, self.receive_buffer).map_err(|error| {
            SystemError::Transient {
                context: format!("binding UDP address {}: {error}", self.address),
                class: match error.kind() {
                    io::ErrorKind::PermissionDenied => ErrorClass::Auth,
                    _ => ErrorClass::Connect,
                },
                cause: Some(error.into()),
            }
        })?;
        if let Ok(address) = socket.local_addr() {
            self.board.set_listen(address.to_string());
        }
        self.kernel_drops = 0;
        self.slots.resize(SLOTS * SLOT_BYTES, 0);
        self.socket = Some(socket);
        Ok(())
    }

    /// Takes what waits in the kernel, at most one batch, and queues it as events. `WouldBlock` when nothing waits.
    fn receive(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut lengths = [0_usize; SLOTS];
        let mut taken = 0;
        while taken < self.batch_records && self.builder.bytes() < BATCH_BYTES {
            let most = SLOTS.min(self.batch_records - taken);
            let call = || receive_some(socket.as_raw_fd(), &mut self.slots, &mut lengths[..most]);
            let (received, drops) = match socket.try_io(Interest::READABLE, call) {
                Err(_) if taken > 0 => break,
                other => other?,
            };
            if let Some(drops) = drops {
                self.board
                    .dropped(DropReason::KernelOverflow, u64::from(drops.wrapping_sub(self.kernel_drops)));
                self.kernel_drops = drops;
            }
            for (slot, &length) in self.slots.chunks_exact(SLOT_BYTES).zip(&lengths[..received]) {
                self.last += 1;
                if length == 0 {
                    if !self.builder.is_empty() {
                        let batch = self.builder.finish();
                        self.ready.push_back(SourceEvent::Batch { stream: STREAM, batch });
                    }
                    self.ready.push_back(SourceEvent::BadRecord {
                        stream: STREAM,
                        position: self.last,
                        reason: BadRecord::Empty,
                        payload: Bytes::new(),
                    });
                } else {
                    let payload = &slot[..length.min(SLOT_BYTES)];
                    self.builder.push(Record { position: self.last, time: NO_TIME, key: &[], payload });
                }
            }
            taken += received;
            if received < most {
                break;
            }
        }
        if !self.builder.is_empty() {
            let batch = self.builder.finish();
            self.ready.push_back(SourceEvent::Batch { stream: STREAM, batch });
        }
        Ok(())
    }
}

/// One system call; the datagrams' lengths and, where the kernel told, its count of drops since the socket exists.
fn receive_some(fd: i32, slots: &mut [u8], lengths: &mut [usize]) -> io::Result<(usize, Option<u32>)> {
    // Fresh headers each time: the kernel shortens the space for control data in used ones.
    let mut headers = MultiHeaders::<()>::preallocate(lengths.len(), Some(nix::cmsg_space!(u32)));
    let mut slices: Vec<[IoSliceMut<'_>; 1]> =
        slots.chunks_exact_mut(SLOT_BYTES).take(lengths.len()).map(|slot| [IoSliceMut::new(slot)]).collect();
    let results = recvmmsg(fd, &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    let mut received = 0;
    let mut drops = None;
    for (result, length) in results.zip(lengths.iter_mut()) {
        *length = result.bytes;
        received += 1;
        // The count only grows; the last one that is told stands.
        if let Ok(messages) = result.cmsgs() {
            for message in messages {
                if let ControlMessageOwned::RxqOvfl(count) = message {
                    drops = Some(count);
                }
            }
        }
    }
    Ok((received, drops))
}

/// Binds, joins the groups, and asks for the receive buffer; what was granted is logged when it is less.
fn bind(address: SocketAddr, groups: &[IpAddr], receive_buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if !groups.is_empty() {
        // Several receivers of one group on a host are normal; for unicast it would hide a taken port.
        socket.set_reuse_address(true)?;
    }
    if receive_buffer > 0 {
        // Beyond `net.core.rmem_max` only with CAP_NET_ADMIN; without it the kernel caps silently.
        if setsockopt(&socket, RcvBufForce, &receive_buffer).is_err() {
            setsockopt(&socket, RcvBuf, &receive_buffer)?;
        }
        // The kernel doubles the value for its own bookkeeping and reports the double.
        let granted = getsockopt(&socket, RcvBuf)? / 2;
        if granted < receive_buffer {
            tracing::warn!(
                asked = receive_buffer,
                granted,
                "receive buffer is smaller than asked, raise net.core.rmem_max on the node"
            );
        }
    }
    setsockopt(&socket, RxqOvfl, &1)?;
    socket.bind(&address.into())?;
    for group in groups {
        match group {
            IpAddr::V4(group) => socket.join_multicast_v4(group, &Ipv4Addr::UNSPECIFIED)?,
            IpAddr::V6(group) => socket.join_multicast_v6(group, 0)?,
        }
    }
    UdpSocket::from_std(socket.into())
}

#[async_trait]
impl Source for UdpSource {
    async fn next(&mut self) -> Result<SourceEvent, SystemError> {
        self.bind()?;
        if self.state == State::New {
            self.state = State::Opened;
            return Ok(SourceEvent::Opened {
                stream: STREAM,
                name: self.address.to_string(),
                committed: None,
            });
        }
        if self.state != State::Running || self.paused {
            return pending().await;
        }
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let result = match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match &self.socket {
                    Some(socket) => socket.readable().await,
                    None => Err(io::ErrorKind::NotConnected.into()),
                },
                other => other,
            };
            if let Err(error) = result {
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                self.socket = None;
                return Err(SystemError::Transient {
                    context: format!("receiving on UDP address {}: {error}", self.address),
                    class: ErrorClass::Connect,
                    cause: Some(error.into()),
                });
            }
        }
    }

    async fn resume(&mut self, _stream: StreamKey, from: ResumeFrom) -> Result<(), SystemError> {
        // What was taken for the earlier reading is gone: the system cannot repeat it.
        let lost: usize = self
            .ready
            .drain(..)
            .map(|event| match event {
                SourceEvent::Batch { batch, .. } => batch.len(),
                _ => 0,
            })
            .sum();
        self.board.dropped(DropReason::NotConnected, lost as u64);
        if let ResumeFrom::After(position) = from {
            self.last = self.last.max(position);
        }
        self.state = State::Running;
        Ok(())
    }

    async fn commit(&mut self, _positions: &[(StreamKey, Position)]) -> Result<(), SystemError> {
        Ok(())
    }

    async fn release(&mut self, _stream: StreamKey) -> Result<(), SystemError> {
        self.state = State::Released;
        self.ready.clear();
        Ok(())
    }

    fn pause(&mut self, _stream: StreamKey) {
        self.paused = true;
    }

    fn unpause(&mut self, _stream: StreamKey) {
        self.paused = false;
    }

    async fn close(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        let taken: usize = self
            .ready
            .drain(..)
            .map(|event| match event {
                SourceEvent::Batch { batch, .. } => batch.len(),
                _ => 0,
            })
            .sum();
        self.board.dropped(DropReason::Shutdown, taken as u64);
        self.socket = None;
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        self.bind()
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
