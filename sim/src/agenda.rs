//! What is going to happen, in the order in which it will: virtual time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use bytes::Bytes;
use raft::{Entry, Fetch, Install, Message, NodeId};

use crate::{
    client::{Reply, Request},
    disk::Stored,
    fault::{Fault, Rate},
    group::{GroupId, MemberId},
    steward::Talk,
};

/// One life of a member, from its start to its crash: what was meant for an earlier one is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) id: MemberId,
    pub(crate) incarnation: u64,
}

/// Something that is going to happen.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A message arrives.
    Deliver { from: MemberId, to: MemberId, message: Message },
    /// A member's clock ticks.
    Tick(Life),
    /// A member takes in what has gathered in its inbox.
    Run(Life),
    /// A sync ends.
    Synced(Life),
    /// A member's own snapshot is stored, or can't be.
    Captured(Life, Stored),
    /// A transfer ends, well or not.
    Fetched(Life, Install),
    /// A machine is made of a snapshot that was fetched.
    Restored(Life, raft::SnapshotRoot, Vec<Bytes>),
    /// Entries of its log have been read.
    Read(Life, Fetch),
    /// A member looks what is to be done about shards.
    Tend(Life),
    /// What a member says to one of another group arrives.
    Talk { from: MemberId, to: MemberId, talk: Talk },
    /// A client asks its next question.
    Think { group: GroupId, client: u64 },
    /// A clerk asks once more for what it wants.
    Attempt { group: GroupId, client: u64, operation: u64 },
    /// A client gives up on a request.
    LoseHope { group: GroupId, client: u64, number: u64 },
    /// A request arrives at a member.
    Ask { to: MemberId, client: u64, number: u64, request: Request },
    /// A reply arrives at a client.
    Answer { from: MemberId, client: u64, number: u64, reply: Reply },
    /// A group of so many members is founded.
    Found { members: u64 },
    /// The nemesis strikes, and will again.
    Strike(Rate),
    /// It strikes a member that has just begun to lead.
    Depose(Life),
    /// What it did comes to an end.
    Mend(Mend),
}

impl Happening {
    /// The life of a member that it belongs to, if it is void without that.
    pub(crate) fn life(&self) -> Option<Life> {
        match self {
            Self::Tick(life)
            | Self::Run(life)
            | Self::Synced(life)
            | Self::Captured(life, _)
            | Self::Fetched(life, _)
            | Self::Restored(life, ..)
            | Self::Read(life, _)
            | Self::Tend(life)
            | Self::Depose(life) => Some(*life),
            Self::Deliver { .. }
            | Self::Talk { .. }
            | Self::Think { .. }
            | Self::Attempt { .. }
            | Self::LoseHope { .. }
            | Self::Ask { .. }
            | Self::Answer { .. }
            | Self::Found { .. }
            | Self::Strike(_)
            | Self::Mend(_) => None,
        }
    }
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Start(MemberId),
    Resume(MemberId),
    Heal {
        partition: u64,
    },
    FreeDisk(MemberId),
    StartGroup(GroupId),
    /// The operator has another look at who is lost.
    ReplaceLost(GroupId),
}

/// Events by time; those of one time happen in the order in which they were planned.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    now_us: u64,
    planned: u64,
    /// When, the how manieth, and where in `happenings`: what moves in the queue is small.
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Empty places are those of events that are forgotten, or `free`.
    happenings: Vec<Option<Happening>>,
    free: Vec<usize>,
}

impl Agenda {
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(crate) fn at(&mut self, time_us: u64, happening: Happening) {
        assert!(time_us >= self.now_us, "nothing happens in the past");
        self.planned += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.happenings[place] = Some(happening);
                place
            }
            None => {
                self.happenings.push(Some(happening));
                self.happenings.len() - 1
            }
        };
        self.queue.push(Reverse((time_us, self.planned, place)));
    }

    pub(crate) fn after(&mut self, delay_us: u64, happening: Happening) {
        self.at(self.now_us + delay_us, happening);
    }

    /// The next event up to `until_us`; none leaves the clock there.
    pub(crate) fn next(&mut self, until_us: u64) -> Option<Happening> {
        while let Some(next) = self.queue.peek_mut().filter(|next| next.0.0 <= until_us) {
            let Reverse((time_us, _, place)) = PeekMut::pop(next);
            self.free.push(place);
            if let Some(happening) = self.happenings[place].take() {
                self.now_us = time_us;
                return Some(happening);
            }
        }
        self.now_us = self.now_us.max(until_us);
        None
    }

    /// Forgets the nemesis: no fault happens any more, and no group is founded. Those under way still end.
    pub(crate) fn forget_faults(&mut self) {
        self.forget_if(|it| {
            matches!(it, Happening::Strike(_) | Happening::Depose(_) | Happening::Found { .. })
        });
    }

    /// Forgets what is like this.
    pub(crate) fn forget_if(&mut self, is_it: impl Fn(&Happening) -> bool) {
        for happening in &mut self.happenings {
            happening.take_if(|happening| is_it(happening));
        }
    }
}

impl Fault {
    /// How the trace calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CrashMany => "crash of many",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::Clog => "clog",
            Self::Degrade => "bad links",
            Self::FullDisk => "full disk",
            Self::Transfer => "transfer",
            Self::Reshape => "change of members",
            Self::StopGroup => "stop of a group",
        }
    }
}

/// What a member's host would hand to its replica.
#[derive(Debug)]
pub(crate) enum Input {
    Message { from: NodeId, message: Message },
    Tick,
    Written(raft::WriteId),
    Captured(Option<raft::SnapshotRoot>),
    Fetched(raft::SnapshotRoot, Option<Vec<Bytes>>),
    Read(Option<NodeId>, Vec<Entry>),
    Transfer(NodeId),
    Ask { client: u64, number: u64, request: Request },
}
