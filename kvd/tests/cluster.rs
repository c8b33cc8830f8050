//! Whole members, in this process, with their clients: what the pure half and the host cannot show
//! alone.

#![allow(clippy::unwrap_used)]

mod local;

use std::time::Duration;

use bytes::Bytes;
use client::{
    Condition, Error, PutIf, Rejected,
    admin::{self, MemberChange},
    metadata,
};
use kvd::Config;
use local::{Cluster, PATIENCE};
use proto::kv::{
    AppendRequest, DeleteRequest, GetRequest, PutRequest, RequestId, TimeRequest,
    kv_client::KvClient as Stub,
};
use raftd::cli::Configuration;
use tokio::time::Instant;
use tonic::{Code, Request};

#[tokio::test]
async fn one_member_is_a_store() {
    let mut cluster = Cluster::started(1).await;
    let client = cluster.everyone();
    assert_eq!(client.get("k").await.unwrap(), None);
    assert_eq!(client.put("k", "a").await.unwrap().version, 1);
    assert_eq!(client.append("k", "b").await.unwrap().old_value.unwrap(), "a");
    let mismatch = client.put_if("k", "c", Condition::Absent).await.unwrap();
    assert!(matches!(mismatch, PutIf::Mismatch(Some(pair)) if pair.value == "ab"));
    let held = client.put_if("k", "c", Condition::Version(2)).await.unwrap();
    assert!(matches!(held, PutIf::Written(written) if written.version == 3));
    let removed = client.delete("k").await.unwrap().unwrap();
    assert_eq!((&removed.pair.value[..], removed.mod_revision), (&b"c"[..], 4));
    assert_eq!(client.delete("k").await.unwrap(), None);
    let long = vec![7; client::VALUE_BYTES_MAX];
    client.put("long", long.clone()).await.unwrap();
    assert_eq!(client.get("long").await.unwrap().unwrap().value, long);
    let grown = client.append("long", "x").await;
    assert!(matches!(grown, Err(Error::Rejected(Rejected::Limit(_)))), "{grown:?}");
    cluster.stop(0).await.unwrap();
}

