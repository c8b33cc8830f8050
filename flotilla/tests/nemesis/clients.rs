//! Who asks: users of the client library, whose requests are retried under identities and may still
//! end unknown, and callers who ask one chosen member once, without an identity.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{
    Condition as Wanted, KvClient, Options, Outcome, PutOptions, Rejected, Txn, metadata,
};
use kvd::command::Condition;
use kvd::outcome::Version;
use proto::kv::kv_client::KvClient as Stub;
use proto::kv::{
    AppendRequest, DeleteRequest, GetRequest, KeyRange, PutRequest, ScanReply, ScanRequest,
    key_range, put_request,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sim::operation::{Kind, Operation, OperationName, Verdict};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::answers;
use crate::history::{Generations, Visit};
use crate::report::{Tally, Verb};

/// How long a bare caller waits for an answer.
const BARE_PATIENCE: Duration = Duration::from_millis(1_500);

/// Who was refused comes back after this time, so that a group without a leader is not drowned in
/// questions.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// Of a hundred questions, those that are gets, and those that are scans.
const GETS: std::ops::Range<u8> = 0..30;
const SCANS: std::ops::Range<u8> = 88..94;

/// What the store allows at most.
const VALUE_BYTES_MAX: u64 = client::VALUE_BYTES_MAX as u64;

/// How somebody asks.
#[derive(Clone)]
pub(crate) enum Caller {
    Library(KvClient),
    Bare(Stub<Channel>),
}

impl Caller {
    /// One who uses the library, and gives up after this time.
    pub(crate) fn library(endpoints: Vec<String>, deadline: Duration) -> Self {
        let attempt = (deadline / 3).min(Options::default().attempt);
        let options = Options { attempt, ..Options::with_deadline(deadline) };
        Self::Library(KvClient::connect(endpoints, options).unwrap())
    }

    /// One who asks this member and no other.
    pub(crate) fn bare(endpoint: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).unwrap();
        Self::Bare(Stub::new(endpoint.connect_timeout(BARE_PATIENCE).connect_lazy()))
    }

    /// The same, whose connection is there before anything is asked.
    pub(crate) async fn connected(endpoint: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).unwrap();
        Self::Bare(Stub::new(endpoint.connect().await.unwrap()))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Library(_) => "library",
            Self::Bare(_) => "bare",
        }
    }

    /// Asks for something of one key.
    async fn ask(&self, key: Bytes, kind: Kind) -> Verdict {
        match (self, kind) {
            (Self::Library(client), Kind::Get) => read(client.get_raw(key).await, answers::get),
            (Self::Library(client), Kind::Put { value, condition }) => {
                let condition = wanted(condition);
                let options = PutOptions { condition, ..PutOptions::default() };
                mutated(client.put_raw(key, value, options).await, answers::put)
            }
            (Self::Library(client), Kind::Append { value, .. }) => {
                mutated(client.append_raw(key, value, None).await, answers::append)
            }
            (Self::Library(client), Kind::Delete) => {
                mutated(client.delete_raw(key, None).await, answers::delete)
            }
            (Self::Bare(stub), Kind::Get) => {
                let request = GetRequest { key, ..GetRequest::default() };
                bare(stub.clone().get(request), answers::get).await
            }
            (Self::Bare(stub), Kind::Put { value, condition }) => {
                let condition = expected(condition);
                let request = PutRequest { key, value, condition, ..PutRequest::default() };
                bare(stub.clone().put(request), answers::put).await
            }
            (Self::Bare(stub), Kind::Append { value, .. }) => {
                let request = AppendRequest { key, value, ..AppendRequest::default() };
                bare(stub.clone().append(request), answers::append).await
            }
            (Self::Bare(stub), Kind::Delete) => {
                let request = DeleteRequest { key, ..DeleteRequest::default() };
                bare(stub.clone().delete(request), answers::delete).await
            }
            (_, Kind::Command(_) | Kind::Claim(_)) => {
                unreachable!("leases and locks are not drawn")
            }
        }
    }

    /// All keys with a prefix, in one page.
    async fn scan(&self, prefix: Bytes) -> Option<ScanReply> {
        let range = Some(KeyRange { kind: Some(key_range::Kind::Prefix(prefix)) });
        let request = ScanRequest { range, ..ScanRequest::default() };
        match self {
            Self::Library(client) => match client.scan_raw(request).await {
                Ok(reply) => Some(reply),
                Err(client::Error::Rejected(rejected)) => {
                    check(&rejected);
                    None
                }
                Err(client::Error::Unknown(unknown)) => panic!("a scan is told: {unknown}"),
            },
            Self::Bare(stub) => match timeout(BARE_PATIENCE, stub.clone().scan(request)).await {
                Ok(Ok(reply)) => Some(reply.into_inner()),
                Ok(Err(status)) => {
                    check_status(&status);
                    None
                }
                Err(_) => None,
            },
        }
    }
}

