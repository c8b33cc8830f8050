//! The core of Flotilla: Raft as a function of its inputs.
//!
//! A [`Node`] is one member of one group. It is given messages, ticks, proposals, questions and the
//! answers of its disk; it answers at once, by changing itself and by gathering [`Effects`] that
//! somebody else carries out. It has no thread, socket, file, clock, logger or lock, and its only
//! chance is a seed. The same calls in the same order give the same effects, byte for byte: that is
//! what the golden scripts in `tests/scripts` print, and what the simulator replays.
//!
//! A [`Replica`] is a node together with a [`StateMachine`]: it applies what is committed, tells
//! proposals and questions what became of them, and says when a snapshot is due. It is as pure.
//!
//! # How a driver uses it
//!
//! ```text
//!   step(now, from, message)   tick(now)   propose(now, ..)   read(now, ..)   written(id)
//!                                      |
//!                                take_effects()
//!                                      |
//!      messages     write     committed     reads     install     events
//! ```
//!
//! A driver tells the node everything that has happened, then takes the effects once and acts on
//! all of them. What is told between two looks makes one batch: many proposals become one write and
//! one message to each follower, and many reads share one round. The calls that matter:
//!
//! - `now` is a number of the driver's own, monotonic and in microseconds. Group time is made of
//!   it, and leases trust it: a call that comes with a message or a read tells a time after that came.
//!   Timeouts count ticks, and a driver that comes late calls `tick` once for all it missed.
//! - Messages may be lost, repeated, delayed and reordered, and they may come from a liar: what
//!   makes no sense is dropped and reported as an [`Event`], and reaches no assertion.
//! - A [`Write`] is made durable in the order of its id and answered with [`Node::written`], which
//!   stands for all before it too. Messages are sent at once, whatever the disk does.
//! - What is `committed` is applied in order, once. Reads come with the index that they must see.
//! - `install` asks for a snapshot of another member; [`Node::installed`] or
//!   [`Node::install_failed`] answers. [`Node::compact`] tells of a snapshot of one's own.
//!
//! # Durability is a data dependency
//!
//! Most libraries tell their driver to write before it sends, and trust it. Here there is nothing
//! to send too early: a vote, an acknowledgement of entries, the leader's own vote for its entries
//! and everything else that speaks under a new term come into being in `written`. The core
//! remembers what each write in flight will prove, and a truncation takes away from that: the
//! answer to a write whose entries were replaced meanwhile acknowledges nothing, even if an entry
//! stands at the same index again, even if it is the same entry once more. A leader, for its part,
//! sends entries while its own disk still works, and counts itself when that answers.
//!
//! # The life of a proposal
//!
//! 1. `propose` appends it to the leader's log, stamped with the group's time, and returns its
//!    [`Position`]. A member that does not lead, or has too much uncommitted, refuses; what was
//!    refused never executes.
//! 2. The next effects carry the write and the messages. A follower appends what fits its log and
//!    answers when that is durable; where the logs part, a refusal leads the leader to the place in
//!    a round trip or two.
//! 3. When a majority holds an entry of the leader's own term durably, it is committed, and
//!    everything before it. The leader applies it; followers learn with the next message.
//! 4. The ticket ends [`Outcome::Done`] when the entry is applied where it was proposed, and
//!    [`Outcome::Rejected`] when another is applied at its index: then it never executes. Stepping
//!    down or truncation end nothing, since the entry may come back with another leader. At its
//!    deadline, or when a snapshot covers its index, the outcome is [`Outcome::Unknown`], and it is
//!    the client's part to ask again under the same identity.
//!
//! # The life of a read
//!
//! A leader answers [`Node::read`] without an entry in the log (ReadIndex). It waits until an entry
//! of its own term is committed, notes the commit index, and begins a round: a number that every
//! append carries and every answer repeats. A majority that repeats it followed this leader after
//! the read came, so no later leader can have committed anything the read would miss. A member
//! that steps down refuses the reads that wait; they may be asked again elsewhere.
//!
//! A member that follows asks its leader: all reads that wait there share one question, the leader
//! treats it like a read of its own, and the answer is the index that the reads must see. A question
//! is repeated until it is answered, or until the member follows that leader no more.
//!
//! If the group allows it ([`Change::LeaseReads`]), a leader answers at once while it has a lease
//! (thesis, section 6.4.1). A member that has heard a leader elects no other for an election timeout of
//! its clock; a leader that a quorum has answered counts on that from the time when it began to ask, for
//! a part of that timeout which is shorter by as much as clocks may differ. The word of a member
//! outlasts the role and the term in which it was given, and a member that starts keeps to one it may
//! have forgotten. One thing overrides it: who was asked to campaign by the leader is elected. So a
//! leader has no lease while it hands over, nor after it has asked anybody, for the rest of its term.
//!
//! # Where it follows the paper, and where not
//!
//! Terms, votes, the election restriction, the consistency check, the commit rule and snapshots are
//! those of "In Search of an Understandable Consensus Algorithm (Extended Version)", and the tests
//! for each of its sections are listed in docs/raft.md. It departs from it here:
//!
//! - **Pre-vote** (Ongaro's thesis, section 9.6): before it raises its term, a member asks whether
//!   it would be elected. A member that was cut off comes back without disturbing anybody.
//! - **Check-quorum** (thesis, sections 4.2.3 and 6.2): a leader that hears from no majority for an
//!   election timeout steps down, and who hears a leader drops requests for votes unseen.
//! - **Acknowledgements come from the disk**, not from the handler of the message, and may
//!   therefore come later, alone, and for several messages together.
//! - **Refusals carry a hint**, the last position that could be common, and both sides skip whole
//!   terms by it (an elaboration of the end of section 5.3).
//! - **Appends are pipelined** within a window of messages and bytes. A heartbeat stands just before
//!   the next entry to be sent: a follower that lost something refuses it, and that is the repair.
//! - **Snapshots are offered, not sent.** The core moves only a [`SnapshotRoot`]; the driver fetches
//!   the chunks it lacks, and an ordinary acknowledgement tells the leader that it has succeeded.
//! - **Memory holds the tail of the log** ([`Config::log_window_bytes`]). Of what is older it knows the
//!   terms; the driver reads the entries ([`Fetch`]) for a follower that lacks them, or for the state
//!   machine after a restart. Positions prove that they are still those of the log.
//! - **Group time**: entries are stamped, stamps never fall, and pauses only stretch them.
//!
//! # Changes of members
//!
//! [`Node::change`] appends a [`Membership`], which rules from the moment it is in a log (section 6).
//! New members are learners at first. Voters come and go through a joint membership, any number at
//! once, and the leader itself appends the end of it. What would leave no majority that answers, a
//! learner that lacks too much, a second change at a time and an id that was used before are
//! refused. A member is known to the core by its id alone; how it is reached, and known again, are
//! bytes that mean nothing here. Who may speak at all is for the driver to judge: a sender that this
//! member does not know may be newer than its log.
//!
//! # What is absent
//!
//! Commands, sessions and exactly-once belong to the machines.
//!
//! # Where to read on
//!
//! `node.rs` has the term rule and every change of role; `follower.rs`, `candidate.rs` and
//! `leader.rs` what each role does; `reads.rs` how reads share a confirmation; `durability.rs` what the disk has proved; `progress.rs` what a
//! leader knows of a follower; `replica.rs` how proposals and reads end; `audit.rs` how a member finds
//! that its state is not what it should be, and `mending.rs` how it gets another.

