//! The rules of the house that no compiler checks: which crate may import which, a header on every
//! file, and how long a file may be.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file has at most this many lines before its tests.
const LINES_MAX: usize = 600;

/// Which of our crates each may import; a crate that is not here is a finding.
const ARROWS: [(&str, &[&str]); 12] = [
    ("proto", &[]),
    ("raft", &[]),
    ("daemon", &[]),
    ("client", &["proto"]),
    ("raftd", &["daemon", "proto", "raft"]),
    ("kvd", &["client", "daemon", "proto", "raft", "raftd"]),
    ("shardctl", &["client", "daemon", "proto", "raft", "raftd"]),
    ("mr-coordinator", &["client", "daemon", "proto", "raft", "raftd"]),
    ("mr-worker", &["client", "daemon", "proto"]),
    ("mr-worker/examples/anagrams", &["mr-worker"]),
    ("sim", &["kvd", "raft", "raftd", "shardctl"]),
    (
        "flotilla",
        &[
            "client",
            "daemon",
            "kvd",
            "mr-coordinator",
            "mr-worker",
            "proto",
            "raft",
            "raftd",
            "shardctl",
        ],
    ),
];

/// What the core may depend on besides: nothing that has a runtime, a disk or a clock.
const CORE_DEPENDENCIES: [&str; 3] = ["bytes", "rand", "thiserror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The names in a manifest's `[dependencies]`.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(manifest).unwrap();
    let section = text.split("[dependencies]").nth(1).unwrap_or_default();
    section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != ".git" {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let arrows = BTreeMap::from(ARROWS);
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let allowed = arrows.get(member).unwrap_or_else(|| panic!("{member} has no place"));
        let named = dependencies(&root().join(member).join("Cargo.toml"));
        for name in named.iter().filter(|name| arrows.contains_key(name.as_str())) {
            assert!(allowed.contains(&name.as_str()), "{member} must not import {name}");
        }
        if member == "raft" {
            let foreign: Vec<_> =
                named.iter().filter(|name| !CORE_DEPENDENCIES.contains(&name.as_str())).collect();
            assert!(foreign.is_empty(), "the core must not depend on {foreign:?}");
        }
    }
}

#[test]
fn every_file_has_a_header_and_a_bearable_length() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 100, "only {} files were found", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} has no //! header", file.display());
        let lines = text.lines().take_while(|line| !line.contains("#[cfg(test)]")).count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, over {LINES_MAX}", file.display());
    }
}
