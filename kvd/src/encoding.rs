//! The bytes of a command.
//!
//! Decides the encoding, which lives in logs for ever: a version byte first, so that a member can
//! tell a command that it is too old for. Decoding is total: it never panics, and allocates
//! nothing by a number that was merely read. A value comes last where there is only one, so that
//! it needs no length.

use bytes::Bytes;
use raftd::codec::{Malformed, Reader, put_bytes, put_number};

use crate::{
    command::{
        Action, BadCommand, Bounds, COMMAND_VERSION, ClientId, Command, Compare, Condition, Guard,
        LeaseId, Operand, Operation, Relation, RequestId, Tenure, Token, Txn, check_version,
    },
    limits::{KEEP_ALIVE_LEASES_MAX, TXN_OPERATIONS_MAX},
    outcome::{Revision, ShardTime, Version},
    step::{STEP_VERSION, Step},
};

const KIND_PUT: u8 = 1;
const KIND_APPEND: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_TXN: u8 = 4;
const KIND_COMPACT: u8 = 5;
const KIND_GRANT: u8 = 6;
const KIND_KEEP_ALIVE: u8 = 7;
const KIND_REVOKE: u8 = 8;
const KIND_EXPIRE: u8 = 9;
const KIND_ACQUIRE: u8 = 10;
const KIND_RELEASE: u8 = 11;

const FLAG_ID: u8 = 1;
const FLAG_GUARD: u8 = 2;
/// Its bounds are not the default.
const FLAG_BOUNDS: u8 = 4;

const ALWAYS: u8 = 0;
const EXPECTED_VERSION: u8 = 1;
const EXPECTED_REVISION: u8 = 2;

const OPERAND_VERSION: u8 = 1;
const OPERAND_CREATE_REVISION: u8 = 2;
const OPERAND_MOD_REVISION: u8 = 3;
const OPERAND_VALUE: u8 = 4;
const OPERAND_LEASE: u8 = 5;

const ACTION_GET: u8 = 1;
const ACTION_PUT: u8 = 2;
const ACTION_APPEND: u8 = 3;
const ACTION_DELETE: u8 = 4;

const TENURE_OWN: u8 = 1;
const TENURE_LEASE: u8 = 2;

/// What an entry of the log is.
pub(crate) enum Entry<'a> {
    /// A command to a shard.
    Command(Command<'a>),
    /// A step of a shard's move.
    Step(Step<'a>),
}

impl<'a> Entry<'a> {
    /// Reads an entry.
    ///
    /// # Errors
    /// [`BadCommand`]; never panics, whatever the bytes.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, BadCommand> {
        match bytes.first() {
            Some(&STEP_VERSION) => Step::decode(bytes).map(Self::Step),
            Some(_) | None => Command::decode(bytes).map(Self::Command),
        }
    }
}