mod audit;
#[cfg(test)]
mod audit_tests;
mod candidate;
mod clock;
mod config;
mod core;
mod durability;
mod effects;
mod entry;
mod event;
mod follower;
mod leader;
mod log;
mod machine;
mod membership;
mod mending;
mod message;
mod node;
mod progress;
mod quorum;
mod reads;
mod replica;
mod state;
mod types;

pub use audit::{AuditMessage, Audited, Finding, Report, Trust};
pub use config::Config;
pub use effects::{
    ChangeRefused, Effects, Fetch, Install, Progress, ReadOutcome, Refused, RoleKind, Status,
};
pub use entry::{
    Digest, ENTRY_OVERHEAD_BYTES, Entry, HardState, Payload, Recovered, SnapshotRoot,
    SnapshotWrite, Write,
};
pub use event::{DropReason, Event};
pub use log::Log;
pub use machine::{Applied, BadSnapshot, CHUNK_BYTES_MAX, Capture, RECOVERY_GAP, StateMachine};
pub use membership::{BadChange, Change, Member, Membership, Standing};
pub use message::{AppendResult, Ballot, Envelope, Message, MessageKind, NUMBER_MAX};
pub use node::Node;
pub use replica::{Ends, Frozen, Outcome, Output, Replica};
pub use state::{Replay, State};
pub use types::{GroupTime, Index, Instant, NodeId, Position, ReadId, Term, TicketId, WriteId};
