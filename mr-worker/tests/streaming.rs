//! Jobs of real programs: what they read, write, count and die of.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use mr_worker::{
    failure::{Failure, ProgramEnd},
    input::Reading,
    local::LocalJob,
    outcome::{COMBINE_INPUT_RECORDS, COMBINE_OUTPUT_RECORDS, Counters, Progress, SPILLED_RUNS},
    part::{PartFormat, PartStyle},
    partition::Partitioning,
    paths::Root,
    record::Records,
    run::Codec,
    stream::{Allowed, Framing, Launcher, Limits, Programs, SideFile, Streaming},
    task::Bench,
};
use proto::mapreduce as pb;
use sha2::{Digest, Sha256};
use support::{cut, generate};
use tempfile::{TempDir, tempdir};

/// How long any wait here may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn argv(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|&word| word.to_owned()).collect())
}

fn shell(script: &str) -> Option<Vec<String>> {
    argv(&["sh", "-c", script])
}

/// A directory, and a job of programs in it.
struct Setting {
    dir: TempDir,
    programs: Programs,
    reading: Reading,
    args: Vec<(&'static str, &'static str)>,
    partitions: u32,
    format: PartFormat,
    memory_bytes: usize,
}

impl Setting {
    /// A map with these lines, and no reduce.
    fn map(mapper: Option<Vec<String>>) -> Self {
        Self {
            dir: tempdir().unwrap(),
            programs: Programs { mapper, ..Programs::default() },
            reading: Reading::of(Records::LINES),
            args: Vec::new(),
            partitions: 0,
            format: PartFormat::Text,
            memory_bytes: 64 << 20,
        }
    }

    fn reduce(mapper: Option<Vec<String>>, reducer: Option<Vec<String>>) -> Self {
        let mut setting = Self { partitions: 1, ..Self::map(mapper) };
        setting.programs.reducer = reducer;
        setting
    }

    /// A side file.
    fn with_file(mut self, name: &str, content: &str, executable: bool) -> Self {
        let sha256: [u8; 32] = Sha256::digest(content).into();
        let blob: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(self.dir.path().join(blob), content).unwrap();
        self.programs.files.push(SideFile { name: name.to_owned(), sha256, executable });
        self
    }

    fn streaming(&self) -> Streaming {
        let program = env!("CARGO_BIN_EXE_mr-worker").into();
        let launcher = Launcher { program, arguments: vec!["launch".into()] };
        Streaming {
            programs: self.programs.clone(),
            allowed: Allowed { launcher, blobs: self.dir.path().to_owned() },
            attempt: "1-1".to_owned(),
            line_bytes_max: 1 << 20,
        }
    }

    /// Runs it on these inputs, all in one map; its parts, one behind the other, and its counters.
    fn run_all(&self, inputs: &[&[u8]]) -> Result<(Vec<u8>, Counters), Failure> {
        let mut files = Vec::new();
        for (number, input) in inputs.iter().enumerate() {
            let (name, path) =
                (format!("in-{number}"), self.dir.path().join(format!("{number}.txt")));
            fs::write(&path, input).unwrap();
            files.push((name, path));
        }
        let work = self.dir.path().join("work");
        fs::create_dir_all(&work).unwrap();
        let job = LocalJob {
            program: &self.streaming(),
            args: self.args.iter().copied().collect(),
            maps: vec![cut(&files, u64::MAX).concat()],
            reading: self.reading,
            partitions: self.partitions,
            partitioning: Partitioning::Hash,
            style: PartStyle { format: self.format, zstd: false, durable: false },
            codec: Codec::None,
            memory_bytes: self.memory_bytes,
            slots: 1,
            dir: &work,
        };
        let result = job.run(&|_, _, _| {})?;
        let parts = result.parts.iter().flat_map(|part| fs::read(part).unwrap());
        for kind in ["m-0", "r-0"] {
            assert!(!work.join(kind).join("program").exists(), "its directory is left behind");
        }
        Ok((parts.collect(), result.counters))
    }

    fn run(&self, input: impl AsRef<[u8]>) -> (String, Counters) {
        let (parts, counters) = self.run_all(&[input.as_ref()]).unwrap();
        (String::from_utf8(parts).unwrap(), counters)
    }

