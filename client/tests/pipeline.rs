//! The key/value client's stream, against a server whose test reads and answers it by hand.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::Duration;

use bytes::Bytes;
use fake::line::{Line, got, serve};
use flotilla_client::{Error, KvClient, Options, Outcome, PutOptions, Rejected, VALUE_BYTES_MAX};
use futures::future::join_all;
use proto::kv::{RequestId, request};
use tokio::task::JoinHandle;
use tonic::Status;

fn options(deadline: Duration) -> Options {
    let (attempt, connect) = (Duration::from_secs(5), Duration::from_millis(500));
    Options { deadline, attempt, connect, ..Options::default() }
}

const LONG: Duration = Duration::from_secs(20);

async fn client(deadline: Duration) -> (KvClient, fake::line::Lines) {
    let (address, lines) = serve().await;
    (KvClient::connect(vec![address], options(deadline)).unwrap(), lines)
}

fn get(client: &KvClient, key: &str) -> JoinHandle<Option<Bytes>> {
    let (client, key) = (client.clone(), key.to_owned());
    tokio::spawn(async move { client.get(key).await.unwrap().map(|pair| pair.value) })
}

fn put(client: &KvClient, key: String, value: Bytes) -> JoinHandle<Result<(), Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.put(key, value).await.map(drop) })
}

fn id(kind: request::Kind) -> RequestId {
    match kind {
        request::Kind::Put(put) => put.id.unwrap(),
        other => panic!("{other:?} is not a Put"),
    }
}

#[tokio::test]
async fn replies_in_any_order_reach_who_asked() {
    let (client, mut lines) = client(LONG).await;
    let calls: Vec<_> = ["a", "b", "c"].iter().map(|key| get(&client, key)).collect();
    let mut line = lines.next().await;
    let mut asked = Vec::new();
    for _ in 0..3 {
        let (number, kind) = line.read().await;
        let request::Kind::Get(get) = kind else { panic!("{kind:?}") };
        asked.push((number, get.key));
    }
    for (number, key) in asked.into_iter().rev() {
        line.answer(number, got(key)).await;
    }
    for (call, key) in calls.into_iter().zip(["a", "b", "c"]) {
        assert_eq!(call.await.unwrap().unwrap(), key);
    }
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_harms_none() {
    let (client, mut lines) = client(LONG).await;
    let given_up = get(&client, "a");
    let mut line = lines.next().await;
    let (first, _) = line.read().await;
    given_up.abort();
    assert!(given_up.await.is_err());
    line.answer(first, got("late")).await;
    line.answer(first, got("twice")).await;
    line.answer(77, got("never asked")).await;
    let call = get(&client, "b");
    let (number, _) = line.read().await;
    line.answer(number, got("b")).await;
    assert_eq!(call.await.unwrap().unwrap(), "b");
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_anew_and_its_requests_keep_their_names() {
    let (client, mut lines) = client(LONG).await;
    let call = put(&client, "k".to_owned(), "v".into());
    let mut line = lines.next().await;
    let first = id(line.read().await.1);
    line.break_off(Status::out_of_range("somebody else sent nonsense")).await;
    let mut line = lines.next().await;
    let again = id(line.read().await.1);
    assert_eq!(again, first);
    // The member goes without a word.
    drop(line);
    let mut line = lines.next().await;
    let (number, kind) = line.read().await;
    assert_eq!(id(kind), first);
    line.answer(number, fake::line::written()).await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_broke_is_unknown_and_what_was_not_sent_is_not() {
    let (client, mut lines) = client(Duration::from_millis(400)).await;
    let known = put(&client, "{shard}known".to_owned(), "v".into());
    let mut line = lines.next().await;
    let (number, _) = line.read().await;
    line.answer(number, fake::line::written()).await;
    known.await.unwrap().unwrap();
    // More than a stream and its connection take that nobody reads: the last one does not get out.
    let value = Bytes::from(vec![b'v'; VALUE_BYTES_MAX]);
    let calls = (0..16).map(|number| put(&client, format!("{{shard}}{number}"), value.clone()));
    let mut ends: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert!(matches!(ends.remove(0), Err(Error::Unknown(_))));
    let last = ends.pop().unwrap();
    assert!(matches!(last, Err(Error::Rejected(Rejected::Unavailable(_)))), "{last:?}");
    drop(line);
}

#[tokio::test]
async fn a_member_that_never_answers_is_passed_over() {
    let (silent, _lines) = serve().await;
    let other = fake::Fake::default();
    let (address, _) = other.serve().await;
    for _ in 0..4 {
        let attempt = Duration::from_millis(50);
        let options = Options { attempt, ..options(LONG) };
        let endpoints = vec![silent.clone(), address.clone()];
        let client = KvClient::connect(endpoints, options).unwrap();
        client.get("k").await.unwrap();
        client.get("k").await.unwrap();
    }
}

#[tokio::test]
async fn ten_thousand_in_flight_are_bounded() {
    let (client, mut lines) = client(LONG).await;
    let calls: Vec<_> = (0..10_000).map(|number| get(&client, &number.to_string())).collect();
    let calls = tokio::spawn(join_all(calls));
    let mut line = lines.next().await;
    let (mut open, mut answered, mut most) = (Vec::new(), 0, 0);
    while answered < 10_000 {
        // All that the client dares to send.
        while let Some((number, kind)) = line.read_now().await {
            let request::Kind::Get(get) = kind else { panic!("{kind:?}") };
            open.push((number, get.key));
        }
        most = most.max(open.len());
        let due = if most < 1_024 && answered == 0 { 0 } else { open.len().div_ceil(2) };
        for (number, key) in open.drain(..due) {
            line.answer(number, got(key)).await;
            answered += 1;
        }
    }
    assert_eq!(most, 1_024);
    for (number, value) in calls.await.unwrap().into_iter().enumerate() {
        assert_eq!(value.unwrap().unwrap(), number.to_string());
    }
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_here_and_breaks_nothing() {
    let (client, mut lines) = client(LONG).await;
    let call = get(&client, "k");
    let mut line = lines.next().await;
    let (number, _) = line.read().await;
    let oversized =
        client.put_raw("k".into(), vec![0; 3 << 20].into(), PutOptions::default()).await;
    assert!(matches!(oversized, Outcome::Rejected(Rejected::Invalid(_))));
    line.answer(number, got("k")).await;
    assert_eq!(call.await.unwrap().unwrap(), "k");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_stream() {
    let (client, mut lines) = client(LONG).await;
    let call = get(&client, "k");
    let mut line: Line = lines.next().await;
    let (number, _) = line.read().await;
    line.answer(number, got("k")).await;
    call.await.unwrap();
    drop(client);
    assert!(line.is_over().await);
}
