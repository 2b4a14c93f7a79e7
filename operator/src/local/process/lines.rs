//! The standard error of a process as lines of bounded length.

use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStderr;
use tokio::sync::mpsc;

/// Longest line that is kept whole, in bytes; a longer one comes in pieces.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// One line of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Name of the process.
    pub process: String,
    /// The line, without its line feed.
    pub text: String,
}

/// Sends the lines on until the process closes its end, and returns the last one that is not empty.
pub(super) async fn forward(
    stderr: Option<ChildStderr>,
    process: &str,
    log: &mpsc::Sender<LogLine>,
) -> String {
    let mut last = String::new();
    let Some(mut stderr) = stderr else { return last };
    let mut splitter = Splitter::default();
    let mut chunk = [0_u8; 4096];
    loop {
        let read = stderr.read(&mut chunk).await.unwrap_or(0);
        let mut lines = Vec::new();
        splitter.push(&chunk[..read], |text| lines.push(text));
        if read == 0 {
            splitter.finish(|text| lines.push(text));
        }
        for text in lines {
            last.clone_from(&text);
            // Nobody listens any more only while everything ends.
            let _ = log.send(LogLine { process: process.to_owned(), text }).await;
        }
        if read == 0 {
            return last;
        }
    }
}

/// Cuts bytes into lines; empty ones are left out.
#[derive(Default)]
struct Splitter(Vec<u8>);

impl Splitter {
    fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.finish(&mut line);
            } else {
                self.0.push(byte);
                if self.0.len() == MAX_LINE_BYTES {
                    self.finish(&mut line);
                }
            }
        }
    }

    fn finish(&mut self, mut line: impl FnMut(String)) {
        let text = String::from_utf8_lossy(&self.0);
        let text = text.trim_end();
        if !text.is_empty() {
            line(text.to_owned());
        }
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINE_BYTES, Splitter};

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(line));
        }
        splitter.finish(|line| lines.push(line));
        lines
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_are() {
        assert_eq!(lines(&[b"one\nt", b"wo\r\n\nthree"]), ["one", "two", "three"]);
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let endless = vec![b'x'; MAX_LINE_BYTES * 2 + 1];
        let lengths: Vec<_> = lines(&[&endless]).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]);
    }
}
