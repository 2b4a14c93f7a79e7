//! UDP sink: one record, one datagram, sent many at a time.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use async_trait::async_trait;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use tokio::io::Interest;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{Duration, Instant, timeout};

use super::super::set_position;
use super::MAX_DATAGRAM_BYTES;
use crate::record::{Batch, Position};
use crate::sink::{Rejected, Sink, SinkStream, SystemError, Written};
use crate::source::ErrorClass;

/// Datagrams handed over with one system call.
const SLOTS: usize = 128;

/// Longest wait for name resolution.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for room in the send buffer: the loopback and network drivers drain it in milliseconds.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends each record as one datagram.
///
/// Durable means handed to the kernel, so records are delivered at most once from there on: a datagram may be lost on
/// the way and nobody tells. Where the target's host answers that nobody listens, writing may fail as transient (the
/// kernel reports some of these answers), and the rest of the batch is sent when it is given again; what drew the
/// answer is lost. The name is resolved anew after each failure. A record of more than 65,507 bytes is rejected; an
/// empty one is an empty datagram.
#[derive(Debug)]
pub struct UdpSink {
    host: String,
    port: u16,
    socket: Option<UdpSocket>,
    sent: BTreeMap<SinkStream, Position>,
    interrupted: Option<Interrupted>,
}

/// A batch that was sent in part: given again, it goes on behind that part.
#[derive(Debug)]
struct Interrupted {
    stream: SinkStream,
    first: Position,
    last: Position,
    sent: usize,
    rejected: Vec<Rejected>,
}

impl UdpSink {
    /// A sink that resolves and connects with the first `write` or `check`.
    pub fn new(spec: &connector_crds::systems::udp::UdpSink) -> UdpSink {
        UdpSink {
            host: spec.host.clone(),
            port: u16::try_from(spec.port).unwrap_or(0),
            socket: None,
            sent: BTreeMap::new(),
            interrupted: None,
        }
    }

    fn failed(&mut self, doing: &str, error: io::Error) -> SystemError {
        self.socket = None;
        SystemError::Transient {
            context: format!("{doing} {}:{}: {error}", self.host, self.port),
            class: match error.kind() {
                io::ErrorKind::TimedOut => ErrorClass::Timeout,
                _ => ErrorClass::Connect,
            },
            cause: Some(error.into()),
        }
    }

