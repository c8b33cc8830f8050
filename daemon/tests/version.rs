//! The version: what it looks like, and where the commit comes from.

use std::path::Path;
use std::process::Command;

use flotilla_daemon::version;

#[path = "../build/commit.rs"]
mod commit;

#[test]
fn version_names_package_and_commit() {
    assert_eq!(version::VERSION, format!("{} ({})", version::PACKAGE, version::COMMIT));
    assert_eq!(version::PACKAGE, "0.1.0");
}

#[test]
fn sources_without_git_have_no_commit() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(commit::of(None, directory.path()), "unknown");
    assert_eq!(commit::of(Some(" "), directory.path()), "unknown");
    assert!(commit::watched(directory.path()).is_empty());
    assert_eq!(commit::of(None, Path::new("/nonexistent")), "unknown");
}

#[test]
fn given_commit_is_shortened_and_kept_on_a_line() {
    let nowhere = Path::new("/nonexistent");
    assert_eq!(commit::of(Some("abcdef1234567890"), nowhere), "abcdef123");
    assert_eq!(commit::of(Some("abc\ncargo::x=y"), nowhere), "abc");
    assert_eq!(commit::of(Some("\"; x"), nowhere), "unknown");
}

#[test]
fn commit_of_a_repository_and_of_nothing_inside_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
        let command = ["-c", "commit.gpgsign=false", "-C"];
        let mut git = Command::new("git");
        git.args(identity).args(command).arg(root).args(arguments).output()
    };
    if git(&["init", "--quiet"]).is_err() {
        eprintln!("skipped: there is no git");
        return;
    }
    assert_eq!(commit::of(None, root), "unknown", "a repository without a commit");
    let made = git(&["commit", "--quiet", "--allow-empty", "--message", "first"]).unwrap();
    assert!(made.status.success(), "{made:?}");
    let head = String::from_utf8(git(&["rev-parse", "HEAD"]).unwrap().stdout).unwrap();
    assert_eq!(commit::of(None, root), head[..9]);
    assert!(commit::watched(root).iter().any(|path| path.ends_with("HEAD")));
    assert_eq!(commit::of(Some("abc"), root), "abc", "what is given wins");
    let inside = root.join("unpacked");
    std::fs::create_dir(&inside).unwrap();
    assert_eq!(commit::of(None, &inside), "unknown", "somebody else's repository");
}
