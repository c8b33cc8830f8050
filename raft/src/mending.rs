//! What a replica does about its state: it has it checked, refuses to serve from one that is in
//! doubt, and puts another in its place. What is made of it is decided in `audit.rs`.

use crate::{
    Applied, AuditMessage, Index, Instant, Membership, NodeId, Outcome, Payload, Refused, Replay,
    Replica, RoleKind, SnapshotRoot, State, StateMachine, Trust, audit::Surroundings,
};

impl<S: StateMachine> Replica<S> {
    /// What this member makes of its own state.
    pub fn trust(&self) -> Trust {
        self.audit.trust()
    }

    /// The state was in doubt when this member ended: it serves nothing before it was compared.
    pub fn distrust(&mut self) {
        self.audit.distrust();
    }

    /// The next command is applied with a bit of it changed, as memory that fails would have it. For
    /// tests of what becomes of that.
    pub fn flip(&mut self) {
        self.live.flips = true;
    }

    /// Takes what another member says about states.
    pub fn hear(&mut self, from: NodeId, message: AuditMessage) {
        match message {
            AuditMessage::Report(report) => {
                self.audit.hear(from, report, self.node.membership());
            }
            AuditMessage::CheckWanted => self.audit.ask_check(),
            AuditMessage::SnapshotWanted { from: least } if self.trust().serves() => {
                match self.node.snapshot().filter(|root| root.position.index >= least) {
                    Some(root) => {
                        let offer = AuditMessage::SnapshotOffer(root.clone());
                        self.audit.send(from, offer);
                    }
                    // It asks again.
                    None => {
                        self.capture_wanted |= !self.capturing && self.live.applied.index >= least;
                    }
                }
            }
            AuditMessage::SnapshotOffer(root) if self.audit.is_helped_by(from) => {
                self.node.wants(from, root);
            }
            AuditMessage::SnapshotWanted { .. } | AuditMessage::SnapshotOffer(_) => {}
        }
    }

    /// The state of [`crate::Output::replay`] was made. A state is given back that is of no more use: the one that was made, or the one before.
    ///
    /// # Panics
    /// If it does not go as far as it was to go.
    pub fn replayed(&mut self, mut replay: Replay<S>) -> State<S> {
        let Replay { state, upto, .. } = &mut replay;
        assert_eq!(state.applied.index, *upto, "a replay goes as far as it was to go");
        let digest = state.digest();
        if self.audit.replayed(*upto, digest) == Some(true) && self.node.rewind(*upto) {
            std::mem::swap(&mut self.live, state);
            self.bytes_since_capture = 0;
            self.audit.forget_own();
            self.audit.sample(*upto, digest);
        }
        replay.state
    }

    /// The state of [`crate::Output::replay`] can't be made: its log is not there.
    pub fn replay_failed(&mut self) {
        self.audit.replay_failed();
    }

    /// Puts the state of a snapshot in the place of a wrong one. Whether it did.
    pub(crate) fn rebuilt(&mut self, root: SnapshotRoot, machine: &mut S) -> bool {
        if self.trust() != Trust::Wrong {
            self.node.install_failed();
            return false;
        }
        let (applied, recoveries) = (Applied::from(&root), root.membership.recoveries());
        let rebuilt = self.node.rebuilt(root);
        if rebuilt {
            std::mem::swap(&mut self.live.machine, machine);
            self.live.applied = applied;
            self.live.recoveries = recoveries;
            self.bytes_since_capture = 0;
            self.audit.forget_own();
        }
        rebuilt
    }

    /// # Errors
    /// [`Refused::Doubted`]
    pub(crate) fn check_trust(&self) -> Result<(), Refused> {
        if self.trust().serves() { Ok(()) } else { Err(Refused::Doubted) }
    }

    /// What may be told of the end of a proposal: what a doubtful state answers may not.
    pub(crate) fn believed(&self, outcome: Outcome<S::Response>) -> Outcome<S::Response> {
        match outcome {
            Outcome::Done(Some(_)) if !self.trust().serves() => Outcome::Unknown,
            outcome => outcome,
        }
    }

    /// Looks at the state behind an entry at which all members do.
    pub(crate) fn sample(&mut self) {
        if self.audit.is_on() {
            self.audit.sample(self.live.applied.index, self.live.digest());
        }
    }

    fn around<'a>(&self, membership: &'a Membership) -> Surroundings<'a> {
        let snapshot = self.node.snapshot().map_or(Index(0), |root| root.position.index);
        let (leader, applied) = (self.node.leader(), self.live.applied.index);
        Surroundings { leader, applied, snapshot, membership }
    }

    pub(crate) fn tick_audit(&mut self, now: Instant) {
        let membership = self.node.membership().clone();
        let around = self.around(&membership);
        let checks = self.audit.tick(&around);
        if checks {
            // Refused while too much else is under way; then the next check comes later.
            let _ = self.node.propose(now, Payload::Tick);
        }
        // Somebody with the right state is to lead, however often it takes.
        if self.node.role() == RoleKind::Leader
            && let Some(heir) = self.audit.helper()
        {
            let _ = self.node.transfer(heir);
        }
    }

    /// Judges the state, before anything is answered from it.
    pub(crate) fn conclude(&mut self) -> Option<Replay<S>> {
        let before = self.trust();
        let membership = self.node.membership().clone();
        let around = self.around(&membership);
        let upto = self.audit.conclude(&around);
        if before.serves() && !self.trust().serves() {
            self.capture_spoiled |= self.capturing;
            let outcomes = std::mem::take(&mut self.outcomes);
            let believed = outcomes.into_iter().map(|(id, outcome)| (id, self.believed(outcome)));
            self.outcomes = believed.collect();
        }
        let upto = upto?;
        let root = self.node.snapshot().cloned();
        let state = State::new(self.live.machine.empty(), root.as_ref(), self.founded);
        Some(Replay { state, root, upto })
    }
}
