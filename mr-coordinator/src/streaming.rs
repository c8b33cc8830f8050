//! Jobs that bring programs of their own: which of them make sense, and how they lie in the log.
//!
//! The coordinator runs nothing of it. Whether a worker does is that worker's setting, which shows
//! as one more app among those that it registers; so such jobs are scheduled as all others.

#![deny(clippy::disallowed_types)]

use std::collections::BTreeSet;

use proto::STREAMING_APP;

use crate::{
    codec::{BadBytes, Decoder, Encoder},
    command::{put_texts, take_texts},
    limits::*,
    spec::{BadSpec, InputFormat, Spec, check_range},
};

/// The programs of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    /// Mapper, combiner and reducer: each its name and arguments; empty: there is none.
    pub programs: [Vec<String>; 3],
    /// Whether records and pairs are told apart by lengths, and not by lines.
    pub lengths: bool,
    /// What each program may use: bytes of memory, seconds of processor time, open files, bytes of
    /// a file, logged bytes of standard error; 0: as the worker has it.
    pub limits: [u64; 5],
    /// Files that are sent along.
    pub files: Vec<SideFile>,
}

/// A file that is sent along with a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideFile {
    /// Its name in a program's working directory.
    pub name: String,
    /// The SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Its length.
    pub bytes: u64,
    /// Whether it can be executed.
    pub executable: bool,
}

impl SideFile {
    /// Its name among the blobs.
    #[must_use]
    pub fn blob(&self) -> String {
        blob_name(&self.sha256)
    }
}

/// The name of a file of this digest among the blobs.
#[must_use]
pub fn blob_name(sha256: &[u8; 32]) -> String {
    sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why no worker takes a job of this app, and what would help.
#[must_use]
pub fn nobody_runs(app: &str, known: &[String]) -> String {
    if app == STREAMING_APP {
        return "no worker runs programs of jobs; start workers with --allow-exec".to_owned();
    }
    format!("no worker has the app `{app}`; they have: {}", known.join(", "))
}

impl Streaming {
    /// Checks what can be checked without looking at any file.
    ///
    /// # Errors
    /// [`BadSpec`] naming the first field that is wrong.
    pub fn check(&self, spec: &Spec) -> Result<(), BadSpec> {
        let bytes: usize = self.programs.iter().flatten().map(|word| word.len() + 1).sum();
        if bytes > ARGV_BYTES_MAX {
            let problem = format!("{bytes} bytes of arguments; at most {ARGV_BYTES_MAX}");
            return Err(BadSpec::new("streaming", problem));
        }
        if self.programs.iter().flatten().any(|word| word.contains('\0')) {
            return Err(BadSpec::new("streaming", "an argument has a NUL"));
        }
        if self.programs.iter().any(|argv| argv.first().is_some_and(String::is_empty)) {
            return Err(BadSpec::new("streaming", "a program has no name"));
        }
        let [_, combiner, reducer] = &self.programs;
        if spec.reduces == 0 && !(combiner.is_empty() && reducer.is_empty()) {
            let problem = "there are no reduces, so nothing would run combiner or reducer";
            return Err(BadSpec::new("streaming", problem));
        }
        if !self.lengths && matches!(spec.input_format, InputFormat::Whole | InputFormat::Fixed(_))
        {
            let problem = "records that are no lines need the framing lengths: they may hold line \
                           feeds";
            return Err(BadSpec::new("streaming", problem));
        }
        if spec.scheduling.max_skip > 0 {
            let problem = "programs read ahead, so no record can be named to be left out";
            return Err(BadSpec::new("max_skip", problem));
        }
        let [memory, cpu, open_files, ..] = self.limits;
        for (field, value, min, max) in [
            ("streaming.limits.memory_bytes", memory, PROGRAM_MEMORY_BYTES_MIN, u64::MAX),
            ("streaming.limits.cpu_seconds", cpu, 1, u64::from(u32::MAX)),
            ("streaming.limits.open_files", open_files, PROGRAM_OPEN_FILES_MIN, 1 << 20),
        ] {
            if value != 0 {
                check_range(field, value, min, max)?;
            }
        }
        self.check_files()
    }

    fn check_files(&self) -> Result<(), BadSpec> {
        let bad = |problem: String| Err(BadSpec::new("files", problem));
        if self.files.len() > SIDE_FILES_MAX {
            return bad(format!("{} files; at most {SIDE_FILES_MAX}", self.files.len()));
        }
        let mut names = BTreeSet::new();
        for SideFile { name, .. } in &self.files {
            let is_plain = !name.is_empty()
                && name.len() <= SIDE_FILE_NAME_BYTES_MAX
                && !name.starts_with('.')
                && !name.contains('/')
                && !name.chars().any(char::is_control);
            if !is_plain {
                return bad(format!(
                    "`{}` cannot be the name of one: 1 to {SIDE_FILE_NAME_BYTES_MAX} bytes, no \
                     slash, no leading dot",
                    name.escape_debug().take(100).collect::<String>()
                ));
            }
            if !names.insert(name) {
                return bad(format!("two are named `{name}`"));
            }
            if name == "tmp" {
                return bad("none can be named `tmp`, which is the programs' own".to_owned());
            }
        }
        Ok(())
    }
}

pub(crate) fn put_streaming(out: &mut Encoder, streaming: &Streaming) {
    for argv in &streaming.programs {
        put_texts(out, argv);
    }
    out.u8(u8::from(streaming.lengths));
    for limit in streaming.limits {
        out.u64(limit);
    }
    out.count(streaming.files.len());
    for file in &streaming.files {
        out.text(&file.name);
        out.raw(&file.sha256);
        out.u64(file.bytes);
        out.u8(u8::from(file.executable));
    }
}

pub(crate) fn take_streaming(from: &mut Decoder<'_>) -> Result<Streaming, BadBytes> {
    let programs = [take_texts(from)?, take_texts(from)?, take_texts(from)?];
    let lengths = from.u8()? != 0;
    let mut limits = [0; 5];
    for limit in &mut limits {
        *limit = from.u64()?;
    }
    let file = |from: &mut Decoder<'_>| {
        let name = from.text()?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(from.raw(32, "a digest")?);
        Ok(SideFile { name, sha256, bytes: from.u64()?, executable: from.u8()? != 0 })
    };
    let files = (0..from.count()?).map(|_| file(from)).collect::<Result<_, BadBytes>>()?;
    Ok(Streaming { programs, lengths, limits, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_back_from_the_log() {
        let argv = |text: &str| text.split(' ').map(str::to_owned).collect();
        let file = SideFile { name: "m.py".into(), sha256: [7; 32], bytes: 3, executable: true };
        let streaming = Streaming {
            programs: [argv("./m.py -x"), Vec::new(), argv("cat")],
            lengths: true,
            limits: [1, 2, 3, 4, 5],
            files: vec![file],
        };
        let mut out = Encoder::new();
        put_streaming(&mut out, &streaming);
        let bytes = out.finish();
        let mut from = Decoder::new(&bytes);
        assert_eq!(take_streaming(&mut from), Ok(streaming));
        from.end().unwrap();
        for length in 0..bytes.len() {
            assert!(take_streaming(&mut Decoder::new(&bytes[..length])).is_err());
        }
    }
}