fn wanted(condition: Condition) -> Option<Wanted> {
    match condition {
        Condition::Always => None,
        Condition::Version(Version(0)) => Some(Wanted::Absent),
        Condition::Version(version) => Some(Wanted::Version(version.0)),
        Condition::ModRevision(revision) => Some(Wanted::ModRevision(revision.0)),
    }
}

fn expected(condition: Condition) -> Option<put_request::Condition> {
    match condition {
        Condition::Always => None,
        Condition::Version(version) => Some(put_request::Condition::ExpectedVersion(version.0)),
        Condition::ModRevision(revision) => {
            Some(put_request::Condition::ExpectedModRevision(revision.0))
        }
    }
}

/// The refusals that a nemesis brings about. Any other is a finding.
fn check(rejected: &Rejected) {
    match rejected {
        Rejected::Unavailable(_) | Rejected::Limit(_) => {}
        Rejected::Refused(why) if why.contains("free_bytes_min") => {}
        Rejected::Invalid(_)
        | Rejected::NotFound(_)
        | Rejected::Exists(_)
        | Rejected::OutOfRange { .. }
        | Rejected::Refused(_) => panic!("a right request was told: {rejected}"),
    }
}

fn check_status(status: &Status) {
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal => {}
        Code::FailedPrecondition if status.message().contains("free_bytes_min") => {}
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => panic!("a right request was told: {status:?}"),
    }
}

fn read<R>(reply: Result<R, client::Error>, done: impl FnOnce(&R) -> Verdict) -> Verdict {
    match reply {
        Ok(reply) => done(&reply),
        Err(client::Error::Rejected(rejected)) => {
            check(&rejected);
            Verdict::Never
        }
        Err(client::Error::Unknown(unknown)) => panic!("a read is told: {unknown}"),
    }
}

fn mutated<R>(outcome: Outcome<R>, done: impl FnOnce(&R) -> Verdict) -> Verdict {
    match outcome {
        Outcome::Done(reply) => done(&reply),
        Outcome::Rejected(rejected) => {
            check(&rejected);
            Verdict::Never
        }
        Outcome::Unknown(_) => Verdict::Unknown,
    }
}

