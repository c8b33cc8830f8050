//! A member's disk: a small file system in an image, which can be filled, and of which a copy can be
//! taken that is what a loss of power leaves: what the kernel has not written yet is not in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::network::run;

/// How large it is: an hour of writes fits. The image has holes.
const BYTES: u64 = 2 << 30;

/// Less than this can't be taken.
const BLOCK_BYTES: u64 = 4 << 10;

/// How often a copy is taken until the kernel has written nothing meanwhile.
const COPIES_MAX: u32 = 50;

/// A mounted image. It is taken off when this is dropped.
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes one in a directory.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let (image, mount) = (dir.join(format!("{name}.image")), dir.join(name));
        std::fs::File::create(&image).unwrap().set_len(BYTES).unwrap();
        std::fs::create_dir(&mount).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        let disk = Self { image, mount };
        disk.mount();
        disk
    }

    /// Where a member's data goes: not beside what the file system itself puts there.
    pub(crate) fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount));
    }

    /// Leaves no block free, as far as nobody else takes and gives meanwhile.
    pub(crate) fn fill(&self) {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(self.ballast());
        let file = file.unwrap();
        let mut wanted = self.free();
        while wanted >= BLOCK_BYTES {
            // Where it is refused, less may do: what is allocated takes room for itself.
            let has = file.metadata().unwrap().len();
            match fallocate(&file, FallocateFlags::empty(), has, wanted) {
                Ok(()) => wanted = self.free(),
                Err(_) => wanted /= 2,
            }
        }
    }

    fn free(&self) -> u64 {
        let stat = statvfs(&self.mount).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Makes room again.
    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }

    /// Takes a copy of the image as it is at one moment, beside it. Nobody may write meanwhile; what
    /// the kernel writes on its own is waited for.
    pub(crate) fn copy(&self) {
        for _ in 0..COPIES_MAX {
            run(Command::new("cp").arg("--sparse=auto").arg(&self.image).arg(self.copied()));
            let same = Command::new("cmp").arg("-s").arg(&self.image).arg(self.copied()).status();
            // Equal after it was copied: so it was all there at once, in between.
            if same.unwrap().success() {
                return;
            }
        }
        panic!("the kernel does not stop writing to {}", self.image.display());
    }

    /// Puts the copy into the place of the image.
    pub(crate) fn put_copy_back(&self) {
        run(Command::new("umount").arg(&self.mount));
        std::fs::rename(self.copied(), &self.image).unwrap();
        self.mount();
    }

    fn copied(&self) -> PathBuf {
        self.image.with_extension("copy")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process of the test may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).stderr(Stdio::null()).status();
    }
}
