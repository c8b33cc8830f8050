//! The real store on a simulated medium: raftd's engine with its log and floor, as the store's
//! thread drives it.
//!
//! What counts as right is what `disk.rs` knows of the member's promises: the image beside it.

use raft::{Entry, Fetch, Membership, NodeId, Recovered, Write};
use raftd::recovery::recover_store;
use raftd::store::gathered::Gathered;
use raftd::store::{Engine, Floor, StoreError};
use raftd::{Founder, Group};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::Broken;
use super::medium::Medium;
use crate::fault::Damage;

/// How long the addresses in the floor are: so long that it takes several sectors.
const ADDRESS_BYTES: usize = 250;

/// How often a start is cut short, at most.
const STARTS_CUT_MAX: u32 = 2;

/// The last operation of a write or a start that may be refused: most take fewer.
const OPERATIONS_MAX: usize = 12;

/// How many steps it takes at most until there is nothing left to do.
const TIDYING_STEPS_MAX: usize = 100_000;

/// The store of a member.
#[derive(Debug)]
pub(super) struct Store {
    medium: Medium,
    /// Open as long as the member is up.
    engine: Option<Engine<Medium, Medium>>,
    /// Its own, so that a run with it differs from one without it only by what crashes leave.
    rng: StdRng,
    /// The write sequence that peers may have heard of.
    told: u64,
}

/// What is found on the disk.
#[derive(Debug)]
pub(super) enum Found {
    /// Everything that counts.
    Whole(Recovered),
    /// The store refuses to open, since it misses something.
    Refused(String),
}

impl Store {
    /// The store of a new member, born and closed.
    pub(super) fn new(seed: u64, id: NodeId, founders: &Membership) -> Result<Self, Broken> {
        let medium = Medium::default();
        let incarnation = |id: NodeId| [id.0 as u8; 16];
        let founder = |node| Founder {
            node,
            incarnation: incarnation(node),
            peer_address: "p".repeat(ADDRESS_BYTES),
            client_address: "c".repeat(ADDRESS_BYTES),
        };
        let founders = founders.voters().map(founder).collect();
        let group = Group { id: [9; 32], founders, former: Vec::new() };
        let created = Floor::create(medium.clone(), "harbour", id, incarnation(id));
        let born = created
            .and_then(|floor| Engine::open(medium.clone(), floor, 0))
            .and_then(|(mut engine, _)| engine.bear(group));
        born.map_err(|error| broken("a new store", &error))?;
        let rng = StdRng::seed_from_u64(seed);
        Ok(Self { medium, engine: None, rng, told: 0 })
    }

    /// Opens it, perhaps after starts that were cut short or met a disk that refuses, and says what
    /// the last one found. Each has to find `expected`.
    pub(super) fn open(
        &mut self,
        window_bytes: u64,
        expected: impl Fn(&Recovered) -> bool,
    ) -> Result<Recovered, Broken> {
        for _ in 0..self.rng.random_range(0..=STARTS_CUT_MAX) {
            let before = self.medium.now();
            self.draw_refusal();
            let found = self.find(window_bytes);
            match (self.medium.refused(), found) {
                (0, Ok(found)) if expected(&found) => {}
                (0, Ok(_)) => return Err(Broken::Store("a start finds something else".to_owned())),
                (1, Err(StoreError::Machine { .. })) => {}
                (refused, Err(error)) => {
                    return Err(broken(&format!("a start, {refused} operations refused"), &error));
                }
                (_, Ok(_)) => return Err(Broken::Store("a refusal is overlooked".to_owned())),
            }
            self.medium.refuse_after(None);
            self.engine = None;
            self.medium.cut(before, &mut self.rng);
        }
        let found = self.find(window_bytes).map_err(|error| broken("it does not open", &error))?;
        let (now, told) = (self.engine().write_sequence(), self.told);
        if now < told {
            let what = format!("it opens at write {now}, and peers have heard of {told}");
            return Err(Broken::Store(what));
        }
        self.medium.now();
        Ok(found)
    }

    /// What a start would find, which changes nothing. Only a damaged store may refuse, and only the
    /// first time: what was whole then has to stay so.
    fn look(&mut self, damaged: bool) -> Result<Found, Broken> {
        let before = self.medium.now();
        let found = self.find(u64::MAX);
        self.engine = None;
        self.medium.undo_to(before);
        match found {
            Ok(recovered) => Ok(Found::Whole(recovered)),
            Err(StoreError::Damaged(why)) if damaged => Ok(Found::Refused(why)),
            Err(error) => Err(broken("it does not open", &error)),
        }
    }

    fn find(&mut self, window_bytes: u64) -> Result<Recovered, StoreError> {
        let floor = Floor::open(self.medium.clone())?;
        let (engine, recovered) = Engine::open(self.medium.clone(), floor, window_bytes)?;
        self.engine = Some(engine);
        Ok(recovered)
    }

