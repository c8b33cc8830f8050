//! What a service holds of its replica: everybody else owns a handle, the host task the replica.

use std::sync::Arc;

use bytes::Bytes;
use raft::{
    Change, ChangeRefused, Frozen, GroupTime, Index, NodeId, SnapshotRoot, Standing, StateMachine,
    Term, Trust,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::identity::GroupId;
use crate::membership::Contact;
use crate::peer::{self, Directory, Peers};
use crate::settings::Member;

/// The largest command: a request of 2 MiB and its envelope.
pub const COMMAND_BYTES_MAX: usize = (2 << 20) + (64 << 10);

/// How a proposal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<R> {
    /// It was executed.
    Done(R),
    /// It was not executed and never will be.
    Rejected(Refused),
    /// It may have been executed, or may be yet.
    Unknown,
}

/// Why something was not done. It never was and never will be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Ask the leader.
    #[error("this member does not lead its group")]
    NotLeader {
        /// The leader, as far as this member knows.
        leader: Option<Member>,
    },
    /// Another entry took its place in the log; try again.
    #[error("the leader changed before the request was committed")]
    Overtaken,
    /// Ask again, soon; it may be another member then.
    #[error("the leadership is being handed over")]
    Transferring,
    /// Ask another member.
    #[error(
        "the state of this member is in doubt: it differs from that of others, and serves nothing \
         until that is settled"
    )]
    Doubted,
    /// Ask again later.
    #[error("the member has too much to do (limit {limit})")]
    Overloaded {
        /// The limit that was reached.
        limit: &'static str,
    },
    /// It is larger than a log entry may be.
    #[error("a command of {bytes} bytes, over the limit command_bytes_max of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is nearly full, see [`Handle::check_space`].
    #[error("the disk of this member is nearly full: less than free_bytes_min is free on it")]
    LowSpace,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The member is stopping.
    #[error("the member is stopping")]
    Shutdown,
    /// The group is being born.
    #[error("the group is being born: waiting for its other members")]
    Unborn,
}

/// Why the leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferRefused {
    /// It was not begun.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is nobody to hand it to.
    #[error("the group has no other member that could lead")]
    Nobody,
    /// It can't be handed to that member.
    #[error(transparent)]
    Change(ChangeRefused),
    /// It stays where it is, or went to somebody else.
    #[error("the member did not take the leadership over in time")]
    NotTakenOver,
}

/// How a change of the members ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is over; whom the changes were about.
    Done(Vec<NodeId>),
    /// Nothing was changed, and nothing will be.
    Rejected(ChangeRejected),
    /// It may be done, or be done yet.
    Unknown,
}

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRejected {
    /// It was not begun.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The group does not allow it, now or ever.
    #[error(transparent)]
    Change(ChangeRefused),
    /// Nobody answers at the address of a new member, or who does is not fit.
    #[error("the member at {address}: {reason}")]
    NotMet {
        /// The address.
        address: String,
        /// Why it is not taken.
        reason: String,
    },
}

/// What an operator wants changed of one member, or of a setting of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The member that answers at this peer address is to come, as a learner; if it belongs to the
    /// group already, its addresses are taken over.
    Add(String),
    /// The member that answers at this peer address has moved there.
    Update(String),
    /// A learner is to vote.
    Promote(NodeId),
    /// A voter is to be a learner.
    Demote(NodeId),
    /// A member is to go.
    Remove(NodeId),
    /// Leaders may answer reads by a lease, or no more.
    LeaseReads(bool),
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The group is being born.
    Unborn,
    /// It follows, or waits for a leader.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
}

