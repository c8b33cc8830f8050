//! Tests of planning, on real directories.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::{flow::Flow, scheduling::Scheduling, spec::OutputFormat};

fn spec(inputs: &[&str]) -> Spec {
    Spec {
        app: "wc".into(),
        inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        output: "out".into(),
        reduces: 1,
        input_format: InputFormat::Text,
        output_format: OutputFormat::Text,
        split_bytes: 0,
        lease_ms: 10_000,
        task_timeout_ms: 10_000,
        max_attempts: 4,
        name: String::new(),
        slow_ms: 0,
        overwrite: false,
        flow: Flow::default(),
        scheduling: Scheduling::default(),
        streaming: None,
    }
}

fn root_with(files: &[&str]) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    for file in files {
        let path = directory.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    let root = Root::open(directory.path()).unwrap();
    (directory, root)
}

fn names(root: &Root, patterns: &[&str]) -> Result<Vec<String>, String> {
    let found = inputs(root, &spec(patterns)).map_err(|error| error.to_string())?;
    Ok(found.into_iter().map(|input| input.path).collect())
}

#[test]
fn patterns_expand_in_byte_order_and_keep_the_user_s_words() {
    let (_directory, root) = root_with(&[
        "in/b.txt",
        "in/B.txt",
        "in/a.txt",
        "in/.hidden",
        "in/_x",
        "in/c.md",
        "in/d/e.txt",
    ]);
    assert_eq!(names(&root, &["in/*.txt"]).unwrap(), ["in/B.txt", "in/a.txt", "in/b.txt"]);
    assert_eq!(names(&root, &["./in/a.txt", "in/a.txt"]).unwrap(), ["./in/a.txt", "in/a.txt"]);
    assert_eq!(names(&root, &["in/?/e.*"]).unwrap(), ["in/d/e.txt"]);
    assert_eq!(names(&root, &["*/[ab].txt"]).unwrap(), ["in/a.txt", "in/b.txt"]);
    let all = ["in/B.txt", "in/a.txt", "in/b.txt", "in/c.md", "in/d/e.txt"];
    assert_eq!(names(&root, &["in"]).unwrap(), all);
    let absolute = root.path().join("in/c.*");
    let expected = root.path().join("in/c.md").to_str().unwrap().to_owned();
    assert_eq!(names(&root, &[absolute.to_str().unwrap()]).unwrap(), [expected]);
}

#[test]
fn name_with_wildcards_that_exists_is_meant_literally() {
    let (_directory, root) = root_with(&["a[1].txt", "a1.txt"]);
    assert_eq!(names(&root, &["a[1].txt"]).unwrap(), ["a[1].txt"]);
}

#[test]
fn list_of_inputs_is_followed() {
    let (_directory, root) = root_with(&["a", "b", "c"]);
    fs::write(root.join("list"), "b\n\n a \n").unwrap();
    assert_eq!(names(&root, &["@list", "c"]).unwrap(), ["b", "a", "c"]);
    assert!(names(&root, &["@none"]).unwrap_err().contains("none"));
}

#[test]
fn what_matches_nothing_is_named() {
    let (_directory, root) = root_with(&["in/a"]);
    fs::create_dir(root.join("empty")).unwrap();
    for pattern in ["none", "in/*.txt", "no/*", "empty"] {
        let error = names(&root, &["in/a", pattern]).unwrap_err();
        assert!(error.contains(&format!("`{pattern}` matches no file")), "{error}");
    }
}

#[test]
fn what_leads_out_of_the_root_is_refused() {
    let (_directory, root) = root_with(&["in/a"]);
    symlink("/etc", root.join("in/etc")).unwrap();
    symlink("/etc/passwd", root.join("in/link")).unwrap();
    for pattern in ["../x", "/etc/passwd", "in/link", "in/etc/passwd", "in/*", "in", "a\0b"] {
        let error = names(&root, &[pattern]).unwrap_err();
        assert!(error.contains("refused"), "{pattern}: {error}");
    }
    fs::create_dir_all(root.join(".flotilla/x")).unwrap();
    fs::write(root.join(".flotilla/x/plan"), "").unwrap();
    assert!(names(&root, &[".flotilla/x/plan"]).unwrap_err().contains("Flotilla's own"));
}

#[test]
fn circle_of_links_ends() {
    let (_directory, root) = root_with(&["in/a"]);
    symlink(".", root.join("in/circle")).unwrap();
    assert!(names(&root, &["in"]).unwrap_err().contains("in/circle/circle"));
}

