//! Members in network namespaces of their own, joined by a bridge, and cuts between them.
//!
//! All of it is in a namespace of the run's own, in which the test's own process starts itself anew
//! (`unshare`), with mounts of its own: when that process ends, however it ends, the kernel removes
//! every namespace, interface and mount. The machine's own interfaces are never touched.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use flotilla::local::process::leash;

/// Says that the process is in namespaces of its own, and which process it is to end with.
const SANDBOX: &str = "FLOTILLA_NEMESIS_SANDBOX";

/// Enters namespaces of one's own and leaves them again.
const UNSHARE: [&str; 4] = ["--net", "--mount", "--propagation", "private"];

/// What has to work in a sandbox: packets are dropped, images are mounted.
const PROBE: &str = "ip link set lo up && ip link add probe type bridge && \
    nft 'add table ip probe; delete table ip probe' && mount -t tmpfs tmpfs /run && \
    command -v mkfs.ext4 && losetup -f";

/// The port of every member.
const PORT: u16 = daemon::ports::KVD;

/// The slot of nobody, whose address is the bridge's: clients ask from there.
const LAST_SLOT: u16 = 253;

/// Runs a command that has to succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {complaint}", output.status);
}

#[track_caller]
fn ip(words: &str) {
    run(Command::new("ip").args(words.split(' ')));
}

/// Whether this process is in namespaces of its own.
pub(crate) fn is_sandbox() -> bool {
    std::env::var_os(SANDBOX).is_some()
}

/// From now on this process ends with the one that started it in the sandbox.
pub(crate) fn end_with_parent() {
    let parent = std::env::var(SANDBOX).unwrap();
    assert!(leash(&parent).unwrap(), "who started this has ended");
}

/// Starts one test of this binary anew in namespaces of its own and waits for its end; none, where
/// they can't be had.
pub(crate) fn enter(test: &str) -> Option<ExitStatus> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(UNSHARE);
        command
    };
    let probe =
        unshare().args(["sh", "-c", PROBE]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return None;
    }
    let this = std::env::current_exe().unwrap();
    let status = unshare()
        .arg(this)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(SANDBOX, std::process::id().to_string())
        .status();
    Some(status.unwrap())
}

/// A bridge with a namespace for each member.
pub(crate) struct Network {
    members: u16,
}

impl Network {
    /// Makes it, in the sandbox.
    pub(crate) fn new(members: u16) -> Self {
        assert!(is_sandbox(), "the machine's own interfaces are left alone");
        ip("link set lo up");
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]));
        ip("link add bridge type bridge");
        ip(&format!("addr add {}/24 dev bridge", address(LAST_SLOT).ip()));
        ip("link set bridge up");
        for slot in 0..members {
            let namespace = namespace(slot);
            ip(&format!("netns add {namespace}"));
            ip(&format!("link add member{slot} type veth peer name eth0 netns {namespace}"));
            ip(&format!("link set member{slot} master bridge up"));
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", address(slot).ip()));
            ip(&format!("-n {namespace} link set eth0 up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        Self { members }
    }

    /// A program that is another one in the network of a member. Mounts stay common, so that they
    /// can be taken off.
    pub(crate) fn program(dir: &Path, program: &str, slot: u16) -> PathBuf {
        let path = dir.join(format!("in-{}", namespace(slot)));
        let text = format!(
            "#!/bin/sh\nexec nsenter --net=/run/netns/{} {program} \"$@\"\n",
            namespace(slot)
        );
        std::fs::write(&path, text).unwrap();
        run(Command::new("chmod").arg("+x").arg(&path));
        path
    }

    /// Lets members hear nothing of certain others: pairs of one who is deaf, and to whom.
    pub(crate) fn cut(&self, deaf: &[(u16, u16)]) {
        for slot in 0..self.members {
            let unheard = deaf.iter().filter(|(hears, _)| *hears == slot);
            let unheard: Vec<_> =
                unheard.map(|(_, speaks)| address(*speaks).ip().to_string()).collect();
            if !unheard.is_empty() {
                let unheard = unheard.join(", ");
                Self::filter(
                    slot,
                    &format!(
                        "table ip cut {{ chain input {{ type filter hook input priority 0; \
                         ip saddr {{ {unheard} }} drop; }}; }}"
                    ),
                );
            }
        }
    }

    /// Takes all cuts back.
    pub(crate) fn heal(&self) {
        (0..self.members).for_each(|slot| Self::filter(slot, "flush ruleset"));
    }

    fn filter(slot: u16, rules: &str) {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &namespace(slot), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "{rules}");
    }
}

fn namespace(slot: u16) -> String {
    format!("member{slot}")
}

/// Where a member listens for clients.
pub(crate) fn address(slot: u16) -> SocketAddr {
    let last = u8::try_from(slot + 1).unwrap();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, last)), PORT)
}
