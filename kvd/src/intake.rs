//! Which shards are copied to this group now, of all that are to come.
//!
//! Decides how many come from each group at a time, which come first, and when a copy that has stopped
//! begins again. A function of what it is told and of the time; copying is done elsewhere.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{custody::MoveNumber, steward::GroupNumber};

/// How long a shard rests whose copy has stopped, at first and at most.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A shard that is to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coming {
    /// Some of it may be here, and it may be frozen.
    pub(crate) begun: bool,
    pub(crate) shard: u32,
    pub(crate) number: MoveNumber,
    pub(crate) from: GroupNumber,
}

/// What is under way, each copy with what is needed to end it.
pub(crate) struct Intake<T> {
    /// How many shards come from each group at a time.
    slots: usize,
    copies: BTreeMap<u32, Copying<T>>,
    /// Those whose copy has stopped.
    stopped: BTreeMap<u32, Stop>,
}

struct Copying<T> {
    number: MoveNumber,
    from: GroupNumber,
    task: T,
}

struct Stop {
    number: MoveNumber,
    until: Instant,
    backoff: Duration,
    /// How often what came was wrong.
    damaged: u32,
}

impl<T> Intake<T> {
    /// With so many slots for each group.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots, copies: BTreeMap::new(), stopped: BTreeMap::new() }
    }

    /// Forgets what is not to come any more, and gives its copies to be ended.
    pub(crate) fn keep(&mut self, wanted: &[Coming], now: Instant) -> Vec<T> {
        let wanted: BTreeMap<u32, MoveNumber> =
            wanted.iter().map(|coming| (coming.shard, coming.number)).collect();
        // Of what it has just waited for a shard may be told anew.
        self.stopped.retain(|shard, stop| stop.until > now || wanted.contains_key(shard));
        let is_over =
            |shard: &u32, copying: &mut Copying<T>| wanted.get(shard) != Some(&copying.number);
        self.copies.extract_if(.., is_over).map(|(_, copying)| copying.task).collect()
    }

    /// Starts copies of what is to come, as many as may be: what has begun before what has not.
    pub(crate) fn begin(
        &mut self,
        mut wanted: Vec<Coming>,
        now: Instant,
        mut start: impl FnMut(Coming) -> T,
    ) {
        wanted.sort_by_key(|coming| (!coming.begun, coming.shard));
        for coming in wanted {
            let Coming { begun, shard, number, from } = coming;
            let stopped = self.stopped.get(&shard).filter(|stop| stop.number == number);
            let rests = stopped.is_some_and(|stop| stop.until > now);
            let busy = self.copies.values().filter(|copying| copying.from == from).count();
            // What has begun may be frozen, and waits for nothing else.
            let waits = !begun && busy >= self.slots;
            if !rests && !waits && !self.copies.contains_key(&shard) {
                self.copies.insert(shard, Copying { number, from, task: start(coming) });
            }
        }
    }

    /// A copy is whole.
    pub(crate) fn done(&mut self, shard: u32, number: MoveNumber) {
        self.end(shard, number);
        self.stopped.remove(&shard);
    }

    /// A copy has stopped, and the shard rests, the longer the more often that happens in a row; how
    /// often what came was wrong.
    pub(crate) fn stopped(
        &mut self,
        shard: u32,
        number: MoveNumber,
        was_damaged: bool,
        now: Instant,
    ) -> u32 {
        self.end(shard, number);
        let before = self.stopped.get(&shard).filter(|stop| stop.number == number);
        let backoff = before.map_or(BACKOFF_MIN, |stop| (2 * stop.backoff).min(BACKOFF_MAX));
        let damaged = before.map_or(0, |stop| stop.damaged) + u32::from(was_damaged);
        self.stopped.insert(shard, Stop { number, until: now + backoff, backoff, damaged });
        damaged
    }

    /// When the next shard has rested.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.stopped.values().map(|stop| stop.until).filter(|until| *until > now).min()
    }

    fn end(&mut self, shard: u32, number: MoveNumber) {
        if self.copies.get(&shard).is_some_and(|copying| copying.number == number) {
            self.copies.remove(&shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: MoveNumber = MoveNumber(7);
    const NONE: [u32; 0] = [];

    fn coming(shard: u32, from: GroupNumber) -> Coming {
        Coming { begun: false, shard, number: FIRST, from }
    }

    fn begun(shard: u32, from: GroupNumber) -> Coming {
        Coming { begun: true, ..coming(shard, from) }
    }

    /// Each copy is its shard.
    fn begin(intake: &mut Intake<u32>, wanted: &[Coming], now: Instant) -> Vec<u32> {
        let mut started = Vec::new();
        intake.begin(wanted.to_vec(), now, |coming| {
            started.push(coming.shard);
            coming.shard
        });
        started
    }

    #[test]
    fn so_many_come_from_each_group_at_a_time() {
        let (mut intake, now) = (Intake::new(2), Instant::now());
        let wanted: Vec<_> = (0..8).map(|shard| coming(shard, 1 + shard % 2)).collect();
        assert_eq!(begin(&mut intake, &wanted, now), [0, 1, 2, 3]);
        assert_eq!(begin(&mut intake, &wanted, now), NONE);
        intake.done(1, FIRST);
        intake.done(0, MoveNumber(1));
        assert_eq!(begin(&mut intake, &wanted[2..], now), [5], "only its own move ends a copy");
    }

    #[test]
    fn what_may_be_frozen_comes_first_and_waits_for_no_slot() {
        let (mut intake, now) = (Intake::new(1), Instant::now());
        let wanted = [coming(0, 1), coming(1, 1), begun(2, 1), begun(3, 1)];
        assert_eq!(begin(&mut intake, &wanted, now), [2, 3]);
        intake.done(2, FIRST);
        assert_eq!(begin(&mut intake, &wanted[..2], now), NONE);
        intake.done(3, FIRST);
        assert_eq!(begin(&mut intake, &wanted[..2], now), [0]);
    }

    #[test]
    fn a_shard_whose_copy_stops_rests_longer_and_longer_and_holds_up_no_other() {
        let (mut intake, mut now) = (Intake::new(1), Instant::now());
        let wanted = [coming(0, 1), coming(1, 1)];
        let mut rested = Vec::new();
        for stops in 1..=6 {
            assert_eq!(begin(&mut intake, &wanted, now), [0]);
            assert_eq!(intake.stopped(0, FIRST, stops != 2, now), stops - u32::from(stops >= 2));
            let next = intake.next(now).unwrap();
            rested.push((next - now).as_millis());
            assert_eq!(begin(&mut intake, &wanted, next - Duration::from_millis(1)), [1]);
            assert_eq!(begin(&mut intake, &wanted, next), NONE, "it has no slot for itself");
            intake.done(1, FIRST);
            now = next;
        }
        assert_eq!(rested, [50, 100, 200, 400, 800, 1_000]);
        assert_eq!(begin(&mut intake, &wanted, now), [0]);
        intake.done(0, FIRST);
        assert_eq!(intake.next(now), None);
        assert_eq!(intake.stopped(0, FIRST, false, now), 0, "what went before is forgotten");
    }

    #[test]
    fn another_move_does_not_rest_for_the_last_one() {
        let (mut intake, now) = (Intake::new(1), Instant::now());
        assert_eq!(begin(&mut intake, &[coming(0, 1)], now), [0]);
        intake.stopped(0, FIRST, true, now);
        let later = Coming { number: MoveNumber(9), ..coming(0, 2) };
        assert_eq!(begin(&mut intake, &[coming(0, 1)], now), NONE);
        assert_eq!(begin(&mut intake, &[later], now), [0]);
        assert_eq!(intake.stopped(0, later.number, true, now), 1);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_given_to_be_ended() {
        let (mut intake, now) = (Intake::new(4), Instant::now());
        let wanted = [coming(0, 1), coming(1, 1), coming(2, 1)];
        begin(&mut intake, &wanted, now);
        assert_eq!(intake.keep(&wanted, now), NONE);
        let later = Coming { number: MoveNumber(9), ..coming(1, 2) };
        assert_eq!(intake.keep(&[coming(0, 1), later], now), [1, 2]);
        assert_eq!(begin(&mut intake, &[coming(0, 1), later], now), [1]);
        // Who rests, and is not to come any more, is forgotten when it has rested.
        intake.stopped(0, FIRST, false, now);
        assert_eq!(intake.keep(&[later], now), NONE);
        let rested = intake.next(now).unwrap();
        intake.keep(&[later], rested);
        assert_eq!(intake.stopped.len(), 0);
    }
}
