//! Bugs that are planted in the core, in the store, in the key/value machine and in the shard
//! controller, one at a time, to see that the simulator finds them.
//!
//! Each file of sim/bugs is a small change of a source file. The crates that the simulator is made
//! of are copied to a scratch tree beside the build's other results; there a bug is put in, the
//! simulator is built, and seeds are run until an invariant is broken; for the few bugs of which
//! hardly any seed tells, the scenario that their patch names is run. A bug that nothing shows
//! fails the whole, and so does a patch that no longer fits, or a tree that fails without any bug.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use flotilla_sim::patch::Patch;

/// The crates that the simulator is made of.
const CRATES: [&str; 8] = ["client", "daemon", "kvd", "proto", "raft", "raftd", "shardctl", "sim"];
/// How they are built: fast rather than well, and without what links them into one.
const PROFILE: &str = "\n[profile.mutant]\ninherits = \"release\"\nopt-level = 2\nlto = \"off\"\n\
                       codegen-units = 16\ndebug = false\nincremental = true\n";
/// How many seeds must pass without any bug.
const SEEDS_WITHOUT_BUG: u64 = 60;
/// A run that says nothing for so long has hung.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What became of a bug.
#[derive(Debug)]
enum Fate {
    /// An invariant was broken.
    Caught {
        invariant: String,
        seed: u64,
        members: String,
    },
    Survived,
    /// A run came to no end.
    Hung,
}

/// Plants the bugs that are named, or all, and prints what caught each within `seeds` seeds.
pub(crate) fn mutants(only: &[String], seeds: u64, check: bool) -> ExitCode {
    match attempt(only, seeds, check) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            // Nobody is left to be told when this can't be written.
            drop(writeln!(io::stderr(), "mutants: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether every bug was caught.
fn attempt(only: &[String], seeds: u64, check: bool) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bugs = choose(read_bugs(&root)?, only)?;
    // All are looked at before the first is built, which takes long.
    let mut planted = BTreeMap::new();
    for (name, patch) in &bugs {
        let source = read(&root.join(&patch.file))?;
        let text = patch.apply(&source).map_err(|why| format!("{name}.patch: {why}"))?;
        planted.insert(name, (source, text));
    }
    if check {
        let list = bugs.iter().map(|(name, patch)| format!("{name}: {}\n", one_line(&patch.why)));
        return say(&list.collect::<String>()).map(|()| true);
    }
    let scratch = Scratch::new(&root)?;
    let fate = scratch.sweep(SEEDS_WITHOUT_BUG)?;
    if !matches!(fate, Fate::Survived) {
        return Err(format!("without any bug: {fate:?}"));
    }
    say("| bug | caught by | seed | members |\n|---|---|---:|---:|\n")?;
    let mut survivors = 0;
    for (name, (source, text)) in planted {
        let file = scratch.tree.join(&bugs[name].file);
        write(&file, &text)?;
        let scenario = bugs[name].scenario.as_ref();
        let fate = match scenario {
            Some((file, test)) => scratch.play(file, test)?,
            None => scratch.sweep(seeds)?,
        };
        write(&file, &source)?;
        let row = match fate {
            Fate::Caught { invariant, seed, members } => {
                let of =
                    scenario.map_or(String::new(), |(file, test)| format!(" of `{file}::{test}`"));
                format!("| {name} | {invariant} | {seed}{of} | {members} |\n")
            }
            Fate::Survived | Fate::Hung => {
                survivors += 1;
                format!("| {name} | NOTHING: {fate:?} | {seeds} seeds | |\n")
            }
        };
        say(&row)?;
    }
    say(&format!("\n{} bugs, {survivors} not caught\n", bugs.len()))?;
    Ok(survivors == 0)
}

fn read_bugs(root: &Path) -> Result<BTreeMap<String, Patch>, String> {
    let folder = root.join("sim/bugs");
    let files = fs::read_dir(&folder).map_err(|error| broken(&folder, &error))?;
    let mut bugs = BTreeMap::new();
    for file in files {
        let path = file.map_err(|error| broken(&folder, &error))?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let patch = Patch::parse(&read(&path)?).map_err(|why| format!("{name}.patch: {why}"))?;
        bugs.insert(name, patch);
    }
    Ok(bugs)
}

fn choose(
    mut bugs: BTreeMap<String, Patch>,
    only: &[String],
) -> Result<BTreeMap<String, Patch>, String> {
    if let Some(unknown) = only.iter().find(|name| !bugs.contains_key(*name)) {
        return Err(format!("there is no sim/bugs/{unknown}.patch"));
    }
    bugs.retain(|name, _| only.is_empty() || only.contains(name));
    if bugs.is_empty() { Err("there is nothing in sim/bugs".to_owned()) } else { Ok(bugs) }
}

/// A copy of the sources, and what is built of them. It is kept, so that the next time only what
/// has changed is built.
#[derive(Debug)]
struct Scratch {
    tree: PathBuf,
    target: PathBuf,
    /// Keeps others away as long as it is held.
    _lock: LockFile,
}

impl Scratch {
    fn new(root: &Path) -> Result<Self, String> {
        let target = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        let folder = target.join("mutants");
        let (tree, target) = (folder.join("tree"), folder.join("target"));
        fs::create_dir_all(&tree).map_err(|error| broken(&tree, &error))?;
        let lock = lock(&folder.join("lock"))?;
        fs::remove_dir_all(&tree).map_err(|error| broken(&tree, &error))?;
        for name in CRATES {
            copy(&root.join(name), &tree.join(name))?;
        }
        copy(&root.join("Cargo.lock"), &tree.join("Cargo.lock"))?;
        let manifest = read(&root.join("Cargo.toml"))?;
        let (before, rest) =
            manifest.split_once("members = [").ok_or("no members in Cargo.toml")?;
        let (_, after) = rest.split_once(']').ok_or("the members in Cargo.toml have no end")?;
        let members = format!("{before}members = {CRATES:?}{after}{PROFILE}");
        write(&tree.join("Cargo.toml"), &members)?;
        Ok(Self { tree, target, _lock: lock })
    }

    fn cargo(&self, command: &str) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo
            .args([command, "--quiet", "--offline", "--profile", "mutant"])
            .args(["--package", "flotilla-sim", "--target-dir"])
            .arg(&self.target)
            .current_dir(&self.tree)
            // A bug may leave something unused.
            .env("RUSTFLAGS", "--cap-lints=allow");
        cargo
    }

    /// Runs a scenario of the tests.
    fn play(&self, file: &str, test: &str) -> Result<Fate, String> {
        let mut cargo = self.cargo("test");
        let output = cargo.args(["--test", file, test]).output();
        let output = output.map_err(|error| broken(&self.tree, &error))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if let Some(fate) = printed.lines().find_map(|line| shown(line, test)) {
            return Ok(fate);
        }
        let (ran, none) = (printed.contains("running 1 test"), "it runs no such test");
        let said = String::from_utf8_lossy(&output.stderr);
        if ran && output.status.success() {
            Ok(Fate::Survived)
        } else {
            Err(format!("{file}::{test}: {}", if ran { &said } else { none }))
        }
    }

    /// Builds what is in the tree, and runs seeds until one fails.
    fn sweep(&self, seeds: u64) -> Result<Fate, String> {
        let built = self.cargo("build").status().map_err(|error| broken(&self.tree, &error))?;
        if !built.success() {
            return Err(format!("{} does not build", self.tree.display()));
        }
        let simulator = self.target.join("mutant/flotilla-sim");
        let seeds = format!("0..{seeds}");
        let mut child = Command::new(&simulator)
            .args(["sweep", "--until-failure", "--seeds", &seeds])
            .stdout(Stdio::piped())
            // Assertions that fail say so here as well.
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| broken(&simulator, &error))?;
        let fate = watch(&mut child);
        child.kill().map_err(|error| broken(&simulator, &error))?;
        child.wait().map_err(|error| broken(&simulator, &error))?;
        fate
    }
}

