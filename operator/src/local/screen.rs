//! The terminal: a table that is drawn anew in place, or lines now and then where there is no terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

/// Pause between tables where each one stays on the page.
const PAGE_PAUSE: Duration = Duration::from_secs(5);

/// Standard error as a place to draw.
#[derive(Debug)]
pub struct Screen {
    in_place: bool,
    drawn: usize,
    last: Vec<String>,
    last_at: Option<Duration>,
}

impl Screen {
    /// `plain` asks for lines even on a terminal, because something else writes on it.
    pub fn new(plain: bool) -> Screen {
        Screen { in_place: !plain && io::stderr().is_terminal(), drawn: 0, last: Vec::new(), last_at: None }
    }

    /// Prints a line that stays, above the table.
    pub fn line(&mut self, text: &str) {
        let mut out = self.erased();
        out.push_str(&text.replace(|c: char| c.is_control() && c != '\t', " "));
        out.push('\n');
        self.drawn = 0;
        if self.in_place {
            out += &self.table();
            self.drawn = self.last.len();
        }
        print(&out);
    }

    /// Shows a table; `now` counts from the start of the run. The last one of a run is always shown.
    pub fn table_at(&mut self, now: Duration, lines: Vec<String>, last: bool) {
        let due = self.last_at.is_none_or(|at| now.saturating_sub(at) >= PAGE_PAUSE);
        let changed = lines != self.last;
        if self.in_place {
            if changed || last {
                let mut out = self.erased();
                self.last = lines;
                out += &self.table();
                self.drawn = if last { 0 } else { self.last.len() };
                print(&out);
            }
        } else if changed && (due || last) {
            self.last = lines;
            self.last_at = Some(now);
            print(&self.table());
        }
    }

    fn table(&self) -> String {
        let mut out = String::new();
        for line in &self.last {
            if self.in_place {
                // Without wrapping, a narrow terminal cuts a line instead of breaking it in two.
                out.extend(["\x1b[?7l", line, "\x1b[?7h\n"]);
            } else {
                out += line;
                out.push('\n');
            }
        }
        out
    }

    /// What clears the table that stands there.
    fn erased(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.drawn) }
    }
}

fn print(text: &str) {
    // A closed terminal is no reason to stop moving records.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
