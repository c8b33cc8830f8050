//! The shared root: the one directory that coordinator and workers both see, and the paths in it.
//!
//! Decides what a path may name: it goes down only, and no link on the way leads out. A root belongs
//! to one group of coordinators for ever: a file in it names the group. Coordinators tell by it that
//! their jobs are here, workers prove by it that they see the same directory.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{ids::WORK_ROOT, limits::PATH_BYTES_MAX};

/// The file that names the group, which is the root's token.
pub const TOKEN_FILE: &str = ".flotilla-root";

/// The longest token that is read.
const TOKEN_BYTES_MAX: u64 = 256;

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// It cannot be a path in the root.
    #[error("`{path}` is refused: {why}")]
    Refused {
        /// The path, shortened.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file system refuses.
    #[error("`{path}`: {source}")]
    Io {
        /// The path, shortened.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl PathError {
    pub(crate) fn refused(path: &str, why: &'static str) -> Self {
        Self::Refused { path: shown(path), why }
    }

    pub(crate) fn io(path: &str, source: io::Error) -> Self {
        Self::Io { path: shown(path), source }
    }
}

/// Why a root is not the one of a group of coordinators.
#[derive(Debug, thiserror::Error)]
pub enum NotOurs {
    /// Nobody's name is in it, and the group has jobs or workers.
    #[error(
        "the shared root {root} is not the one that holds this group's jobs: there is no \
         {TOKEN_FILE} in it. Is its filesystem mounted? If the root has moved, write `{group}` to \
         {root}/{TOKEN_FILE}"
    )]
    Empty {
        /// The root.
        root: String,
        /// The group's token.
        group: String,
    },
    /// Another group's name is in it.
    #[error(
        "the shared root {root} belongs to other coordinators: each group needs a root of its own. \
         If they are gone for good, remove {root}/{TOKEN_FILE} ({theirs}; this group is {group})"
    )]
    Foreign {
        /// The root.
        root: String,
        /// The token in it.
        theirs: String,
        /// The group's token.
        group: String,
    },
    /// The file system refuses.
    #[error("the shared root {root} cannot be read or written: {source}")]
    Io {
        /// The root.
        root: String,
        /// Why.
        source: io::Error,
    },
}

/// As much of a path as a message shows.
pub(crate) fn shown(path: &str) -> String {
    const SHOWN_CHARACTERS: usize = 200;
    path.chars().take(SHOWN_CHARACTERS).collect()
}

/// The shared root. Its path is absolute and free of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
    /// The path as the operator wrote it, made absolute: users may write it too.
    named: PathBuf,
}