/// Reads what a sweep prints until it tells of a failure, ends, or has hung.
fn watch(child: &mut Child) -> Result<Fate, String> {
    let stdout = child.stdout.take().ok_or("the sweep has no output")?;
    let (lines, read) = mpsc::channel();
    thread::Builder::new()
        .name("sweep output".to_owned())
        .spawn(move || {
            // Ends with the sweep, or when nobody listens any more.
            let mut printed = BufReader::new(stdout).lines().map_while(Result::ok);
            printed.try_for_each(|line| lines.send(line)).ok();
        })
        .map_err(|error| format!("no thread: {error}"))?;
    loop {
        match read.recv_timeout(SILENCE_MAX) {
            Ok(line) if line.ends_with(" failures") => return Ok(Fate::Survived),
            Ok(line) => {
                if let Some(fate) = caught(&line) {
                    return Ok(fate);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(Fate::Hung),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return child_ended(child);
            }
        }
    }
}

/// The sweep has said nothing of a failure.
fn child_ended(child: &mut Child) -> Result<Fate, String> {
    let status = child.wait().map_err(|error| format!("the sweep: {error}"))?;
    if status.success() {
        Ok(Fate::Survived)
    } else {
        Err(format!("the sweep ended with {status}"))
    }
}

/// `late, seed 3: R19: n1 answers ...`
fn shown(line: &str, test: &str) -> Option<Fate> {
    let (seed, rest) = line.strip_prefix(test)?.strip_prefix(", seed ")?.split_once(": ")?;
    let (invariant, _) = rest.split_once(": ")?;
    let (invariant, members) = (invariant.to_owned(), String::new());
    Some(Fate::Caught { invariant, seed: seed.parse().ok()?, members })
}

/// `seed 17 members 5 R10: n1 tells ...`
fn caught(line: &str) -> Option<Fate> {
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(" members ")?;
    let (members, rest) = rest.split_once(' ')?;
    let (invariant, _) = rest.split_once(": ")?;
    let (invariant, members) = (invariant.to_owned(), members.to_owned());
    Some(Fate::Caught { invariant, seed: seed.parse().ok()?, members })
}

#[allow(clippy::disallowed_types, reason = "this is a tool of the build, not a simulated disk")]
type LockFile = fs::File;

fn lock(path: &Path) -> Result<LockFile, String> {
    let file = LockFile::create(path).map_err(|error| broken(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(error) => Err(format!("{}: another is at work here: {error}", path.display())),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    if !from.is_dir() {
        return write(to, &read(from)?);
    }
    for entry in fs::read_dir(from).map_err(|error| broken(from, &error))? {
        let entry = entry.map_err(|error| broken(from, &error))?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| broken(path, &error))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| broken(folder, &error))?;
    fs::write(path, text).map_err(|error| broken(path, &error))
}

fn say(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout();
    let said = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    said.map_err(|error| format!("standard output: {error}"))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn broken(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