    /// How it fails: message, end and last words.
    fn fails(&self, input: impl AsRef<[u8]>) -> (String, ProgramEnd, String) {
        match self.run_all(&[input.as_ref()]).unwrap_err() {
            Failure::Program { message, end, stderr, .. } => (message, end, stderr),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_failure_tells_code_or_signal_and_the_last_words() {
    // Its output is worth nothing, even if all was read and written.
    let failing = Setting::map(shell("cat; echo first >&2; echo dying >&2; exit 3"));
    let (message, end, words) = failing.fails("a\nb\n");
    assert!(message.contains("exited with code 3") && message.contains("echo dying"), "{message}");
    assert_eq!((end, words.as_str()), (ProgramEnd::Failed, "first\ndying"));
    let (message, ..) = Setting::map(shell("kill -SEGV $$")).fails("a\n");
    assert!(message.contains("signal 11"), "{message}");
    let reduce = Setting::reduce(None, shell("cat; exit 4"));
    assert!(reduce.fails("a\n").0.contains("code 4"));
    // The place is told where something was being read.
    let early = Setting::map(shell("exit 5")).run_all(&[&vec![b'\n'; 16 << 20]]).unwrap_err();
    assert!(early.to_string().contains("code 5 at in-0:"), "{early}");
}

#[test]
fn programs_that_cannot_run_say_why_and_are_not_tried_again() {
    let unfit = |setting: Setting, word: &str| {
        let (message, end, _) = setting.fails("a\n");
        assert_eq!(end, ProgramEnd::Unfit, "{message}");
        assert!(message.contains(word), "{message}");
    };
    unfit(Setting::map(argv(&["no-such-program"])), "command not found");
    unfit(Setting::map(argv(&["./m.py"])), "--file ./m.py");
    let named =
        |content, executable| Setting::map(argv(&["./m"])).with_file("m", content, executable);
    unfit(named("#!/bin/sh\ncat", false), "not executable");
    unfit(named("print('hello')", true), "missing #! line");
    unfit(named("#!/no/python\n", true), "names /no/python");
    unfit(named("#!/bin/sh\r\ncat\r\n", true), "carriage return");
    assert_eq!(named("#!/bin/sh\ncat", true).run("a\n").0, "a\n");
    // Hadoop finds it without `./`, too.
    let bare = Setting::map(argv(&["m"])).with_file("m", "#!/bin/sh\ncat", true);
    assert_eq!(bare.run("a\n").0, "a\n");
}

#[test]
fn a_side_file_that_is_not_what_was_sent_is_refused() {
    let setting = Setting::map(argv(&["./m"])).with_file("m", "#!/bin/sh\ncat", true);
    let blob = fs::read_dir(setting.dir.path()).unwrap().next().unwrap().unwrap().path();
    fs::write(blob, "#!/bin/sh\nrm -rf").unwrap();
    let refused = setting.run_all(&[b"a\n"]).unwrap_err().to_string();
    assert!(refused.contains("not those that were sent"), "{refused}");
}

#[test]
fn a_program_may_read_nothing_or_write_before_it_reads() {
    let much = vec![b'\n'; 8 << 20];
    assert_eq!(Setting::map(argv(&["true"])).run(&much).0, "");
    assert_eq!(Setting::map(shell("exec <&-; echo done")).run(&much).0, "done\n");
    // More than all pipes hold, on both ways out.
    let deep = std::env::var("FLOTILLA_TEST_DEPTH").is_ok_and(|depth| depth == "deep");
    let megabytes = if deep { 1_024 } else { 64 };
    let script = format!(
        "head -c {megabytes}M /dev/zero | tr '\\0' x | fold -w 127; \
         head -c 4M /dev/zero | tr '\\0' y | fold -w 99 >&2; wc -c"
    );
    let mut setting = Setting::map(shell(&script));
    setting.programs.limits.stderr_bytes = 1_000;
    let (found, _) = setting.run(&much);
    // As many line feeds as full lines, and what `wc` says of all that was left to read.
    let written = megabytes << 20;
    let last = format!("{}\n", much.len());
    assert_eq!(found.len(), written + written / 127 + last.len());
    assert!(found.ends_with(&last));
}

#[test]
fn lines_are_framed_as_hadoop_has_it() {
    // The last line needs no line feed, neither way.
    assert_eq!(Setting::map(argv(&["cat"])).run("a\nb").0, "a\nb\n");
    assert_eq!(Setting::map(shell("cat >/dev/null; printf last")).run("a").0, "last\n");
    // Without a TAB the whole line is the key; what a reduce writes stays as it is.
    let reduce = Setting::reduce(argv(&["cat"]), shell("sed 's/\\t/<TAB>/g'"));
    assert_eq!(reduce.run("b\na\tx\ty\n\n").0, "<TAB>\na<TAB>x<TAB>y\nb<TAB>\n");
    // An absent mapper is cat, an absent reducer writes the pairs.
    assert_eq!(Setting::reduce(None, None).run("b\na\tx\ty\n").0, "a\tx\ty\nb\t\n");
    assert_eq!(Setting::map(None).run("b\na\tx").0, "b\na\tx\n");
    // Key-value inputs have a TAB in any case.
    let mut pairs = Setting::map(argv(&["cat"]));
    pairs.reading = Reading::of(Records::KeyValues { strip_cr: false });
    assert_eq!(pairs.run("k\tv\tw\nk").0, "k\tv\tw\nk\t\n");
    // An empty input is read, too.
    assert_eq!(Setting::map(argv(&["wc", "-l"])).run("").0, "0\n");
}

#[test]
fn standard_error_counts() {
    let script = "echo reporter:counter:G,lines,$(wc -l) >&2; echo reporter:status:well >&2";
    let (_, counters) = Setting::reduce(shell(script), shell(script)).run("a\nb\nc\n");
    assert_eq!(counters.get("G:lines"), 3, "no line came to the reduce");
    let many = "for i in $(seq 100); do echo reporter:counter:G,$i,1 >&2; done";
    let refused = Setting::map(shell(many)).run_all(&[b"a\n"]).unwrap_err().to_string();
    assert!(refused.contains("more than 48 counters"), "{refused}");
}

#[test]
fn a_program_finds_its_job_in_its_environment_and_nothing_else() {
    let mut setting = Setting::map(shell("cat >/dev/null; env; pwd; ls"));
    setting.args = vec![("my.setting", "7")];
    setting = setting.with_file("side.txt", "content", false);
    // A program for each file, so that the name is right.
    let (said, _) = setting.run_all(&[b"a\nb\n", b"c\n"]).unwrap();
    let said = String::from_utf8(said).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let has = |line: &str| lines.contains(&line);
    for line in [
        "FLOTILLA_INPUT_FILE=in-0",
        "FLOTILLA_INPUT_FILE=in-1",
        "mapreduce_map_input_file=in-1",
        "FLOTILLA_JOB_ID=local",
        "FLOTILLA_TASK_ID=m-0",
        "mapreduce_task_id=task_local_m_000000",
        "mapreduce_task_ismap=true",
        "my_setting=7",
        "side.txt",
    ] {
        assert!(has(line), "{line} is not in {said}");
    }
    assert!(!said.contains("CARGO"), "{said}");
    let cwd = lines.iter().find(|line| line.starts_with('/')).unwrap();
    assert!(has(&format!("HOME={cwd}")) && has(&format!("TMPDIR={cwd}/tmp")), "{said}");
}

#[test]
fn limits_are_named_when_they_are_met() {
    let limited = |script: &str, limits: Limits, name: &str| {
        let mut setting = Setting::map(shell(script));
        setting.programs.limits = limits;
        let (message, end, words) = setting.fails("a\n");
        assert_eq!(end, ProgramEnd::Exhausted, "{message}: {words}");
        assert!(message.contains(name), "{message}");
    };
    let none = Limits::default();
    let memory = Limits { memory_bytes: 64 << 20, ..none };
    limited("head -c 500M /dev/zero | tail -n 1", memory, "memory_bytes of 67108864");
    let cpu = Limits { cpu_seconds: 1, ..none };
    limited("while :; do :; done", cpu, "cpu_seconds of 1");
    let file = Limits { file_bytes: 1 << 20, ..none };
    limited("head -c 2M /dev/zero > big", file, "file_bytes of 1048576");
    // Beneath its limits it does well.
    let mut well = Setting::map(argv(&["cat"]));
    well.programs.limits = Limits { open_files: 64, ..memory };
    assert_eq!(well.run("a\n").0, "a\n");
}

#[test]
fn what_a_helper_still_writes_is_taken() {
    // The shell ends at once; who writes for it holds its standard output.
    let setting = Setting::map(shell("(cat; sleep 1; echo late) <&0 & exit 0"));
    assert_eq!(setting.run("a\n").0.lines().last(), Some("late"));
}

#[test]
fn what_a_program_leaves_running_ends_with_it() {
    for (script, succeeds) in
        [("sleep 1000 & echo $!", true), ("sleep 1000 & echo $! >&2; exit 1", false)]
    {
        let setting = Setting::map(shell(script));
        let pid = match succeeds {
            true => setting.run("a\n").0,
            false => setting.fails("a\n").2,
        };
        let process = format!("/proc/{}", pid.trim());
        let state = || fs::read_to_string(format!("{process}/stat")).unwrap_or_default();
        let begun = Instant::now();
        while Path::new(&process).exists() && !state().contains(") Z ") {
            assert!(begun.elapsed() < PATIENCE, "{}", state());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a shell makes of the same programs.
fn pipeline(script: &str, input: &[u8]) -> Vec<u8> {
    let mut shell = Command::new("bash")
        .args(["-c", script])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = shell.wait_with_output().unwrap();
    feeding.join().unwrap();
    output.stdout
}

const WORDS: &str = "LC_ALL=C tr -cs A-Za-z '\\n' | sed 's/$/\\t1/'";
const SUM: &str = "awk -F'\\t' '$1 != k { if (NR > 1) print k \"\\t\" n; k = $1; n = 0 } \
                   { n += $2 } END { if (NR) print k \"\\t\" n }'";

fn text() -> Vec<u8> {
    let dir = tempdir().unwrap();
    generate(dir.path(), 4, 1, 20_000);
    let text = fs::read(dir.path().join("doc-0.txt")).unwrap();
    assert!(text.len() > 100_000);
    text
}

#[test]
fn a_count_equals_a_pipeline_of_the_same_programs() {
    let text = text();
    let expected = pipeline(&format!("{WORDS} | sort | {SUM}"), &text);
    let (found, _) = Setting::reduce(shell(WORDS), shell(SUM)).run(&text);
    assert_eq!(found.as_bytes(), expected);
}

#[test]
fn a_combiner_changes_nothing_but_the_records() {
    let text = text();
    let mut setting = Setting::reduce(shell(WORDS), shell(SUM));
    let expected = setting.run(&text).0;
    // One that writes in another order, too; and with memory for a part of the pairs.
    for (combiner, memory_bytes) in
        [(SUM.to_owned(), 64 << 20), (format!("{SUM} | sort -r"), 64 << 20), (SUM.to_owned(), 1)]
    {
        let mut combining = Setting::reduce(shell(WORDS), shell(SUM));
        combining.programs.combiner = shell(&combiner);
        combining.memory_bytes = memory_bytes;
        let (found, counters) = combining.run(&text);
        assert_eq!(found, expected, "{combiner}");
        let (read, written) =
            (counters.get(COMBINE_INPUT_RECORDS), counters.get(COMBINE_OUTPUT_RECORDS));
        assert!(read > 20_000 && written < read / 10, "{read} {written}");
        assert_eq!(counters.get(SPILLED_RUNS) > 0, memory_bytes == 1);
    }
    setting.programs.combiner = shell("cat; exit 6");
    setting.dir = tempdir().unwrap();
    assert!(setting.fails(&text).0.contains("code 6"));
}

#[test]
fn lengths_carry_any_bytes() {
    let bytes = b"\n\t\0\xff\n\n01234567".repeat(1_000);
    for records in [Records::Fixed(14), Records::Files] {
        let mut setting = Setting::reduce(argv(&["cat"]), argv(&["cat"]));
        setting.programs.framing = Framing::Lengths;
        setting.reading = Reading::of(records);
        setting.format = PartFormat::Raw;
        let (found, _) = setting.run_all(&[&bytes]).unwrap();
        assert_eq!(found, bytes, "{records:?}");
        setting.programs.framing = Framing::Lines;
        setting.dir = tempdir().unwrap();
        let refused = setting.run_all(&[&bytes]).unwrap_err().to_string();
        assert!(refused.contains("--framing lengths"), "{refused}");
    }
    let mut torn = Setting::map(shell("cat >/dev/null; printf '\\001\\000\\000'"));
    torn.programs.framing = Framing::Lengths;
    assert!(torn.fails("a\n").0.contains("within a pair"));
}

#[test]
fn a_worker_runs_no_program_unless_it_is_told_to() {
    let dir = tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let bench = Bench {
        programs: &[],
        root: &root,
        memory_bytes: 1 << 20,
        durable: false,
        programs_of_jobs: None,
    };
    let command = pb::Command { argv: vec!["touch".to_owned(), "proof".to_owned()] };
    let streaming = pb::Streaming { mapper: Some(command), ..pb::Streaming::default() };
    let spec = pb::JobSpec { streaming: Some(streaming), ..pb::JobSpec::default() };
    let assignment = pb::Assignment {
        attempt: Some(pb::AttemptId::default()),
        spec: Some(spec),
        attempt_dir: "attempt".to_owned(),
        work: Some(pb::assignment::Work::Map(pb::MapWork::default())),
        ..pb::Assignment::default()
    };
    let refused = bench.execute(&assignment, Progress::new(|_, _| {})).unwrap_err();
    let Some(pb::failure_reason::Kind::User(user)) = refused.kind else { panic!("{refused:?}") };
    assert!(user.message.contains("--allow-exec"), "{}", user.message);
    assert!(!dir.path().join("attempt").exists());
}
