//! That the judge can say no: what was recorded, with one thing made wrong in each way that a store
//! can go wrong.

use bytes::Bytes;
use kvd::outcome::{Answered, Header, Outcome, Pair, Revision, Version};
use sim::operation::{Done, Kind, Operation, OperationName, Verdict};

use crate::history::{Record, judge};

/// Somebody who asked nothing in the run.
const NOBODY: OperationName = OperationName { client: u64::MAX, number: 1 };

/// What is wrong, and the history with it.
pub(crate) type Wrong = (&'static str, Vec<Record>);

/// The history with each kind of wrong; none if it has no place for all of them.
pub(crate) fn plant(records: &[Record]) -> Option<[Wrong; 3]> {
    Some([
        ("a stale read", stale_read(records)?),
        ("a lost update", lost_update(records)?),
        ("a doubled append", doubled_append(records)?),
    ])
}

/// What was planted is found, and without it there is nothing to be found.
pub(crate) fn check(records: &[Record], planted: &[Wrong]) {
    judge(records).unwrap();
    for (what, records) in planted {
        assert!(judge(records).is_err(), "{what} in a recorded history is not found");
    }
}

fn read(record: &Record) -> Option<(&Header, Option<&Pair>)> {
    match record.ended.as_ref() {
        Some((_, Verdict::Done(Done::Read(header, found)))) => Some((header, found.as_ref())),
        _ => None,
    }
}

fn appended(record: &Record) -> bool {
    matches!(
        &record.ended,
        Some((
            _,
            Verdict::Done(Done::Executed(_, Answered { outcome: Outcome::Appended { .. }, .. }))
        ))
    )
}

/// The last read of a key, which is behind all that was asked of it.
fn last_read<'a>(records: &'a [Record], key: &Bytes) -> Option<&'a Record> {
    let of_key = records.iter().filter(|record| record.operation.key == *key);
    of_key.filter(|record| read(record).is_some()).max_by_key(|record| record.begun_us)
}

/// When everything is over, somebody reads what was there once.
fn stale_read(records: &[Record]) -> Option<Vec<Record>> {
    let over_us = records.iter().filter_map(|record| record.ended.as_ref()).map(|it| it.0).max()?;
    let stale = records.iter().find_map(|old| {
        let (_, pair) = read(old)?;
        let last = last_read(records, &old.operation.key)?;
        let (header, now) = read(last)?;
        let is_old = now.is_none_or(|now| now.mod_revision > pair.unwrap_or(now).mod_revision);
        let found = Some(pair?.clone()).filter(|_| is_old);
        let verdict = Verdict::Done(Done::Read(*header, Some(found?)));
        let (begun_us, ended) = (over_us + 1, Some((over_us + 2, verdict)));
        Some(Record { name: NOBODY, operation: old.operation.clone(), begun_us, ended })
    })?;
    Some(
        records
            .iter()
            .cloned()
            .chain([Record {
                operation: Operation { kind: Kind::Get, ..stale.operation },
                ..stale
            }])
            .collect(),
    )
}

/// Two appends are told that they made the same version out of the same value.
fn lost_update(records: &[Record]) -> Option<Vec<Record>> {
    let one = records.iter().find(|record| appended(record))?;
    let Kind::Append { value_bytes_max, .. } = one.operation.kind else { return None };
    let kind = Kind::Append { value: NOBODY.token(0), value_bytes_max };
    let operation = Operation { kind, ..one.operation.clone() };
    let other = Record { name: NOBODY, operation, ..one.clone() };
    Some(records.iter().cloned().chain([other]).collect())
}

/// The last read of a key finds what was appended last twice.
fn doubled_append(records: &[Record]) -> Option<Vec<Record>> {
    let (name, token) = records.iter().find_map(|append| {
        let Kind::Append { value, .. } = &append.operation.kind else { return None };
        let last = last_read(records, &append.operation.key)?;
        let ends_so = read(last)?.1.is_some_and(|pair| pair.value.ends_with(value));
        (ends_so && appended(append)).then(|| (last.name, value.clone()))
    })?;
    let mut wrong = records.to_vec();
    let record = wrong.iter_mut().find(|record| record.name == name)?;
    let Some((_, Verdict::Done(Done::Read(header, Some(pair))))) = &mut record.ended else {
        return None;
    };
    header.revision = Revision(header.revision.0 + 1);
    *pair = Pair {
        value: [&pair.value[..], &token[..]].concat().into(),
        version: Version(pair.version.0 + 1),
        mod_revision: header.revision,
        ..pair.clone()
    };
    Some(wrong)
}
