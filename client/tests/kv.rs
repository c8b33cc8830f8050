//! The key/value client against servers that refuse, hang and break off.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::Duration;

use bytes::Bytes;
use fake::{Act, Fake};
use flotilla_client::{Error, KvClient, Options, Outcome, Rejected, Transport};
use tonic::Code;

/// Everything holds whichever way requests travel.
const TRANSPORTS: [Transport; 2] = [Transport::Pipelined, Transport::Unary];

fn options(transport: Transport) -> Options {
    Options {
        deadline: Duration::from_secs(5),
        attempt: Duration::from_millis(300),
        connect: Duration::from_millis(500),
        transport,
    }
}

fn short(transport: Transport) -> Options {
    Options {
        deadline: Duration::from_millis(400),
        attempt: Duration::from_millis(100),
        ..options(transport)
    }
}

async fn one(options: Options) -> (Fake, KvClient) {
    let fake = Fake::default();
    let (address, _) = fake.serve().await;
    (fake, KvClient::connect(vec![address], options).unwrap())
}

fn check_once(fake: &Fake, requests: usize) {
    let state = fake.state();
    assert_eq!(state.executions.len(), requests);
    assert!(state.executions.values().all(|&times| times == 1), "{:?}", state.executions);
}

#[tokio::test]
async fn what_was_put_is_got() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        assert_eq!(client.get("k").await.unwrap(), None);
        let written = client.put("k", "v").await.unwrap();
        assert_eq!((written.version, written.mod_revision), (1, 1));
        let pair = client.get("k").await.unwrap().unwrap();
        assert_eq!((&pair.value[..], pair.version), (&b"v"[..], 1));
        assert_eq!(client.delete("k").await.unwrap().unwrap().mod_revision, 2);
        check_once(&fake, 2);
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        fake.plan([
            Act::ExecuteThenHang,
            Act::ExecuteThenBreak,
            Act::Hang,
            Act::Unclear(Code::Unavailable),
            Act::Unclear(Code::Internal),
            Act::Unclear(Code::Cancelled),
        ]);
        let outcome = client.append_raw("k".into(), "x".into(), None).await;
        let Outcome::Done(reply) = outcome else { panic!("{outcome:?}") };
        assert!(reply.header.unwrap().duplicate);
        check_once(&fake, 1);
        let state = fake.state();
        assert_eq!(state.ids.len(), 7);
        assert!(state.ids.iter().all(|id| *id == state.ids[0]));
        assert_eq!(&state.values[&Bytes::from("k")].0[..], b"x");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_unknown_and_not_failed() {
    for transport in TRANSPORTS {
        for act in [Act::ExecuteThenHang, Act::Hang, Act::Unclear(Code::Unavailable), Act::Expired]
        {
            let (fake, client) = one(short(transport)).await;
            fake.plan(vec![act.clone(); 1000]);
            match client.put("k", "v").await {
                Err(Error::Unknown(_)) => {}
                other => panic!("{act:?}: {other:?}"),
            }
            assert!(fake.state().executions.len() <= 1);
        }
    }
}

