//! The change log and views by example: what is told of the past, and what is forgotten when.

mod common;

use bytes::Bytes;
use common::{Driven, chunks, delete, put};
use kvd::{
    KvMachine, MachineLimits,
    command::{Action, Operation, Txn},
    limits::{CHANGE_OVERHEAD_BYTES, PAGE_BYTES_MAX, PAGE_PAIRS_MAX, VALUE_BYTES_MAX},
    outcome::{Answer, Outcome, Query, Refusal, Revision, Scope},
    range::Range,
    view::PageRequest,
};
use raft::StateMachine;

fn small(changes_bytes: u64) -> Driven {
    let limits = MachineLimits {
        changes_bytes,
        changes_bytes_per_shard_min: changes_bytes,
        ..MachineLimits::default()
    };
    Driven::around(KvMachine::with_limits(1, limits), 1)
}

fn compacted(driven: &Driven) -> u64 {
    match driven.view().changes(0, Revision(0), &[Range::all()], 1) {
        Ok(_) => 0,
        Err(Refusal::Compacted { compacted, .. }) => compacted.0,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn the_oldest_revisions_go_first_and_whole_and_the_newest_stays() {
    let mut driven = small(10 * (CHANGE_OVERHEAD_BYTES + 1));
    let keys: Vec<[u8; 1]> = (0..4).map(|number| [b'a' + number]).collect();
    let all = || keys.iter().map(|key| Action::Put { key, value: b"", lease: None }).collect();
    for _ in 0..3 {
        driven.outcome(Operation::Txn(Txn { then: all(), ..Txn::default() }));
    }
    assert_eq!(compacted(&driven), 1);
    let told = driven.view().changes(0, Revision(1), &[Range::all()], usize::MAX).unwrap();
    let lengths: Vec<usize> = told.revisions.iter().map(|(_, changes)| changes.len()).collect();
    assert_eq!(lengths, [4, 4]);
    driven.outcome(put(b"a", &[0; 100_000]));
    driven.outcome(delete(b"a"));
    assert_eq!(compacted(&driven), 4, "the newest alone is beyond the budget, and stays");
    let told = driven.view().changes(0, Revision(4), &[Range::all()], 1).unwrap();
    assert_eq!(told.revisions.len(), 1);
    driven.outcome(put(b"a", b""));
    assert_eq!(compacted(&driven), 5);
}

#[test]
fn what_is_compacted_is_not_told_though_it_goes_little_by_little() {
    let mut driven = Driven::new(1);
    for number in 0..5_000_u32 {
        driven.outcome(put(b"k", &number.to_le_bytes()));
    }
    let full = driven.machine.stored_bytes();
    let outcome = driven.outcome(Operation::Compact { shard: 0, revision: Some(Revision(4_990)) });
    assert_eq!(outcome, Outcome::Compacted(Revision(4_990)));
    assert_eq!(compacted(&driven), 4_990);
    let some = driven.machine.stored_bytes();
    assert!(some < full && some > full / 2, "{some} of {full}");
    let mut machine = KvMachine::new(1);
    machine.restore(&mut chunks(&driven.machine).into_iter()).unwrap();
    assert_eq!(machine.digest(), driven.machine.digest());
    for _ in 0..5 {
        driven.pass();
    }
    let few = 10 * (CHANGE_OVERHEAD_BYTES + 5);
    assert!(driven.machine.stored_bytes() < few + 1_000);
    let at = |revision| driven.view().get_at(b"k", Revision(revision));
    assert_eq!(&at(4_990).unwrap().unwrap().value[..], &4_989_u32.to_le_bytes());
    assert!(matches!(at(4_989), Err(Refusal::Compacted { .. })));
    // Further back changes nothing, further ahead is now.
    let back = driven.outcome(Operation::Compact { shard: 0, revision: Some(Revision(7)) });
    assert_eq!(back, Outcome::Compacted(Revision(4_990)));
    let ahead = driven.outcome(Operation::Compact { shard: 0, revision: Some(Revision(9_999)) });
    assert_eq!(ahead, Outcome::Compacted(Revision(5_000)));
}

#[test]
fn a_view_stays_what_it_was() {
    let mut driven = Driven::new(4);
    driven.outcome(put(b"k", b"old"));
    let view = driven.view();
    driven.outcome(put(b"k", b"new"));
    driven.outcome(put(b"l", b"new"));
    let page = view.page(&Range::all(), &PageRequest::default()).unwrap();
    assert_eq!(page.pairs.len(), 1);
    assert_eq!(&page.pairs[0].1.value[..], b"old");
}

#[test]
fn a_page_ends_before_its_limits_and_one_pair_always_fits() {
    let mut driven = Driven::new(8);
    for number in 0..=PAGE_PAIRS_MAX {
        driven.outcome(put(format!("s{number:05}").as_bytes(), b"v"));
    }
    let pages = |prefix: &'static str, request: PageRequest| {
        let range = Range::Prefix(Bytes::from(prefix));
        let (mut lengths, mut request) = (Vec::new(), request);
        loop {
            let page = driven.view().page(&range, &request).unwrap();
            lengths.push(page.pairs.len());
            request.token = page.next;
            if request.token.is_none() {
                return lengths;
            }
        }
    };
    assert_eq!(pages("s", PageRequest::default()), [PAGE_PAIRS_MAX, 1]);
    let limit = |limit| PageRequest { limit, ..PageRequest::default() };
    assert_eq!(pages("s", limit(usize::MAX)), [PAGE_PAIRS_MAX, 1]);
    assert_eq!(pages("s", limit(600)), [600, 401]);
    assert_eq!(pages("none", PageRequest::default()), [0]);
}

#[test]
fn a_page_counts_bytes_of_keys_and_values() {
    let mut driven = Driven::new(8);
    let value = vec![0; VALUE_BYTES_MAX];
    for number in 0..3 {
        driven.outcome(put(format!("long{number}").as_bytes(), &value));
        driven.outcome(put(format!("some{number}").as_bytes(), &value[..PAGE_BYTES_MAX / 2 - 5]));
    }
    let view = driven.view();
    let page = |prefix: &'static str, keys_only| {
        let request = PageRequest { keys_only, ..PageRequest::default() };
        let page = view.page(&Range::Prefix(Bytes::from(prefix)), &request).unwrap();
        (page.pairs.len(), page.next.is_some())
    };
    assert_eq!(page("long", false), (1, true), "one is over the limit by its key, and fits");
    assert_eq!(page("some", false), (2, true));
    assert_eq!(page("long", true), (3, false));
}