#[tokio::test]
async fn every_member_answers_and_appends_happen_once() {
    let cluster = Cluster::started(3).await;
    let mut calls = Vec::new();
    for writer in 0..12_usize {
        let client = cluster.client(&[writer % 3]);
        calls.push(tokio::spawn(async move {
            for number in 0..25 {
                let word = format!("{writer}-{number};");
                client.append(format!("key-{}", writer % 4), word).await.unwrap();
            }
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    for at in 0..3 {
        let client = cluster.client(&[at]);
        for key in 0..4 {
            let value = client.get(format!("key-{key}")).await.unwrap().unwrap().value;
            check_appends(&value, (0..12).filter(|writer| writer % 4 == key), 25);
        }
    }
}

fn check_appends(value: &Bytes, writers: impl Iterator<Item = usize>, each: usize) {
    let text = String::from_utf8(value.to_vec()).unwrap();
    let words: Vec<&str> = text.split_terminator(';').collect();
    let mut count = 0;
    for writer in writers {
        let prefix = format!("{writer}-");
        let own: Vec<&str> =
            words.iter().filter_map(|word| word.strip_prefix(prefix.as_str())).collect();
        let expected: Vec<String> = (0..each).map(|number| number.to_string()).collect();
        assert_eq!(own, expected, "writer {writer}");
        count += each;
    }
    assert_eq!(words.len(), count);
}

#[tokio::test]
async fn the_leaders_end_is_survived() {
    let mut cluster = Cluster::started(3).await;
    let client = cluster.everyone();
    client.put("k", "0").await.unwrap();
    let leader = cluster.leader().await;
    let writer = tokio::spawn(async move {
        for number in 1..=100 {
            client.append("k", number.to_string()).await.unwrap();
        }
        client
    });
    cluster.stop(leader).await.unwrap();
    let client = writer.await.unwrap();
    let expected: String = (0..=100).map(|number| number.to_string()).collect();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, expected);
}

#[tokio::test]
async fn a_restart_of_everyone_loses_nothing_and_repeats_nothing() {
    let mut cluster = Cluster::started(3).await;
    let client = cluster.everyone();
    for number in 0..20 {
        client.append("k", number.to_string()).await.unwrap();
    }
    for at in 0..3 {
        cluster.stop(at).await.unwrap();
    }
    for at in 0..3 {
        cluster.start(at);
    }
    cluster.leader().await;
    let appended = client.append("k", "!").await.unwrap();
    let expected: String = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(appended.old_value.unwrap(), expected);
    assert_eq!(appended.written.version, 21);
}

#[tokio::test]
async fn a_reply_by_way_of_a_follower_names_the_leader() {
    let cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let mut stub = stub(&cluster, follower).await;
    let reply = stub.put(PutRequest { key: "k".into(), ..PutRequest::default() }).await.unwrap();
    assert_eq!(metadata::leader(reply.metadata()), Some(&*cluster.endpoint(leader)));
    let time = stub.time(TimeRequest { key: "k".into() }).await.unwrap().into_inner();
    assert_eq!(time.header.unwrap().shards, 16);
}

/// A follower answers reads itself, as fresh as the leader would. So does a leader by its lease, if the
/// group has turned that on, which outlives its members.
#[tokio::test]
async fn every_member_reads_what_the_leader_has_just_acknowledged() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    check_fresh_reads(&cluster, leader, [(leader + 1) % 3, (leader + 2) % 3]).await;
    let on = [MemberChange::LeaseReads(true)];
    let changed = admin::change_members(&cluster.endpoint(leader), &on, PATIENCE).await;
    assert_eq!(changed.unwrap(), [0_u64; 0], "it is about nobody");
    assert!(cluster.status(leader).await.unwrap().lease_reads);
    check_fresh_reads(&cluster, leader, [leader, (leader + 1) % 3]).await;
    for at in 0..3 {
        cluster.stop(at).await.unwrap();
    }
    for at in 0..3 {
        cluster.start(at);
    }
    let leader = cluster.leader().await;
    assert!(cluster.status(leader).await.unwrap().lease_reads);
    check_fresh_reads(&cluster, leader, [leader, (leader + 1) % 3]).await;
}

/// What one member acknowledges others read, and they name the leader.
async fn check_fresh_reads(cluster: &Cluster, writer: usize, readers: [usize; 2]) {
    let leader = cluster.endpoint(writer);
    let writer = cluster.client(&[writer]);
    let names: [_; 2] = readers.map(|at| (cluster.endpoint(at) != leader).then_some(&*leader));
    let mut readers = [stub(cluster, readers[0]).await, stub(cluster, readers[1]).await];
    for number in 0..200_usize {
        let written = writer.put("k", number.to_string()).await.unwrap();
        let reply = readers[number % 2]
            .get(GetRequest { key: "k".into(), ..GetRequest::default() })
            .await
            .unwrap();
        assert_eq!(metadata::leader(reply.metadata()), names[number % 2]);
        let pair = reply.into_inner().pair.unwrap();
        assert_eq!((pair.version, pair.value), (written.version, number.to_string().into()));
    }
}

#[tokio::test]
async fn the_same_id_executes_once_by_whichever_member() {
    let cluster = Cluster::started(3).await;
    let header = stub(&cluster, 0).await.time(TimeRequest { key: "k".into() }).await.unwrap();
    let header = header.into_inner().header.unwrap();
    let id = RequestId {
        client: vec![7; 16].into(),
        sequence: 1,
        acknowledged: 0,
        expires_ms: header.shard_time_ms + 60_000,
        shards: header.shards,
    };
    for at in [0, 1, 2, 0] {
        let append = AppendRequest {
            key: "k".into(),
            value: "x".into(),
            id: Some(id.clone()),
            ..AppendRequest::default()
        };
        stub(&cluster, at).await.append(append).await.unwrap();
    }
    assert_eq!(cluster.everyone().get("k").await.unwrap().unwrap().value, "x");
    let other = DeleteRequest { key: "k".into(), id: Some(id), ..DeleteRequest::default() };
    let refused = stub(&cluster, 1).await.delete(other).await.unwrap_err();
    check_refused(&refused, Code::InvalidArgument, "another kind");
}

#[tokio::test]
async fn malformed_requests_are_refused_exactly() {
    let cluster = Cluster::started(1).await;
    let mut stub = stub(&cluster, 0).await;
    let empty = stub.get(GetRequest::default()).await.unwrap_err();
    check_refused(&empty, Code::InvalidArgument, "the key is empty");
    let key: Bytes = vec![b'k'; 8193].into();
    let long = stub.put(PutRequest { key, ..PutRequest::default() }).await.unwrap_err();
    check_refused(&long, Code::InvalidArgument, "key_bytes_max is 8192");
    let value: Bytes = vec![b'v'; (1 << 20) + 1].into();
    let put = PutRequest { key: "k".into(), value, ..PutRequest::default() };
    check_refused(&stub.put(put).await.unwrap_err(), Code::InvalidArgument, "value_bytes_max");
    let good = RequestId {
        client: vec![7; 16].into(),
        sequence: 2,
        acknowledged: 1,
        expires_ms: 1_000,
        shards: 16,
    };
    for (id, code, words) in [
        (RequestId { client: "short".into(), ..good.clone() }, Code::InvalidArgument, "16"),
        (RequestId { sequence: 0, ..good.clone() }, Code::InvalidArgument, "count from 1"),
        (RequestId { acknowledged: 2, ..good.clone() }, Code::InvalidArgument, "not below"),
        (RequestId { shards: 8, ..good.clone() }, Code::FailedPrecondition, "16 shards"),
        (RequestId { expires_ms: 1 << 40, ..good.clone() }, Code::InvalidArgument, "ahead"),
    ] {
        let delete = DeleteRequest { key: "k".into(), id: Some(id), ..DeleteRequest::default() };
        check_refused(&stub.delete(delete).await.unwrap_err(), code, words);
    }
}

fn check_refused(status: &tonic::Status, code: Code, words: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{status}");
    assert!(metadata::was_never_executed(status), "{status:?}");
}

#[tokio::test]
async fn an_expired_request_is_refused_as_maybe() {
    let cluster = Cluster::started(1).await;
    let client = cluster.everyone();
    client.put("k", "v").await.unwrap();
    let mut stub = stub(&cluster, 0).await;
    let time = || TimeRequest { key: "k".into() };
    let expires_ms = stub.time(time()).await.unwrap().into_inner().header.unwrap().shard_time_ms;
    let id = RequestId {
        client: vec![7; 16].into(),
        sequence: 1,
        acknowledged: 0,
        expires_ms,
        shards: 16,
    };
    loop {
        client.put("k", "w").await.unwrap();
        let now = stub.time(time()).await.unwrap().into_inner().header.unwrap().shard_time_ms;
        if now > expires_ms {
            break;
        }
    }
    let delete = DeleteRequest { key: "k".into(), id: Some(id), ..DeleteRequest::default() };
    let status = stub.delete(delete).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(!metadata::was_never_executed(&status));
    assert!(client.get("k").await.unwrap().is_some());
}

#[tokio::test]
async fn without_a_quorum_callers_are_answered_within_their_deadline() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    let mut stub = stub(&cluster, leader).await;
    for at in (0..3).filter(|&at| at != leader) {
        cluster.stop(at).await.unwrap();
    }
    let mut put = Request::new(PutRequest { key: "k".into(), ..PutRequest::default() });
    put.set_timeout(Duration::from_millis(400));
    let began = Instant::now();
    let status = stub.put(put).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    assert!(status.metadata().contains_key(metadata::EXECUTED), "{status:?}");
    let mut get = Request::new(GetRequest { key: "k".into(), ..GetRequest::default() });
    get.set_timeout(Duration::from_secs(5));
    let status = stub.get(get).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(6));
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable), "{status}");
}

