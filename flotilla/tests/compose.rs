//! The compose file, where a container engine is present: the cluster comes up, is used from
//! outside, counts words on the shared volume, and survives the loss of its leader's container.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// How long anything may take that should take seconds.
const PATIENCE: Duration = Duration::from_secs(60);

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// One compose project of its own name and ports, gone when this is dropped.
struct Project {
    name: String,
    image: String,
    ports: [u16; 4],
}

impl Project {
    fn start() -> Self {
        let id = std::process::id();
        let image = format!("flotilla:test-{id}");
        let build = root().join("deploy/build-image");
        must(Command::new(build).arg(&image).arg(FLOTILLA));
        let project = Self { name: format!("flotilla-test-{id}"), image, ports: free_ports() };
        must(project.compose().args(["up", "-d"]));
        project
    }

    fn compose(&self) -> Command {
        let mut command = Command::new("docker-compose");
        command.arg("-f").arg(root().join("deploy/compose.yaml")).args(["-p", &self.name]);
        command.env("FLOTILLA_IMAGE", &self.image);
        let names = ["KVD1", "KVD2", "KVD3", "MR"];
        for (name, port) in names.iter().zip(self.ports) {
            command.env(format!("FLOTILLA_PORT_{name}"), port.to_string());
        }
        command
    }

    fn container(&self, service: &str) -> String {
        text(&must(self.compose().args(["ps", "-q", service])))
    }

    fn endpoints(&self) -> String {
        self.ports[..3].iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
    }

    fn kv(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(FLOTILLA);
        command.arg("kv").args(arguments).args(["--endpoints", &self.endpoints()]);
        command.output().unwrap()
    }

    /// Waits until the engine calls every container healthy.
    fn wait_until_healthy(&self) {
        for service in ["kvd1", "kvd2", "kvd3", "mr-coordinator", "mr-worker1", "mr-worker2"] {
            let container = self.container(service);
            wait(&format!("{service} is healthy"), || {
                let health = ["inspect", "-f", "{{.State.Health.Status}}", &container];
                text(&must(Command::new("docker").args(health))) == "healthy"
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

fn free_ports() -> [u16; 4] {
    let listeners = [(); 4].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
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
    let project = Project::start();
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
    let coordinator = format!("127.0.0.1:{}", project.ports[3]);
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