/// How a member stands, at most a tick ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// The group's identity, once it is born.
    pub group: Option<GroupId>,
    /// This member.
    pub node: NodeId,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows of; itself, if it leads.
    pub leader: Option<NodeId>,
    /// The first index in its log.
    pub first: Index,
    /// The last.
    pub last: Index,
    /// Its log is durable up to here.
    pub durable: Index,
    /// What it knows to be committed.
    pub commit: Index,
    /// What its state machine has seen.
    pub applied: Index,
    /// The group's time at `applied`.
    pub group_time: GroupTime,
    /// Bytes in its log.
    pub log_bytes: u64,
    /// Its last snapshot.
    pub snapshot: Option<SnapshotRoot>,
    /// The digest of its state at `applied`.
    pub state_digest: u128,
    /// What it makes of its own state.
    pub trust: Trust,
    /// Less than `free_bytes_min` is free on its disk.
    pub low_on_space: bool,
    /// The snapshot that it is fetching.
    pub transfer: Option<Transferring>,
    /// Whether it is taking a snapshot of its state, or waits until it can.
    pub taking_snapshot: bool,
    /// Whether the leader may answer reads by a lease.
    pub lease_reads: bool,
    /// All members; how they stand is known on the leader only.
    pub members: Vec<MemberStatus>,
}

/// How far a snapshot has come that a member is fetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferring {
    /// Who gives it.
    pub from: NodeId,
    /// Bytes of it that are here.
    pub done_bytes: u64,
    /// Bytes of all of it.
    pub total_bytes: u64,
}

/// How a member stands, as another sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Which.
    pub member: Member,
    /// What part it has in decisions.
    pub standing: Standing,
    /// On the leader: its log is durable and equal up to here.
    pub matched: Index,
    /// On the leader: it was heard from lately.
    pub active: bool,
}

/// What the host task is asked.
pub(crate) enum Request<S: StateMachine> {
    Propose {
        command: Bytes,
        deadline: Instant,
        answer: oneshot::Sender<Outcome<S::Response>>,
        /// Its part of what may wait; given back when the host takes it.
        _room: OwnedSemaphorePermit,
    },
    Tick {
        deadline: Instant,
        answer: oneshot::Sender<Outcome<()>>,
    },
    Query {
        query: S::Query,
        answer: oneshot::Sender<Result<S::Answer, Refused>>,
    },
    QueryStale {
        query: S::Query,
        answer: oneshot::Sender<Result<S::Answer, Refused>>,
    },
    Freeze {
        answer: oneshot::Sender<Result<Frozen<S::Capture>, Refused>>,
    },
    Transfer {
        to: Option<NodeId>,
        answer: oneshot::Sender<Transferred>,
    },
    Change {
        changes: Vec<Change>,
        deadline: Instant,
        answer: oneshot::Sender<Outcome<Result<(), ChangeRefused>>>,
    },
}

/// Who leads now, after a transfer.
pub(crate) type Transferred = Result<NodeId, TransferRefused>;

/// A handle to a replica. Clones speak to the same one.
pub struct Handle<S: StateMachine> {
    requests: mpsc::Sender<Request<S>>,
    /// How many bytes of commands may still wait for the host task.
    room: Arc<Semaphore>,
    status: watch::Receiver<Status>,
    applied: watch::Receiver<Index>,
    directory: Arc<Directory>,
    peers: Arc<Peers>,
    node: NodeId,
}

impl<S: StateMachine> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            room: self.room.clone(),
            status: self.status.clone(),
            applied: self.applied.clone(),
            directory: self.directory.clone(),
            peers: self.peers.clone(),
            node: self.node,
        }
    }
}

impl<S: StateMachine> Handle<S> {
    pub(crate) fn new(
        requests: mpsc::Sender<Request<S>>,
        room: Arc<Semaphore>,
        status: watch::Receiver<Status>,
        applied: watch::Receiver<Index>,
        directory: Arc<Directory>,
        peers: Arc<Peers>,
        node: NodeId,
    ) -> Self {
        Self { requests, room, status, applied, directory, peers, node }
    }

    /// Replicates a command and executes it. Only the leader does so. Ends by the deadline.
    pub async fn propose(&self, command: Bytes, deadline: Instant) -> Outcome<S::Response> {
        if command.len() > COMMAND_BYTES_MAX {
            let (bytes, limit) = (command.len(), COMMAND_BYTES_MAX);
            return Outcome::Rejected(Refused::TooLarge { bytes, limit });
        }
        let Ok(_room) = self.room.clone().try_acquire_many_owned(command.len() as u32) else {
            let limit = "requests_bytes_max";
            return Outcome::Rejected(Refused::Overloaded { limit });
        };
        self.ask_outcome(|answer| Request::Propose { command, deadline, answer, _room }).await
    }

