//! `flotilla proto`: writes the .proto files, from which clients in other languages are made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use daemon::{Code, Failure};
use serde_json::json;

use crate::output::Output;

/// The arguments of `flotilla proto`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Write below this directory, which is made if it is absent
    dir: PathBuf,
    /// Replace files that are different
    #[arg(long)]
    force: bool,
}

/// Writes all files, or none if one is in the way.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    if !arguments.force {
        for (name, text) in proto::FILES {
            check(&arguments.dir.join(name), text)?;
        }
    }
    for (name, text) in proto::FILES {
        write(&arguments.dir.join(name), text)?;
    }
    let files: Vec<&str> = proto::FILES.iter().map(|(name, _)| *name).collect();
    let text = files
        .iter()
        .map(|name| arguments.dir.join(name).display().to_string())
        .collect::<Vec<_>>()
        .join("\n");
    output.result(&text, &json!({ "dir": arguments.dir, "files": files }))
}

/// Refuses a path that holds something else.
fn check(path: &Path, text: &str) -> Result<(), Failure> {
    match fs::read(path) {
        Ok(found) if found == text.as_bytes() => Ok(()),
        Ok(_) => Err(Failure::new(
            Code::Exists,
            format!("{} exists and is different; --force replaces it", path.display()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unwritable(path, error)),
    }
}

/// A file appears whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let refuse = |error| unwritable(path, error);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(refuse)?;
    }
    let new = path.with_extension("proto.new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(refuse)
}

fn unwritable(path: &Path, error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("{} cannot be written", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_run(dir: &Path, force: bool) -> Result<(), Failure> {
        run(&Arguments { dir: dir.to_owned(), force }, Output::new(crate::NAME, true))
    }

    #[test]
    fn files_are_written_and_may_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        check_run(dir.path(), false).unwrap();
        check_run(dir.path(), false).unwrap();
        for (name, text) in proto::FILES {
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), *text);
        }
    }

    #[test]
    fn a_different_file_is_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let (last, text) = proto::FILES.last().unwrap();
        let path = dir.path().join(last);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        assert_eq!(check_run(dir.path(), false).unwrap_err().code(), Code::Exists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(!dir.path().join(proto::FILES[0].0).exists(), "nothing is written at all");
        check_run(dir.path(), true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), *text);
    }
}