impl<'a> Command<'a> {
    /// The bytes for the log.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.operation.bytes() + 96);
        out.extend_from_slice(&[COMMAND_VERSION, self.operation.kind()]);
        put_number(&mut out, u64::from(self.shards));
        let id_flag = if self.id.is_some() { FLAG_ID } else { 0 };
        let guard_flag = if self.guard.is_some() { FLAG_GUARD } else { 0 };
        let bounded = self.bounds != Bounds::default();
        out.push(id_flag | guard_flag | if bounded { FLAG_BOUNDS } else { 0 });
        if let Some(id) = &self.id {
            out.extend_from_slice(&id.client.0);
            put_number(&mut out, id.sequence);
            put_number(&mut out, id.acknowledged);
            put_number(&mut out, id.expires.0);
        }
        if let Some(guard) = &self.guard {
            put_bytes(&mut out, guard.lock);
            put_number(&mut out, guard.token.0);
        }
        if bounded {
            put_number(&mut out, self.bounds.value_bytes_max);
            put_number(&mut out, self.bounds.stored_bytes_max);
        }
        self.operation.encode(&mut out);
        Bytes::from(out)
    }

    /// Reads a command from the log.
    ///
    /// # Errors
    /// [`BadCommand`]; never panics, whatever the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BadCommand> {
        check_version(bytes)?;
        let mut reader = Reader::new(bytes);
        if reader.byte("command version")? != COMMAND_VERSION {
            return Err(Malformed("command version").into());
        }
        let kind = reader.byte("command kind")?;
        let shards = reader.number32("number of shards")?;
        let flags = reader.byte("flags")?;
        if flags & !(FLAG_ID | FLAG_GUARD | FLAG_BOUNDS) != 0 {
            return Err(Malformed("flags").into());
        }
        let id = (flags & FLAG_ID != 0).then(|| decode_id(&mut reader)).transpose()?;
        let guard = (flags & FLAG_GUARD != 0).then(|| decode_guard(&mut reader)).transpose()?;
        let bounds = match flags & FLAG_BOUNDS {
            0 => Bounds::default(),
            _ => Bounds {
                value_bytes_max: reader.number("value limit")?,
                stored_bytes_max: reader.number("limit of what is stored")?,
            },
        };
        let operation = Operation::decode(kind, &mut reader)?;
        let unfit =
            id.is_some() && !operation.takes_id() || guard.is_some() && !operation.takes_guard();
        if unfit {
            return Err(Malformed("flags").into());
        }
        if !reader.is_empty() {
            return Err(Malformed("end").into());
        }
        Ok(Self { shards, id, guard, bounds, operation })
    }
}

impl<'a> Operation<'a> {
    fn kind(&self) -> u8 {
        match self {
            Self::Put { .. } => KIND_PUT,
            Self::Append { .. } => KIND_APPEND,
            Self::Delete { .. } => KIND_DELETE,
            Self::Txn(_) => KIND_TXN,
            Self::Compact { .. } => KIND_COMPACT,
            Self::Grant { .. } => KIND_GRANT,
            Self::KeepAlive { .. } => KIND_KEEP_ALIVE,
            Self::Revoke { .. } => KIND_REVOKE,
            Self::Expire { .. } => KIND_EXPIRE,
            Self::Acquire { .. } => KIND_ACQUIRE,
            Self::Release { .. } => KIND_RELEASE,
        }
    }