    /// Appends an entry that only carries the time, and ends when it is applied. Only the leader
    /// does so.
    pub async fn tell_time(&self, deadline: Instant) -> Outcome<()> {
        self.ask_outcome(|answer| Request::Tick { deadline, answer }).await
    }

    /// Answers a question from a state that has seen everything acknowledged before this call.
    /// A member that follows asks its leader how far it must have applied.
    ///
    /// # Errors
    /// [`Refused`]: no answer.
    pub async fn query(&self, query: S::Query, deadline: Instant) -> Result<S::Answer, Refused> {
        let (answer, answered) = oneshot::channel();
        self.submit(Request::Query { query, answer })?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refused::Shutdown),
            Err(_) => Err(Refused::Deadline),
        }
    }

    /// Freezes a state that has seen everything acknowledged before this call, of any member.
    ///
    /// # Errors
    /// [`Refused`]: no state.
    pub async fn freeze(&self, deadline: Instant) -> Result<Frozen<S::Capture>, Refused> {
        let (answer, answered) = oneshot::channel();
        self.submit(Request::Freeze { answer })?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(frozen)) => frozen,
            Ok(Err(_)) => Err(Refused::Shutdown),
            Err(_) => Err(Refused::Deadline),
        }
    }

    /// Answers a question from this member's own state, however old it is.
    ///
    /// # Errors
    /// [`Refused`]: no answer.
    pub async fn query_stale(&self, query: S::Query) -> Result<S::Answer, Refused> {
        let (answer, answered) = oneshot::channel();
        self.submit(Request::QueryStale { query, answer })?;
        answered.await.unwrap_or(Err(Refused::Shutdown))
    }

    /// Hands the leadership over to a member, or to the one that has most of the log; ends when
    /// that leads. Only the leader does so. Proposals are refused meanwhile.
    ///
    /// # Errors
    /// [`TransferRefused`]: this member may lead on.
    pub async fn transfer(
        &self,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<NodeId, TransferRefused> {
        let (answer, answered) = oneshot::channel();
        self.submit(Request::Transfer { to, answer })?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(transferred)) => transferred,
            Ok(Err(_)) => Err(Refused::Shutdown.into()),
            Err(_) => Err(TransferRefused::NotTakenOver),
        }
    }

    /// Changes the members of the group, all at once, and ends when the change is over. Only the
    /// leader does so. Who comes or has moved is asked first who it is.
    pub async fn change(&self, wanted: &[Wanted], deadline: Instant) -> Changed {
        if !self.leads() {
            return Changed::Rejected(Refused::NotLeader { leader: self.leader() }.into());
        }
        let mut changes = Vec::new();
        for wanted in wanted {
            match self.meet(wanted).await {
                Ok(change) => changes.push(change),
                Err(rejected) => return Changed::Rejected(rejected),
            }
        }
        let nodes = changes.iter().filter_map(Change::id).collect();
        match self.ask_outcome(|answer| Request::Change { changes, deadline, answer }).await {
            Outcome::Done(Ok(())) => Changed::Done(nodes),
            Outcome::Done(Err(refused)) => Changed::Rejected(ChangeRejected::Change(refused)),
            Outcome::Rejected(refused) => Changed::Rejected(refused.into()),
            Outcome::Unknown => Changed::Unknown,
        }
    }

    /// What a wish comes to. The incarnation of a new member is pinned from here on.
    async fn meet(&self, wanted: &Wanted) -> Result<Change, ChangeRejected> {
        let address = match wanted {
            Wanted::Add(address) | Wanted::Update(address) => address,
            Wanted::Promote(node) => return Ok(Change::Promote(*node)),
            Wanted::Demote(node) => return Ok(Change::Demote(*node)),
            Wanted::Remove(node) => return Ok(Change::Remove(*node)),
            Wanted::LeaseReads(on) => return Ok(Change::LeaseReads(*on)),
        };
        let met = peer::meet(&self.peers, address).await;
        let founder = met.map_err(|reason| {
            let address = address.clone();
            ChangeRejected::NotMet { address, reason }
        })?;
        let is_member = self.peers.is_member(&founder);
        let (id, contact) = (founder.node, Contact::from(founder).encode());
        Ok(match wanted {
            Wanted::Update(_) => Change::Update { id, contact },
            // So whoever does not know whether it was added asks again.
            Wanted::Add(_) if is_member => Change::Update { id, contact },
            Wanted::Add(_)
            | Wanted::Promote(_)
            | Wanted::Demote(_)
            | Wanted::Remove(_)
            | Wanted::LeaseReads(_) => Change::AddLearner { id, contact },
        })
    }

    /// The leader, as far as this member knows.
    pub fn leader(&self) -> Option<Member> {
        let leader = self.status.borrow().leader?;
        self.directory.member(leader)
    }

    /// Whether this member leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.status.borrow().role == Role::Leader
    }

    /// Whether this member answers anything from its state.
    pub fn serves(&self) -> bool {
        self.status.borrow().trust.serves()
    }

    /// Whether there is room to grow on this member's disk. A service asks before it proposes what
    /// adds to the state; what removes something, or ends what has begun, is proposed all the same.
    ///
    /// # Errors
    /// [`Refused::LowSpace`].
    pub fn check_space(&self) -> Result<(), Refused> {
        if self.status.borrow().low_on_space { Err(Refused::LowSpace) } else { Ok(()) }
    }

    /// How this member stands.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// How this member stands, from now on. Changes of role, term and leader show at once, the
    /// rest with the next tick.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// What this member's state machine has seen, from now on, at once.
    pub fn watch_applied(&self) -> watch::Receiver<Index> {
        self.applied.clone()
    }

    /// This member.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// A connection to another member's peer port.
    pub fn peer(&self, node: NodeId) -> Option<Channel> {
        self.directory.channel(node)
    }

    async fn ask_outcome<R>(
        &self,
        request: impl FnOnce(oneshot::Sender<Outcome<R>>) -> Request<S>,
    ) -> Outcome<R> {
        let (answer, answered) = oneshot::channel();
        match self.submit(request(answer)) {
            Ok(()) => answered.await.unwrap_or(Outcome::Unknown),
            Err(refused) => Outcome::Rejected(refused),
        }
    }

    fn submit(&self, request: Request<S>) -> Result<(), Refused> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Overloaded { limit: "requests_max" },
            mpsc::error::TrySendError::Closed(_) => Refused::Shutdown,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{Acquaintances, Founder};
    use crate::log::machine::LogMachine;

    /// A handle to a host that looks at nothing.
    fn unheard(requests_max: usize, bytes_max: usize) -> (Handle<LogMachine>, impl Sized) {
        let (requests, requests_in) = mpsc::channel(requests_max);
        let settings = crate::Settings::default();
        let (status, status_in) = watch::channel(crate::start::unborn(&settings, &[]));
        let (applied, applied_in) = watch::channel(Index(0));
        let (news, news_in) = mpsc::unbounded_channel();
        let node = NodeId(1);
        let me = Founder {
            node,
            incarnation: [0; 16],
            peer_address: String::new(),
            client_address: String::new(),
        };
        let known = Acquaintances::unborn("harbour", std::iter::empty());
        let peers = Arc::new(Peers::new("harbour".to_owned(), me, 1, 1, 0, known, news));
        let directory = Arc::new(Directory::new(std::iter::empty()).unwrap());
        let room = Arc::new(Semaphore::new(bytes_max));
        let handle = Handle::new(requests, room, status_in, applied_in, directory, peers, node);
        (handle, (requests_in, status, applied, news_in))
    }

    #[tokio::test]
    async fn what_waits_for_the_host_is_bounded_in_number_and_in_bytes() {
        let deadline = Instant::now() + Duration::from_secs(60);
        for (requests_max, bytes_max, limit) in
            [(2, 1_000, "requests_max"), (100, 250, "requests_bytes_max")]
        {
            let (handle, _host) = unheard(requests_max, bytes_max);
            let propose = || {
                let handle = handle.clone();
                async move { handle.propose(Bytes::from(vec![7; 100]), deadline).await }
            };
            let waiting = [tokio::spawn(propose()), tokio::spawn(propose())];
            tokio::task::yield_now().await;
            let refused = Outcome::Rejected(Refused::Overloaded { limit });
            assert_eq!(propose().await, refused);
            assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        }
    }
}