#[tokio::test]
async fn refusals_that_never_executed_are_rejections() {
    for transport in TRANSPORTS {
        let (fake, client) = one(short(transport)).await;
        fake.plan(vec![Act::Refuse(Code::Unavailable, None); 1000]);
        let refused = client.put("k", "v").await;
        assert!(matches!(refused, Err(Error::Rejected(Rejected::Unavailable(_)))), "{refused:?}");
        fake.state().acts.clear();
        fake.plan(vec![Act::Refuse(Code::ResourceExhausted, None); 1000]);
        let refused = client.put("k", "v").await;
        assert!(matches!(refused, Err(Error::Rejected(Rejected::Limit(_)))), "{refused:?}");
        fake.state().acts.clear();
        // A limit says more than that no time was left, and less than that nobody answered.
        let (fake, client) = one(short(transport)).await;
        let mut acts = vec![Act::Refuse(Code::ResourceExhausted, None)];
        acts.resize(1000, Act::Refuse(Code::DeadlineExceeded, None));
        fake.plan(acts);
        let refused = client.put("k", "v").await;
        assert!(matches!(refused, Err(Error::Rejected(Rejected::Limit(_)))), "{refused:?}");
        // A member that has not failed yet is asked more often.
        let (fake, client) = one(short(transport)).await;
        let mut acts = vec![Act::Refuse(Code::ResourceExhausted, None)];
        acts.resize(1000, Act::Hang);
        fake.plan(acts);
        let unknown = client.put("k", "v").await;
        let silence = |error: &Error| matches!(error, Error::Unknown(it) if !it.reason.contains("ResourceExhausted"));
        assert!(unknown.as_ref().is_err_and(silence), "{unknown:?}");
        fake.state().acts.clear();
        fake.plan([Act::Refuse(Code::InvalidArgument, None)]);
        let refused = client.put("k", "v").await;
        assert!(matches!(refused, Err(Error::Rejected(Rejected::Invalid(_)))), "{refused:?}");
        check_once(&fake, 0);
    }
}

#[tokio::test]
async fn a_refusal_after_an_unclear_attempt_is_unknown() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        fake.plan([Act::Unclear(Code::Unavailable), Act::Refuse(Code::FailedPrecondition, None)]);
        let outcome = client.put("k", "v").await;
        assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_request_given_up_is_acknowledged_by_the_next() {
    for transport in TRANSPORTS {
        let (fake, client) = one(short(transport)).await;
        client.put("k", "1").await.unwrap();
        fake.plan(vec![Act::Hang; 1000]);
        assert!(client.put("k", "2").await.is_err());
        let dropped = tokio::time::timeout(Duration::ZERO, client.put("k", "3"));
        assert!(dropped.await.is_err());
        fake.state().acts.clear();
        client.put("k", "4").await.unwrap();
        let last = fake.state().ids.last().unwrap().clone();
        assert_eq!((last.sequence, last.acknowledged), (4, 3));
    }
}

#[tokio::test]
async fn a_read_is_repeated_and_never_unknown() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        fake.plan([Act::Hang, Act::Unclear(Code::Unavailable)]);
        assert_eq!(client.get("k").await.unwrap(), None);
        let (fake, client) = one(short(transport)).await;
        fake.plan(vec![Act::Hang; 1000]);
        let refused = client.get("k").await;
        assert!(matches!(refused, Err(Error::Rejected(Rejected::Unavailable(_)))), "{refused:?}");
    }
}

#[tokio::test]
async fn hints_lead_to_the_leader() {
    for transport in TRANSPORTS {
        let leader = Fake::default();
        let follower = leader.sibling();
        let (leader_address, _) = leader.serve().await;
        let (address, _) = follower.serve().await;
        let client = KvClient::connect(vec![address], options(transport)).unwrap();
        leader.plan([Act::Refuse(Code::Unavailable, Some(leader_address.clone()))]);
        client.put("k", "v").await.unwrap();
        client.put("k", "v").await.unwrap();
        assert_eq!((*follower.served.lock().unwrap(), *leader.served.lock().unwrap()), (0, 2));
        check_once(&leader, 2);
    }
}

#[tokio::test]
async fn a_reply_that_was_passed_on_names_the_leader_for_next_time() {
    for transport in TRANSPORTS {
        let leader = Fake::default();
        let follower = leader.sibling();
        let (leader_address, _) = leader.serve().await;
        let (address, _) = follower.serve().await;
        leader.state().leader_on_success = Some(leader_address);
        let client = KvClient::connect(vec![address], options(transport)).unwrap();
        client.get("k").await.unwrap();
        client.get("k").await.unwrap();
        assert_eq!((*follower.served.lock().unwrap(), *leader.served.lock().unwrap()), (1, 1));
    }
}

#[tokio::test]
async fn a_hint_that_leads_nowhere_does_not_keep_a_client_from_the_others() {
    for transport in TRANSPORTS {
        let fake = Fake::default();
        let (address, _) = fake.serve().await;
        fake.state().leader_on_success = Some(unreachable().await);
        let client = KvClient::connect(vec![address], options(transport)).unwrap();
        for _ in 0..20 {
            client.put("k", "v").await.unwrap();
        }
        check_once(&fake, 20);
    }
}

