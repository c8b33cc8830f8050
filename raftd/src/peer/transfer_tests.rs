//! Giver and fetcher over real connections, with stores on a real disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use daemon::Shutdown;
use futures::{Stream, StreamExt};
use proto::raft as pb;
use proto::raft::raft_client::RaftClient;
use proto::raft::raft_server::{Raft, RaftServer};
use raft::{GroupTime, Index, Install, Membership, NodeId, Position, SnapshotRoot, Term};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use super::giver::Giver;
use super::{Directory, Fetcher, Peers};
use crate::identity::{Acquaintances, Founder, Group, GroupId};
use crate::settings::Member;
use crate::store::{ExpectedIdentity, RANGES_MAX, Snapshots, Start, Store, StoreOptions};

/// Who fetches.
const ME: NodeId = NodeId(1);

const GROUP: GroupId = [7; 32];

/// A store in a directory of its own.
struct Disk {
    snapshots: Snapshots,
    _store: Store,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            log_window_bytes: 0,
            on_read: Box::new(|_, _| {}),
            free_bytes_min: 0,
            on_written: Box::new(|_| ()),
            on_failed: Box::new(|error| panic!("the store has failed: {error}")),
        };
        let expected = ExpectedIdentity { cluster: "harbour".to_owned(), node: ME };
        let (store, start) = Store::open(directory.path(), options, &expected).unwrap();
        let Start { snapshots, .. } = start;
        Self { snapshots, _store: store, _directory: directory }
    }
}

/// A giver whose connections are cut, and which counts what it gives.
struct Cutting {
    giver: Giver,
    /// After so many pieces a stream ends.
    cut_after: AtomicUsize,
    chunks: Arc<AtomicUsize>,
    requests: AtomicUsize,
}

