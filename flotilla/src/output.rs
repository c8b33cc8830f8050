//! How commands talk: results to stdout, as text for people or as JSON for programs; everything
//! else to stderr.
//!
//! A reader that goes away (`| head`) is no failure of the command: it ends quietly then.

use std::io::{self, IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{Error, InvalidEndpoint, Rejected};
use comfy_table::presets::NOTHING;
use daemon::{Code, Failure};
use serde_json::{Value, json};

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// For programs, or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are for programs.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A result: the text for people, the value for programs.
    pub(crate) fn result(self, text: &str, value: &Value) -> Result<(), Failure> {
        if self.json { line(&value.to_string()) } else { line(text) }
    }

    /// Tells people who wait how it goes.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// Says why a command did not do its work.
    pub(crate) fn failure(self, failure: &Failure) {
        if failure.code() == Code::Done {
            return;
        }
        if self.json {
            let value = json!({ "error": failure.chain(), "exit_code": failure.code() as u8 });
            eprintln!("{value}");
        } else {
            failure.print(crate::NAME);
        }
    }
}

/// Columns for people.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns and no rows.
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(header);
        Self(table)
    }

    /// Adds a row; what it lacks at its end stays empty.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }

    /// The table without the space around it.
    pub(crate) fn text(&self) -> String {
        let lines = self.0.lines().map(|line| {
            let line = line.trim_end();
            line.strip_prefix(' ').unwrap_or(line).to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A line on stdout.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    raw(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(unwritable)
}

/// A value on stdout, as it is; on a terminal with a line end, so that the prompt stands apart.
pub(crate) fn value(bytes: &[u8]) -> Result<(), Failure> {
    raw(bytes)?;
    if io::stdout().is_terminal() && !bytes.ends_with(b"\n") { raw(b"\n") } else { Ok(()) }
}

/// What a failed write to stdout means for the command.
pub(crate) fn unwritable(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::new(Code::Done, "nobody reads the output any more");
    }
    Failure::new(Code::Failed, "the output cannot be written").because(error)
}

/// Bytes in JSON: as text where they are text, else in base64 under another name.
pub(crate) fn put_bytes(object: &mut serde_json::Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Bytes as a person reads them.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const SHOWN_CHARACTERS: usize = 80;
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String =
        text.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// What the end of a request without a reply means for the command.
pub(crate) fn refused(error: Error) -> Failure {
    match error {
        Error::Unknown(unknown) => Failure::new(Code::Unknown, unknown.to_string()),
        Error::Rejected(rejected) => {
            let code = match &rejected {
                Rejected::Invalid(_) => Code::WrongCall,
                Rejected::Limit(_) | Rejected::Refused(_) => Code::Failed,
                Rejected::Unavailable(_) => Code::Unreachable,
                Rejected::NotFound(_) | Rejected::OutOfRange { .. } => Code::NotFound,
                Rejected::Exists(_) => Code::Exists,
            };
            Failure::new(code, rejected.to_string())
        }
    }
}

/// What a malformed endpoint means for the command.
pub(crate) fn malformed(error: InvalidEndpoint) -> Failure {
    Failure::new(Code::WrongCall, "a wrong address").because(error)
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

    #[test]
    fn uncertainty_is_never_told_as_failure() {
        let unknown = client::Unknown { reason: "lost".to_owned() };
        assert_eq!(refused(unknown.into()).code(), Code::Unknown);
        let rejected = Rejected::Unavailable("gone".to_owned());
        assert_eq!(refused(rejected.into()).code(), Code::Unreachable);
    }
}
