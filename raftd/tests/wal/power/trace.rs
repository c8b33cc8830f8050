//! What a process did to its files, and in which order, as strace tells it.
//!
//! A call has a beginning and an end, which are lines of the trace: what a sync promises depends
//! on which writes had ended when it began. `sync_file_range` promises nothing and is left out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;

/// All calls that change files or names, or tell something.
const CALLS: &str = "trace=openat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,lseek,\
    fdatasync,fsync,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat";

/// More than any buffer that is written.
const STRING_BYTES_MAX: &str = "67108864";

/// A call that succeeded, or never ended.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) begin: usize,
    /// None: it never ended.
    pub(crate) end: Option<usize>,
    pub(crate) what: What,
}

/// What a call does. Paths are relative to the traced directory.
#[derive(Debug)]
pub(crate) enum What {
    /// Opens a file, which is made if it is not there.
    Create(PathBuf),
    /// Writes, and makes the file as long as that needs.
    Write {
        path: PathBuf,
        offset: u64,
        bytes: Bytes,
    },
    Resize {
        path: PathBuf,
        len: u64,
    },
    /// Of a file or a directory.
    Sync(PathBuf),
    MakeDirectory(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    /// A write to the standard output.
    Tell(String),
}

impl What {
    /// Whether a file holds something else if the other one comes first.
    pub(crate) fn is_ordered_with(&self, other: &Self) -> bool {
        let (Some((path, mine)), Some((other_path, theirs))) = (self.changed(), other.changed())
        else {
            return false;
        };
        path == other_path && mine.start < theirs.end && theirs.start < mine.end
    }

    /// The bytes of a file that it changes, or that are no longer there.
    fn changed(&self) -> Option<(&Path, Range<u64>)> {
        match self {
            Self::Write { path, offset, bytes } => {
                Some((path, *offset..offset + bytes.len() as u64))
            }
            Self::Resize { path, len } => Some((path, *len..u64::MAX)),
            _ => None,
        }
    }
}

/// Whether strace is there and may trace.
pub(crate) fn may_trace() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-o", "/dev/null", "true"]).stderr(Stdio::null());
    strace.status().is_ok_and(|status| status.success())
}

/// Runs a command and tells all that it and its threads did below `root`.
pub(crate) fn trace(command: &Command, root: &Path, context: &str) -> Vec<Call> {
    let file = root.with_extension("trace");
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-y", "-qq", "-xx", "-s", STRING_BYTES_MAX, "-e", "signal=none", "-e", CALLS])
        .arg("-o")
        .arg(&file)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        strace.env(name, value.unwrap());
    }
    let output = strace.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{context}: the traced process failed: {text}");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut reader = Reader { root, offsets: BTreeMap::new(), calls: Vec::new() };
    reader.read(&text);
    reader.calls.sort_by_key(|call| call.begin);
    reader.calls
}

struct Reader<'a> {
    root: &'a Path,
    /// Where descriptors stand whose calls don't say it.
    offsets: BTreeMap<u64, u64>,
    calls: Vec<Call>,
}