#[test]
fn a_token_that_no_page_gave_is_refused() {
    let mut driven = Driven::new(1);
    driven.outcome(put(b"k", b"v"));
    let long = [&[1][..], &[b'k'; 8_193]].concat();
    for token in [&b""[..], b"\x01", b"\x02k", b"\x01other", &long] {
        let token = Some(Bytes::copy_from_slice(token));
        let request = PageRequest { token, ..PageRequest::default() };
        let page = driven.view().page(&Range::Prefix(Bytes::from_static(b"k")), &request);
        assert_eq!(page, Err(Refusal::BadPageToken));
    }
}

#[test]
fn a_revision_is_one_shards() {
    let mut driven = Driven::new(4);
    driven.outcome(put(b"{t}a", b"1"));
    driven.outcome(put(b"{t}b", b"2"));
    driven.outcome(delete(b"{t}a"));
    let revision = Some(Revision(1));
    let request = PageRequest { revision, ..PageRequest::default() };
    let view = driven.view();
    assert_eq!(view.page(&Range::all(), &request), Err(Refusal::ManyShards));
    let tagged = Range::Prefix(Bytes::from_static(b"{t}"));
    let page = view.page(&tagged, &request).unwrap();
    assert_eq!(page.pairs.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"{t}a"]);
    let scope = Scope::Ranges(vec![tagged.clone()]);
    let Answer::View(one) = driven.machine.query(Query::View(scope)) else { panic!("a view") };
    assert_eq!(one.headers().count(), 1);
    assert_eq!(one.page(&tagged, &request).unwrap(), page);
    assert_eq!(one.count(&tagged, None), Ok(1));
}

#[test]
fn an_empty_interval_holds_nothing() {
    let mut driven = Driven::new(2);
    driven.outcome(put(b"k", b"v"));
    let interval = |start: &'static [u8], end: &'static [u8]| Range::Interval {
        start: Bytes::from_static(start),
        end: Bytes::from_static(end),
    };
    let count = |range: Range| driven.view().count(&range, None).unwrap();
    assert_eq!(count(interval(b"z", b"a")), 0);
    assert_eq!(count(interval(b"k", b"k")), 0);
    assert_eq!(count(interval(b"k", b"l")), 1);
    assert_eq!(count(interval(b"", b"")), 1);
    let request =
        PageRequest { token: Some(Bytes::from_static(b"\x01k")), ..PageRequest::default() };
    let rest = driven.view().page(&interval(b"k", b"l"), &request).unwrap();
    assert!(rest.pairs.is_empty() && rest.next.is_none());
}