#[tokio::test]
async fn unreachable_members_are_passed_over_and_count_as_never() {
    for transport in TRANSPORTS {
        let fake = Fake::default();
        let (address, _) = fake.serve().await;
        let endpoints = vec![unreachable().await, unreachable().await, address];
        let client = KvClient::connect(endpoints, options(transport)).unwrap();
        client.put("k", "v").await.unwrap();
        check_once(&fake, 1);
        let client = KvClient::connect(vec![unreachable().await], short(transport)).unwrap();
        let refused = client.put("k", "v").await;
        assert!(matches!(refused, Err(Error::Rejected(Rejected::Unavailable(_)))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_member_that_dies_and_comes_back_is_found_again() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        client.put("k", "1").await.unwrap();
        let sibling = fake.sibling();
        let (address, task) = sibling.serve().await;
        let client = KvClient::connect(vec![address.clone()], options(transport)).unwrap();
        client.put("k", "2").await.unwrap();
        fake.plan([Act::Hang]);
        let call = tokio::spawn(async move { client.put("k", "3").await });
        while !fake.state().acts.is_empty() {
            tokio::task::yield_now().await;
        }
        task.abort();
        assert!(task.await.is_err());
        let (_, _) = sibling.serve_at(address.parse().unwrap()).await;
        call.await.unwrap().unwrap();
        check_once(&fake, 3);
    }
}

#[tokio::test]
async fn thousands_of_requests_share_one_connection() {
    for transport in TRANSPORTS {
        let fake = Fake { together: 900, ..Fake::default() };
        let (address, _) = fake.serve().await;
        // However busy the machine is.
        let (deadline, attempt) = (Duration::from_secs(60), Duration::from_secs(30));
        let options = Options { deadline, attempt, ..options(transport) };
        let client = KvClient::connect(vec![address], options).unwrap();
        let calls = (0..4_000_u32).map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.append(format!("key-{number}"), "x").await })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
        check_once(&fake, 4_000);
        let state = fake.state();
        let open = |id: &proto::kv::RequestId| id.sequence - id.acknowledged <= 256;
        assert!(state.ids.iter().all(open));
    }
}

#[tokio::test]
async fn shard_time_is_asked_for_once_and_learned_from_replies() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        for _ in 0..10 {
            client.put("k", "v").await.unwrap();
        }
        let state = fake.state();
        assert_eq!(state.times_asked, 1);
        let (least, most) = (5_000 + 15_000, 5_000 + 15_000 + 5_000 + 5_000);
        assert!(
            state.ids.iter().all(|id| (least..most).contains(&id.expires_ms)),
            "{:?}",
            state.ids
        );
    }
}

#[tokio::test]
async fn malformed_requests_and_endpoints_are_refused_here() {
    for transport in TRANSPORTS {
        let (fake, client) = one(options(transport)).await;
        let oversized = vec![0; flotilla_client::VALUE_BYTES_MAX + 1];
        for refused in [
            client.put("", "v").await,
            client.put(vec![b'k'; flotilla_client::KEY_BYTES_MAX + 1], "v").await,
            client.put("k", oversized).await,
        ] {
            assert!(matches!(refused, Err(Error::Rejected(Rejected::Invalid(_)))), "{refused:?}");
        }
        assert!(fake.state().ids.is_empty());
        for endpoint in ["", "host", "host:port", "host:70000", "a b:1", "u@h:1", ":7300"] {
            assert!(
                KvClient::connect(vec![endpoint.to_owned()], options(transport)).is_err(),
                "{endpoint}"
            );
        }
        assert!(KvClient::connect(Vec::new(), options(transport)).is_err());
        assert!(
            KvClient::connect(vec!["http://localhost:7300/".to_owned()], options(transport))
                .is_ok()
        );
    }
}

/// An address at which nobody listens.
async fn unreachable() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}
