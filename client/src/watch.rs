//! Changes as they happen: a watch that goes on elsewhere when its member is lost, or a shard moves.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use proto::{
    kv::{ShardRevision, WatchEvents, WatchRequest},
    metadata,
};

use crate::{
    Keys, KvClient, Pair, Rejected,
    streams::{Streams, Told},
};

/// How often a member tells that nothing is missing.
const PROGRESS: Duration = Duration::from_secs(5);

/// What is wanted of a watch beside its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Go on behind these revisions, by shard; shards that are not named begin with what comes now.
    pub after: BTreeMap<u32, u64>,
    /// Tell what was there before each change, too.
    pub previous: bool,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// What it holds now; none: it was removed.
    pub pair: Option<Pair>,
    /// What it held before, if that was asked for.
    pub previous: Option<Pair>,
    /// It was removed since its lease ended.
    pub expired: bool,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// What changed, atomically, in one revision of one shard. Of one shard revisions rise.
    Changed {
        /// The shard.
        shard: u32,
        /// Its revision.
        revision: u64,
        /// The changes, by key; no key twice.
        events: Vec<Event>,
    },
    /// Nothing is missing: [`Watch::position`] may be kept to go on from.
    Progress,
    /// The changes that would have to come next are compacted: read what is there now. The watch is
    /// over.
    Compacted {
        /// In this shard.
        shard: u32,
        /// Up to this revision.
        revision: u64,
    },
}

/// A watch: each change is told once, in the order of its shard's revisions, without gaps, whatever
/// becomes of members meanwhile, and wherever shards move.
#[derive(Debug)]
pub struct Watch {
    streams: Streams,
    /// Up to where everything was told, or looked at.
    position: BTreeMap<u32, u64>,
    begun: bool,
    /// What was heard with the beginning.
    ready: VecDeque<Watched>,
}

impl KvClient {
    /// Watches keys.
    pub fn watch(&self, keys: Vec<Keys>, options: WatchOptions) -> Watch {
        let after = options.after.iter();
        let request = WatchRequest {
            ranges: keys.into_iter().map(|keys| keys.to_wire()).collect(),
            after: after.map(|(&shard, &revision)| ShardRevision { shard, revision }).collect(),
            previous: options.previous,
            progress_ms: u32::try_from(PROGRESS.as_millis()).unwrap_or(u32::MAX),
            shards: Vec::new(),
        };
        Watch {
            streams: Streams::new(self.router().clone(), request),
            position: options.after,
            begun: false,
            ready: VecDeque::new(),
        }
    }
}

impl Watch {
    /// Begins now, not with the first [`Watch::next`]: what changes from here on is told.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn begin(&mut self) -> Result<(), Rejected> {
        while !self.begun && self.ready.is_empty() {
            match self.hear().await? {
                Some(watched) => self.ready.extend(watched),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// What is told next, however long it takes; none when the watch is over. Nothing is lost when
    /// the call is dropped.
    ///
    /// # Errors
    /// [`Rejected`]: what is asked for is wrong, or no member answers within the deadline of the
    /// client's options. Whatever it is, the next call tries again.
    pub async fn next(&mut self) -> Result<Option<Watched>, Rejected> {
        loop {
            if let Some(watched) = self.ready.pop_front() {
                self.note(&watched);
                return Ok(Some(watched));
            }
            match self.hear().await? {
                Some(watched) => self.ready.extend(watched),
                None => return Ok(None),
            }
        }
    }

    /// Up to where everything has been told, by shard: what [`WatchOptions::after`] goes on from.
    pub fn position(&self) -> &BTreeMap<u32, u64> {
        &self.position
    }

    /// What is heard next, if it is anything that is told; none at the end.
    async fn hear(&mut self) -> Result<Option<Option<Watched>>, Rejected> {
        let told = self.streams.next().await;
        let told = told.map_err(|refusal| Rejected::from_status(&metadata::status(refusal)))?;
        Ok(told.map(|told| match told {
            Told::Begun { after, .. } => {
                self.begun = true;
                self.position = after;
                None
            }
            Told::Changed(parts) => changed(parts),
            Told::Progress(revisions) => {
                self.position.extend(revisions.iter().map(|at| (at.shard, at.revision)));
                Some(Watched::Progress)
            }
            Told::Compacted(compacted) => {
                let (shard, revision) = (compacted.shard, compacted.compacted_revision);
                Some(Watched::Compacted { shard, revision })
            }
        }))
    }

    /// The caller has it.
    fn note(&mut self, watched: &Watched) {
        if let Watched::Changed { shard, revision, .. } = watched {
            self.position.insert(*shard, *revision);
        }
    }
}

/// What one revision changed, of its parts.
fn changed(parts: Vec<WatchEvents>) -> Option<Watched> {
    let WatchEvents { shard, revision, .. } = *parts.last()?;
    let events = parts.into_iter().flat_map(|part| part.events).map(|event| Event {
        key: event.key,
        pair: event.pair.map(Pair::from),
        previous: event.previous.map(Pair::from),
        expired: event.expired,
    });
    Some(Watched::Changed { shard, revision, events: events.collect() })
}