#[tokio::test]
async fn a_group_that_is_not_born_refuses_and_says_so() {
    let mut cluster = Cluster::of(3);
    cluster.start(0);
    let until = Instant::now() + PATIENCE;
    while cluster.status(0).await.is_none() {
        assert!(Instant::now() < until);
    }
    let mut stub = stub(&cluster, 0).await;
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    let status = stub.put(put).await.unwrap_err();
    check_refused(&status, Code::Unavailable, "being born");
    cluster.stop(0).await.unwrap();
}

#[tokio::test]
async fn a_member_with_another_number_of_shards_stops() {
    let mut cluster = Cluster::of(3);
    cluster.configs[2].shards = 8;
    for at in 0..3 {
        cluster.start(at);
    }
    let client = cluster.everyone();
    // Whether one succeeds depends on who leads and who is asked first.
    let writer = tokio::spawn(async move { while client.put("k", "v").await.is_err() {} });
    let until = Instant::now() + PATIENCE;
    let odd = loop {
        assert!(Instant::now() < until, "nobody stopped");
        let ended = |at: &usize| {
            cluster.running[*at].as_ref().is_some_and(|running| running.task.is_finished())
        };
        match (0..3).find(ended) {
            Some(at) => break at,
            None => tokio::task::yield_now().await,
        }
    };
    let failure = cluster.running[odd].take().unwrap().task.await.unwrap().unwrap_err();
    writer.abort();
    assert_eq!(failure.code(), daemon::Code::Configuration, "{}", failure.chain());
    assert!(failure.to_string().contains("was created with"), "{failure}");
}

#[tokio::test]
async fn a_busy_port_is_told_and_nothing_is_made() {
    let cluster = Cluster::of(1);
    let config = &cluster.configs[0];
    let addresses = config.addresses().unwrap();
    for port in [addresses.listen, addresses.peer, addresses.admin] {
        let _busy = tokio::net::TcpListener::bind(port).await.unwrap();
        let failure = kvd::run(config, daemon::Shutdown::new()).await.unwrap_err();
        assert_eq!(failure.code(), daemon::Code::Machine);
        assert!(failure.to_string().contains(&format!("{port} is in use")), "{failure}");
        assert!(!config.group.data.exists());
    }
    let exposed = Config { listen: "0.0.0.0:0".to_owned(), ..config.clone() };
    let failure = kvd::run(&exposed, daemon::Shutdown::new()).await.unwrap_err();
    assert_eq!(failure.code(), daemon::Code::Configuration);
}

async fn stub(cluster: &Cluster, at: usize) -> Stub<tonic::transport::Channel> {
    Stub::connect(format!("http://{}", cluster.endpoint(at))).await.unwrap()
}