    /// In one of four times the disk refuses an operation soon, and from then on all.
    fn draw_refusal(&mut self) {
        let fails = self.rng.random_range(0..4) == 0;
        let refused = fails.then(|| self.rng.random_range(0..OPERATIONS_MAX));
        self.medium.refuse_after(refused);
    }

    fn engine(&mut self) -> &mut Engine<Medium, Medium> {
        self.engine.as_mut().expect("the store of a member that is up is open")
    }

    /// Makes writes durable, all at once, and does some of what can wait.
    pub(super) fn write(&mut self, writes: &[Write]) -> Result<(), Broken> {
        let gathered = gather(writes);
        let written = self.engine().write(&gathered).map_err(|error| broken("a write", &error))?;
        if written.id != gathered.id || written.write_sequence < self.told {
            return Err(Broken::Store(format!("w{} is answered {written:?}", gathered.id)));
        }
        self.told = written.write_sequence;
        self.engine().sweep().map_err(|error| broken("a sweep", &error))?;
        self.do_what_can_wait().map_err(|error| broken("what can wait", &error))?;
        self.medium.now();
        Ok(())
    }

    /// What the store's thread does when it is due, or while there is nothing else to do.
    fn do_what_can_wait(&mut self) -> Result<(), StoreError> {
        let steps = match self.rng.random_range(0..8) {
            0 | 1 => return self.engine().sync_floor(),
            2 => self.rng.random_range(1..8),
            _ => 0,
        };
        for _ in 0..steps {
            if self.engine().is_untidy() {
                self.engine().tidy()?;
            }
        }
        Ok(())
    }

    /// Reads entries.
    pub(super) fn read(&mut self, fetch: Fetch) -> Result<Vec<Entry>, Broken> {
        self.engine().read(fetch).map_err(|error| broken("a read", &error))
    }

    /// The member dies while these groups of writes are made durable, one after the other. What a
    /// start would find.
    pub(super) fn crash(
        &mut self,
        groups: &[&[Write]],
        full: bool,
        damage: Option<Damage>,
    ) -> Result<(Found, bool), Broken> {
        let before = self.medium.now();
        self.medium.set_full(full);
        self.draw_refusal();
        let ended = self.die_writing(groups);
        match (self.medium.refused(), ended) {
            (0, Ok(())) | (1, Err(StoreError::Machine { .. })) => {}
            (refused, ended) => {
                let what = format!("{refused} operations are refused, and it says {ended:?}");
                return Err(Broken::Store(what));
            }
        }
        self.medium.set_full(false);
        self.medium.refuse_after(None);
        self.engine = None;
        let damaged = match damage {
            Some(damage) => self.medium.damage(before, damage, &mut self.rng),
            None => {
                self.medium.cut(before, &mut self.rng);
                false
            }
        };
        Ok((self.look(damaged)?, damaged))
    }

    /// Recovers the survivor of a lost majority, perhaps after attempts that were cut short. What a
    /// start finds then.
    pub(super) fn recover(&mut self) -> Result<Recovered, Broken> {
        let cuts = self.rng.random_range(0..=STARTS_CUT_MAX);
        for attempt in 0..=cuts {
            let before = self.medium.now();
            let recovered = self.find(0).map_err(|error| broken("a recovery", &error))?;
            let id = self.rng.random();
            let done = recover_store(self.engine(), &recovered, id);
            done.map_err(|error| Broken::Store(format!("a recovery: {error}")))?;
            self.engine = None;
            if attempt < cuts {
                self.medium.cut(before, &mut self.rng);
            }
        }
        match self.look(false)? {
            Found::Whole(found) => Ok(found),
            Found::Refused(why) => Err(Broken::Store(format!("a recovery: {why}"))),
        }
    }

    /// Does all that can wait. How many bytes the keys and values of the database have then.
    pub(super) fn tidy_up(&mut self) -> Result<u64, Broken> {
        for _ in 0..TIDYING_STEPS_MAX {
            if !self.engine().is_untidy() {
                return Ok(self.medium.bytes());
            }
            self.engine().tidy().map_err(|error| broken("what can wait", &error))?;
            self.medium.now();
        }
        Err(Broken::Store("it is never tidy".to_owned()))
    }

    fn die_writing(&mut self, groups: &[&[Write]]) -> Result<(), StoreError> {
        self.do_what_can_wait()?;
        for group in groups {
            self.engine().write(&gather(group))?;
            self.engine().sweep()?;
        }
        Ok(())
    }
}

/// Writes as the store's thread merges them.
pub(super) fn gather(writes: &[Write]) -> Gathered {
    let mut gathered = Gathered::default();
    writes.iter().for_each(|write| gathered.add(write.clone()));
    gathered
}

fn broken(what: &str, error: &StoreError) -> Broken {
    Broken::Store(format!("{what}: {error}"))
}
