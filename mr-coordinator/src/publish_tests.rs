//! Tests of publication, on real directories: a crash before each step, leaders that overtake each
//! other, damage, and what is in the way.

use super::*;
use crate::{
    ids::{AttemptId, AttemptNumber, TaskId},
    scheduling::Scheduling,
    spec::InputFormat,
};

const PARTS: u32 = 4;

/// Ends the run before a step.
struct CrashBefore {
    left: usize,
}

impl Steps for CrashBefore {
    fn before(&mut self, _: &'static str) -> io::Result<()> {
        if self.left == 0 {
            return Err(io::Error::other("crash"));
        }
        self.left -= 1;
        Ok(())
    }
}

struct Scene {
    _directory: tempfile::TempDir,
    root: Root,
    publication: Publication,
}

fn content(partition: u32) -> Vec<u8> {
    format!("key{partition}\t{}\n", "x".repeat(partition as usize)).into_bytes()
}

/// A job whose reduces have left their parts.
fn scene(output_format: OutputFormat, overwrite: bool) -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::open(directory.path()).unwrap();
    let job = JobId(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
    let parts = (0..PARTS)
        .map(|partition| {
            let number = AttemptNumber { epoch: 1, sequence: partition };
            let source = AttemptId { job, task: TaskId::reduce(partition), number }.part();
            let bytes = content(partition);
            Part { partition, source, bytes: bytes.len() as u64, crc: crc32c::crc32c(&bytes) }
        })
        .collect();
    let spec = Spec {
        app: "wc".into(),
        inputs: vec!["in".into()],
        output: "results/out".into(),
        reduces: PARTS,
        input_format: InputFormat::Text,
        output_format,
        split_bytes: 0,
        lease_ms: 10_000,
        task_timeout_ms: 10_000,
        max_attempts: 4,
        name: String::new(),
        slow_ms: 0,
        overwrite,
        flow: crate::flow::Flow::default(),
        scheduling: Scheduling::default(),
        streaming: None,
    };
    let counters = BTreeMap::from([("MAP_TASKS".to_owned(), 1)]);
    let output_key = "results/out".to_owned();
    let skipped = Vec::new();
    let publication = Publication { job, epoch: 1, spec, output_key, parts, counters, skipped };
    let scene = Scene { _directory: directory, root, publication };
    scene.make_parts();
    scene
}

impl Scene {
    fn make_parts(&self) {
        for part in &self.publication.parts {
            let source = self.root.join(&part.source);
            fs::create_dir_all(source.parent().unwrap()).unwrap();
            fs::write(source, content(part.partition)).unwrap();
        }
    }

    fn output(&self) -> PathBuf {
        self.root.join("results/out")
    }

    fn publish(&self, epoch: u64) -> Result<(), PublishError> {
        self.publish_until(epoch, usize::MAX)
    }

    /// A run that crashes behind so many steps.
    fn publish_until(&self, epoch: u64, steps: usize) -> Result<(), PublishError> {
        let publication = Publication { epoch, ..self.publication.clone() };
        publish(&self.root, &publication, &mut CrashBefore { left: steps })
    }

    fn names(&self, of: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root.join(of))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Exactly the right results, and no trace of how they came.
    fn check(&self, beside: &[&str]) {
        let spec = &self.publication.spec;
        let mut expected: Vec<String> = (0..PARTS).map(|part| spec.part_name(part)).collect();
        expected.push(SUCCESS_FILE.to_owned());
        expected.extend(beside.iter().map(|&name| name.to_owned()));
        expected.sort();
        assert_eq!(self.names("results/out"), expected);
        for partition in 0..PARTS {
            let file = self.output().join(spec.part_name(partition));
            assert_eq!(fs::read(file).unwrap(), content(partition), "part {partition}");
        }
        assert!(is_published(&self.output(), self.publication.job).unwrap());
        assert_eq!(self.names("results"), ["out"], "no staging is left");
        let success = fs::read(self.output().join(SUCCESS_FILE)).unwrap();
        let success: Success = serde_json::from_slice(&success).unwrap();
        assert_eq!(success.parts.len(), PARTS as usize);
        assert_eq!(success.counters, self.publication.counters);
    }