type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<pb::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl Raft for Cutting {
    async fn hello(
        &self,
        _: Request<pb::HelloRequest>,
    ) -> Result<Response<pb::HelloReply>, Status> {
        Err(Status::unimplemented("hello"))
    }

    async fn send(
        &self,
        _: Request<Streaming<pb::Batch>>,
    ) -> Result<Response<pb::SendReply>, Status> {
        Err(Status::unimplemented("send"))
    }

    type FetchStream = Chunks;

    async fn fetch(
        &self,
        request: Request<pb::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let from = NodeId(request.from.as_ref().map_or(0, |from| from.node));
        let stream = self.giver.give(from, &request)?;
        let chunks = self.chunks.clone();
        let stream = stream.take(self.cut_after.load(Ordering::SeqCst)).inspect(move |piece| {
            if matches!(piece, Ok(pb::Chunk { kind: Some(pb::chunk::Kind::Data(_)) })) {
                chunks.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// A member that gives, at an address.
struct Source {
    disk: Disk,
    cutting: Arc<Cutting>,
    address: String,
    shutdown: Shutdown,
}

impl Source {
    async fn new() -> Self {
        let (disk, shutdown) = (Disk::new(), Shutdown::new());
        let cutting = Arc::new(Cutting {
            giver: Giver::new(disk.snapshots.clone()),
            cut_after: AtomicUsize::new(usize::MAX),
            chunks: Arc::default(),
            requests: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let routes = Routes::new(RaftServer::from_arc(cutting.clone()));
        tokio::spawn(daemon::grpc::serve(routes, listener, shutdown.clone()));
        Self { disk, cutting, address, shutdown }
    }

    async fn store(&self, index: u64, chunks: Vec<Bytes>) -> SnapshotRoot {
        let snapshots = self.disk.snapshots.clone();
        let members = [1, 2, 3].map(|id| (NodeId(id), Bytes::new()));
        let membership = Arc::new(Membership::founders(members));
        let at = Position { term: Term(1), index: Index(index) };
        let stored = move || {
            snapshots.store_chunks(at, GroupTime(1), membership, chunks.into_iter()).unwrap()
        };
        tokio::task::spawn_blocking(stored).await.unwrap()
    }

    /// How many chunks it has given since the last look.
    fn given(&self) -> usize {
        self.cutting.chunks.swap(0, Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.cutting.requests.swap(0, Ordering::SeqCst)
    }

    fn cut_after(&self, pieces: usize) {
        self.cutting.cut_after.store(pieces, Ordering::SeqCst);
    }
}

/// A fetcher to which the sources are the members 2, 3 and so on.
fn fetcher(disk: &Disk, sources: &[&Source]) -> Fetcher {
    let founder = |node: NodeId, address: &str| Founder {
        node,
        incarnation: [0; 16],
        peer_address: address.to_owned(),
        client_address: String::new(),
    };
    let members = (2..).zip(sources).map(|(id, source)| Member {
        node: NodeId(id),
        peer_address: source.address.clone(),
        client_address: String::new(),
    });
    let known = Acquaintances::unborn("harbour", members.clone().map(|member| member.node));
    let (news, _) = mpsc::unbounded_channel();
    let peers = Peers::new("harbour".to_owned(), founder(ME, ""), 1, 1, 0, known, news);
    peers.bear(Group { id: GROUP, founders: Vec::new(), former: Vec::new() });
    Fetcher {
        snapshots: disk.snapshots.clone(),
        peers: Arc::new(peers),
        directory: Arc::new(Directory::new(members).unwrap()),
        progress: watch::Sender::new(None),
    }
}

fn offer(from: u64, root: &SnapshotRoot) -> Install {
    Install { from: NodeId(from), root: root.clone() }
}

/// Chunks of some 8 KiB.
fn chunks(seed: u32, count: u32) -> Vec<Bytes> {
    (0..count).map(|at| Bytes::from(format!("chunk {at} of {seed} ").repeat(500))).collect()
}

async fn load(disk: &Disk, root: &SnapshotRoot) -> Vec<Bytes> {
    let (snapshots, name) = (disk.snapshots.clone(), root.manifest);
    tokio::task::spawn_blocking(move || snapshots.load(name).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_brings_each_chunk_once() {
    let (source, disk) = (Source::new().await, Disk::new());
    let root = source.store(9, chunks(1, 25)).await;
    let fetcher = fetcher(&disk, &[&source]);
    source.cut_after(7);
    let progress = fetcher.progress.subscribe();
    assert_eq!(fetcher.fetch(offer(2, &root), Index(0)).await, Ok(root.clone()));
    assert_eq!((source.given(), source.requests()), (25, 1 + 4));
    assert_eq!(load(&disk, &root).await, chunks(1, 25));
    // Told while it ran, and no more.
    assert!(progress.has_changed().unwrap() && progress.borrow().is_none());
}

#[tokio::test]
async fn an_earlier_transfer_is_brought_to_its_end_where_it_began() {
    let (former, leader, disk) = (Source::new().await, Source::new().await, Disk::new());
    let earlier = former.store(9, chunks(1, 20)).await;
    let newer = leader.store(19, [chunks(1, 15), chunks(2, 5)].concat()).await;
    let fetcher = fetcher(&disk, &[&former, &leader]);
    // As a restart leaves it: begun, and 8 chunks have come.
    let encoded = former.disk.snapshots.manifest(earlier.manifest).unwrap().unwrap();
    let mut receiving = disk.snapshots.begin(GROUP, NodeId(2), &earlier, &encoded).unwrap();
    chunks(1, 8).iter().for_each(|chunk| receiving.put(chunk).unwrap());
    drop(receiving);
    // It leads no further than what is committed here: what is offered does.
    assert_eq!(fetcher.fetch(offer(3, &newer), Index(9)).await, Ok(newer.clone()));
    assert_eq!((former.given(), leader.given()), (0, 12));
    // Anew, and now it leads further.
    let mut receiving = disk.snapshots.begin(GROUP, NodeId(2), &earlier, &encoded).unwrap();
    chunks(1, 20)[15..18].iter().for_each(|chunk| receiving.put(chunk).unwrap());
    drop(receiving);
    assert_eq!(fetcher.fetch(offer(3, &newer), Index(0)).await, Ok(earlier.clone()));
    assert_eq!((former.given(), leader.given()), (2, 0));
    assert_eq!(load(&disk, &earlier).await, chunks(1, 20));
    // Of another group it is of another history, though it is all here.
    drop(disk.snapshots.begin([8; 32], NodeId(2), &earlier, &encoded).unwrap());
    assert_eq!(fetcher.fetch(offer(3, &newer), Index(0)).await, Ok(newer));
}

#[tokio::test]
async fn a_giver_that_is_gone_gives_way_to_what_is_offered_and_nothing_comes_twice() {
    let (former, leader, disk) = (Source::new().await, Source::new().await, Disk::new());
    let earlier = former.store(9, chunks(1, 20)).await;
    let newer = leader.store(19, [chunks(1, 15), chunks(2, 5)].concat()).await;
    let fetcher = fetcher(&disk, &[&former, &leader]);
    let encoded = former.disk.snapshots.manifest(earlier.manifest).unwrap().unwrap();
    let mut receiving = disk.snapshots.begin(GROUP, NodeId(2), &earlier, &encoded).unwrap();
    chunks(1, 8).iter().for_each(|chunk| receiving.put(chunk).unwrap());
    drop(receiving);
    former.shutdown.request();
    let Source { disk: gone, cutting, .. } = former;
    drop((gone, cutting));
    assert_eq!(fetcher.fetch(offer(3, &newer), Index(0)).await, Ok(newer.clone()));
    assert_eq!(leader.given(), 12);
    assert_eq!(load(&disk, &newer).await, [chunks(1, 15), chunks(2, 5)].concat());
}

#[tokio::test]
async fn a_giver_that_was_given_up_is_not_asked_again() {
    let (former, leader, disk) = (Source::new().await, Source::new().await, Disk::new());
    let earlier = former.store(9, chunks(1, 20)).await;
    let newer = leader.store(19, [chunks(1, 15), chunks(2, 5)].concat()).await;
    let fetcher = fetcher(&disk, &[&former, &leader]);
    let encoded = former.disk.snapshots.manifest(earlier.manifest).unwrap().unwrap();
    let mut receiving = disk.snapshots.begin(GROUP, NodeId(2), &earlier, &encoded).unwrap();
    chunks(1, 8).iter().for_each(|chunk| receiving.put(chunk).unwrap());
    drop(receiving);
    // It answers, and nothing comes.
    former.cut_after(0);
    let refused = fetcher.fetch(offer(2, &earlier), Index(0)).await.unwrap_err();
    assert!(refused.contains("0 of 12 chunks came"), "{refused}");
    former.cut_after(usize::MAX);
    // Twice would be all without patience: what is begun counts as progress.
    assert!(former.requests() > 2, "it is given up at once");
    assert_eq!(fetcher.fetch(offer(3, &newer), Index(0)).await, Ok(newer));
    assert_eq!((former.requests(), leader.given()), (0, 12));
}

#[tokio::test]
async fn a_giver_that_cannot_be_addressed_is_given_up_like_any_other() {
    let (source, disk) = (Source::new().await, Disk::new());
    let kept = source.store(9, chunks(1, 10)).await;
    let fetcher = fetcher(&disk, &[]);
    fetcher.peers.called(NodeId(2), "no address".to_owned());
    let encoded = source.disk.snapshots.manifest(kept.manifest).unwrap().unwrap();
    drop(disk.snapshots.begin(GROUP, NodeId(2), &kept, &encoded).unwrap());
    assert!(disk.snapshots.transfer().is_some());
    let refused = fetcher.fetch(offer(2, &kept), Index(0)).await.unwrap_err();
    assert!(refused.contains("is no address of a member"), "{refused}");
    assert!(disk.snapshots.transfer().is_none(), "it would be asked first the next time, too");
}

#[tokio::test]
async fn a_busy_giver_is_waited_for_and_not_asked_all_the_time() {
    let (source, disk) = (Source::new().await, Disk::new());
    let root =
        source.store(9, (0..600).map(|at| Bytes::from(vec![at as u8; 32 << 10])).collect()).await;
    let all = vec![pb::Range { first: 0, count: root.chunks }];
    let mut others = Vec::new();
    for node in [2, 3, 4] {
        others.push(ask(&source, node, &root, all.clone()).await.unwrap());
    }
    source.requests();
    let (fetcher, begun) = (fetcher(&disk, &[&source]), std::time::Instant::now());
    let offered = offer(2, &root);
    let fetching = tokio::spawn(async move { fetcher.fetch(offered, Index(0)).await });
    // Longer than a giver is asked that says nothing.
    while source.cutting.requests.load(Ordering::SeqCst) < 7 {
        assert!(!fetching.is_finished(), "given up after {:?}", begun.elapsed());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let waited = begun.elapsed();
    assert!(waited > std::time::Duration::from_secs(6), "asked 7 times within {waited:?}");
    drop(others);
    assert_eq!(fetching.await.unwrap(), Ok(root));
}

#[tokio::test]
async fn what_is_no_more_kept_is_given_up_at_once_and_what_came_stays() {
    let (source, disk) = (Source::new().await, Disk::new());
    let kept = source.store(9, chunks(1, 10)).await;
    let fetcher = fetcher(&disk, &[&source]);
    let gone = SnapshotRoot { manifest: raft::Digest([9; 32]), ..kept.clone() };
    let refused = fetcher.fetch(offer(2, &gone), Index(0)).await.unwrap_err();
    assert!(refused.contains("not kept here"), "{refused}");
    assert_eq!(source.requests(), 1);
    // Longer than the limit, or than was offered: not one chunk is asked for.
    for (chunks, text) in [(u64::MAX, "larger than"), (8 << 20, "larger than"), (9, "longer than")]
    {
        let wrong = SnapshotRoot { chunks, ..kept.clone() };
        let refused = fetcher.fetch(offer(2, &wrong), Index(0)).await.unwrap_err();
        assert!(refused.contains(text), "{refused}");
    }
    let stranger = fetcher.fetch(offer(7, &kept), Index(0)).await.unwrap_err();
    assert!(stranger.contains("has not said hello"), "{stranger}");
    assert_eq!(source.given(), 0);
    assert_eq!(fetcher.fetch(offer(2, &kept), Index(0)).await, Ok(kept));
}

/// Asks as a member does; what comes first, or why nothing does.
async fn ask(
    source: &Source,
    node: u64,
    root: &SnapshotRoot,
    ranges: Vec<pb::Range>,
) -> Result<Streaming<pb::Chunk>, Status> {
    let channel = super::connect(&source.address).unwrap();
    let from = Some(pb::Identity { node, ..pb::Identity::default() });
    let manifest = Bytes::copy_from_slice(&root.manifest.0);
    let request = pb::FetchRequest { from, manifest, ranges };
    Ok(RaftClient::new(channel).fetch(request).await?.into_inner())
}

#[tokio::test]
async fn ranges_that_a_manifest_does_not_have_are_refused() {
    let source = Source::new().await;
    let root = source.store(9, chunks(1, 10)).await;
    let range = |first, count| pb::Range { first, count };
    for ranges in [
        vec![range(10, 1)],
        vec![range(0, 11)],
        vec![range(3, 0)],
        vec![range(u64::MAX, 2)],
        vec![range(4, 2), range(5, 1)],
        vec![range(4, 1), range(2, 1)],
        vec![range(0, 1); RANGES_MAX + 1],
    ] {
        let refused = match ask(&source, 1, &root, ranges).await {
            Ok(mut stream) => stream.message().await.unwrap_err(),
            Err(refused) => refused,
        };
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let mut stream = ask(&source, 1, &root, vec![range(1, 1), range(3, 2)]).await.unwrap();
    for place in [1, 3, 4] {
        let piece = stream.message().await.unwrap().unwrap();
        assert_eq!(piece.kind, Some(pb::chunk::Kind::Data(chunks(1, 10)[place].clone())));
    }
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_member_has_one_transfer_at_a_time_and_few_have_one() {
    let source = Source::new().await;
    // More than a connection holds, so that none ends while nobody takes it.
    let root =
        source.store(9, (0..600).map(|at| Bytes::from(vec![at as u8; 32 << 10])).collect()).await;
    let all = vec![pb::Range { first: 0, count: root.chunks }];
    let mut first = ask(&source, 1, &root, all.clone()).await.unwrap();
    let mut others = Vec::new();
    for node in [2, 3] {
        others.push(ask(&source, node, &root, all.clone()).await.unwrap());
    }
    let refused = ask(&source, 4, &root, all.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("transfers_out_max"), "{refused}");
    let mut second = ask(&source, 1, &root, all.clone()).await.unwrap();
    let mut came = 0;
    while let Ok(Some(_)) = first.message().await {
        came += 1;
    }
    assert!(came < 600, "the first transfer of a member does not end");
    while second.message().await.unwrap().is_some() {
        came += 1;
    }
    // Where one has ended there is room for another.
    drop(others);
    while let Err(refused) = ask(&source, 4, &root, all.clone()).await {
        assert_eq!(refused.code(), Code::ResourceExhausted);
    }
    assert!(came >= 600);
}