#[test]
fn what_is_no_file_is_refused_by_name_and_skipped_in_a_directory() {
    let (_directory, root) = root_with(&["in/a"]);
    let socket = std::os::unix::net::UnixListener::bind(root.join("in/socket")).unwrap();
    assert!(names(&root, &["in/socket"]).unwrap_err().contains("no regular file"));
    assert_eq!(names(&root, &["in"]).unwrap(), ["in/a"]);
    drop(socket);
}

#[test]
fn plan_is_stored_and_read_back_and_damage_is_noticed() {
    let (_directory, root) = root_with(&["in/a", "in/b"]);
    let job = JobId(7);
    let (is, plan) = make(&root, job, &spec(&["in"]), 2).unwrap();
    assert_eq!(load(&root, job, is).unwrap(), plan);
    let (again, _) = make(&root, job, &spec(&["in"]), 2).unwrap();
    assert_eq!(is, again, "planning twice gives the same plan");
    let directory = root.join(&job_directory(job));
    let file = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "no draft is left");
    let mut bytes = fs::read(&file).unwrap();
    for at in 0..bytes.len() {
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(matches!(load(&root, job, is), Err(PlanError::Damaged(_))), "byte {at}");
        bytes[at] ^= 1;
    }
    fs::remove_file(&file).unwrap();
    assert!(matches!(load(&root, job, is), Err(PlanError::Store(_))));
}

fn file(name: &str, bytes: u64) -> Input {
    Input {
        path: name.into(),
        real: PathBuf::from(name),
        bytes,
        modified_ns: 1,
        packing: Packing::None,
        tag: String::new(),
    }
}

#[test]
fn whole_files_are_one_task_each() {
    let whole = Spec { input_format: InputFormat::Whole, ..spec(&["x"]) };
    let files = [file("a", 0), file("b", 10), file("c", SPLIT_BYTES_DEFAULT * 3)];
    let plan = split(&whole, &files, 1).unwrap();
    assert_eq!(plan.maps.len(), 3);
    assert!(plan.maps.iter().all(|task| task.len() == 1 && task[0].start == 0));
    assert_eq!(plan.maps[0][0].bytes, 0, "an empty file is a record");
    let many: Vec<Input> = (0..25_000).map(|number| file(&number.to_string(), 1)).collect();
    let plan = split(&whole, &many, 1).unwrap();
    assert!(plan.maps.len() <= MAPS_MAX as usize);
    assert_eq!(plan.maps.concat().len(), many.len());
}

#[test]
fn split_size_follows_from_slots_and_is_bounded() {
    let big = [file("a", 100 << 20)];
    assert_eq!(split(&spec(&["a"]), &big, 2).unwrap().maps.len(), 8);
    assert_eq!(split(&spec(&["a"]), &[file("a", 3 << 20)], 64).unwrap().maps.len(), 3);
    let huge = [file("a", SPLIT_BYTES_DEFAULT * 20_000)];
    assert!(split(&spec(&["a"]), &huge, 2).unwrap().maps.len() <= MAPS_MAX as usize);
    let wish = Spec { split_bytes: 1, ..spec(&["a"]) };
    assert_eq!(split(&wish, &huge, 2).unwrap_err().field, "split_bytes");
    assert_eq!(split(&spec(&["a"]), &[file("a", 0)], 2).unwrap().maps.len(), 0);
}

proptest! {
    #[test]
    fn pieces_cover_every_file_in_order(
        sizes in proptest::collection::vec(0_u64..300, 1..20),
        largest in 1_u64..200,
    ) {
        let files: Vec<Input> =
            sizes.iter().enumerate().map(|(n, bytes)| file(&n.to_string(), *bytes)).collect();
        let wish = Spec { split_bytes: largest, ..spec(&["x"]) };
        let plan = split(&wish, &files, 1).unwrap();
        prop_assert!(plan.maps.iter().all(|task| !task.is_empty()));
        for task in &plan.maps {
            prop_assert!(task.iter().map(|split| split.bytes).sum::<u64>() <= largest);
        }
        let pieces = plan.maps.concat();
        let mut pieces = pieces.iter();
        for file in &files {
            let mut end = 0;
            while end < file.bytes {
                let piece = pieces.next().expect("a piece for the rest of the file");
                prop_assert_eq!((&piece.path, piece.start), (&file.path, end));
                end += piece.bytes;
            }
            prop_assert_eq!(end, file.bytes);
        }
        prop_assert!(pieces.next().is_none());
    }
}
