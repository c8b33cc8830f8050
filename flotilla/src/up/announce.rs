//! What `flotilla up` says when all is ready: where everything is, and what to type next.
//!
//! Decides which commands are worth a try, and says an address only where they would not find the
//! cluster themselves.

use daemon::{Failure, ports};
use serde_json::{Value, json};

use super::Arguments;
use crate::local::place::beside;
use crate::local::{Cluster, Description, Place};
use crate::output::Output;
use crate::whereabouts::DIR_DEFAULT;

/// What the cluster is made of.
pub(super) fn described(description: &Description) -> String {
    let plural = |count: u16, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    let mut parts = Vec::new();
    match (description.groups, description.kv) {
        (_, 0) => {}
        (0, kv) => parts.push(plural(kv, "key/value member")),
        (groups, kv) => {
            let members = plural(kv, "key/value member");
            parts.push(format!("{} of {members}", plural(groups, "group")));
        }
    }
    if description.controllers > 0 {
        parts.push(plural(description.controllers, "shard controller member"));
    }
    if description.log > 0 {
        parts.push(plural(description.log, "log member"));
    }
    if description.workers > 0 {
        parts.push("1 coordinator".to_owned());
        parts.push(plural(description.workers, "worker"));
    }
    parts.join(", ")
}

/// Tells where everything is, and what to type next.
pub(super) fn announce(
    cluster: &Cluster,
    program: &str,
    arguments: &Arguments,
    output: Output,
) -> Result<(), Failure> {
    let description = cluster.description();
    let up = format!("Flotilla is up: {}.", described(description));
    let mut lines = vec![up, String::new()];
    let places = places(cluster);
    lines.extend(places.into_iter().map(|(name, text)| format!("  {name:<14}{text}")));
    lines.push(String::new());
    lines.push("Try, in another terminal in this directory:".to_owned());
    let commands = commands(description, program, arguments);
    lines.extend(commands.into_iter().map(|text| format!("  {text}")));
    lines.push(String::new());
    lines.push("Ctrl-C stops it; the same command goes on with the same data.".to_owned());
    output.result(&lines.join("\n"), &value(cluster))
}

fn value(cluster: &Cluster) -> Value {
    let description = cluster.description();
    let groups = (1..=description.groups)
        .map(|group| json!({ "group": group, "members": description.group_endpoints(group) }));
    let coordinator = description.coordinator();
    json!({
        "dir": cluster.dir(),
        "kv": description.kv_endpoints(),
        "groups": groups.collect::<Vec<_>>(),
        "controllers": description.controller_endpoints(),
        "log": description.log_endpoints(),
        "coordinator": coordinator,
        "root": coordinator.is_some().then_some(&description.root),
        "pid": std::process::id(),
    })
}

/// Where everything is, by name.
fn places(cluster: &Cluster) -> Vec<(String, String)> {
    let description = cluster.description();
    let mut places = Vec::new();
    let mut tell = |name: &str, text: String| places.push((name.to_owned(), text));
    for group in 1..=description.groups {
        tell(&format!("group {group}"), description.group_endpoints(group).join("  "));
    }
    if description.kv > 0 && description.groups == 0 {
        tell("key/value", description.kv_endpoints().join("  "));
    }
    if description.controllers > 0 {
        tell("controller", description.controller_endpoints().join("  "));
    }
    if description.log > 0 {
        tell("log", description.log_endpoints().join("  "));
    }
    if let Some(coordinator) = description.coordinator() {
        tell("jobs", coordinator);
        tell("their page", format!("http://{}/", beside(description.place.coordinator())[1]));
        tell("shared root", description.root.display().to_string());
    }
    tell("data, logs", cluster.dir().display().to_string());
    let place = description.place;
    let first = match (description.kv, description.log, description.controllers) {
        (0, 0, 0) => place.coordinator(),
        (0, 0, _) => place.shardctl(1),
        (0, ..) => place.raftd(1),
        _ => place.kvd(1),
    };
    tell("metrics", format!("http://{}/metrics, and each other port plus 1000", beside(first)[1]));
    places
}

/// What to copy and paste. The address is said where the commands would not find it themselves.
fn commands(description: &Description, program: &str, arguments: &Arguments) -> Vec<String> {
    let found = arguments.dir.as_os_str() == DIR_DEFAULT
        || description.place == Place { base_port: ports::KVD, ..Place::default() };
    let at = |endpoints: &[String]| match endpoints.first() {
        Some(first) if !found => format!(" --endpoints {first}"),
        Some(_) | None => String::new(),
    };
    let (kv, log) = (description.kv_endpoints(), description.log_endpoints());
    let controllers = description.controller_endpoints();
    let mut commands = Vec::new();
    if let Some(first) = kv.first() {
        let at = at(&kv);
        commands.push(format!("{program} kv{at} put greeting hello"));
        commands.push(format!("{program} kv{at} get greeting"));
        commands.push(format!(
            "grpcurl -plaintext -d '{{\"key\":\"Z3JlZXRpbmc=\"}}' {first} flotilla.kv.v1.Kv/Get"
        ));
    }
    if !controllers.is_empty() {
        commands.push(format!("{program} shardctl{} status", at(&controllers)));
    }
    if description.groups > 1 {
        let last = description.groups;
        commands.push(format!("{program} shardctl{} plan leave {last}", at(&controllers)));
    }
    if !log.is_empty() {
        let at = at(&log);
        commands.push(format!("{program} log{at} append hello"));
        commands.push(format!("{program} log{at} tail --follow"));
    }
    commands.extend(jobs(description, program, arguments, found));
    // Unless it is told, status asks the key/value store.
    let coordinator = description.coordinator();
    let other = [log.first(), coordinator.as_ref(), controllers.first()];
    let status = match (kv.first(), other.into_iter().flatten().next()) {
        (None, Some(other)) => format!(" --endpoints {other}"),
        (Some(_), _) | (None, None) => at(&kv),
    };
    commands.push(format!("{program} status{status}"));
    commands
}

/// How to count words.
fn jobs(
    description: &Description,
    program: &str,
    arguments: &Arguments,
    found: bool,
) -> Vec<String> {
    let Some(coordinator) = description.coordinator() else { return Vec::new() };
    let at = if found { String::new() } else { format!(" --coordinator {coordinator}") };
    let root = match found && arguments.root.is_none() {
        true => String::new(),
        false => format!(" --root {}", description.root.display()),
    };
    let books = description.root.join("books");
    let books = books.display();
    vec![
        format!("mkdir -p {books} && cp *.txt {books}/"),
        format!("{program} mr{at} submit --app wc --input 'books/*.txt' --output counts --wait"),
        format!("{program} mr{at} list"),
        format!("{program} mr{at} cat JOB{root} | sort -k2 -nr | head"),
    ]
}
