//! How command lines talk: results to stdout, as text for people or as JSON for programs; everything
//! else to stderr.
//!
//! A reader that goes away (`| head`) is no failure of the command: it ends quietly then.

use std::io::{self, IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};

use crate::exit::{Code, Failure};

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    program: &'static str,
    json: bool,
}

impl Output {
    /// Of this program; `json` for programs, else for people.
    pub fn new(program: &'static str, json: bool) -> Self {
        Self { program, json }
    }

    /// Whether results are for programs.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A result: the text for people, the value for programs.
    ///
    /// # Errors
    /// As [`raw`].
    pub fn result(self, text: &str, value: &Value) -> Result<(), Failure> {
        if self.json { line(&value.to_string()) } else { line(text) }
    }

    /// Tells people who wait how it goes.
    pub fn note(self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// Says why a command did not do its work.
    pub fn failure(self, failure: &Failure) {
        if failure.code() == Code::Done {
            return;
        }
        if self.json {
            let value = json!({ "error": failure.chain(), "exit_code": failure.code() as u8 });
            eprintln!("{value}");
        } else {
            failure.print(self.program);
        }
    }
}

/// Columns for people.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns and no rows.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(header);
        Self(table)
    }

    /// Adds a row; what it lacks at its end stays empty.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }

    /// The table without the space around it.
    pub fn text(&self) -> String {
        let lines = self.0.lines().map(|line| {
            let line = line.trim_end();
            line.strip_prefix(' ').unwrap_or(line).to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A line on stdout.
///
/// # Errors
/// As [`raw`].
pub fn line(text: &str) -> Result<(), Failure> {
    raw(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, as they are.
///
/// # Errors
/// Done, when nobody reads them any more; failed, when they can't be written.
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(unwritable)
}

/// A value on stdout, as it is; on a terminal with a line end, so that the prompt stands apart.
///
/// # Errors
/// As [`raw`].
pub fn value(bytes: &[u8]) -> Result<(), Failure> {
    raw(bytes)?;
    if io::stdout().is_terminal() && !bytes.ends_with(b"\n") { raw(b"\n") } else { Ok(()) }
}

/// What a failed write to stdout means for the command.
pub fn unwritable(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::new(Code::Done, "nobody reads the output any more");
    }
    Failure::new(Code::Failed, "the output cannot be written").because(error)
}

/// Bytes in JSON: as text where they are text, else in base64 under another name.
pub fn put_bytes(object: &mut serde_json::Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Bytes as a person reads them.
pub fn shown(bytes: &[u8]) -> String {
    const SHOWN_CHARACTERS: usize = 80;
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String =
        text.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_json_are_never_changed() {
        let mut object = serde_json::Map::new();
        put_bytes(&mut object, "text", "käse\n".as_bytes());
        put_bytes(&mut object, "bytes", b"\xff\0");
        assert_eq!(Value::from(object), json!({ "text": "käse\n", "bytes_base64": "/wA=" }));
    }

    #[test]
    fn what_is_shown_is_short_and_prints() {
        assert_eq!(shown(b"a\n\x1b["), "a\\n\\u{1b}[");
        assert_eq!(shown(&[b'x'; 81]), format!("{}...", "x".repeat(80)));
        assert_eq!(shown(&[b'x'; 80]), "x".repeat(80));
    }

    #[test]
    fn a_table_has_no_space_around_it() {
        let mut table = Table::new(["A", "LONG", "C"]);
        table.row(["value".to_owned(), "b".to_owned()]);
        assert_eq!(table.text(), "A      LONG  C\nvalue  b");
    }
}
