//! The floor: what this member has promised, so that nobody has to believe a database about its
//! own end.
//!
//! It says who the member is, its term and vote, and up to where its log was durable. Terms and
//! votes are in both slots, each synced, before they are answered. How far the log reached enters
//! only after the log's own sync has returned; it is written before the acknowledgement and synced
//! a little later. Between two syncs only one slot is rewritten, so that the other always holds
//! the state of the last sync. Pure over [`Slots`]: when to sync is decided by its owner.

use raft::{Digest, HardState, NodeId, Position, Term};

use crate::failpoint::{self, Failpoint};
use crate::identity::{FORMER_MAX, Founder, Group, GroupId, Incarnation};
use crate::store::StoreError;
use crate::store::codec::{Decoder, Encoder};
use crate::store::slots::{BLOCK_BYTES, Block, Slot, Slots};

/// The version of everything in a data directory. A newer one is refused.
pub const FORMAT_VERSION: u32 = 3;

/// How many peers are remembered: as many as a group has members.
pub const HEARD_MAX: usize = 16;

/// Where in a block the checksum stands; in all versions, as are what is before it and that it
/// covers the whole block.
const CHECKSUM_OFFSET: usize = 12;
const MAGIC: [u8; 8] = *b"flotilla";

/// What the floor knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloorState {
    /// The name of the cluster that the directory is of.
    pub cluster: String,
    /// The member that it is of.
    pub node: NodeId,
    /// A random number, drawn when the directory was made.
    pub incarnation: Incarnation,
    /// How often the store has been opened.
    pub boot: u64,
    /// Whether the databases have been made; before that they may be removed and made anew.
    pub made: bool,
    /// The group, once it is born.
    pub group: Option<Group>,
    /// Some: the group is being recovered from the loss of its majority, for the time that this
    /// says. The log does not have the membership yet that goes with the group's new identity.
    pub recovering: Option<u64>,
    /// The member's term and vote.
    pub hard_state: HardState,
    /// The last durable write.
    pub write_sequence: u64,
    /// The last durable write that changed the log; the database must reach it.
    pub log_sequence: u64,
    /// Where the log ended behind that write.
    pub last: Position,
    /// The snapshot that the log builds on.
    pub manifest: Option<ManifestId>,
    /// What was heard of peers, at most [`HEARD_MAX`].
    pub heard: Vec<HeardPeer>,
}

/// Names an installed snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestId {
    /// The write that installed it.
    pub sequence: u64,
    /// The digest of its manifest.
    pub digest: Digest,
}

/// What was heard of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardPeer {
    /// Which.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its latest boot.
    pub boot: u64,
    /// The last durable write that it told of.
    pub write_sequence: u64,
}

/// How far the log is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The last write to the log.
    pub log_sequence: u64,
    /// Where the log ends.
    pub last: Position,
    /// The snapshot that it builds on.
    pub manifest: Option<ManifestId>,
}

/// The floor of an open store.
#[derive(Debug)]
pub struct Floor<S> {
    slots: S,
    state: FloorState,
    generation: u64,
    /// The slot that is rewritten; the other one is synced.
    next: Slot,
    /// Whether `next` was rewritten since the last sync.
    dirty: bool,
    /// Whether both slots hold the present state.
    settled: bool,
}

impl<S: Slots> Floor<S> {
    /// Makes the floor of a new member: both slots hold it and are synced.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn create(
        slots: S,
        cluster: &str,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Self, StoreError> {
        let state = FloorState {
            cluster: cluster.to_owned(),
            node,
            incarnation,
            boot: 0,
            made: false,
            group: None,
            recovering: None,
            hard_state: HardState::default(),
            write_sequence: 0,
            log_sequence: 0,
            last: Position::default(),
            manifest: None,
            heard: Vec::new(),
        };
        let mut floor =
            Self { slots, state, generation: 0, next: Slot::First, dirty: false, settled: false };
        floor.save()?;
        Ok(floor)
    }

    /// Finds the floor.
    ///
    /// # Errors
    /// Identity: it was written by a newer version. Damaged: neither slot holds one.
    pub fn open(mut slots: S) -> Result<Self, StoreError> {
        let newest = newest(&slots)?;
        // What a process that was killed has written may not have reached the disk.
        slots.sync()?;
        Ok(Self {
            slots,
            state: newest.state,
            generation: newest.generation,
            next: newest.slot.other(),
            dirty: false,
            settled: false,
        })
    }

