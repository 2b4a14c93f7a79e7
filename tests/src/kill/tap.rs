//! A plain sink behind the endpoint's application: it sees every record as it is processed, also what a rollback takes back
//! from the transactional sink beside it.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use super::account::{Account, Seen};

/// Bytes read with one call.
const READ: usize = 256 * 1024;

/// Bytes of a length prefix.
const PREFIX: usize = 4;

/// A listener that notes numbered, length-prefixed records. Its threads end with their connections or the program.
#[derive(Debug)]
pub struct Tap {
    /// Where it listens.
    pub address: String,
    seen: Arc<Mutex<Seen>>,
}

impl Tap {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(records: u64, size: usize) -> anyhow::Result<Tap> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let seen = Arc::new(Mutex::new(Seen::new(records, size)));
        let noted = seen.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let noted = noted.clone();
                std::thread::spawn(move || note(socket, &noted));
            }
        });
        Ok(Tap { address, seen })
    }

    /// What came so far.
    pub fn account(&self) -> Account {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).account()
    }
}

/// Notes records until the connection ends. A record that was cut short by a kill is none.
fn note(mut socket: TcpStream, seen: &Mutex<Seen>) {
    let (mut buffer, mut end) = (vec![0; READ], 0);
    while let Ok(n @ 1..) = socket.read(&mut buffer[end..]) {
        end += n;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = 0;
        while let Some((prefix, rest)) = buffer[start..end].split_first_chunk::<PREFIX>() {
            let Some(record) = rest.get(..u32::from_be_bytes(*prefix) as usize) else { break };
            seen.add(record);
            start += PREFIX + record.len();
        }
        buffer.copy_within(start..end, 0);
        end -= start;
    }
}
