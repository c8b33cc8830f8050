//! A member of three dies at each named place of the host, while clients write, and joins again:
//! of the log and of the key/value store, all that was acknowledged is there once, in one order, on
//! all members.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "failpoints/deaths.rs"]
mod deaths;
#[path = "failpoints/kv.rs"]
mod kv;
#[path = "failpoints/log.rs"]
mod log;
mod support;

use std::process::Command;

use raftd::failpoint::{Failpoint, VARIABLE};
use support::FLOTILLA;

#[test]
fn an_unknown_place_is_refused_with_the_names_of_all() {
    for daemon in ["kvd", "raftd", "mr-coordinator"] {
        let output = Command::new(FLOTILLA)
            .args([daemon, "--data", "/nowhere"])
            .env(VARIABLE, "log.sink.before=crash")
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{complaint}");
        for point in Failpoint::ALL {
            assert!(complaint.contains(point.name()), "{complaint}");
        }
    }
}
