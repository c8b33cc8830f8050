//! Some keys: one, those with a prefix, or those from one to another.
//!
//! Decides which keys belong, and whether all of them must be in one shard.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use bytes::Bytes;
use proto::{shard_of, shard_of_prefix};

/// Some keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Range {
    /// This one.
    Key(Bytes),
    /// Those that begin with this; empty: all.
    Prefix(Bytes),
    /// Those from one to another.
    Interval {
        /// The first one; empty: from the beginning.
        start: Bytes,
        /// The one behind the last; empty: to the end.
        end: Bytes,
    },
}

impl Range {
    /// All keys.
    pub fn all() -> Self {
        Self::Prefix(Bytes::new())
    }

    /// Whether the key belongs to it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(one) => one == key,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Interval { start, end } => *start <= *key && (end.is_empty() || *end > *key),
        }
    }

    /// The shard in which all its keys are, if they must be in one: that of a single key, or of a
    /// prefix with a whole tag.
    pub fn shard(&self, shards: u32) -> Option<u32> {
        match self {
            Self::Key(key) => Some(shard_of(key, shards)),
            Self::Prefix(prefix) => shard_of_prefix(prefix, shards),
            Self::Interval { .. } => (shards == 1).then_some(0),
        }
    }

    /// Its first and last keys; none when it is empty.
    pub(crate) fn bounds(&self) -> Option<(Bound<Bytes>, Bound<Bytes>)> {
        let bounds = match self {
            Self::Key(key) => (Included(key.clone()), Included(key.clone())),
            Self::Prefix(prefix) => {
                let start = if prefix.is_empty() { Unbounded } else { Included(prefix.clone()) };
                (start, behind(prefix).map_or(Unbounded, Excluded))
            }
            Self::Interval { start, end } => {
                if !end.is_empty() && start >= end {
                    return None;
                }
                let first = if start.is_empty() { Unbounded } else { Included(start.clone()) };
                (first, if end.is_empty() { Unbounded } else { Excluded(end.clone()) })
            }
        };
        Some(bounds)
    }
}

/// The first key behind all that begin with the prefix, if there is one.
fn behind(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn within(key: &[u8], bounds: Option<(Bound<Bytes>, Bound<Bytes>)>) -> bool {
        let Some((start, end)) = bounds else { return false };
        let after = match &start {
            Unbounded => true,
            Included(start) => key >= &start[..],
            Excluded(start) => key > &start[..],
        };
        after
            && match &end {
                Unbounded => true,
                Included(end) => key <= &end[..],
                Excluded(end) => key < &end[..],
            }
    }

    fn few() -> impl Strategy<Value = Bytes> {
        let byte = prop_oneof![Just(0_u8), Just(b'a'), Just(b'{'), Just(b'}'), Just(u8::MAX)];
        proptest::collection::vec(byte, 0..5).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn bounds_hold_what_belongs(key in few(), one in few(), other in few()) {
            for range in [
                Range::Key(one.clone()),
                Range::Prefix(one.clone()),
                Range::Interval { start: one.clone(), end: other.clone() },
            ] {
                prop_assert_eq!(range.contains(&key), within(&key, range.bounds()), "{:?}", range);
                if let (true, Some(shard)) = (range.contains(&key), range.shard(7)) {
                    prop_assert_eq!(shard, shard_of(&key, 7), "{:?}", range);
                }
            }
        }
    }
}
