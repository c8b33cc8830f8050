//! The processes of a session.
//!
//! A slot begins a session of its own, and whatever is started in it stays in it unless it begins
//! another on purpose; so what a slot leaves behind is found when the slot is gone, in whatever
//! groups it is and whoever became its parent. A process that has left the session is not found.

use std::{fs, io, str::FromStr};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};

/// How often the session is looked through: a process may be born while another is killed.
const LOOKS: u32 = 8;

/// Kills all processes of a session; how many.
pub(super) fn end(session: Pid) -> io::Result<usize> {
    let mut killed = 0;
    for _ in 0..LOOKS {
        let members = members(session)?;
        if members.is_empty() {
            break;
        }
        for member in members {
            match kill_process(member, Signal::KILL) {
                Ok(()) => killed += 1,
                Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(killed)
}

/// The processes of a session that live.
fn members(session: Pid) -> io::Result<Vec<Pid>> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = i32::from_str(&entry?.file_name().to_string_lossy()) else { continue };
        // One that ended meanwhile has no status.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if session_of(&stat) == Some(session)
            && let Some(pid) = Pid::from_raw(pid)
        {
            members.push(pid);
        }
    }
    Ok(members)
}

/// The session in a line of `/proc/PID/stat`, unless the process is a zombie: it is dead already.
fn session_of(stat: &str) -> Option<Pid> {
    // The name of the program may hold anything, so what follows its last bracket counts.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    if matches!(state, "Z" | "X") { None } else { Pid::from_raw(session) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_session_is_read_from_a_status() {
        let stat = "12 (a) b) S 1 11 10 0 -1 4194560 1";
        assert_eq!(session_of(stat), Pid::from_raw(10));
        assert_eq!(session_of("12 (x) Z 1 11 10 0"), None);
        assert_eq!(session_of("nothing"), None);
    }

    #[test]
    fn all_of_a_session_ends_in_whatever_group_it_is() {
        // The shell leads a session; its job control puts each child into a group of its own.
        let script = "set -m; sleep 1000 & sleep 1000 & echo; wait";
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = leader.stdout.take().unwrap();
        io::Read::read_exact(&mut out, &mut [0]).unwrap();
        let session = Pid::from_raw(i32::try_from(leader.id()).unwrap()).unwrap();
        assert!(end(session).unwrap() >= 3);
        assert!(!leader.wait().unwrap().success());
        // The children held the pipe, too.
        assert_eq!(io::Read::read(&mut out, &mut [0]).unwrap(), 0);
    }
}
