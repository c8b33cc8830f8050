//! Which commit a source tree stands at. Shared by the build script and its test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is said when nobody knows.
const UNKNOWN: &str = "unknown";

/// How many digits of a commit are shown.
const DIGITS: usize = 9;

/// The commit of the tree at `root`, shortened: the `given` one (an image is built without the
/// repository), else what git says, else "unknown".
pub(crate) fn of(given: Option<&str>, root: &Path) -> String {
    if let Some(given) = given.map(str::trim).filter(|text| !text.is_empty()) {
        return shortened(given);
    }
    if !is_top_of_repository(root) {
        return UNKNOWN.to_owned();
    }
    git(root, &["rev-parse", "--verify", "--quiet", "HEAD"])
        .map_or_else(|| UNKNOWN.to_owned(), |commit| shortened(&commit))
}

/// The files whose change means that the tree stands at another commit. Only those that exist,
/// since Cargo runs a build script again and again for a path that does not.
pub(crate) fn watched(root: &Path) -> Vec<PathBuf> {
    if !is_top_of_repository(root) {
        return Vec::new();
    }
    ["HEAD", "refs/heads", "packed-refs"]
        .iter()
        .filter_map(|name| git(root, &["rev-parse", "--git-path", name]))
        .map(|path| root.join(path))
        .filter(|path| path.exists())
        .collect()
}

/// A source tree unpacked inside somebody else's repository must not take over its commit.
fn is_top_of_repository(root: &Path) -> bool {
    let Some(top) = git(root, &["rev-parse", "--show-toplevel"]) else { return false };
    match (Path::new(&top).canonicalize(), root.canonicalize()) {
        (Ok(top), Ok(root)) => top == root,
        (Err(_), _) | (_, Err(_)) => false,
    }
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Keeps what can stand in a version: a few letters and digits, nothing that breaks a line.
fn shortened(commit: &str) -> String {
    let kept: String =
        commit.chars().take_while(char::is_ascii_alphanumeric).take(DIGITS).collect();
    if kept.is_empty() { UNKNOWN.to_owned() } else { kept }
}