    /// How long it is encoded, about.
    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } | Self::Append { key, value } => key.len() + value.len(),
            Self::Delete { key } | Self::Grant { key, .. } => key.len(),
            Self::Txn(txn) => {
                let compares = txn.compares.iter().map(|compare| compare.key.len() + 16);
                compares.chain(txn.actions().map(action_bytes)).sum()
            }
            Self::KeepAlive { leases } => leases.len() * 8,
            Self::Acquire { name, owner, .. } => name.len() + owner.len(),
            Self::Release { name, .. } => name.len(),
            Self::Compact { .. } | Self::Revoke { .. } | Self::Expire { .. } => 0,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { key, value, condition, lease } => {
                put_condition(out, *condition);
                put_lease(out, *lease);
                put_bytes(out, key);
                out.extend_from_slice(value);
            }
            Self::Append { key, value } => {
                put_bytes(out, key);
                out.extend_from_slice(value);
            }
            Self::Delete { key } => put_bytes(out, key),
            Self::Txn(txn) => encode_txn(out, txn),
            Self::Compact { shard, revision } => {
                put_number(out, u64::from(*shard));
                out.push(u8::from(revision.is_some()));
                if let Some(revision) = revision {
                    put_number(out, revision.0);
                }
            }
            Self::Grant { key, ttl_ms } => {
                put_bytes(out, key);
                put_number(out, *ttl_ms);
            }
            Self::KeepAlive { leases } => {
                put_number(out, leases.len() as u64);
                leases.iter().for_each(|lease| put_number(out, lease.get()));
            }
            Self::Revoke { lease } => put_number(out, lease.get()),
            Self::Expire { lease, renewal } => {
                put_number(out, lease.get());
                put_number(out, *renewal);
            }
            Self::Acquire { name, tenure, wait_ms, owner } => {
                put_bytes(out, name);
                let (kind, number) = match tenure {
                    Tenure::Own { ttl_ms } => (TENURE_OWN, *ttl_ms),
                    Tenure::Lease(lease) => (TENURE_LEASE, lease.get()),
                };
                out.push(kind);
                put_number(out, number);
                put_number(out, *wait_ms);
                put_bytes(out, owner);
            }
            Self::Release { name, lease } => {
                put_bytes(out, name);
                put_number(out, lease.get());
            }
        }
    }

    fn decode(kind: u8, reader: &mut Reader<'a>) -> Result<Self, BadCommand> {
        Ok(match kind {
            KIND_PUT => {
                let condition = read_condition(reader)?;
                let lease = LeaseId::new(reader.number("lease")?);
                let key = reader.bytes("key")?;
                Self::Put { key, value: reader.rest(), condition, lease }
            }
            KIND_APPEND => Self::Append { key: reader.bytes("key")?, value: reader.rest() },
            KIND_DELETE => Self::Delete { key: reader.bytes("key")? },
            KIND_TXN => Self::Txn(decode_txn(reader)?),
            KIND_COMPACT => {
                let shard = reader.number32("shard")?;
                let named = read_flag(reader, "revision flag")?;
                let revision = named.then(|| reader.number("revision")).transpose()?.map(Revision);
                Self::Compact { shard, revision }
            }
            KIND_GRANT => {
                Self::Grant { key: reader.bytes("key")?, ttl_ms: reader.number("time to live")? }
            }
            KIND_KEEP_ALIVE => Self::KeepAlive {
                leases: read_many(reader, KEEP_ALIVE_LEASES_MAX, "leases", read_lease)?,
            },
            KIND_REVOKE => Self::Revoke { lease: read_lease(reader)? },
            KIND_EXPIRE => {
                Self::Expire { lease: read_lease(reader)?, renewal: reader.number("renewal")? }
            }
            KIND_ACQUIRE => {
                let name = reader.bytes("lock")?;
                let tenure = match reader.byte("tenure")? {
                    TENURE_OWN => Tenure::Own { ttl_ms: reader.number("time to live")? },
                    TENURE_LEASE => Tenure::Lease(read_lease(reader)?),
                    _ => return Err(Malformed("tenure").into()),
                };
                let wait_ms = reader.number("wait")?;
                Self::Acquire { name, tenure, wait_ms, owner: reader.bytes("owner")? }
            }
            KIND_RELEASE => {
                Self::Release { name: reader.bytes("lock")?, lease: read_lease(reader)? }
            }
            unknown => return Err(BadCommand::UnknownKind(unknown)),
        })
    }
}

fn action_bytes(action: &Action<'_>) -> usize {
    let value = match action {
        Action::Put { value, .. } | Action::Append { value, .. } => value.len(),
        Action::Get { .. } | Action::Delete { .. } => 0,
    };
    action.key().len() + value + 16
}

fn encode_txn(out: &mut Vec<u8>, txn: &Txn<'_>) {
    put_number(out, txn.compares.len() as u64);
    for compare in &txn.compares {
        put_bytes(out, compare.key);
        out.push(match compare.relation {
            Relation::Equal => 1,
            Relation::NotEqual => 2,
            Relation::Less => 3,
            Relation::Greater => 4,
        });
        let mut number = |kind, number| {
            out.push(kind);
            put_number(out, number);
        };
        match compare.operand {
            Operand::Version(version) => number(OPERAND_VERSION, version.0),
            Operand::CreateRevision(revision) => number(OPERAND_CREATE_REVISION, revision.0),
            Operand::ModRevision(revision) => number(OPERAND_MOD_REVISION, revision.0),
            Operand::Lease(lease) => number(OPERAND_LEASE, lease.map_or(0, LeaseId::get)),
            Operand::Value(value) => {
                out.push(OPERAND_VALUE);
                put_bytes(out, value);
            }
        }
    }
    for actions in [&txn.then, &txn.otherwise] {
        put_number(out, actions.len() as u64);
        actions.iter().for_each(|action| encode_action(out, action));
    }
}

