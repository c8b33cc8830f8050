//! Where files may lie: below the shared root, and nowhere else.
//!
//! Paths come from the coordinator and, through it, from users. What this worker writes is named
//! relative to the root and goes down only; an input may be named absolutely, if it lies inside.
//! Links are followed for inputs and for the parents of attempt directories, and must stay inside.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

/// The longest path, in bytes: Linux's own limit.
pub const PATH_BYTES_MAX: usize = 4_096;

/// The file by which coordinator and workers tell that they see the same root.
pub const TOKEN_FILE: &str = ".flotilla-root";

/// The directory in the root below which jobs have theirs.
const WORK_ROOT: &str = ".flotilla";

/// The longest token, in bytes.
const TOKEN_BYTES_MAX: u64 = 256;

/// A shared root: a directory, its path absolute and free of links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// It cannot be a path below the root.
    #[error("{path:?} is refused: {why}")]
    Refused {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file system has no such file or does not show it.
    #[error("{path}")]
    Io {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Root {
    /// The root at `path`, which must be a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        match path.is_dir() {
            true => Ok(Self { path }),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it lies on a file system that other machines serve: what is written there travels.
    pub fn is_remote(&self) -> bool {
        // The numbers of Linux: NFS, SMB, CIFS, Ceph, Lustre, FUSE, 9P.
        const REMOTE: [i64; 8] = [
            0x6969,
            0x517b,
            0xff53_4d42,
            0xfe53_4d42,
            0x00c3_6400,
            0x0bd0_0bd0,
            0x6573_5546,
            0x0102_1997,
        ];
        rustix::fs::statfs(&self.path).is_ok_and(|is| REMOTE.contains(&is.f_type))
    }

    /// Makes and removes a directory where attempts will write; the error names the directory that
    /// refuses.
    pub fn check_writable(&self) -> Result<(), PathError> {
        let work = self.path.join(WORK_ROOT);
        let failed = |source| PathError::Io { path: work.display().to_string(), source };
        let probe = work.join(format!("probe-{:032x}", rand::random::<u128>()));
        fs::create_dir_all(&probe).and_then(|()| fs::remove_dir(&probe)).map_err(failed)
    }

    /// The token in the root, as it is now; empty if there is none yet.
    pub fn token(&self) -> io::Result<String> {
        use io::Read;
        let file = match fs::File::open(self.path.join(TOKEN_FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        let mut token = String::new();
        file.take(TOKEN_BYTES_MAX).read_to_string(&mut token)?;
        Ok(token.trim().to_owned())
    }

    /// The path of a file that Flotilla wrote or will write.
    pub fn own(&self, relative: &str) -> Result<PathBuf, PathError> {
        if Path::new(relative).is_absolute() {
            return Err(refused(relative, "it is absolute"));
        }
        Ok(self.path.join(plain(relative)?))
    }

    /// The path of an input, links resolved.
    pub fn input(&self, named: &str) -> Result<PathBuf, PathError> {
        let path = self.path.join(plain(named)?);
        let resolved = path
            .canonicalize()
            .map_err(|source| PathError::Io { path: named.to_owned(), source })?;
        match resolved.starts_with(&self.path) {
            true => Ok(resolved),
            false => Err(refused(named, "it lies outside the shared root")),
        }
    }

    /// Creates the directory of an attempt, which must not exist, and what lies above it.
    pub fn create_attempt_dir(&self, relative: &str) -> Result<PathBuf, PathError> {
        let dir = self.place(relative)?;
        fs::create_dir(&dir)
            .map_err(|source| PathError::Io { path: relative.to_owned(), source })?;
        Ok(dir)
    }

    /// Creates the log of an attempt, which must not exist, and what lies above it. What is written
    /// to it is added at its end.
    pub fn create_log(&self, relative: &str) -> Result<fs::File, PathError> {
        let path = self.place(relative)?;
        // What is new is no link.
        let created = fs::File::options().append(true).create_new(true).open(path);
        created.map_err(|source| PathError::Io { path: relative.to_owned(), source })
    }

    /// The path of something to be created, whose parent is made and lies inside.
    fn place(&self, relative: &str) -> Result<PathBuf, PathError> {
        let path = self.own(relative)?;
        let failed = |source| PathError::Io { path: relative.to_owned(), source };
        let parent = path.parent().ok_or_else(|| refused(relative, "it has no parent"))?;
        fs::create_dir_all(parent).map_err(failed)?;
        match parent.canonicalize().map_err(failed)?.starts_with(&self.path) {
            true => Ok(path),
            false => Err(refused(relative, "a link leads outside the shared root")),
        }
    }

    /// Removes the directory of an attempt with all that is in it; if it is gone, that is fine.
    pub fn remove_attempt_dir(&self, relative: &str) -> Result<(), PathError> {
        match fs::remove_dir_all(self.own(relative)?) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PathError::Io { path: relative.to_owned(), source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The path without its `.` components, if it goes down only.
fn plain(path: &str) -> Result<PathBuf, PathError> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return Err(refused(path, "it is empty or too long"));
    }
    if path.contains('\0') {
        return Err(refused(path, "it contains a zero byte"));
    }
    let mut plain = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(_) | Component::RootDir => plain.push(component),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused(path, "it goes up")),
            Component::Prefix(_) => return Err(refused(path, "it has a prefix")),
        }
    }
    match plain.file_name() {
        Some(_) => Ok(plain),
        None => Err(refused(path, "it names no file")),
    }
}

fn refused(path: &str, why: &'static str) -> PathError {
    const SHOWN_CHARACTERS: usize = 100;
    PathError::Refused { path: path.chars().take(SHOWN_CHARACTERS).collect(), why }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let long = "x/".repeat(PATH_BYTES_MAX);
        for path in ["", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "a\0b", &long] {
            assert!(root.own(path).is_err(), "{path:?}");
            assert!(root.input(path).is_err(), "{path:?}");
            assert!(root.create_attempt_dir(path).is_err(), "{path:?}");
            assert!(root.create_log(path).is_err(), "{path:?}");
            assert!(root.remove_attempt_dir(path).is_err(), "{path:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(root.own("./a//b/").unwrap(), root.path().join("a/b"));
    }

    #[test]
    fn an_input_may_be_absolute_or_a_link_inside_the_root_only() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = Root::open(dir.path()).unwrap();
        fs::write(root.path().join("in.txt"), "in").unwrap();
        fs::write(outside.path().join("out.txt"), "out").unwrap();
        symlink(root.path().join("in.txt"), root.path().join("good")).unwrap();
        symlink(outside.path().join("out.txt"), root.path().join("bad")).unwrap();
        let inside = root.path().join("in.txt");
        assert_eq!(root.input("in.txt").unwrap(), inside);
        assert_eq!(root.input("good").unwrap(), inside);
        assert_eq!(root.input(inside.to_str().unwrap()).unwrap(), inside);
        assert!(root.input("bad").is_err());
        assert!(root.input(outside.path().join("out.txt").to_str().unwrap()).is_err());
        assert!(matches!(root.input("none"), Err(PathError::Io { .. })));
    }

    #[test]
    fn an_attempt_directory_is_new_and_inside() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = Root::open(dir.path()).unwrap();
        let made = root.create_attempt_dir("job/m/0/1-1").unwrap();
        assert!(made.is_dir());
        assert!(root.create_attempt_dir("job/m/0/1-1").is_err());
        symlink(outside.path(), root.path().join("link")).unwrap();
        assert!(root.create_attempt_dir("link/0").is_err());
        assert!(!outside.path().join("0").exists());
        fs::write(made.join("data.run"), "x").unwrap();
        root.remove_attempt_dir("job/m/0/1-1").unwrap();
        root.remove_attempt_dir("job/m/0/1-1").unwrap();
        assert!(!made.exists());
    }

    #[test]
    fn a_log_is_new_and_inside() {
        use io::Write;
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = Root::open(dir.path()).unwrap();
        let mut log = root.create_log("logs/job/m-0-1-1.log").unwrap();
        log.write_all(b"said").unwrap();
        assert_eq!(fs::read(root.path().join("logs/job/m-0-1-1.log")).unwrap(), b"said");
        assert!(root.create_log("logs/job/m-0-1-1.log").is_err());
        symlink(outside.path(), root.path().join("link")).unwrap();
        symlink(outside.path().join("x"), root.path().join("logs/x")).unwrap();
        for led_away in ["link/x", "logs/x"] {
            assert!(root.create_log(led_away).is_err(), "{led_away}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_token_is_read_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(root.token().unwrap(), "");
        fs::write(dir.path().join(TOKEN_FILE), "abc\n").unwrap();
        assert_eq!(root.token().unwrap(), "abc");
    }
}