impl Reader<'_> {
    fn read(&mut self, text: &str) {
        let mut begun: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (line, text) in text.lines().enumerate() {
            let (process, text) = text.split_once(' ').unwrap();
            let text = text.trim_start();
            if let Some(first) = text.strip_suffix(" <unfinished ...>") {
                begun.insert(process, (line, first));
            } else if text.starts_with("<... ") {
                let (_, rest) = text.split_once(" resumed>").unwrap();
                let (begin, first) = begun.remove(process).unwrap();
                self.call(begin, Some(line), &format!("{first}{rest}"));
            } else if text.contains('(') {
                self.call(line, Some(line), text);
            }
        }
        for (begin, first) in begun.into_values() {
            self.call(begin, None, &format!("{first}) = 0"));
        }
    }

    fn call(&mut self, begin: usize, end: Option<usize>, text: &str) {
        let (name, rest) = text.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(" = ").unwrap();
        // The process ended during the call if there is no result.
        let (end, result) = if result.trim() == "?" { (None, "0") } else { (end, result.trim()) };
        let arguments = arguments.trim_end().trim_end_matches(')');
        let arguments = arguments.trim_end_matches(" <unfinished ...>");
        let arguments: Vec<&str> = arguments.split(", ").collect();
        // Also `3</path>` and, if it failed, `-1 ENOENT (...)`.
        let Ok(result) = number(result) else { return };
        for what in self.effects(name, &arguments, result) {
            self.calls.push(Call { begin, end, what });
        }
    }

    fn effects(&mut self, name: &str, arguments: &[&str], result: u64) -> Vec<What> {
        let below = |path: PathBuf| path.strip_prefix(self.root).ok().map(Path::to_owned);
        let of = |at: usize| below(named(arguments[at]));
        // Of calls that take a directory and a name.
        let at = |at: usize| below(named(arguments[at]).join(quoted(arguments[at + 1])));
        let said = |at: usize| below(quoted(arguments[at]));
        let descriptor = number(arguments[0]);
        let effects = match name {
            "openat" => {
                self.offsets.insert(result, 0);
                let Some(path) = at(0) else { return vec![] };
                let create = arguments[2].contains("O_CREAT").then(|| What::Create(path.clone()));
                let cut = arguments[2].contains("O_TRUNC").then_some(What::Resize { path, len: 0 });
                return [create, cut].into_iter().flatten().collect();
            }
            "write" if descriptor == Ok(1) => {
                Some(What::Tell(String::from_utf8(bytes(arguments[1])).unwrap()))
            }
            "write" => of(0).map(|path| {
                let stands = self.offsets.entry(descriptor.unwrap()).or_default();
                let offset = *stands;
                *stands += result;
                What::Write { path, offset, bytes: bytes(arguments[1]).into() }
            }),
            "lseek" => {
                self.offsets.insert(descriptor.unwrap(), result);
                None
            }
            "pwrite64" => of(0).map(|path| {
                let offset = arguments[3].parse().unwrap();
                What::Write { path, offset, bytes: bytes(arguments[1]).into() }
            }),
            "ftruncate" => {
                of(0).map(|path| What::Resize { path, len: arguments[1].parse().unwrap() })
            }
            // It holds zeros as far as it had none, like a file that is written behind its end.
            "fallocate" => of(0).map(|path| {
                let [offset, len] = [2, 3].map(|at| arguments[at].parse::<u64>().unwrap());
                What::Write { path, offset: offset + len, bytes: Bytes::new() }
            }),
            "fsync" | "fdatasync" => of(0).map(What::Sync),
            "mkdir" => said(0).map(What::MakeDirectory),
            "mkdirat" => at(0).map(What::MakeDirectory),
            "unlink" | "rmdir" => said(0).map(What::Remove),
            "unlinkat" => at(0).map(What::Remove),
            "rename" => said(0).zip(said(1)).map(|(from, to)| What::Rename { from, to }),
            "renameat" | "renameat2" => {
                at(0).zip(at(2)).map(|(from, to)| What::Rename { from, to })
            }
            other => {
                let ours =
                    arguments.iter().any(|argument| argument.contains('<')) && of(0).is_some();
                assert!(!ours, "{other} is not understood");
                None
            }
        };
        effects.into_iter().collect()
    }
}

/// A number, or that of a descriptor: `5</path>`.
fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    let end = text.find(['<', ' ']).unwrap_or(text.len());
    text[..end].parse()
}

/// The path of a descriptor: `5</path>`.
fn named(argument: &str) -> PathBuf {
    let path = argument.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    path_of(path.map_or("", |(path, _)| path))
}

fn quoted(argument: &str) -> PathBuf {
    path_of(argument.trim_matches('"'))
}

fn path_of(escaped: &str) -> PathBuf {
    String::from_utf8(bytes(escaped)).unwrap().into()
}

/// All bytes are written as `\x00`.
fn bytes(escaped: &str) -> Vec<u8> {
    assert!(!escaped.ends_with("..."), "strace has cut a string");
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    let escaped = escaped.trim_matches('"').as_bytes();
    escaped.chunks_exact(4).map(|byte| digit(byte[2]) << 4 | digit(byte[3])).collect()
}