fn encode_action(out: &mut Vec<u8>, action: &Action<'_>) {
    out.push(match action {
        Action::Get { .. } => ACTION_GET,
        Action::Put { .. } => ACTION_PUT,
        Action::Append { .. } => ACTION_APPEND,
        Action::Delete { .. } => ACTION_DELETE,
    });
    put_bytes(out, action.key());
    match action {
        Action::Get { .. } | Action::Delete { .. } => {}
        Action::Put { value, lease, .. } => {
            put_bytes(out, value);
            put_lease(out, *lease);
        }
        Action::Append { value, .. } => put_bytes(out, value),
    }
}

fn decode_txn<'a>(reader: &mut Reader<'a>) -> Result<Txn<'a>, Malformed> {
    Ok(Txn {
        compares: read_many(reader, TXN_OPERATIONS_MAX, "compares", read_compare)?,
        then: read_many(reader, TXN_OPERATIONS_MAX, "operations", read_action)?,
        otherwise: read_many(reader, TXN_OPERATIONS_MAX, "operations", read_action)?,
    })
}

fn read_compare<'a>(reader: &mut Reader<'a>) -> Result<Compare<'a>, Malformed> {
    let key = reader.bytes("key")?;
    let relation = match reader.byte("relation")? {
        1 => Relation::Equal,
        2 => Relation::NotEqual,
        3 => Relation::Less,
        4 => Relation::Greater,
        _ => return Err(Malformed("relation")),
    };
    let operand = match reader.byte("operand")? {
        OPERAND_VERSION => Operand::Version(Version(reader.number("version")?)),
        OPERAND_CREATE_REVISION => Operand::CreateRevision(Revision(reader.number("revision")?)),
        OPERAND_MOD_REVISION => Operand::ModRevision(Revision(reader.number("revision")?)),
        OPERAND_VALUE => Operand::Value(reader.bytes("value")?),
        OPERAND_LEASE => Operand::Lease(LeaseId::new(reader.number("lease")?)),
        _ => return Err(Malformed("operand")),
    };
    Ok(Compare { key, relation, operand })
}

fn read_action<'a>(reader: &mut Reader<'a>) -> Result<Action<'a>, Malformed> {
    let kind = reader.byte("operation kind")?;
    let key = reader.bytes("key")?;
    Ok(match kind {
        ACTION_GET => Action::Get { key },
        ACTION_PUT => {
            let value = reader.bytes("value")?;
            Action::Put { key, value, lease: LeaseId::new(reader.number("lease")?) }
        }
        ACTION_APPEND => Action::Append { key, value: reader.bytes("value")? },
        ACTION_DELETE => Action::Delete { key },
        _ => return Err(Malformed("operation kind")),
    })
}

/// A count, then so many; the count is checked before anything is allocated by it.
fn read_many<'a, T>(
    reader: &mut Reader<'a>,
    most: usize,
    what: &'static str,
    read: impl Fn(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = reader.number(what)?;
    if count > most as u64 {
        return Err(Malformed(what));
    }
    (0..count).map(|_| read(reader)).collect()
}

fn put_condition(out: &mut Vec<u8>, condition: Condition) {
    match condition {
        Condition::Always => out.push(ALWAYS),
        Condition::Version(version) => {
            out.push(EXPECTED_VERSION);
            put_number(out, version.0);
        }
        Condition::ModRevision(revision) => {
            out.push(EXPECTED_REVISION);
            put_number(out, revision.0);
        }
    }
}

