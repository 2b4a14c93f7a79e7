//! The terminal: a table that is drawn anew in place, or tables now and then where there is no terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

/// Pause between tables where each one stays on the page.
const PAGE_PAUSE: Duration = Duration::from_secs(5);

/// Standard error as a place to draw.
#[derive(Debug)]
pub struct Screen {
    in_place: bool,
    /// Lines of the table that the cursor stands below.
    drawn: usize,
    table: Vec<String>,
    shown_at: Option<Duration>,
}

impl Screen {
    /// `plain` asks for tables that stay even on a terminal, because something else writes on it.
    pub fn new(plain: bool) -> Screen {
        Screen::with(!plain && io::stderr().is_terminal())
    }

    fn with(in_place: bool) -> Screen {
        Screen { in_place, drawn: 0, table: Vec::new(), shown_at: None }
    }

    /// Prints a line that stays, above the table.
    pub fn line(&mut self, text: &str) {
        print(&self.drawn_line(text));
    }

    /// Shows a table; `now` counts from the start of the run. The last one of a run is always shown, and stays.
    pub fn table_at(&mut self, now: Duration, table: Vec<String>, last: bool) {
        print(&self.drawn_table(now, table, last));
    }

    fn drawn_line(&mut self, text: &str) -> String {
        let mut out = self.erased();
        out.push_str(&text.replace(|letter: char| letter.is_control() && letter != '\t', " "));
        out.push('\n');
        if self.in_place {
            self.draw(&mut out);
        }
        out
    }

    fn drawn_table(&mut self, now: Duration, table: Vec<String>, last: bool) -> String {
        let due =
            self.in_place || last || self.shown_at.is_none_or(|at| now.saturating_sub(at) >= PAGE_PAUSE);
        let stands = table == self.table && !(self.in_place && last);
        if !due || stands {
            return String::new();
        }
        let mut out = self.erased();
        self.table = table;
        self.shown_at = Some(now);
        self.draw(&mut out);
        if last {
            self.table.clear();
            self.drawn = 0;
        }
        out
    }

    fn draw(&mut self, out: &mut String) {
        for line in &self.table {
            if self.in_place {
                // Without wrapping, a narrow terminal cuts a line instead of breaking it in two.
                out.extend(["\x1b[?7l", line, "\x1b[?7h\n"]);
            } else {
                out.extend([line, "\n"]);
            }
        }
        self.drawn = if self.in_place { self.table.len() } else { 0 };
    }

    /// What clears the table that stands there.
    fn erased(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }
}

fn print(text: &str) {
    // A closed terminal is no reason to stop moving records.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::{Duration, PAGE_PAUSE, Screen};

    fn table(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_terminal_shows_one_table_below_the_lines() {
        let mut screen = Screen::with(true);
        let now = Duration::ZERO;
        assert_eq!(screen.drawn_table(now, table("a b"), false), "\x1b[?7la\x1b[?7h\n\x1b[?7lb\x1b[?7h\n");
        assert_eq!(screen.drawn_table(now, table("a b"), false), "");
        assert_eq!(
            screen.drawn_line("log\x1b[31m"),
            "\x1b[2A\x1b[Jlog [31m\n\x1b[?7la\x1b[?7h\n\x1b[?7lb\x1b[?7h\n"
        );
        assert_eq!(screen.drawn_table(now, table("c"), true), "\x1b[2A\x1b[J\x1b[?7lc\x1b[?7h\n");
        assert_eq!(screen.drawn_line("summary"), "summary\n");
    }

    #[test]
    fn a_page_shows_a_changed_table_now_and_then_and_the_last_one() {
        let mut screen = Screen::with(false);
        assert_eq!(screen.drawn_table(Duration::ZERO, table("a"), false), "a\n");
        assert_eq!(screen.drawn_table(PAGE_PAUSE / 2, table("b"), false), "");
        assert_eq!(screen.drawn_line("log"), "log\n");
        assert_eq!(screen.drawn_table(PAGE_PAUSE, table("a"), false), "");
        assert_eq!(screen.drawn_table(PAGE_PAUSE, table("c"), false), "c\n");
        assert_eq!(screen.drawn_table(PAGE_PAUSE, table("c"), true), "");
        assert_eq!(screen.drawn_table(PAGE_PAUSE, table("d"), true), "d\n");
    }
}
