//! The numbers of the protocol, each a type of its own so that none can be mistaken for another.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A member of a group; at least 1, never used twice in the life of a group.
    NodeId
);
number!(
    /// An election term (Raft, section 5.1); 0 before the first election.
    Term
);
number!(
    /// A place in the log; the first entry has index 1, and 0 stands for "before the log".
    Index
);
number!(
    /// Names a write that the core asked for; they grow by one.
    WriteId
);
number!(
    /// Names a linearizable read; chosen by the driver.
    ReadId
);
number!(
    /// Names a proposal; chosen by the driver, never twice in one incarnation of a replica.
    TicketId
);
number!(
    /// The time of a group, in milliseconds: what leases and expiries are counted in.
    ///
    /// Not wall time. Each leader continues from the stamp of the last entry in its log by its own
    /// monotonic clock, so stamps never fall, and pauses and elections only stretch it.
    GroupTime
);
number!(
    /// The driver's monotonic clock, in microseconds from any fixed beginning.
    Instant
);

impl Index {
    /// The index behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; that of 0 is 0.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Term {
    /// The term behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A place in the log together with the term of the entry there: by Log Matching (section 5.3) it
/// names one history. The order is the up-to-date order of section 5.4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The term of the entry.
    pub term: Term,
    /// Its index.
    pub index: Index,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}