    /// How many steps an undisturbed run takes.
    fn count_steps(&self) -> usize {
        let mut steps = CrashBefore { left: usize::MAX };
        publish(&self.root, &self.publication, &mut steps).unwrap();
        self.check(&self.beside());
        usize::MAX - steps.left
    }

    /// What lies beside the results when they are put into a directory that exists.
    fn beside(&self) -> Vec<&'static str> {
        if self.output().join("pg-a.txt").exists() { vec!["pg-a.txt"] } else { Vec::new() }
    }

    /// Runs with a crash before one more step each time, until a run gets through.
    fn crash_everywhere(&self, epoch_of: impl Fn(usize) -> u64, seen: impl Fn(&Self)) {
        for steps in 0..1_000 {
            let ended = self.publish_until(epoch_of(steps), steps);
            seen(self);
            match ended {
                Ok(()) => return,
                Err(PublishError::Io { source, .. }) if source.to_string() == "crash" => {}
                Err(error) => panic!("after {steps} steps: {error}"),
            }
        }
        panic!("it never ends");
    }
}

/// A crash before step k of a first run, for every k, and a whole second run by `epoch_of`.
fn check_crash_before_each_step(
    make: impl Fn() -> Scene,
    second_epoch: u64,
    beside: &[&str],
    seen: impl Fn(&Scene),
) {
    let total = make().count_steps();
    assert!(total > 10, "{total} steps");
    make().crash_everywhere(|_| 1, &seen);
    for steps in 0..=total {
        let scene = make();
        let first = scene.publish_until(1, steps);
        assert_eq!(first.is_ok(), steps == total, "after {steps} steps");
        seen(&scene);
        scene.publish(second_epoch).unwrap();
        scene.check(beside);
        scene.publish(second_epoch + 1).unwrap();
        scene.check(beside);
    }
}

/// Whoever looks sees no output or all of it.
fn whole_or_nothing(scene: &Scene) {
    if scene.output().exists() {
        assert!(is_published(&scene.output(), scene.publication.job).unwrap());
        for partition in 0..PARTS {
            let name = scene.publication.spec.part_name(partition);
            assert_eq!(fs::read(scene.output().join(name)).unwrap(), content(partition));
        }
    }
}

#[test]
fn crash_before_each_step_ends_with_the_right_directory() {
    for epoch in [1, 2] {
        for format in [OutputFormat::Text, OutputFormat::Lab] {
            check_crash_before_each_step(|| scene(format, false), epoch, &[], whole_or_nothing);
        }
    }
}

#[test]
fn leaders_that_crash_one_after_the_other_end_with_the_right_directory() {
    let scene = scene(OutputFormat::Text, false);
    scene.crash_everywhere(|steps| steps as u64 + 1, whole_or_nothing);
    scene.check(&[]);
}

fn with_existing_output(format: OutputFormat, overwrite: bool, files: &[&str]) -> Scene {
    let scene = scene(format, overwrite);
    fs::create_dir_all(scene.output()).unwrap();
    for file in files {
        fs::write(scene.output().join(file), "old").unwrap();
    }
    scene
}

#[test]
fn overwrite_exchanges_the_whole_directory() {
    let old_or_new = |scene: &Scene| {
        let names = scene.names("results/out");
        assert!(names.contains(&"part-00000".to_owned()) != names.contains(&"old".to_owned()));
    };
    for epoch in [1, 2] {
        let make = || with_existing_output(OutputFormat::Text, true, &["old", "_SUCCESS"]);
        check_crash_before_each_step(make, epoch, &[], old_or_new);
    }
}

#[test]
fn lab_results_appear_whole_in_a_directory_that_exists_success_last() {
    let each_whole = |scene: &Scene| {
        let mut count = 0;
        for partition in 0..PARTS {
            if let Ok(bytes) = fs::read(scene.output().join(format!("mr-out-{partition}"))) {
                assert_eq!(bytes, content(partition));
                count += 1;
            }
        }
        let done = is_published(&scene.output(), scene.publication.job).unwrap();
        assert!(!done || count == PARTS);
    };
    for epoch in [1, 2] {
        let make = || with_existing_output(OutputFormat::Lab, false, &["pg-a.txt"]);
        check_crash_before_each_step(make, epoch, &["pg-a.txt"], each_whole);
    }
}

