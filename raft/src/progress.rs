//! What a leader knows of one follower.
//!
//! ```text
//!            Matched                     window, pipelined
//!   Probe ------------> Replicate     one message at a time   Probe
//!     ^   <------------    |          entries are gone        Snapshot
//!     |     Conflict       |
//!     +---- Snapshot <-----+
//! ```

use std::collections::VecDeque;

use crate::{Config, Index};

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) state: State,
    /// The follower's log is durable and equal to the leader's up to here.
    matched: Index,
    /// The next entry to send; above `matched`.
    pub(crate) next: Index,
    /// The highest round that was sent.
    pub(crate) sent_round: u64,
    /// The highest round that was answered.
    acked_round: u64,
    /// Ticks since it was last heard.
    pub(crate) silent_ticks: u32,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Where the logs part is not known: one message at a time.
    Probe { waiting: bool },
    /// Entries are sent as they come, within the window.
    Replicate,
    /// It needs entries that are gone; the latest snapshot is on offer, at first the one at `from`.
    Snapshot { from: Index },
}

#[derive(Debug)]
struct InFlight {
    last: Index,
    bytes: u64,
}

impl Progress {
    pub(crate) fn new(next: Index) -> Self {
        Self {
            state: State::Probe { waiting: false },
            matched: Index(0),
            next,
            sent_round: 0,
            acked_round: 0,
            silent_ticks: u32::MAX,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    pub(crate) fn matched(&self) -> Index {
        self.matched
    }

    pub(crate) fn in_flight_messages(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Whether it was heard within an election timeout.
    pub(crate) fn is_active(&self, config: &Config) -> bool {
        self.silent_ticks < config.election_ticks_min
    }

    pub(crate) fn acked_round(&self) -> u64 {
        self.acked_round
    }

    pub(crate) fn heard_round(&mut self, round: u64) {
        self.acked_round = self.acked_round.max(round);
    }

    /// Whether another message with entries may be sent now.
    pub(crate) fn has_room(&self, config: &Config) -> bool {
        match self.state {
            State::Probe { waiting } => !waiting,
            State::Replicate => {
                self.in_flight.len() < config.inflight_messages_max
                    && self.in_flight_bytes < config.inflight_bytes_max
            }
            State::Snapshot { .. } => false,
        }
    }

    /// Entries of `bytes` up to `last` were sent.
    pub(crate) fn sent(&mut self, last: Index, bytes: u64) {
        match self.state {
            State::Probe { .. } => {
                self.state = State::Probe { waiting: true };
                self.forget_in_flight();
            }
            State::Replicate => self.next = last.next(),
            State::Snapshot { .. } => return,
        }
        self.in_flight.push_back(InFlight { last, bytes });
        self.in_flight_bytes += bytes;
    }

    /// The follower's log is durable and equal up to `index`. Whether that is news. The leader's log
    /// goes on behind `base`.
    pub(crate) fn on_matched(&mut self, index: Index, base: Index) -> bool {
        let news = index > self.matched;
        self.matched = self.matched.max(index);
        while let Some(message) = self.in_flight.pop_front_if(|message| message.last <= index) {
            self.in_flight_bytes -= message.bytes;
        }
        self.next = self.next.max(self.matched.next());
        match self.state {
            State::Probe { .. } => {
                // What the probe carries is on the follower's disk or on its way there: if it was
                // lost after all, the next heartbeat is refused.
                let carried = self.in_flight.back().map_or(Index(0), |message| message.last);
                self.next = self.next.max(carried.next());
                self.state = State::Replicate;
            }
            // Whatever brought it there, an install or not: the log takes over as soon as it can.
            State::Snapshot { .. } if self.matched >= base => self.probe(self.matched.next()),
            State::Replicate | State::Snapshot { .. } => {}
        }
        news
    }

    /// Whether a refusal of `refused` speaks of the message that is on its way, not of an older one.
    pub(crate) fn is_current_conflict(&self, refused: Index) -> bool {
        match self.state {
            State::Probe { .. } => refused.next() == self.next,
            State::Replicate => refused > self.matched,
            State::Snapshot { .. } => false,
        }
    }

    /// Goes back to one message at a time, beginning at `next`.
    pub(crate) fn probe(&mut self, next: Index) {
        self.state = State::Probe { waiting: false };
        self.next = next.max(self.matched.next());
        self.forget_in_flight();
    }

    /// A snapshot is needed. It is offered with every heartbeat, and one is due at once.
    pub(crate) fn offer(&mut self, from: Index) {
        self.state = State::Snapshot { from };
        self.sent_round = 0;
        self.forget_in_flight();
    }

    fn forget_in_flight(&mut self) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }
}
