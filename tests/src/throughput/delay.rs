//! A TCP proxy that adds delay to the round trip: bytes pass to the server at once, the answers wait.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Bytes passed on with one call.
const READ: usize = 256 * 1024;

/// Answers on their way at most; beyond it the server waits.
const WAITING: usize = 65_536;

/// Listens on a port of its own and passes connections on to `target`; returns where. Its threads end with the program.
///
/// # Errors
/// When it cannot listen.
pub fn start(target: &str, delay: Duration) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let target = target.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if let Err(error) = pass(client, &target, delay) {
                eprintln!("throughput: delay: {error:#}");
            }
        }
    });
    Ok(address)
}

fn pass(client: TcpStream, target: &str, delay: Duration) -> anyhow::Result<()> {
    let server = TcpStream::connect(target).context("dialling the delayed server")?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut from_server, mut to_client) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ];
        while let Ok(n @ 1..) = from_client.read(&mut buffer) {
            if to_server.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let (answers, waiting) = sync_channel::<(Instant, Vec<u8>)>(WAITING);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ];
        while let Ok(n @ 1..) = from_server.read(&mut buffer) {
            if answers.send((Instant::now() + delay, buffer[..n].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok((due, bytes)) = waiting.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to_client.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
    });
    Ok(())
}