    /// What it holds.
    pub fn state(&self) -> &FloorState {
        &self.state
    }

    /// Whether a sync is due.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether both slots hold the present state and are synced.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The store has been opened once more.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn start(&mut self, write_sequence: u64, reach: Reach) -> Result<(), StoreError> {
        self.state.boot += 1;
        self.reach(write_sequence, reach);
        self.save()
    }

    /// The databases are there and durable.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn made(&mut self) -> Result<(), StoreError> {
        self.state.made = true;
        self.save()
    }

    /// The group is born.
    ///
    /// # Errors
    /// Identity: it is born already with others, or its members take too much room. The machine
    /// refuses.
    pub fn bear(&mut self, group: Group) -> Result<(), StoreError> {
        if let Some(born) = &self.state.group {
            return if born.id == group.id {
                Ok(())
            } else {
                Err(StoreError::Identity("this member was born with another group".to_owned()))
            };
        }
        let state = FloorState { group: Some(group), ..self.state.clone() };
        let later = MANIFEST_BYTES + HEARD_MAX * HEARD_BYTES + FORMER_MAX * FORMER_BYTES;
        let room = BLOCK_BYTES - later;
        let mut alone = FloorState { heard: Vec::new(), ..state.clone() };
        alone.group.iter_mut().for_each(|group| group.former.clear());
        let bytes = encode(&alone, 0).len();
        if bytes > room {
            let what = "the addresses of the members are too long together";
            return Err(StoreError::Identity(format!("{what}: {bytes} bytes, limit {room}")));
        }
        self.state = state;
        self.save()
    }

    /// The group has a new identity, under which it is recovered from the loss of its majority.
    /// Nobody of the former group is to be listened to from now on.
    ///
    /// # Errors
    /// The machine refuses.
    ///
    /// # Panics
    /// If the group is not born.
    pub fn begin_recovery(&mut self, id: GroupId, recoveries: u64) -> Result<(), StoreError> {
        self.state.group.as_mut().expect("the group is born").recover(id);
        self.state.recovering = Some(recoveries);
        self.state.heard.clear();
        self.save()
    }

    /// The group is recovered: the log has the membership that goes with its identity.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn end_recovery(&mut self) -> Result<(), StoreError> {
        self.state.recovering = None;
        self.save()
    }

    /// The term and vote of the write `write_sequence`, which may be answered when it returns.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn promise(
        &mut self,
        hard_state: HardState,
        write_sequence: u64,
    ) -> Result<(), StoreError> {
        self.state.hard_state = hard_state;
        self.state.write_sequence = self.state.write_sequence.max(write_sequence);
        self.save()
    }

    /// A peer was heard; what is known already is kept.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn hear(&mut self, peer: HeardPeer) -> Result<(), StoreError> {
        let heard = &mut self.state.heard;
        let news = match heard.iter().position(|known| known.node == peer.node) {
            Some(at) => {
                let known = &mut heard[at];
                let same = known.incarnation == peer.incarnation;
                let news = !same || known.boot < peer.boot;
                let write_sequence = if same { known.write_sequence } else { 0 };
                if news || known.boot == peer.boot {
                    let write_sequence = peer.write_sequence.max(write_sequence);
                    *known = HeardPeer { write_sequence, ..peer };
                }
                news
            }
            None if heard.len() < HEARD_MAX => {
                heard.push(peer);
                true
            }
            None => false,
        };
        // The highest write is good to know; a new boot is what has to be remembered.
        if news { self.save() } else { Ok(()) }
    }

    /// Nothing needs to be remembered of who belongs to the group no more.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn forget(&mut self, belongs: impl Fn(NodeId) -> bool) -> Result<(), StoreError> {
        let before = self.state.heard.len();
        self.state.heard.retain(|peer| belongs(peer.node));
        if self.state.heard.len() < before { self.save() } else { Ok(()) }
    }

    /// The log is durable up to here, which may be acknowledged when it returns; `sync` is due.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn raise(&mut self, write_sequence: u64, reach: Reach) -> Result<(), StoreError> {
        self.reach(write_sequence, reach);
        self.write()
    }

    /// Makes what was written durable, if something was.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if self.dirty {
            failpoint::reach(Failpoint::FloorSyncBefore);
            self.slots.sync()?;
            failpoint::reach(Failpoint::FloorSyncAfter);
            self.dirty = false;
            self.next = self.next.other();
        }
        Ok(())
    }

    /// Makes both slots hold the present state, durably.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        if self.settled {
            return Ok(());
        }
        self.sync()?;
        self.write()?;
        self.sync()?;
        self.settled = true;
        Ok(())
    }

    fn reach(&mut self, write_sequence: u64, reach: Reach) {
        assert!(
            reach.log_sequence >= self.state.log_sequence,
            "the log was at write {} and is at {}",
            self.state.log_sequence,
            reach.log_sequence
        );
        self.state.write_sequence = self.state.write_sequence.max(write_sequence);
        self.state.log_sequence = reach.log_sequence;
        self.state.last = reach.last;
        self.state.manifest = reach.manifest;
    }

    /// Writes both slots, one after the other, each synced.
    fn save(&mut self) -> Result<(), StoreError> {
        self.write()?;
        self.sync()?;
        failpoint::reach(Failpoint::FloorWriteBetween);
        self.write()?;
        self.sync()?;
        self.settled = true;
        Ok(())
    }

    fn write(&mut self) -> Result<(), StoreError> {
        failpoint::reach(Failpoint::FloorWriteBefore);
        self.generation += 1;
        let block = seal(&encode(&self.state, self.generation));
        self.slots.write(self.next, &block)?;
        self.dirty = true;
        self.settled = false;
        Ok(())
    }
}

