//! Wall clocks of processes that a test sets, by a library that they load.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flotilla::local::process::Process;

/// What sets them.
pub(crate) struct Clocks {
    library: PathBuf,
    dir: PathBuf,
}

impl Clocks {
    /// Makes the library; nothing where there is no C compiler.
    pub(crate) fn new(dir: &Path) -> Option<Self> {
        let library = dir.join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock.c");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .stdin(Stdio::null())
            .status();
        let is_made = made.is_ok_and(|status| status.success());
        is_made.then(|| Self { library, dir: dir.to_owned() })
    }

    /// Has a process, from its next start on, go by a clock that can be set.
    pub(crate) fn give_to(&self, process: &mut Process) {
        self.set(process, 0);
        let shift = self.shift(process);
        process.set_environment(vec![
            ("LD_PRELOAD".to_owned(), self.library.display().to_string()),
            ("CLOCK_SHIFT_FILE".to_owned(), shift.display().to_string()),
        ]);
    }

    /// Sets the clock of a process so many seconds ahead of what it is.
    pub(crate) fn set(&self, process: &Process, seconds: i64) {
        // In place and at once, since the process has it mapped.
        let file =
            fs::File::options().create(true).truncate(false).write(true).open(self.shift(process));
        file.unwrap().write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    fn shift(&self, process: &Process) -> PathBuf {
        self.dir.join(format!("{}.shift", process.instance()))
    }
}
