//! TiKV's raft-rs: `RawNode`s over the `MemStorage` that comes with it, driven by the cycle of its
//! examples.
//!
//! It gets what makes it fastest: a batch is proposed by one message with all of its entries, since
//! `RawNode::propose` would look after every follower for each; followers are not sent each new
//! commit index at once (`skip_bcast_commit`); its default codec shares the bytes of commands.

use raft_rs::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use raft_rs::storage::MemStorage;
use raft_rs::{Config, RawNode, StateRole};
use slog::{Discard, Logger, o};

use super::{COMMAND_BYTES, Group, KEPT_ENTRIES, MEMBERS, SNAPSHOT_ENTRIES, command};

/// A group of raft-rs.
pub struct RaftRs {
    /// The first one leads.
    members: Vec<Member>,
    proposed: u64,
}

struct Member {
    node: RawNode<MemStorage>,
    inbox: Vec<Message>,
    /// How many commands it has applied, and how many entries since the last snapshot.
    applied: u64,
    since_snapshot: u64,
}

impl Group for RaftRs {
    const NAME: &str = "raft-rs";

    fn start() -> Self {
        let voters: Vec<u64> = (1..=MEMBERS).collect();
        let members = (1..=MEMBERS).map(|id| {
            let config = Config {
                max_size_per_msg: 1 << 20,
                check_quorum: true,
                pre_vote: true,
                skip_bcast_commit: true,
                ..Config::new(id)
            };
            let state = ConfState::from((voters.clone(), vec![]));
            let storage = MemStorage::new_with_conf_state(state);
            let node = RawNode::new(&config, storage, &Logger::root(Discard, o!()));
            let node = node.expect("the settings make sense");
            Member { node, inbox: Vec::new(), applied: 0, since_snapshot: 0 }
        });
        let mut group = Self { members: members.collect(), proposed: 0 };
        group.members[0].node.campaign().expect("it may campaign");
        group.act(0);
        while group.deliver() {}
        assert_eq!(group.members[0].node.raft.state, StateRole::Leader);
        group
    }

    fn commit(&mut self, batches: usize, count: usize) {
        for _ in 0..batches {
            let entries = (0..count).map(|_| Entry { data: command().into(), ..Entry::default() });
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgPropose);
            message.from = 1;
            message.set_entries(entries.collect::<Vec<_>>().into());
            self.members[0].node.step(message).expect("the first member leads");
            self.proposed += count as u64;
            self.act(0);
            while self.members[0].applied < self.proposed {
                assert!(self.deliver(), "nothing is on its way");
            }
        }
    }

    fn end(mut self) -> Vec<u64> {
        self.members[0].node.ping();
        self.act(0);
        while self.deliver() {}
        self.members.iter().map(|member| member.applied).collect()
    }
}

impl RaftRs {
    /// Hands over everything that is on its way. Whether there was anything.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            if member.inbox.is_empty() {
                continue;
            }
            any = true;
            for message in member.inbox.drain(..) {
                member.node.step(message).expect("it comes from a member");
            }
            self.act(at);
        }
        any
    }

    /// Does what a member asks for, as the library's examples do.
    fn act(&mut self, at: usize) {
        while self.members[at].node.has_ready() {
            let member = &mut self.members[at];
            let mut ready = member.node.ready();
            let mut messages = ready.take_messages();
            member.apply(ready.take_committed_entries());
            let store = member.node.store().clone();
            if !ready.entries().is_empty() {
                store.wl().append(ready.entries()).expect("the log goes on");
            }
            if let Some(state) = ready.hs() {
                store.wl().set_hardstate(state.clone());
            }
            messages.append(&mut ready.take_persisted_messages());
            let mut light = member.node.advance(ready);
            if let Some(commit) = light.commit_index() {
                store.wl().mut_hard_state().set_commit(commit);
            }
            messages.append(&mut light.take_messages());
            member.apply(light.take_committed_entries());
            member.node.advance_apply();
            if member.since_snapshot >= SNAPSHOT_ENTRIES {
                member.since_snapshot = 0;
                let first = member.node.raft.raft_log.applied.saturating_sub(KEPT_ENTRIES);
                store.wl().compact(first).expect("it was applied");
            }
            for message in messages {
                let to = usize::try_from(message.to - 1).expect("it is small");
                self.members[to].inbox.push(message);
            }
        }
    }
}

impl Member {
    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.since_snapshot += 1;
            if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
                assert_eq!(entry.data.len(), COMMAND_BYTES);
                self.applied += 1;
            }
        }
    }
}