    async fn connect(&mut self) -> Result<(), SystemError> {
        if self.socket.is_some() {
            return Ok(());
        }
        let resolved = match timeout(RESOLVE_TIMEOUT, lookup_host((self.host.as_str(), self.port))).await {
            Ok(Ok(mut addresses)) => {
                addresses.next().ok_or_else(|| io::Error::other("the name has no address"))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from name resolution")),
        };
        let address = resolved.map_err(|error| self.failed("resolving", error))?;
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let connected = async {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(address).await?;
            Ok(socket)
        };
        self.socket = Some(connected.await.map_err(|error| self.failed("connecting to", error))?);
        Ok(())
    }

    /// Sends the datagrams of `slices` from number `*done` on, counting it up; records that are too long are rejected.
    async fn send(
        &mut self,
        slices: &[[IoSlice<'_>; 1]],
        done: &mut usize,
        rejected: &mut Vec<Rejected>,
    ) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        while *done < slices.len() {
            if slices[*done][0].len() > MAX_DATAGRAM_BYTES {
                rejected.push(too_long(*done, slices[*done][0].len()));
                *done += 1;
                continue;
            }
            let fit =
                slices[*done..].iter().take(SLOTS).take_while(|s| s[0].len() <= MAX_DATAGRAM_BYTES).count();
            let group = &slices[*done..*done + fit];
            let call = || {
                let mut headers = MultiHeaders::preallocate(fit, None);
                let addresses = &[None::<()>; SLOTS][..fit];
                Ok(sendmmsg(socket.as_raw_fd(), &mut headers, group, addresses, [], MsgFlags::MSG_DONTWAIT)?
                    .count())
            };
            match socket.try_io(Interest::WRITABLE, call) {
                Ok(sent) => *done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    timeout(SEND_TIMEOUT, socket.writable()).await.unwrap_or_else(|_| {
                        Err(io::Error::new(io::ErrorKind::TimedOut, "no room in the send buffer"))
                    })?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32) => {
                    rejected.push(too_long(*done, slices[*done][0].len()));
                    *done += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn too_long(index: usize, bytes: usize) -> Rejected {
    Rejected { index, reason: format!("record of {bytes} bytes is longer than a datagram can be") }
}

#[async_trait]
impl Sink for UdpSink {
    async fn open(&mut self, _stream: &SinkStream) -> Result<Option<Position>, SystemError> {
        Ok(None)
    }

    async fn write(&mut self, stream: &SinkStream, batch: &Batch) -> Result<Written, SystemError> {
        let (Some(first), Some(last)) = (batch.get(0).map(|r| r.position), batch.last_position()) else {
            return Ok(Written::default());
        };
        let (mut done, mut rejected) = match self.interrupted.take() {
            Some(i) if i.stream == *stream && i.first == first && i.last == last => (i.sent, i.rejected),
            _ => (0, Vec::new()),
        };
        let slices: Vec<[IoSlice<'_>; 1]> =
            batch.iter().map(|record| [IoSlice::new(record.payload)]).collect();
        let result = match self.connect().await {
            Ok(()) => match self.send(&slices, &mut done, &mut rejected).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.failed("sending to", error)),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.interrupted =
                Some(Interrupted { stream: stream.clone(), first, last, sent: done, rejected });
            return Err(error);
        }
        set_position(&mut self.sent, stream, last);
        Ok(Written::rejecting(rejected))
    }

    fn durable(&self) -> Vec<(SinkStream, Position)> {
        self.sent.iter().map(|(stream, position)| (stream.clone(), *position)).collect()
    }

    async fn flush(&mut self, _deadline: Instant) -> Result<(), SystemError> {
        Ok(())
    }

    async fn archive(&mut self, stream: &SinkStream) -> Result<(), SystemError> {
        self.sent.remove(stream);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), SystemError> {
        self.connect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, NO_TIME, Record};
    use connector_crds::systems::udp::UdpSink as Spec;

    fn batch(payloads: &[Vec<u8>]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (position, payload) in (1..).zip(payloads) {
            builder.push(Record { position, time: NO_TIME, key: &[], payload });
        }
        builder.finish()
    }

    fn stream() -> SinkStream {
        SinkStream { worker: "w".into(), incarnation: 1 }
    }

    async fn receive(socket: &UdpSocket) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
        buffer.truncate(length);
        buffer
    }

    #[tokio::test]
    async fn each_record_is_one_datagram_and_what_cannot_be_one_is_rejected_by_number() {
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = i32::from(target.local_addr().unwrap().port());
        let mut sink = UdpSink::new(&Spec { host: "127.0.0.1".into(), port });
        let bytes: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
        assert!(sink.write(&stream(), &batch(&bytes)).await.unwrap().rejected.is_empty());
        for payload in bytes {
            assert!(receive(&target).await == payload);
        }
        let payloads = [vec![], vec![1; MAX_DATAGRAM_BYTES + 1], vec![2; MAX_DATAGRAM_BYTES], vec![3; 2]];
        let written = sink.write(&stream(), &batch(&payloads)).await.unwrap();
        assert_eq!(written.rejected.iter().map(|r| r.index).collect::<Vec<_>>(), [1]);
        assert!(written.rejected[0].reason.contains("65508 bytes"), "{}", written.rejected[0].reason);
        for index in [0, 2, 3] {
            assert!(receive(&target).await == payloads[index]);
        }
        assert_eq!(sink.durable(), [(stream(), 4)]);
    }

    #[tokio::test]
    async fn after_a_refusal_the_same_batch_goes_on_where_it_stopped() {
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = target.local_addr().unwrap();
        let mut sink = UdpSink::new(&Spec { host: "127.0.0.1".into(), port: i32::from(address.port()) });
        sink.check().await.unwrap();
        drop(target);
        // The first datagram draws the refusal, one of the next calls reports it.
        let first = batch(&[b"lost".to_vec()]);
        let deadline = Instant::now() + Duration::from_secs(10);
        let error = loop {
            assert!(Instant::now() < deadline, "the refusal was never reported");
            if let Err(error) = sink.write(&stream(), &first).await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        let text = error.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(matches!(error, SystemError::Transient { class: ErrorClass::Connect, .. }));
        let target = UdpSocket::bind(address).await.unwrap();
        sink.write(&stream(), &batch(&[b"a".to_vec(), b"b".to_vec()])).await.unwrap();
        assert_eq!(receive(&target).await, b"a");
        assert_eq!(receive(&target).await, b"b");
    }

    #[tokio::test]
    async fn an_unknown_host_is_transient_and_named() {
        let mut sink = UdpSink::new(&Spec { host: "nowhere.invalid".into(), port: 9 });
        let error = sink.check().await.unwrap_err();
        assert!(error.to_string().contains("nowhere.invalid:9"), "{error}");
        assert!(matches!(error, SystemError::Transient { .. }));
    }
}