impl Root {
    /// Opens the root, which must be a directory.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = std::path::absolute(path)?;
        let path = path.canonicalize()?;
        if !path.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { path, named })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that this is the root of the group of this token. Only a `new` group, which has
    /// no jobs and no workers yet, takes a root that is nobody's: to every other it is a mount
    /// point without its filesystem.
    ///
    /// # Errors
    /// [`NotOurs`].
    pub fn claim(&self, group: &str, new: bool) -> Result<(), NotOurs> {
        let root = || self.path.display().to_string();
        let held = match read_token(&self.path) {
            Ok(None) if new => make_token(&self.path, group),
            held => held,
        };
        match held.map_err(|source| NotOurs::Io { root: root(), source })? {
            Some(theirs) if theirs == group => Ok(()),
            Some(theirs) => Err(NotOurs::Foreign { root: root(), theirs, group: group.to_owned() }),
            None => Err(NotOurs::Empty { root: root(), group: group.to_owned() }),
        }
    }

    /// A path in normal form, relative to the root: no `.`, no doubled or trailing slashes. The
    /// root itself is the empty text.
    ///
    /// # Errors
    /// When it is not UTF-8 text of bounded length below the root, or goes up.
    pub fn normal(&self, named: &str) -> Result<String, PathError> {
        if named.is_empty() {
            return Err(PathError::refused(named, "it is empty"));
        }
        if named.len() > PATH_BYTES_MAX {
            return Err(PathError::refused(named, "it is too long"));
        }
        if named.contains('\0') {
            return Err(PathError::refused(named, "it has a NUL"));
        }
        let path = Path::new(named);
        let relative = if path.is_absolute() {
            let inside = path.strip_prefix(&self.path).or_else(|_| path.strip_prefix(&self.named));
            inside.map_err(|_| PathError::refused(named, "it lies outside the shared root"))?
        } else {
            path
        };
        let mut parts = Vec::new();
        for component in relative.components() {
            match component {
                Component::Normal(part) => parts.push(
                    part.to_str().ok_or_else(|| PathError::refused(named, "it is not UTF-8"))?,
                ),
                Component::CurDir => {}
                Component::ParentDir => {
                    return Err(PathError::refused(named, "it goes up"));
                }
                Component::RootDir | Component::Prefix(_) => {
                    return Err(PathError::refused(named, "it lies outside the shared root"));
                }
            }
        }
        Ok(parts.join("/"))
    }

    /// The path of something that Flotilla itself named.
    #[must_use]
    pub fn join(&self, relative: &str) -> PathBuf {
        self.path.join(relative)
    }

    /// Checks that a path that exists, links followed, lies in the root.
    ///
    /// # Errors
    /// When it does not exist or lies outside.
    pub fn confine(&self, named: &str, path: &Path) -> Result<PathBuf, PathError> {
        let real = path.canonicalize().map_err(|source| PathError::io(named, source))?;
        if real.starts_with(&self.path) {
            return Ok(real);
        }
        Err(PathError::refused(named, "a link leads outside the shared root"))
    }

    /// A path in the root with the links of everything above its last part followed; what does not
    /// exist yet has none. It is what must not be a link for what is created there to be inside.
    ///
    /// # Errors
    /// When a link leads outside the root.
    pub fn place(&self, named: &str, relative: &str) -> Result<PathBuf, PathError> {
        let full = self.path.join(relative);
        let Some((parent, name)) = full.parent().zip(full.file_name()) else {
            return Err(PathError::refused(named, "it names the shared root itself"));
        };
        let mut missing = Vec::new();
        let mut existing = parent;
        while fs::symlink_metadata(existing).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            let above = existing.parent().zip(existing.file_name());
            let (above, part) =
                above.ok_or_else(|| PathError::refused(named, "nothing of it exists"))?;
            missing.push(part);
            existing = above;
        }
        let mut place = self.confine(named, existing)?;
        if !place.is_dir() {
            return Err(PathError::refused(named, "something above it is no directory"));
        }
        place.extend(missing.into_iter().rev());
        place.push(name);
        Ok(place)
    }

    /// Whether directories here can change places in one step: what replacing an output needs.
    ///
    /// # Errors
    /// When the probe itself fails.
    pub fn can_exchange(&self) -> io::Result<bool> {
        let work = self.join(WORK_ROOT);
        create_dir(&work)?;
        let probe = work.join(format!("probe-{}", uuid::Uuid::new_v4()));
        let (one, other) = (probe.join("one"), probe.join("other"));
        fs::create_dir(&probe)?;
        fs::create_dir(&one)?;
        fs::create_dir(&other)?;
        let exchanged = renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
        fs::remove_dir_all(&probe)?;
        match exchanged {
            Ok(()) => Ok(true),
            Err(error) if unsupported(error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the file system does not know a flag of renameat2.
pub(crate) fn unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].contains(&error)
}

/// Creates a directory unless it is there.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Makes what a directory lists durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a whole file durably, but for its name in its directory.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads a file of at most so many bytes.
pub(crate) fn read_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is too long"));
    }
    Ok(content)
}

/// Writes the root's token unless one is there by now; the one that is. Several coordinators may
/// do so at once: the first one's stays.
fn make_token(root: &Path, token: &str) -> io::Result<Option<String>> {
    let draft = root.join(format!("{TOKEN_FILE}.{}", uuid::Uuid::new_v4().simple()));
    write_file(&draft, format!("{token}\n").as_bytes())?;
    // A link appears with its whole content, and never replaces another.
    let linked = fs::hard_link(&draft, root.join(TOKEN_FILE));
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => sync_dir(root)?,
    }
    read_token(root)
}

fn read_token(root: &Path) -> io::Result<Option<String>> {
    match read_file(&root.join(TOKEN_FILE), TOKEN_BYTES_MAX) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            Ok(Some(text).filter(|text| !text.is_empty()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn root_is_taken_once_by_a_new_group_and_by_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let told = root.claim("ours", false).unwrap_err().to_string();
        assert!(told.contains("Is its filesystem mounted?"), "{told}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was written");
        root.claim("ours", true).unwrap();
        for new in [true, false] {
            root.claim("ours", new).unwrap();
            let told = root.claim("another", new).unwrap_err().to_string();
            assert!(told.contains("belongs to other coordinators"), "{told}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let long = "x".repeat(PATH_BYTES_MAX + 1);
        for path in ["", "..", "../x", "a/../../b", "a/../b", "/etc/passwd", "a\0b", &long] {
            assert!(root.normal(path).is_err(), "{path:?}");
        }
        assert_eq!(root.normal("./a//b/").unwrap(), "a/b");
        assert_eq!(root.normal(".").unwrap(), "");
        let inside = root.path().join("a");
        assert_eq!(root.normal(inside.to_str().unwrap()).unwrap(), "a");
    }

    #[test]
    fn links_that_leave_the_root_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        fs::create_dir(root.join("in")).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        symlink("in", root.join("link")).unwrap();
        assert!(root.confine("out/passwd", &root.join("out/passwd")).is_err());
        assert!(root.place("out/x", "out/x").is_err());
        assert!(root.place("out/x/y", "out/x/y").is_err());
        assert_eq!(root.place("link/x/y", "link/x/y").unwrap(), root.join("in/x/y"));
    }

    #[test]
    fn exchange_is_probed_without_leaving_anything() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        root.can_exchange().unwrap();
        assert_eq!(fs::read_dir(root.join(WORK_ROOT)).unwrap().count(), 0);
    }
}