/// Looks at a floor without changing anything.
///
/// # Errors
/// As [`Floor::open`].
pub fn peek(slots: &impl Slots) -> Result<FloorState, StoreError> {
    newest(slots).map(|newest| newest.state)
}

struct Newest {
    slot: Slot,
    generation: u64,
    state: FloorState,
}

fn newest(slots: &impl Slots) -> Result<Newest, StoreError> {
    let mut newest: Option<Newest> = None;
    for slot in [Slot::First, Slot::Second] {
        let block = slots.read(slot)?;
        let Some((generation, state)) = open_block(&block)? else { continue };
        if newest.as_ref().is_none_or(|known| known.generation < generation) {
            newest = Some(Newest { slot, generation, state });
        }
    }
    newest.ok_or_else(|| {
        StoreError::Damaged(
            "the member's identity, term and vote are lost: both slots of the file floor fail \
             their checksum"
                .to_owned(),
        )
    })
}

/// None: the slot was torn or damaged.
fn open_block(block: &Block) -> Result<Option<(u64, FloorState)>, StoreError> {
    let mut header = Decoder(block.as_slice());
    let (magic, version) = (header.array::<8>(), header.u32());
    if magic != Some(MAGIC) || header.u32() != Some(checksum(block)) {
        return Ok(None);
    }
    match version {
        Some(FORMAT_VERSION) => Ok(decode(&block[CHECKSUM_OFFSET + 4..])),
        Some(newer) if newer > FORMAT_VERSION => Err(StoreError::Identity(format!(
            "the data directory has format {newer}, newer than {FORMAT_VERSION}: use a newer \
             version of this program"
        ))),
        Some(older) => Err(StoreError::Identity(format!(
            "the data directory has format {older}, of a build before {FORMAT_VERSION}, which this \
             version does not read"
        ))),
        None => Ok(None),
    }
}

