//! The compose files: what they say is accepted by the daemons. And where a container engine is
//! present, the cluster comes up, is used from outside, counts words on the shared volume, and
//! survives the loss of its leader's container.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use daemon::{Failure, flags, settings};
use raftd::cli::Configuration;
use reader::Node;

/// How long anything may take that should take seconds.
const PATIENCE: Duration = Duration::from_secs(60);

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// One compose project of its own name and ports, gone when this is dropped.
struct Project {
    file: &'static str,
    name: String,
    image: String,
    /// What is published, by its name in the file.
    ports: BTreeMap<&'static str, u16>,
}

impl Project {
    fn start(file: &'static str, ports: &[&'static str]) -> Self {
        let stem = file.strip_suffix(".yaml").unwrap();
        let name = format!("flotilla-test-{stem}-{}", std::process::id());
        let image = format!("{name}:test");
        let build = root().join("deploy/build-image");
        must(Command::new(build).arg(&image).arg(FLOTILLA));
        let ports = ports.iter().copied().zip(free_ports(ports.len())).collect();
        let project = Self { file, name, image, ports };
        project.up();
        project
    }

    fn up(&self) {
        must(self.compose().args(["up", "-d"]));
    }

    fn compose(&self) -> Command {
        let mut command = Command::new("docker-compose");
        command.arg("-f").arg(root().join("deploy").join(self.file)).args(["-p", &self.name]);
        command.env("FLOTILLA_IMAGE", &self.image);
        for (name, port) in &self.ports {
            command.env(format!("FLOTILLA_PORT_{name}"), port.to_string());
        }
        command
    }

    fn container(&self, service: &str) -> String {
        text(&must(self.compose().args(["ps", "-q", service])))
    }

    /// What the engine knows of a container.
    fn state(&self, service: &str, what: &str) -> String {
        let container = self.container(service);
        text(&must(Command::new("docker").args(["inspect", "-f", what, &container])))
    }

    /// The published addresses of key/value members.
    fn endpoints(&self) -> String {
        let members = self.ports.iter().filter(|(name, _)| name.starts_with("KVD"));
        members.map(|(_, port)| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }

    fn kv(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(FLOTILLA);
        command.arg("kv").args(arguments).args(["--endpoints", &self.endpoints()]);
        command.output().unwrap()
    }

    /// Waits until the engine calls every container healthy that says how it is.
    fn wait_until_healthy(&self) {
        let services = services(self.file);
        let telling = services.iter().filter(|(_, node)| node.map().contains_key("healthcheck"));
        for (service, _) in telling {
            wait(&format!("{service} is healthy"), || {
                self.state(service, "{{.State.Health.Status}}") == "healthy"
            });
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.compose().args(["logs", "--no-color", "--tail", "40"]).output();
            eprintln!("{}", logs.map_or_else(|error| error.to_string(), |output| text(&output)));
        }
        for command in [
            self.compose().args(["down", "-v", "-t", "3"]),
            Command::new("docker").args(["rmi", "-f", &self.image]),
        ] {
            if let Err(error) = command.output() {
                eprintln!("cleaning up failed: {error}");
            }
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn must(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {errors}", output.status);
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Polls a condition that another process brings about.
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(200));
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    let listen = |_| std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners: Vec<_> = (0..count).map(listen).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn engine_is_present() -> bool {
    let runs = |program: &str, argument: &str| {
        Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
    };
    runs("docker", "info") && runs("docker-compose", "version")
}

#[test]
fn compose_serves_counts_and_survives_its_leader() {
    if !engine_is_present() {
        eprintln!(
            "skipped: compose_serves_counts_and_survives_its_leader needs docker and docker-compose"
        );
        return;
    }
    let project = Project::start("compose.yaml", &["KVD1", "KVD2", "KVD3", "MR"]);
    project.wait_until_healthy();

    let put = project.kv(&["put", "greeting", "hello"]);
    assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    assert_eq!(text(&project.kv(&["get", "greeting"])), "hello");

    count_words(&project);

    let status = Command::new(FLOTILLA)
        .args(["status", "--json", "--endpoints", &project.endpoints()])
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let leader = status["leader"].as_u64().unwrap_or_else(|| panic!("no leader in {status}"));
    let container = project.container(&format!("kvd{leader}"));
    must(Command::new("docker").args(["kill", &container]));
    let put = project.kv(&["put", "greeting", "still here"]);
    assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    assert_eq!(text(&project.kv(&["get", "greeting"])), "still here");
    must(Command::new("docker").args(["start", &container]));
    project.wait_until_healthy();
}

#[test]
fn compose_shares_keys_between_groups_that_join_once() {
    if !engine_is_present() {
        eprintln!(
            "skipped: compose_shares_keys_between_groups_that_join_once needs docker and \
             docker-compose"
        );
        return;
    }
    let project = Project::start("compose-sharded.yaml", &["SHARDCTL1", "KVD1", "KVD2"]);
    project.wait_until_healthy();
    let inside = |arguments: &[&str]| -> serde_json::Value {
        let container = project.container("shardctl1");
        let call = ["exec", &container, "/usr/bin/shardctl", "--json"];
        serde_json::from_str(&text(&must(Command::new("docker").args(call).args(arguments))))
            .unwrap()
    };
    let joined = || project.state("join", "{{.State.Status}} {{.State.ExitCode}}") == "exited 0";
    wait("the groups take part", joined);
    inside(&["wait", "--timeout", "60s"]);
    let put = project.kv(&["put", "greeting", "hello"]);
    assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    assert_eq!(text(&project.kv(&["get", "greeting"])), "hello");
    let status = inside(&["status"]);
    assert_eq!((&status["complete"], &status["totals"]["keys"]), (&true.into(), &1.into()));
    assert_eq!([0, 1].map(|at| status["groups"][at]["has"].as_u64().unwrap()), [128, 128]);

    // What an operator changes stays, though the same service runs again.
    inside(&["leave", "2"]);
    inside(&["wait", "--timeout", "60s"]);
    let before = project.state("join", "{{.State.FinishedAt}}");
    project.up();
    wait("the join has run again", || {
        joined() && project.state("join", "{{.State.FinishedAt}}") != before
    });
    assert_eq!(inside(&["query"])["number"], 2);
    assert_eq!(text(&project.kv(&["get", "greeting"])), "hello");
}

/// Counts words on the shared volume, which is reached through a worker's container.
fn count_words(project: &Project) {
    let folder = tempfile::tempdir().unwrap();
    let books = folder.path().join("books");
    std::fs::create_dir(&books).unwrap();
    std::fs::write(books.join("one.txt"), "ship sails ship\n").unwrap();
    std::fs::write(books.join("two.txt"), "a ship at sea\n").unwrap();
    let worker = project.container("mr-worker1");
    let volume = format!("{worker}:/srv/flotilla/");
    must(Command::new("docker").arg("cp").arg(&books).arg(&volume));
    let coordinator = format!("127.0.0.1:{}", project.ports["MR"]);
    must(Command::new(FLOTILLA).args([
        "mr",
        "submit",
        "--app",
        "wc",
        "--input",
        "books/*.txt",
        "--output",
        "counts",
        "--reduces",
        "2",
        "--output-format",
        "lab",
        "--wait",
        "--endpoints",
        &coordinator,
    ]));
    let counts = folder.path().join("counts");
    let counted = format!("{worker}:/srv/flotilla/counts");
    must(Command::new("docker").args(["cp", &counted]).arg(&counts));
    let mut lines: Vec<String> = ["mr-out-0", "mr-out-1"]
        .iter()
        .flat_map(|part| {
            let part = std::fs::read_to_string(counts.join(part)).unwrap();
            part.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.sort();
    assert_eq!(lines, ["a 1", "at 1", "sails 1", "sea 1", "ship 3"]);
}

/// The services of a compose file.
fn services(file: &str) -> BTreeMap<String, Node> {
    let text = std::fs::read_to_string(root().join("deploy").join(file)).unwrap();
    reader::read(&text).map()["services"].map().clone()
}

/// What a service has in its environment.
fn environment(service: &Node) -> Vec<(OsString, OsString)> {
    let environment = service.map()["environment"].map();
    environment.iter().map(|(name, value)| (name.into(), value.text().into())).collect()
}

/// The settings that a service gives its daemon, checked as the daemon does.
fn accepted<C: Configuration>(
    service: &Node,
    check: impl FnOnce(&C) -> Result<(), Failure>,
    group: impl FnOnce(&C) -> &raftd::Settings,
) -> Result<C, Failure> {
    let none = flags::given(&[])?;
    let config = settings::load(C::NAME, &C::default(), None, environment(service), &none)?;
    check(&config)?;
    let addresses = config.addresses()?;
    group(&config).check(&addresses.advertise, &addresses.advertise_peer)?;
    Ok(config)
}

fn kvd(service: &Node) -> kvd::Config {
    accepted(service, kvd::Config::check, |config| &config.group)
        .unwrap_or_else(|failure| panic!("{}", failure.chain()))
}

fn controller(service: &Node) -> shardctl::Config {
    accepted(service, |config| shardctl::Config::check(config).map(drop), |config| &config.group)
        .unwrap_or_else(|failure| panic!("{}", failure.chain()))
}

#[test]
fn what_the_compose_files_say_is_accepted() {
    let mut seen = BTreeMap::new();
    for (file, service) in ["compose.yaml", "compose-sharded.yaml"]
        .into_iter()
        .flat_map(|file| services(file).into_values().map(move |service| (file, service)))
    {
        let command = service.map()["command"].list();
        let program = command[0].strip_prefix("/usr/bin/").unwrap().to_owned();
        match (program.as_str(), command.get(1).map(String::as_str)) {
            ("kvd", None) => drop(kvd(&service)),
            ("shardctl", Some("serve")) => drop(controller(&service)),
            ("mr-coordinator", None) => {
                let check = |_: &mr_coordinator::Config| Ok(());
                accepted(&service, check, |config| &config.group).unwrap();
            }
            ("mr-worker", None) => {
                let (none, default) = (flags::given(&[]).unwrap(), mr_worker::Config::default());
                let given = environment(&service);
                settings::load("mr-worker", &default, None, given, &none).unwrap();
            }
            ("shardctl", Some("join")) => {
                // A wrong call would be told before anybody is looked for.
                let nobody = ["--endpoints", "127.0.0.1:9", "--timeout", "100ms"];
                let mut call = Command::new(FLOTILLA);
                let called = call.arg("shardctl").args(&command[1..]).args(nobody).output();
                assert_eq!(called.unwrap().status.code(), Some(3));
            }
            other => panic!("{other:?} in {file}"),
        }
        *seen.entry((file, program)).or_insert(0) += 1;
    }
    let count = |file, program: &str| seen.get(&(file, program.to_owned())).copied().unwrap_or(0);
    assert_eq!([count("compose.yaml", "kvd"), count("compose.yaml", "mr-worker")], [3, 2]);
    let sharded = ["kvd", "shardctl"].map(|program| count("compose-sharded.yaml", program));
    assert_eq!(sharded, [6, 4]);
}

#[test]
fn the_groups_that_join_are_those_that_run() {
    let services = services("compose-sharded.yaml");
    let join = services["join"].map()["command"].list();
    let mut groups: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let mut controllers = BTreeSet::new();
    for (name, service) in &services {
        if name.starts_with("shardctl") {
            controllers.insert(controller(service).advertise.unwrap());
        } else if name != "join" {
            let config = kvd(service);
            let group = groups.entry(config.shard_group.unwrap()).or_default();
            group.insert(config.advertise.unwrap());
        }
    }
    let joining: BTreeMap<u32, BTreeSet<String>> = join[3..]
        .iter()
        .map(|group| group.split_once('=').unwrap())
        .map(|(group, at)| (group.parse().unwrap(), at.split(',').map(str::to_owned).collect()))
        .collect();
    assert_eq!(join[1..3], ["join", "--once"]);
    assert_eq!(joining, groups);
    assert_eq!(groups.values().map(BTreeSet::len).collect::<Vec<_>>(), [3, 3]);
    let told = environment(&services["join"]);
    let told = told[0].1.to_str().unwrap().split(',').map(str::to_owned).collect();
    assert_eq!(controllers, told);
    for (name, service) in services.iter().filter(|(name, _)| name.starts_with("group")) {
        let known: BTreeSet<String> = kvd(service).controllers.into_iter().collect();
        assert_eq!(known, controllers, "{name}");
    }
}