#[test]
fn output_of_somebody_else_is_never_touched() {
    let scene = with_existing_output(OutputFormat::Text, false, &["old"]);
    for _ in 0..2 {
        let error = scene.publish(1).unwrap_err();
        assert!(matches!(error, PublishError::Conflict(_)), "{error}");
        assert_eq!(scene.names("results/out"), ["old"]);
    }
    fs::remove_dir_all(scene.output()).unwrap();
    scene.publish(1).unwrap();
    scene.check(&[]);
}

#[test]
fn lost_and_damaged_parts_are_named_and_the_rest_waits() {
    let scene = scene(OutputFormat::Text, false);
    fs::remove_file(scene.root.join(&scene.publication.parts[1].source)).unwrap();
    let mut damaged = content(3);
    damaged[0] ^= 1;
    fs::write(scene.root.join(&scene.publication.parts[3].source), damaged).unwrap();
    for epoch in [1, 2] {
        let error = scene.publish(epoch).unwrap_err();
        assert!(matches!(&error, PublishError::Lost(lost) if *lost == [1, 3]), "{error}");
        assert!(!scene.output().exists());
    }
    scene.make_parts();
    scene.publish(2).unwrap();
    scene.check(&[]);
}

#[test]
fn damaged_part_in_its_place_is_replaced_by_a_new_one() {
    let scene = with_existing_output(OutputFormat::Lab, false, &["mr-out-2"]);
    scene.publish(1).unwrap();
    scene.check(&[]);
}

#[test]
fn old_leader_that_wakes_up_changes_nothing() {
    let total = scene(OutputFormat::Text, false).count_steps();
    for steps in 0..total {
        let scene = scene(OutputFormat::Text, false);
        // The old leader stops before a step; the new one publishes; the old one goes on.
        let root = scene.root.clone();
        let publication = scene.publication.clone();
        let mut overtaken = Overtaken { left: steps, then: || scene.publish(2).unwrap() };
        // The old leader may fail in any way, or find that all is done.
        let _ = publish(&root, &publication, &mut overtaken);
        scene.publish(2).unwrap();
        scene.check(&[]);
    }
}

/// Lets another leader do everything before one step.
struct Overtaken<F: FnMut()> {
    left: usize,
    then: F,
}

impl<F: FnMut()> Steps for Overtaken<F> {
    fn before(&mut self, _: &'static str) -> io::Result<()> {
        if self.left == 0 {
            (self.then)();
        }
        self.left = self.left.wrapping_sub(1);
        Ok(())
    }
}

#[test]
fn old_leader_gives_way_to_a_newer_one() {
    let scene = scene(OutputFormat::Text, false);
    assert!(scene.publish_until(5, 8).is_err());
    let error = scene.publish(4).unwrap_err();
    assert!(matches!(error, PublishError::Deposed(5)), "{error}");
    scene.publish(5).unwrap();
    scene.check(&[]);
}

#[test]
fn strangers_in_staging_do_not_get_out() {
    let scene = scene(OutputFormat::Text, false);
    assert!(scene.publish_until(1, 8).is_err());
    let staging = scene.root.join(&format!("results/out.flotilla-{}.1", scene.publication.job));
    fs::write(staging.join("stranger"), "x").unwrap();
    fs::create_dir(staging.join("more")).unwrap();
    scene.publish(1).unwrap();
    scene.check(&[]);
}

#[test]
fn records_that_were_left_out_are_named_whatever_happens() {
    for format in [OutputFormat::Text, OutputFormat::Lab] {
        let mut scene = match format {
            OutputFormat::Text | OutputFormat::Raw => scene(format, false),
            OutputFormat::Lab => with_existing_output(format, false, &["pg-a.txt"]),
        };
        scene.publication.skipped = vec!["in/a.txt:3 map 0".into(), "in/a.txt:9 map 0".into()];
        scene.crash_everywhere(|steps| steps as u64 + 1, |_| {});
        let named = scene.output().join(SKIPPED_DIRECTORY).join(SKIPPED_FILE);
        assert_eq!(fs::read_to_string(named).unwrap(), "in/a.txt:3 map 0\nin/a.txt:9 map 0\n");
        assert!(is_published(&scene.output(), scene.publication.job).unwrap());
    }
}
