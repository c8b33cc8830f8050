//! Settings: which layer wins, and how a wrong one is refused.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use flotilla_daemon::runtime::Process;
use flotilla_daemon::{Code, Failure, flags, settings};
use serde::{Deserialize, Serialize};

/// A daemon's settings with one field of each kind that occurs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    listen: String,
    advertise: Option<String>,
    insecure: bool,
    node: String,
    batch_entries_max: u32,
    ratio: f64,
    seeds: Vec<String>,
    members: BTreeMap<String, String>,
    process: Process,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7300".to_owned(),
            advertise: None,
            insecure: false,
            node: "1".to_owned(),
            batch_entries_max: 128,
            ratio: 0.5,
            seeds: Vec::new(),
            members: BTreeMap::new(),
            process: Process::default(),
        }
    }
}

fn load(file: Option<&str>, environment: &[(&str, &str)], flags: &str) -> Result<Config, Failure> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvd.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    let environment = environment.iter().map(|(name, text)| (name.into(), text.into()));
    let path = file.map(|_| path.as_path());
    settings::load("kvd", &Config::default(), path, environment, &flags.parse().unwrap())
}

/// The load must be refused with this code, and the whole message must contain each of the words.
fn check_refused(result: Result<Config, Failure>, code: Code, words: &[&str]) {
    let failure = result.expect_err("these settings are wrong");
    let chain = failure.chain();
    assert_eq!(failure.code(), code, "{chain}");
    for word in words {
        assert!(chain.contains(word), "{word:?} is missing in: {chain}");
    }
    assert!(!chain.contains('\n') || chain.contains("not TOML"), "more than a line: {chain}");
}

#[test]
fn defaults_hold_where_nothing_is_said() {
    assert_eq!(load(None, &[], "").unwrap(), Config::default());
}

#[test]
fn each_layer_wins_over_those_before_it() {
    let file = "listen = 'file'\nnode = 'file'\nadvertise = 'file'\n\
                [process]\nlog_filter = 'warn'\nworker_threads = 3";
    let environment = [
        ("FLOTILLA_KVD__NODE", "environment"),
        ("FLOTILLA_KVD__ADVERTISE", "environment"),
        ("FLOTILLA_KVD__PROCESS__LOG_FILTER", "debug"),
    ];
    let config = load(Some(file), &environment, "advertise = 'flag'").unwrap();
    assert_eq!(config.listen, "file");
    assert_eq!(config.node, "environment");
    assert_eq!(config.advertise.as_deref(), Some("flag"));
    assert_eq!(config.process.log_filter, "debug");
    assert_eq!(config.process.worker_threads, Some(3), "its neighbour from the file stays");
    assert_eq!(config.batch_entries_max, 128, "and what nobody set");
}