fn seal(encoded: &[u8]) -> Block {
    let mut block = [0; BLOCK_BYTES];
    block[..encoded.len()].copy_from_slice(encoded);
    let checksum = checksum(&block);
    block[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    block
}

fn checksum(block: &Block) -> u32 {
    let (before, rest) = block.split_at(CHECKSUM_OFFSET);
    crc32c::crc32c_append(crc32c::crc32c(before), &rest[4..])
}

/// What the manifest takes, which a member without a snapshot does not have.
const MANIFEST_BYTES: usize = 40;

/// What one heard peer takes.
const HEARD_BYTES: usize = 40;

/// What one former identity of the group takes.
const FORMER_BYTES: usize = 32;

fn encode(state: &FloorState, generation: u64) -> Vec<u8> {
    let mut out = Encoder::default();
    out.bytes(&MAGIC);
    out.u32(FORMAT_VERSION);
    out.u32(0);
    out.u64(generation);
    out.u64(state.node.0);
    out.bytes(&state.incarnation);
    out.u64(state.boot);
    out.u8(u8::from(state.made));
    out.u64(state.hard_state.term.0);
    out.u8(u8::from(state.hard_state.vote.is_some()));
    out.u64(state.hard_state.vote.map_or(0, |vote| vote.0));
    out.u64(state.write_sequence);
    out.u64(state.log_sequence);
    out.u64(state.last.term.0);
    out.u64(state.last.index.0);
    out.u8(u8::from(state.manifest.is_some()));
    if let Some(manifest) = state.manifest {
        out.u64(manifest.sequence);
        out.bytes(&manifest.digest.0);
    }
    out.short(state.cluster.as_bytes());
    out.u8(state.heard.len() as u8);
    for peer in &state.heard {
        out.u64(peer.node.0);
        out.bytes(&peer.incarnation);
        out.u64(peer.boot);
        out.u64(peer.write_sequence);
    }
    out.u8(u8::from(state.recovering.is_some()));
    out.u64(state.recovering.unwrap_or(0));
    out.u8(u8::from(state.group.is_some()));
    if let Some(group) = &state.group {
        out.bytes(&group.id);
        out.u8(group.former.len() as u8);
        group.former.iter().for_each(|former| out.bytes(former));
        out.u8(group.founders.len() as u8);
        for founder in &group.founders {
            out.u64(founder.node.0);
            out.bytes(&founder.incarnation);
            out.short(founder.peer_address.as_bytes());
            out.short(founder.client_address.as_bytes());
        }
    }
    out.0
}

fn decode(body: &[u8]) -> Option<(u64, FloorState)> {
    let mut body = Decoder(body);
    let generation = body.u64()?;
    let node = NodeId(body.u64()?);
    let incarnation = body.array()?;
    let boot = body.u64()?;
    let made = body.u8()? != 0;
    let term = Term(body.u64()?);
    let voted = body.u8()? != 0;
    let vote = Some(NodeId(body.u64()?)).filter(|_| voted);
    let write_sequence = body.u64()?;
    let log_sequence = body.u64()?;
    let last = Position { term: Term(body.u64()?), index: raft::Index(body.u64()?) };
    let manifest = match body.u8()? {
        0 => None,
        _ => Some(ManifestId { sequence: body.u64()?, digest: Digest(body.array()?) }),
    };
    let cluster = text(&mut body)?;
    let mut heard = Vec::new();
    for _ in 0..body.u8()? {
        heard.push(HeardPeer {
            node: NodeId(body.u64()?),
            incarnation: body.array()?,
            boot: body.u64()?,
            write_sequence: body.u64()?,
        });
    }
    let is_recovering = body.u8()? != 0;
    let recovering = Some(body.u64()?).filter(|_| is_recovering);
    let group = match body.u8()? {
        0 => None,
        _ => Some(decode_group(&mut body)?),
    };
    let hard_state = HardState { term, vote };
    let state = FloorState {
        cluster,
        node,
        incarnation,
        boot,
        made,
        group,
        recovering,
        hard_state,
        write_sequence,
        log_sequence,
        last,
        manifest,
        heard,
    };
    Some((generation, state))
}

fn decode_group(body: &mut Decoder<'_>) -> Option<Group> {
    let id = body.array()?;
    let former = (0..body.u8()?).map(|_| body.array()).collect::<Option<Vec<_>>>()?;
    let mut founders = Vec::new();
    for _ in 0..body.u8()? {
        founders.push(Founder {
            node: NodeId(body.u64()?),
            incarnation: body.array()?,
            peer_address: text(body)?,
            client_address: text(body)?,
        });
    }
    Some(Group { id, founders, former })
}

fn text(body: &mut Decoder<'_>) -> Option<String> {
    String::from_utf8(body.short()?.to_vec()).ok()
}
