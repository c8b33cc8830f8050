//! The tasks of one job that wait to be given out, and in which order.
//!
//! Decides the order: the task with the most input first, since the longest one should not begin
//! last; then by number. Sizes of maps are in the plan; those of reduces are not known, so these
//! go by their partition. Every step costs the logarithm of the number of tasks at most.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    ids::{TaskId, TaskKind},
    leases::Millis,
    spec::Plan,
};

/// A task's place in the order.
type Place = (Reverse<u64>, u32);

#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Input bytes of the maps, once the plan is known.
    sizes: Vec<u64>,
    ready: [BTreeSet<Place>; 2],
    /// Tasks that wait for a time.
    delayed: BTreeSet<(Millis, TaskId)>,
    until: BTreeMap<TaskId, Millis>,
    /// Tasks that wait for a decision.
    held: BTreeSet<TaskId>,
}

impl Pending {
    /// Takes in the sizes of the maps.
    pub(super) fn learn(&mut self, plan: &Plan) {
        let maps = std::mem::take(&mut self.ready[TaskKind::Map.slot()]);
        let count = u32::try_from(plan.maps.len()).expect("a job has at most 10,000 maps");
        self.sizes = (0..count).map(|task| plan.map_bytes(task)).collect();
        for (_, number) in maps {
            self.insert(TaskId::map(number));
        }
    }

    /// The input bytes of the maps, once the plan is known.
    pub(super) fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// The input bytes of a task, where they are known.
    pub(super) fn size(&self, task: TaskId) -> Option<u64> {
        match task.kind {
            TaskKind::Map => self.sizes.get(task.number as usize).copied(),
            TaskKind::Reduce => None,
        }
    }

    fn place(&self, task: TaskId) -> Place {
        (Reverse(self.size(task).unwrap_or(0)), task.number)
    }

    fn insert(&mut self, task: TaskId) {
        let place = self.place(task);
        self.ready[task.kind.slot()].insert(place);
    }

    /// Makes a task pending from `at` on, unless it waits already.
    pub(super) fn offer(&mut self, task: TaskId, at: Millis, now: Millis) {
        let ready = self.ready[task.kind.slot()].contains(&self.place(task));
        if ready || self.held.contains(&task) || self.until.contains_key(&task) {
            return;
        }
        if at <= now {
            self.insert(task);
        } else {
            self.delayed.insert((at, task));
            self.until.insert(task, at);
        }
    }

    /// Takes a task out, wherever it waits but for a decision.
    pub(super) fn withdraw(&mut self, task: TaskId) {
        let place = self.place(task);
        self.ready[task.kind.slot()].remove(&place);
        if let Some(at) = self.until.remove(&task) {
            self.delayed.remove(&(at, task));
        }
    }

    /// Keeps a task until [`Pending::release`].
    pub(super) fn hold(&mut self, task: TaskId) {
        self.withdraw(task);
        self.held.insert(task);
    }

    pub(super) fn release(&mut self, task: TaskId) {
        self.held.remove(&task);
    }

    pub(super) fn clear(&mut self) {
        let sizes = std::mem::take(&mut self.sizes);
        *self = Self { sizes, ..Self::default() };
    }

    /// Tasks whose time has come are ready; whether there was one.
    pub(super) fn ripen(&mut self, now: Millis) -> bool {
        let mut any = false;
        while let Some((at, task)) = self.delayed.first().copied()
            && at <= now
        {
            self.delayed.pop_first();
            self.until.remove(&task);
            self.insert(task);
            any = true;
        }
        any
    }

    /// How many tasks of a kind could be given out now.
    pub(super) fn ready(&self, kind: TaskKind) -> usize {
        self.ready[kind.slot()].len()
    }

    /// Whether no task waits for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.iter().all(BTreeSet::is_empty) && self.until.is_empty() && self.held.is_empty()
    }

    /// Takes the first task of a kind that fits.
    pub(super) fn take(&mut self, kind: TaskKind, fits: impl Fn(TaskId) -> bool) -> Option<TaskId> {
        let ready = &mut self.ready[kind.slot()];
        let place = *ready.iter().find(|(_, number)| fits(TaskId { kind, number: *number }))?;
        ready.remove(&place);
        Some(TaskId { kind, number: place.1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Split;

    fn plan(sizes: &[u64]) -> Plan {
        let split = |bytes: &u64| Split {
            path: "a".into(),
            start: 0,
            bytes: *bytes,
            file_bytes: *bytes,
            ..Split::default()
        };
        Plan { maps: sizes.iter().map(|bytes| vec![split(bytes)]).collect(), ..Plan::default() }
    }

    #[test]
    fn longest_map_goes_first_even_when_the_plan_is_learned_late() {
        let mut pending = Pending::default();
        for number in 0..4 {
            pending.offer(TaskId::map(number), Millis(0), Millis(0));
            pending.offer(TaskId::reduce(number), Millis(0), Millis(0));
        }
        pending.learn(&plan(&[5, 70, 5, 60]));
        let mut take = |kind| pending.take(kind, |_| true).map(|task| task.number);
        let maps: Vec<_> = std::iter::from_fn(|| take(TaskKind::Map)).collect();
        assert_eq!(maps, [1, 3, 0, 2]);
        let reduces: Vec<_> = std::iter::from_fn(|| take(TaskKind::Reduce)).collect();
        assert_eq!(reduces, [0, 1, 2, 3]);
    }

    #[test]
    fn task_waits_in_one_place_only() {
        let mut pending = Pending::default();
        let task = TaskId::map(0);
        pending.offer(task, Millis(10), Millis(0));
        pending.offer(task, Millis(0), Millis(0));
        assert_eq!(pending.ready(TaskKind::Map), 0, "it has to wait until 10");
        assert!(pending.ripen(Millis(10)) && !pending.ripen(Millis(10)));
        assert_eq!(pending.ready(TaskKind::Map), 1);
        pending.hold(task);
        pending.offer(task, Millis(0), Millis(20));
        assert!(pending.ready(TaskKind::Map) == 0 && !pending.is_empty());
        pending.release(task);
        assert!(pending.is_empty());
    }
}