#[test]
fn variables_take_the_type_of_their_setting() {
    let environment = [
        ("FLOTILLA_KVD__NODE", "007"),
        ("FLOTILLA_KVD__BATCH_ENTRIES_MAX", "0064"),
        ("FLOTILLA_KVD__INSECURE", "true"),
        ("FLOTILLA_KVD__RATIO", "0.25"),
        ("FLOTILLA_KVD__SEEDS", r#"["a:1", "b:2"]"#),
        ("FLOTILLA_KVD__MEMBERS__1", "a:1"),
        ("FLOTILLA_KVD__MEMBERS__2", "b:2"),
        ("FLOTILLA_KVD__ADVERTISE", "true"),
    ];
    let config = load(None, &environment, "").unwrap();
    assert_eq!(config.node, "007");
    assert_eq!(config.batch_entries_max, 64);
    assert!(config.insecure);
    assert!((config.ratio - 0.25).abs() < f64::EPSILON);
    assert_eq!(config.seeds, ["a:1", "b:2"]);
    assert_eq!(config.members.len(), 2);
    assert_eq!(config.advertise.as_deref(), Some("true"));
}

#[test]
fn lists_are_replaced_and_tables_merged() {
    let file = "seeds = ['a', 'b']\n[members]\n1 = 'a'\n2 = 'b'";
    let config = load(Some(file), &[("FLOTILLA_KVD__MEMBERS__2", "c")], "seeds = ['z']").unwrap();
    assert_eq!(config.seeds, ["z"]);
    assert_eq!(config.members["1"], "a");
    assert_eq!(config.members["2"], "c");
}

#[test]
fn unknown_key_refused_with_its_origin_and_the_known_ones() {
    check_refused(
        load(Some("lisen = 'x'"), &[], ""),
        Code::Configuration,
        &["kvd.toml", "`lisen`", "`listen`", "`advertise`"],
    );
    check_refused(
        load(Some("[process]\nlog_filtre = 'x'"), &[], ""),
        Code::Configuration,
        &["kvd.toml", "`log_filtre`", "`log_filter`", "process"],
    );
    check_refused(
        load(None, &[("FLOTILLA_KVD__LISEN", "x")], ""),
        Code::Configuration,
        &["FLOTILLA_KVD__LISEN", "`lisen`", "`listen`"],
    );
    check_refused(
        load(None, &[("FLOTILLA_KVD__PROCESS__X", "x")], ""),
        Code::Configuration,
        &["FLOTILLA_KVD__PROCESS__X", "`x`", "`log_filter`"],
    );
    check_refused(load(None, &[], "lisen = 'x'"), Code::Usage, &["command line", "`lisen`"]);
}

#[test]
fn variables_of_others_are_not_read() {
    let environment = [
        ("FLOTILLA_KVD_PORT", "tcp://10.0.0.1:7300"),
        ("FLOTILLA_KVD_SERVICE_HOST", "10.0.0.1"),
        ("FLOTILLA_RAFTD__NODE", "9"),
        ("FLOTILLA_COMMIT", "abc"),
        ("PATH", "/bin"),
        ("FLOTILLA_KVD__ADVERTISE", ""),
    ];
    assert_eq!(load(None, &environment, "").unwrap(), Config::default());
}

#[test]
fn wrong_values_refused_with_their_origin() {
    let refused = [("2.6", "2.6"), ("true", "true"), ("'many'", "many"), ("-1", "-1")];
    for (value, word) in refused {
        let file = format!("batch_entries_max = {value}");
        let words = ["kvd.toml", word, "u32", "batch_entries_max"];
        check_refused(load(Some(&file), &[], ""), Code::Configuration, &words);
    }
    for value in ["many", "4294967296", "-1", "1.5", "[1]"] {
        check_refused(
            load(None, &[("FLOTILLA_KVD__BATCH_ENTRIES_MAX", value)], ""),
            Code::Configuration,
            &["FLOTILLA_KVD__BATCH_ENTRIES_MAX", "u32"],
        );
    }
}

#[test]
fn malformed_names_and_values_of_variables_refused() {
    let deep = format!("FLOTILLA_KVD__{}", ["A"; 9].join("__"));
    for name in ["FLOTILLA_KVD__", "FLOTILLA_KVD__A____B", "FLOTILLA_KVD__listen", &deep] {
        check_refused(load(None, &[(name, "x")], ""), Code::Configuration, &[name]);
    }
    let bytes = OsString::from_vec(vec![0xff]);
    let environment = [("FLOTILLA_KVD__NODE".into(), bytes.clone()), ("OTHER".into(), bytes)];
    let none = toml::Table::new();
    let result = settings::load("kvd", &Config::default(), None, environment, &none);
    check_refused(result, Code::Configuration, &["FLOTILLA_KVD__NODE", "UTF-8"]);
}

#[test]
fn wrong_files_refused() {
    check_refused(load(Some("a = "), &[], ""), Code::Configuration, &["kvd.toml", "not TOML"]);
    let key = "'seeds[1000000000]' = 'x'";
    check_refused(load(Some(key), &[], ""), Code::Configuration, &["seeds[1000000000]"]);
    let long = "# a comment\n".repeat(100_000);
    check_refused(load(Some(&long), &[], ""), Code::Configuration, &["longer than"]);
    let absent = Some(Path::new("/nonexistent/kvd.toml"));
    let none = toml::Table::new();
    let result = settings::load("kvd", &Config::default(), absent, [], &none);
    check_refused(result, Code::Machine, &["/nonexistent/kvd.toml", "No such file"]);
}

#[test]
fn daemon_with_a_dash_has_a_variable_name() {
    let name = settings::variable_name("mr-coordinator", "process.log_filter");
    assert_eq!(name, "FLOTILLA_MR_COORDINATOR__PROCESS__LOG_FILTER");
}

/// Serves keys and values
#[derive(Debug, clap::Parser)]
struct Flags {
    #[command(flatten)]
    process: flags::Process,
    #[command(flatten)]
    network: flags::Network,
}

#[test]
fn only_given_flags_become_settings() {
    let parse = |line: &str| {
        let flags: Flags = flags::parse(line.split(' ')).unwrap();
        flags::given(&[&flags.process, &flags.network]).unwrap()
    };
    let file = "listen = 'file'\nprocess.worker_threads = 4";
    assert_eq!(load(Some(file), &[], &parse("kvd").to_string()).unwrap().listen, "file");
    let line = "kvd --config x --listen flag --insecure --log-filter trace --log-format json";
    let config = load(Some(file), &[], &parse(line).to_string()).unwrap();
    assert_eq!(config.listen, "flag");
    assert!(config.insecure);
    assert_eq!(config.process.log_filter, "trace");
    assert_eq!(config.process.worker_threads, Some(4));
    let config = load(Some("insecure = true"), &[], &parse("kvd --insecure=false").to_string());
    assert!(!config.unwrap().insecure, "a flag can also take back what the file says");
}

#[test]
fn wrong_command_line_is_usage_and_help_is_not() {
    let parse = |line: &str| flags::parse::<Flags>(line.split(' ')).err();
    assert_eq!(parse("kvd --nonsense"), Some(Code::Usage));
    assert_eq!(parse("kvd --worker-threads many"), Some(Code::Usage));
    assert_eq!(parse("kvd --help"), Some(Code::Done));
}

#[test]
fn help_says_what_the_daemon_is_and_not_what_its_flags_are() {
    let help = <Flags as clap::CommandFactory>::command().render_long_help().to_string();
    assert!(help.starts_with("Serves keys and values\n"), "{help}");
}