fn read_condition(reader: &mut Reader<'_>) -> Result<Condition, Malformed> {
    Ok(match reader.byte("condition")? {
        ALWAYS => Condition::Always,
        EXPECTED_VERSION => Condition::Version(Version(reader.number("expected version")?)),
        EXPECTED_REVISION => Condition::ModRevision(Revision(reader.number("expected revision")?)),
        _ => return Err(Malformed("condition")),
    })
}

fn put_lease(out: &mut Vec<u8>, lease: Option<LeaseId>) {
    put_number(out, lease.map_or(0, LeaseId::get));
}

fn read_lease(reader: &mut Reader<'_>) -> Result<LeaseId, Malformed> {
    LeaseId::new(reader.number("lease")?).ok_or(Malformed("lease"))
}

fn read_flag(reader: &mut Reader<'_>, what: &'static str) -> Result<bool, Malformed> {
    match reader.byte(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(what)),
    }
}

fn decode_guard<'a>(reader: &mut Reader<'a>) -> Result<Guard<'a>, Malformed> {
    Ok(Guard { lock: reader.bytes("lock")?, token: Token(reader.number("token")?) })
}

fn decode_id(reader: &mut Reader<'_>) -> Result<RequestId, Malformed> {
    Ok(RequestId {
        client: ClientId(reader.array("client id")?),
        sequence: reader.number("sequence")?,
        acknowledged: reader.number("acknowledged sequence")?,
        expires: ShardTime(reader.number("expiry")?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> RequestId {
        RequestId {
            client: ClientId([7; 16]),
            sequence: 300,
            acknowledged: 299,
            expires: ShardTime(70_000),
        }
    }

    fn operations() -> Vec<Operation<'static>> {
        let lease = LeaseId::of(Revision(7), 5).expect("it fits");
        let put =
            |condition, lease| Operation::Put { key: b"k", value: b"value", condition, lease };
        let compare = |relation, operand| Compare { key: b"c", relation, operand };
        let txn = Txn {
            compares: vec![
                compare(Relation::Equal, Operand::Version(Version(0))),
                compare(Relation::NotEqual, Operand::CreateRevision(Revision(300))),
                compare(Relation::Less, Operand::ModRevision(Revision(1))),
                compare(Relation::Greater, Operand::Value(b"v")),
                compare(Relation::Equal, Operand::Lease(None)),
                compare(Relation::Equal, Operand::Lease(Some(lease))),
            ],
            then: vec![
                Action::Get { key: b"g" },
                Action::Put { key: b"p", value: b"1", lease: Some(lease) },
                Action::Put { key: b"q", value: b"", lease: None },
            ],
            otherwise: vec![
                Action::Append { key: b"a", value: b"2" },
                Action::Delete { key: b"d" },
            ],
        };
        let acquire = |tenure| Operation::Acquire { name: b"l", tenure, wait_ms: 9, owner: b"me" };
        vec![
            put(Condition::Always, None),
            put(Condition::Version(Version(0)), Some(lease)),
            put(Condition::ModRevision(Revision(u64::MAX)), None),
            Operation::Append { key: b"key", value: b"" },
            Operation::Delete { key: b"key" },
            Operation::Txn(txn),
            Operation::Txn(Txn::default()),
            Operation::Compact { shard: 3, revision: None },
            Operation::Compact { shard: 3, revision: Some(Revision(0)) },
            Operation::Grant { key: b"key", ttl_ms: 5_000 },
            Operation::KeepAlive { leases: vec![] },
            Operation::KeepAlive { leases: vec![lease, lease] },
            Operation::Revoke { lease },
            Operation::Expire { lease, renewal: 4 },
            acquire(Tenure::Own { ttl_ms: 1 }),
            acquire(Tenure::Lease(lease)),
            Operation::Release { name: b"l", lease },
        ]
    }

    #[test]
    fn every_kind_comes_back() {
        for operation in operations() {
            let ids = [None, operation.takes_id().then(id)];
            let guard = Guard { lock: b"lock", token: Token(9) };
            let guards = [None, operation.takes_guard().then_some(guard)];
            for (id, guard) in ids.into_iter().flat_map(|id| guards.map(|guard| (id, guard))) {
                let bounds = Bounds { value_bytes_max: 1 << 20, stored_bytes_max: u64::MAX };
                let operation = operation.clone();
                let command = Command { shards: 256, id, guard, bounds, operation };
                assert_eq!(Command::decode(&command.encode()), Ok(command));
            }
        }
    }

    #[test]
    fn what_cannot_be_named_or_guarded_does_not_decode_so() {
        for operation in operations() {
            let guard = Guard { lock: b"lock", token: Token(9) };
            let named = Command { id: Some(id()), ..Command::new(4, operation.clone()) };
            let decoded = Command::decode(&named.encode()).is_ok();
            assert_eq!(decoded, operation.takes_id(), "{operation:?}");
            let guarded = Command { guard: Some(guard), ..Command::new(4, operation.clone()) };
            let decoded = Command::decode(&guarded.encode()).is_ok();
            assert_eq!(decoded, operation.takes_guard(), "{operation:?}");
        }
    }

    #[test]
    fn the_encoding_never_changes() {
        let condition = Condition::Version(Version(300));
        let operation = Operation::Put { key: b"k", value: b"v", condition, lease: None };
        let bounds = Bounds { value_bytes_max: 300, stored_bytes_max: 1 };
        let command = Command { shards: 256, id: Some(id()), guard: None, bounds, operation };
        let mut expected = vec![2, 1, 0x80, 2, 1 | 4];
        expected.extend_from_slice(&[7; 16]);
        expected.extend_from_slice(&[0xac, 2, 0xab, 2, 0xf0, 0xa2, 4, 0xac, 2, 1]);
        expected.extend_from_slice(&[1, 0xac, 2, 0, 1, b'k', b'v']);
        assert_eq!(&command.encode()[..], &expected[..]);
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        for other in [1, 4] {
            assert_eq!(check_version(&[other, 9, 9]), Err(BadCommand::OtherVersion(other)));
            assert_eq!(Command::decode(&[other]), Err(BadCommand::OtherVersion(other)));
        }
        assert_eq!(check_version(&[]), Ok(()));
        assert!(matches!(Command::decode(&[]), Err(BadCommand::Malformed(_))));
        assert_eq!(Command::decode(&[2, 77, 1, 0, 1, 1]), Err(BadCommand::UnknownKind(77)));
    }

    #[test]
    fn a_count_beyond_its_limit_is_refused_before_it_is_used() {
        let counts = [
            (KIND_TXN, TXN_OPERATIONS_MAX, "compares"),
            (KIND_KEEP_ALIVE, KEEP_ALIVE_LEASES_MAX, "leases"),
        ];
        for (kind, max, what) in counts {
            for count in [max as u64 + 1, u64::MAX] {
                let mut bytes = vec![COMMAND_VERSION, kind, 1, 0];
                put_number(&mut bytes, count);
                assert_eq!(Command::decode(&bytes), Err(Malformed(what).into()));
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(kind in 0_u8..13, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Command::decode(&bytes);
            let mut versioned = vec![COMMAND_VERSION, kind];
            versioned.extend_from_slice(&bytes);
            if let Ok(command) = Command::decode(&versioned) {
                let again = command.encode();
                prop_assert_eq!(Command::decode(&again), Ok(command));
            }
        }

        #[test]
        fn a_damaged_command_never_panics(which in 0_usize..17, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let operation = operations().swap_remove(which);
            let mut bytes = Command::new(256, operation).encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Command::decode(&bytes);
        }
    }
}
