//! Ours: replicas with their state machine and tickets, of which every proposal's ends as `Done`.
//!
//! The core holds the end of the log itself, as the storage does that raft-rs and openraft read from;
//! so the disk has nothing to keep here, and each member of each library holds an entry once.

use std::sync::Arc;

use bytes::Bytes;
use raft::{
    Applied, BadSnapshot, Capture, Config, Digest, ENTRY_OVERHEAD_BYTES, Frozen, Instant,
    Membership, Message, NodeId, Outcome, Output, Payload, Recovered, Replica, RoleKind,
    SnapshotRoot, StateMachine, TicketId,
};

use super::{COMMAND_BYTES, Group, KEPT_ENTRIES, MEMBERS, SNAPSHOT_ENTRIES, command};

const ENTRY_BYTES: u64 = COMMAND_BYTES as u64 + ENTRY_OVERHEAD_BYTES;
const DEADLINE: Instant = Instant(u64::MAX);

/// A group of ours.
pub struct Flotilla {
    /// The first one leads.
    members: Vec<Member>,
    now: Instant,
    tickets: u64,
    /// How many of them have ended.
    ended: u64,
}

struct Member {
    id: NodeId,
    replica: Replica<Counter>,
    inbox: Vec<(NodeId, Message)>,
}

impl Group for Flotilla {
    const NAME: &str = "Flotilla";

    fn start() -> Self {
        let config = Config {
            snapshot_log_bytes_min: SNAPSHOT_ENTRIES * ENTRY_BYTES,
            retained_bytes: KEPT_ENTRIES * ENTRY_BYTES,
            retained_bytes_max: KEPT_ENTRIES * ENTRY_BYTES,
            ..Config::default()
        };
        let founders = Membership::founders((1..=MEMBERS).map(|id| (NodeId(id), Bytes::new())));
        let founders = Arc::new(founders);
        let members = (1..=MEMBERS).map(NodeId).map(|id| {
            let (founders, recovered, now) = (founders.clone(), Recovered::default(), Instant(0));
            let replica =
                Replica::new(config, id, founders, recovered, Counter::default(), id.0, now);
            Member { id, replica, inbox: Vec::new() }
        });
        let members = members.collect();
        let mut group = Self { members, now: Instant(0), tickets: 0, ended: 0 };
        while group.members[0].replica.status().role != RoleKind::Leader {
            group.tick();
        }
        group
    }

    fn commit(&mut self, batches: usize, count: usize) {
        for _ in 0..batches {
            for _ in 0..count {
                self.tickets += 1;
                let (ticket, payload) =
                    (TicketId(self.tickets), Payload::Command(command().into()));
                let proposed = self.members[0].replica.propose(self.now, ticket, payload, DEADLINE);
                proposed.expect("the first member leads");
            }
            self.act(0);
            while self.ended < self.tickets {
                assert!(self.deliver(), "nothing is on its way");
            }
        }
    }

    fn end(mut self) -> Vec<u64> {
        for _ in 0..Config::default().heartbeat_ticks {
            self.tick();
        }
        self.members.iter().map(|member| member.replica.machine().applied).collect()
    }
}

impl Flotilla {
    /// Time passes, for the first member only: no other campaigns.
    fn tick(&mut self) {
        self.now.0 += Config::default().tick_us;
        self.members[0].replica.tick(self.now);
        self.act(0);
        while self.deliver() {}
    }

    /// Hands over everything that is on its way. Whether there was anything.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            if member.inbox.is_empty() {
                continue;
            }
            any = true;
            for (from, message) in member.inbox.drain(..) {
                member.replica.step(self.now, from, message);
            }
            self.act(at);
        }
        any
    }

    /// Does what a member asks for, as a host does.
    fn act(&mut self, at: usize) {
        loop {
            let member = &mut self.members[at];
            let from = member.id;
            let output: Output<Counter> = member.replica.take_output();
            if let Some(frozen) = output.capture {
                let Frozen { position, stamp, membership, .. } = frozen;
                let manifest = Digest::default();
                let root =
                    SnapshotRoot { position, stamp, manifest, chunks: 0, bytes: 0, membership };
                member.replica.captured(Some(root));
            }
            let mut again = output.again;
            if let Some(write) = output.write {
                member.replica.written(write.id);
                again = true;
            }
            for (_, outcome) in output.outcomes {
                assert_eq!(outcome, Outcome::Done(Some(())));
                self.ended += 1;
            }
            for envelope in output.messages {
                let to = usize::try_from(envelope.to.0 - 1).expect("it is small");
                self.members[to].inbox.push((from, envelope.message));
            }
            if !again {
                return;
            }
        }
    }
}

/// Counts commands.
#[derive(Debug, Default)]
struct Counter {
    applied: u64,
}

impl StateMachine for Counter {
    type Query = ();
    type Answer = ();
    type Response = ();
    type Capture = Nothing;

    fn understands(&self, _: &Bytes) -> bool {
        true
    }

    fn apply(&mut self, _: Applied, command: &Bytes) {
        assert_eq!(command.len(), COMMAND_BYTES);
        self.applied += 1;
    }

    fn pass(&mut self, _: Applied) {}

    fn recover(&mut self) {}

    fn query(&self, (): ()) {}

    fn capture(&self) -> Nothing {
        Nothing
    }

    fn empty(&self) -> Self {
        Self::default()
    }

    fn restore(&mut self, _: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        Ok(())
    }

    fn digest(&self) -> u128 {
        self.applied.into()
    }
}

/// A snapshot without chunks.
#[derive(Debug)]
struct Nothing;

impl Capture for Nothing {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        std::iter::empty()
    }
}
