//! A small disk in memory, where one may be mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// It is taken off when this is dropped.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Mounts one over this directory, which is made if need be; nothing where that is not allowed.
    pub(crate) fn mount(path: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }

    /// Leaves only so much of it free, whatever others write meanwhile.
    pub(crate) fn leave(&self, bytes: u64) {
        let ballast = fs::OpenOptions::new().append(true).create(true).open(self.ballast());
        let file = ballast.unwrap();
        while let Some(more) = self.free().checked_sub(bytes).filter(|more| *more > 0) {
            let has = file.metadata().unwrap().len();
            match fallocate(&file, FallocateFlags::empty(), has, more) {
                Ok(()) | Err(Errno::NOSPC) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// How much of it is free.
    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Frees what [`Disk::leave`] took.
    pub(crate) fn relieve(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join(".ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process of the test may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