async fn bare<R>(
    call: impl Future<Output = Result<Response<R>, Status>>,
    done: impl FnOnce(&R) -> Verdict,
) -> Verdict {
    match timeout(BARE_PATIENCE, call).await {
        Ok(Ok(reply)) => done(&reply.into_inner()),
        Ok(Err(status)) => {
            check_status(&status);
            if metadata::was_never_executed(&status) { Verdict::Never } else { Verdict::Unknown }
        }
        Err(_) => Verdict::Unknown,
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appetite {
    Everything,
    Reads,
}

/// One who asks one thing after the other.
pub(crate) struct Client {
    caller: Caller,
    appetite: Appetite,
    number: u64,
    /// How many names it has given.
    names: u64,
    rng: StdRng,
    tally: Arc<Tally>,
}

impl Client {
    pub(crate) fn new(caller: Caller, number: u64, seed: u64, tally: Arc<Tally>) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(number));
        Self { caller, appetite: Appetite::Everything, number, names: 0, rng, tally }
    }

    /// The same with this appetite.
    pub(crate) fn with(self, appetite: Appetite) -> Self {
        Self { appetite, ..self }
    }

    /// Asks until it is told to stop.
    pub(crate) async fn work(
        mut self,
        hot: Arc<Generations>,
        cold: Arc<Generations>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = hot.room() => {}
            }
            let visit = if self.rng.random_ratio(2, 3) { hot.visit() } else { cold.visit() };
            if !self.ask(&visit).await {
                sleep(REFUSED_PAUSE).await;
            }
        }
    }

    /// Asks for one thing.
    pub(crate) async fn work_once(mut self, hot: Arc<Generations>) {
        let visit = hot.visit();
        // Whether there was an answer is counted, and recorded.
        let _ = self.ask(&visit).await;
    }

    /// Reads every key of a generation, so that what was done to it comes to light.
    pub(crate) async fn read_all(&mut self, visit: &Visit) {
        for key in 0..visit.generation.keys.len() {
            assert!(self.one(visit, key, Verb::Get, Kind::Get).await, "a key can't be read");
        }
    }

    fn name(&mut self) -> OperationName {
        self.names += 1;
        OperationName { client: self.number, number: self.names }
    }

    /// Asks for something. Whether there was an answer.
    async fn ask(&mut self, visit: &Visit) -> bool {
        let key = self.rng.random_range(0..visit.generation.keys.len());
        let prefix = visit.generation.prefix();
        let drawn: u8 = self.rng.random_range(0..100);
        let drawn = match self.appetite {
            Appetite::Everything => drawn,
            Appetite::Reads if drawn < 75 => GETS.start,
            Appetite::Reads => SCANS.start,
        };
        match (drawn, prefix) {
            (drawn, _) if GETS.contains(&drawn) => self.one(visit, key, Verb::Get, Kind::Get).await,
            (..50, _) => self.put(visit, key, Verb::Put, Condition::Always).await,
            (..62, _) => {
                let version = Version(visit.generation.version(key));
                self.put(visit, key, Verb::PutIf, Condition::Version(version)).await
            }
            (..80, _) => self.append(visit, key).await,
            (..88, _) => self.one(visit, key, Verb::Delete, Kind::Delete).await,
            (drawn, Some(prefix)) if SCANS.contains(&drawn) => self.scan(visit, prefix).await,
            (_, Some(_)) => match &self.caller {
                Caller::Library(client) => {
                    let client = client.clone();
                    self.txn(visit, key, &client).await
                }
                Caller::Bare(_) => self.one(visit, key, Verb::Get, Kind::Get).await,
            },
            (_, None) => self.one(visit, key, Verb::Get, Kind::Get).await,
        }
    }

    async fn put(&mut self, visit: &Visit, key: usize, verb: Verb, condition: Condition) -> bool {
        let name = self.name();
        let kind = Kind::Put { value: name.token(0), condition };
        self.named(name, visit, key, verb, kind).await
    }

    async fn append(&mut self, visit: &Visit, key: usize) -> bool {
        let name = self.name();
        let kind = Kind::Append { value: name.token(0), value_bytes_max: VALUE_BYTES_MAX };
        self.named(name, visit, key, Verb::Append, kind).await
    }

    async fn one(&mut self, visit: &Visit, key: usize, verb: Verb, kind: Kind) -> bool {
        let name = self.name();
        self.named(name, visit, key, verb, kind).await
    }

    async fn named(
        &self,
        name: OperationName,
        visit: &Visit,
        key: usize,
        verb: Verb,
        kind: Kind,
    ) -> bool {
        let operation = Operation { key: visit.generation.keys[key].clone(), kind: kind.clone() };
        let record = visit.begin(name, operation.clone());
        let verdict = self.caller.ask(operation.key, kind).await;
        if let Some(version) = answers::version(&verdict) {
            visit.generation.saw_version(key, version);
        }
        self.tally.count(self.caller.name(), verb, &verdict);
        let answered = matches!(verdict, Verdict::Done(_));
        visit.end(record, verdict);
        answered
    }

    /// A scan is a read of every key, of one moment of their shard.
    async fn scan(&mut self, visit: &Visit, prefix: Bytes) -> bool {
        let keys = visit.generation.keys.clone();
        let reads: Vec<_> = keys
            .into_iter()
            .map(|key| visit.begin(self.name(), Operation { key, kind: Kind::Get }))
            .collect();
        let reply = self.caller.scan(prefix).await;
        let verdict = |key: &Bytes| match &reply {
            None => Verdict::Never,
            Some(ScanReply { header, pairs, .. }) => {
                let pair = pairs.iter().find(|pair| pair.key == *key);
                answers::found(header.as_ref(), pair.and_then(|pair| pair.pair.as_ref()))
            }
        };
        self.tally.count(self.caller.name(), Verb::Scan, &verdict(&visit.generation.keys[0]));
        for (read, key) in reads.into_iter().zip(&visit.generation.keys) {
            visit.end(read, verdict(key));
        }
        reply.is_some()
    }

    /// Writes two keys if the first has the version that is expected, and reads it if not.
    async fn txn(&mut self, visit: &Visit, first: usize, client: &KvClient) -> bool {
        let generation = &visit.generation;
        let second = (first + 1) % generation.keys.len();
        let keys = [first, second].map(|at| generation.keys[at].clone());
        let version = generation.version(first);
        let conditions = [Condition::Version(Version(version)), Condition::Always];
        let tokens = [self.name(), self.name()].map(|name| (name, name.token(0)));
        let records = [0, 1].map(|at| {
            let (name, value) = tokens[at].clone();
            let kind = Kind::Put { value, condition: conditions[at] };
            visit.begin(name, Operation { key: keys[at].clone(), kind })
        });
        let [(_, one), (_, other)] = tokens;
        let txn = Txn::new()
            .when_version(keys[0].clone(), version)
            .put(keys[0].clone(), one)
            .put(keys[1].clone(), other)
            .otherwise(|otherwise| otherwise.get(keys[0].clone()));
        let verdicts = match client.txn_raw(txn).await {
            Outcome::Done(reply) => answers::txn(reply),
            Outcome::Rejected(rejected) => {
                check(&rejected);
                [Verdict::Never, Verdict::Never]
            }
            Outcome::Unknown(_) => [Verdict::Unknown, Verdict::Unknown],
        };
        for (key, verdict) in [first, second].into_iter().zip(&verdicts) {
            if let Some(version) = answers::version(verdict) {
                generation.saw_version(key, version);
            }
        }
        self.tally.count(self.caller.name(), Verb::Txn, &verdicts[0]);
        let answered = matches!(verdicts[0], Verdict::Done(_));
        for (record, verdict) in records.into_iter().zip(verdicts) {
            visit.end(record, verdict);
        }
        answered
    }
}
