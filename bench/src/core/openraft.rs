//! openraft: its tasks on one current-thread runtime, with an in-memory log and calls in place of a
//! network, as in the benchmark of its own repository.
//!
//! It gets what makes it fastest: a batch is proposed without waiting in between, and then its
//! answers are awaited by one task; a log of `VecDeque` instead of a tree; its tracing is compiled
//! out. It tells followers each new commit index at once, which can't be turned off.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    Config, Entry, EntryPayload, LogId, LogState, OptionalSend, Raft, RaftLogReader, RaftNetwork,
    RaftNetworkFactory, RaftSnapshotBuilder, ServerState, Snapshot, SnapshotMeta, SnapshotPolicy,
    StorageError, StoredMembership, Vote,
};
use tokio::runtime::{Builder, Runtime};

use super::{COMMAND_BYTES, Group, KEPT_ENTRIES, MEMBERS, SNAPSHOT_ENTRIES, command};

openraft::declare_raft_types!(
    /// A group whose commands are bytes.
    pub Types: D = Bytes, R = (), NodeId = u64, Node = (), Entry = Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>
);

type Failure = StorageError<u64>;
type Members = Arc<OnceLock<Vec<Raft<Types>>>>;

/// A group of openraft.
pub struct Openraft {
    runtime: Runtime,
    members: Members,
    machines: Vec<Shared<Machine>>,
    proposed: u64,
}

impl Group for Openraft {
    const NAME: &str = "openraft";

    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime can be had");
        let config = Config {
            // On a busy machine nobody shall be taken for dead.
            election_timeout_min: 5_000,
            election_timeout_max: 10_000,
            heartbeat_interval: 500,
            max_payload_entries: 4_096,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: KEPT_ENTRIES,
            purge_batch_size: 1_024,
            ..Config::default()
        };
        let config = Arc::new(config.validate().expect("the settings make sense"));
        let members = Members::default();
        let machines: Vec<Shared<Machine>> = (0..MEMBERS).map(|_| Shared::default()).collect();
        runtime.block_on(async {
            let mut rafts = Vec::new();
            for (id, machine) in (0..).zip(&machines) {
                let (network, log) = (Network(members.clone()), Shared::<Log>::default());
                let raft = Raft::new(id, config.clone(), network, log, machine.clone()).await;
                rafts.push(raft.expect("it starts"));
            }
            let leader = rafts[0].clone();
            members.set(rafts).unwrap_or_else(|_| panic!("it is set once"));
            let founders = (0..MEMBERS).map(|id| (id, ()));
            let founders: std::collections::BTreeMap<u64, ()> = founders.collect();
            leader.initialize(founders).await.expect("it is new");
            let led = leader.wait(Some(Duration::from_secs(10)));
            led.state(ServerState::Leader, "elected").await.expect("it is elected");
        });
        Self { runtime, members, machines, proposed: 0 }
    }

    fn commit(&mut self, batches: usize, count: usize) {
        let leader = &self.members.get().expect("it was set at the start")[0];
        self.runtime.block_on(async {
            let mut answers = Vec::with_capacity(count);
            for _ in 0..batches {
                for _ in 0..count {
                    let answer = leader.client_write_ff(command().into()).await;
                    answers.push(answer.expect("the first member leads"));
                }
                for answer in answers.drain(..) {
                    answer.await.expect("it is answered").expect("it is applied");
                }
            }
        });
        self.proposed += (batches * count) as u64;
    }

    fn end(self) -> Vec<u64> {
        self.runtime.block_on(async {
            for raft in self.members.get().expect("it was set at the start") {
                // The leader's blank entry and the membership stand in the log as well; indexes begin
                // at 0.
                let applied = raft.wait(Some(Duration::from_secs(10)));
                applied
                    .applied_index_at_least(Some(self.proposed + 1), "all is applied")
                    .await
                    .expect("every member applies all");
            }
        });
        self.machines.iter().map(|machine| machine.lock().commands).collect()
    }
}

/// What the tasks of a member share; nobody holds it across an await.
#[derive(Debug, Default)]
struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug, Default)]
struct Log {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    entries: VecDeque<Entry<Types>>,
}

impl Log {
    /// Where an entry stands, or would stand.
    fn place(&self, index: u64) -> usize {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        usize::try_from(index.saturating_sub(first)).expect("it fits into memory")
    }
}

impl RaftLogReader<Types> for Shared<Log> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        let log = self.lock();
        let from = match range.start_bound() {
            Bound::Included(&from) => log.place(from),
            Bound::Excluded(&before) => log.place(before + 1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&to) => log.place(to + 1),
            Bound::Excluded(&behind) => log.place(behind),
            Bound::Unbounded => log.entries.len(),
        };
        let to = to.min(log.entries.len());
        Ok(log.entries.range(from.min(to)..to).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Shared<Log> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let log = self.lock();
        let last_log_id = log.entries.back().map(|entry| entry.log_id).or(log.purged);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        Ok(self.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, written: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.lock().entries.extend(entries);
        written.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), Failure> {
        let mut log = self.lock();
        let place = log.place(from.index);
        log.entries.truncate(place);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<(), Failure> {
        let mut log = self.lock();
        let places = log.place(upto.index + 1).min(log.entries.len());
        log.entries.drain(..places);
        log.purged = Some(upto);
        Ok(())
    }
}

/// Counts commands.
#[derive(Debug, Default)]
struct Machine {
    commands: u64,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, ()>,
    snapshot: Option<SnapshotMeta<u64, ()>>,
}

impl RaftStateMachine<Types> for Shared<Machine> {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, ()>), Failure> {
        let machine = self.lock();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut machine = self.lock();
        let mut answers = Vec::new();
        for entry in entries {
            machine.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    assert_eq!(command.len(), COMMAND_BYTES);
                    machine.commands += 1;
                }
                EntryPayload::Membership(membership) => {
                    machine.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            answers.push(());
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, ()>,
        _: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        panic!("nobody falls so far behind that it needs {meta}");
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        let meta = self.lock().snapshot.clone();
        Ok(meta.map(|meta| Snapshot { meta, snapshot: Box::default() }))
    }
}

impl RaftSnapshotBuilder<Types> for Shared<Machine> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        let mut machine = self.lock();
        let meta = SnapshotMeta {
            last_log_id: machine.applied,
            last_membership: machine.membership.clone(),
            snapshot_id: String::new(),
        };
        machine.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: Box::default() })
    }
}

struct Network(Members);

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, (): &()) -> Peer {
        Peer { target, members: self.0.clone() }
    }
}

struct Peer {
    target: u64,
    members: Members,
}

impl Peer {
    fn raft(&self) -> &Raft<Types> {
        let members = self.members.get().expect("it was set before anybody speaks");
        &members[usize::try_from(self.target).expect("it is small")]
    }

    fn failed<E: std::error::Error>(&self, error: E) -> RPCError<u64, (), E> {
        RPCError::RemoteError(RemoteError::new(self.target, error))
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, (), RaftError<u64>>> {
        self.raft().append_entries(request).await.map_err(|error| self.failed(error))
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RPCError<u64, (), RaftError<u64, InstallSnapshotError>>>
    {
        self.raft().install_snapshot(request).await.map_err(|error| self.failed(error))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, (), RaftError<u64>>> {
        self.raft().vote(request).await.map_err(|error| self.failed(error))
    }
}
