//! A step of a member: it takes in what has gathered, the invariants look at what comes out, and
//! only then is it done, in part if the member dies in the middle.

use raft::{
    AppendResult, Entry, Envelope, Fetch, Index, Install, MessageKind, Output, Payload, Position,
    Term, Write,
};
use rand::RngExt;

use crate::{
    Plant, World,
    agenda::{Happening, Input, Life, Mend},
    client::Reply,
    disk::{Broken, Stored},
    fault::DOWN_US_MAX,
    group::{Group, MemberId},
    invariants::{Heard, Step, Violation},
    machine::{CommandId, Machine, Response, Said},
    member::{ClockRate, encode},
    network::{Kind, Parcel, bytes_of},
    trace::{Happened, Shown, Trace},
};

/// How long a step takes a member that has more to do.
const STEP_US: u64 = 10;

/// How long a leader that is struck has led.
const DEPOSED_AFTER_US_MAX: u64 = 200_000;

/// How long a transfer takes of which nothing comes.
const SILENT_TRANSFER_US: u64 = 2_000_000;

impl World {
    pub(crate) fn is_alive(&self, life: Life) -> bool {
        let member = &self.groups.member(life.id);
        member.is_up() && member.life() == life
    }

    pub(crate) fn plan_tick(&mut self, life: Life) {
        // Ticks of a real host are never quite on time.
        let late_us = self.rng.random_range(0..=self.mix.config.tick_us / 20);
        let ClockRate { faster, slower } = self.groups.member(life.id).clock_rate;
        let tick_us = self.mix.config.tick_us * slower / faster;
        self.agenda.after(tick_us + late_us, Happening::Tick(life));
    }

    /// A member takes in its inbox.
    pub(crate) fn run_member(&mut self, id: MemberId) -> Result<(), Violation> {
        let now_us = self.agenda.now_us();
        let floor = self.groups.get(id.group).ghost().committed();
        let member = self.groups.member_mut(id);
        member.run_is_due = false;
        if member.paused {
            return Ok(());
        }
        let (mut replies, mut heard) = (Vec::new(), Heard::default());
        let last_read = member.last_read();
        let (inputs, more) = member.take_inbox(self.mix.batch_inputs_max);
        if more {
            self.run_again(id);
        }
        let member = self.groups.member_mut(id);
        for input in inputs {
            trace_input(&mut self.trace, now_us, id, &input);
            heard.hear(&input);
            let asker = match &input {
                Input::Ask { client, number, .. } => Some((*client, *number)),
                Input::Message { .. }
                | Input::Tick
                | Input::Written(_)
                | Input::Captured(_)
                | Input::Fetched(..)
                | Input::Read(..)
                | Input::Transfer(_) => None,
            };
            if let (Some(reply), Some(asker)) = (member.take_in(now_us, input, floor), asker) {
                replies.push((asker, reply));
            }
        }
        let (output, before) = member.take_output();
        for event in &output.events {
            self.trace.line(now_us, format_args!("{id} {}", Happened(event)));
        }
        self.count(id, &output);
        let at_once =
            output.answers.iter().filter(|(read, answer)| *read > last_read && answer.is_ok());
        self.tally.reads_at_once += at_once.count() as u64;
        for ((client, number), reply) in replies {
            let invariants = &mut self.groups.get_mut(id.group).invariants;
            invariants.answered_at_once(id.node, client, number, &reply, floor)?;
            self.reply(id, client, number, reply);
        }
        let home = self.home(id.group);
        let ledger = self.ledgers.get_mut(&home).expect("every group has one");
        let Group { members, invariants, .. } = self.groups.get_mut(id.group);
        let step = Step { node: id.node, heard: &heard, before: &before, output: &output, members };
        invariants.step(step, ledger)?;
        self.perform(id, output)
    }

    /// A member has more to do.
    fn run_again(&mut self, id: MemberId) {
        let member = self.groups.member_mut(id);
        if !member.run_is_due {
            member.run_is_due = true;
            self.agenda.after(STEP_US, Happening::Run(member.life()));
        }
    }

    fn count(&mut self, id: MemberId, output: &Output<Machine>) {
        for event in &output.events {
            match event {
                raft::Event::Leading { .. } => {
                    self.tally.elections += 1;
                    self.groups.get_mut(id.group).leaderships.elections += 1;
                    self.plan_deposition(id);
                }
                raft::Event::LostQuorum { .. } => self.tally.quorums_lost += 1,
                raft::Event::Transferring { .. } => self.tally.transfers += 1,
                raft::Event::SlowDisk { .. } => self.tally.slow_disks += 1,
                raft::Event::TransferFailed { .. } => self.tally.transfers_failed += 1,
                raft::Event::Removed { .. } => {
                    self.tally.leaders_removed += 1;
                    self.groups.get_mut(id.group).leaderships.leaders_removed += 1;
                }
                raft::Event::Reconfigured { .. } => self.tally.reconfigured += 1,
                raft::Event::Truncated { .. } => self.tally.truncations += 1,
                raft::Event::Compacted { .. } => self.tally.snapshots += 1,
                raft::Event::Installed { suffix_kept, .. } => {
                    self.tally.installs += 1;
                    self.tally.suffixes_kept += u64::from(*suffix_kept);
                }
                raft::Event::Following { .. }
                | raft::Event::PreCampaigning { .. }
                | raft::Event::Campaigning { .. }
                | raft::Event::Voted { .. }
                | raft::Event::Committed { .. }
                | raft::Event::Installing { .. }
                | raft::Event::Dropped { .. } => {}
            }
        }
    }

    /// The nemesis has a look at who leads: some are struck soon.
    fn plan_deposition(&mut self, id: MemberId) {
        if self.mix.chance(&mut self.rng, self.mix.depose_per_mille) {
            // Half of them before anything that they say has arrived.
            let at_once = self.rng.random_range(0..2) == 0;
            let delay_us_max = if at_once { 0 } else { DEPOSED_AFTER_US_MAX };
            let delay_us = self.rng.random_range(0..=delay_us_max);
            self.agenda.after(delay_us, Happening::Depose(self.groups.member(id).life()));
        }
    }

    /// Does what a member asks for. A member that dies in the middle has done an arbitrary part.
    fn perform(&mut self, id: MemberId, output: Output<Machine>) -> Result<(), Violation> {
        let Output {
            mut messages, write, fetches, again, outcomes, answers, install, capture, ..
        } = output;
        let per_million = self.mix.crash_in_step_per_million;
        let dies = per_million > 0 && self.rng.random_range(0..1_000_000) < per_million;
        if dies {
            messages.truncate(self.rng.random_range(0..=messages.len()));
        }
        if let Some(write) = write
            && (!dies || self.rng.random_range(0..2) == 0)
        {
            self.write(id, write);
        }
        for envelope in messages {
            self.send(id, envelope);
        }
        if dies {
            return self.die(id);
        }
        let member = self.groups.member_mut(id);
        let life = member.life();
        let mut replies = Vec::new();
        for (ticket, outcome) in outcomes {
            let reply = match outcome {
                raft::Outcome::Done(None) => Reply::Done(Index(0)),
                raft::Outcome::Done(Some(Response { index, said })) => match said {
                    None => Reply::Done(index),
                    Some(Said::Kv(response)) => Reply::Applied(index, response),
                    Some(Said::Shards(done)) => Reply::Configured(index, done),
                },
                raft::Outcome::Rejected => Reply::Rejected,
                raft::Outcome::Unknown => Reply::Unknown,
            };
            replies.extend(member.close_ticket(ticket).map(|asked| (asked, reply)));
        }
        for (read, answer) in answers {
            let reply = answer.map_or(Reply::Refused { leader: None }, Reply::from);
            replies.extend(member.close_read(read).map(|asked| (asked, reply)));
        }
        for (asked, reply) in replies {
            self.reply(id, asked.client, asked.number, reply);
        }
        for fetch in fetches {
            match fetch.reader {
                None => self.tally.reads_to_apply += 1,
                Some(_) => self.tally.reads_to_send += 1,
            }
            let reading_us = self.rng.random_range(0..=self.mix.sync_us_max);
            self.agenda.after(reading_us, Happening::Read(life, fetch));
        }
        if again {
            self.run_again(id);
        }
        if let Some(install) = install {
            let install = self.begin_transfer(id, install);
            let from = id.group.member(install.from);
            let heard = self.is_reachable(id, from) || self.refuses(from);
            let transfer_us = self.rng.random_range(0..=self.mix.snapshot_us_max);
            let transfer_us = if heard { transfer_us } else { SILENT_TRANSFER_US };
            self.agenda.after(transfer_us, Happening::Fetched(life, install));
        }
        if let Some(frozen) = capture {
            let storing_us = self.rng.random_range(0..=self.mix.snapshot_us_max);
            self.agenda.after(storing_us, Happening::Captured(life, encode(frozen, self.plant)));
        }
        Ok(())
    }

    /// A member dies of itself. Whoever looks after it starts it again.
    fn die(&mut self, id: MemberId) -> Result<(), Violation> {
        self.crash(id)?;
        let down_us = self.rng.random_range(0..=DOWN_US_MAX);
        self.agenda.after(down_us, Happening::Mend(Mend::Start(id)));
        Ok(())
    }

    /// Whether a question gets there and an answer back.
    fn is_reachable(&self, from: MemberId, to: MemberId) -> bool {
        let member = &self.groups.member(to);
        let open = self.network.is_open((from, to)) && self.network.is_open((to, from));
        open && member.is_up() && !member.paused
    }

    /// Whether a member says that it is down.
    pub(crate) fn refuses(&self, id: MemberId) -> bool {
        self.mix.down_refuses && !self.groups.member(id).is_up()
    }

    fn write(&mut self, id: MemberId, write: Write) {
        let now_us = self.agenda.now_us();
        let Write { id: name, hard_state, entries, snapshot } = &write;
        let term = hard_state.map(|hard| (hard.term.0, hard.vote.map(|vote| vote.0)));
        let covered = snapshot.as_ref().map(|it| (it.root.position.index.0, it.first.0, it.reset));
        let from = entries.first().map(|entry| entry.position().to_string()).unwrap_or_default();
        self.trace.line(
            now_us,
            format_args!("{id} writes w{name}: {term:?} {from}+{} {covered:?}", entries.len()),
        );
        let member = self.groups.member_mut(id);
        let early = member.answers_early(&write).then_some(write.id);
        member.disk.submit(write);
        if let Some(write) = early {
            self.give(id, Input::Written(write));
        }
        self.sync(id);
    }

    /// Begins the next sync of a disk, if there is something to do and none is running.
    fn sync(&mut self, id: MemberId) {
        let member = self.groups.member_mut(id);
        if let Some(latency_us) = member.disk.begin_sync(&mut self.rng, &self.mix) {
            self.agenda.after(latency_us, Happening::Synced(member.life()));
        }
    }

    pub(crate) fn synced(&mut self, id: MemberId) -> Result<(), Violation> {
        let member = self.groups.member_mut(id);
        if member.disk.sync_fails(&mut self.rng, &self.mix) {
            self.tally.disk_errors += 1;
            self.trace.line(self.agenda.now_us(), format_args!("the disk of {id} fails"));
            return self.die(id);
        }
        let written = member.disk.end_sync().map_err(|why| broken_disk(id, &why))?;
        let Group { members, invariants, .. } = self.groups.get_mut(id.group);
        invariants.disk_changed(id.node, members)?;
        if let Some(write) = written
            && self.plant != Plant::AnswerBeforeDurable
        {
            self.give(id, Input::Written(write));
        }
        self.sync(id);
        Ok(())
    }

    /// Entries of a member's log are read, or its disk fails.
    pub(crate) fn read(&mut self, id: MemberId, fetch: Fetch) -> Result<(), Violation> {
        if self.mix.chance(&mut self.rng, self.mix.disk_error_per_mille) {
            self.tally.disk_errors += 1;
            self.trace.line(self.agenda.now_us(), format_args!("the disk of {id} fails to read"));
            return self.die(id);
        }
        let entries = self.groups.member_mut(id).disk.read(fetch);
        let entries = entries.map_err(|why| broken_disk(id, &why))?;
        self.give(id, Input::Read(fetch.reader, entries));
        Ok(())
    }

    pub(crate) fn captured(&mut self, id: MemberId, stored: Stored) -> Result<(), Violation> {
        let full = self.groups.member(id).disk.full;
        let fails = full || self.mix.chance(&mut self.rng, self.mix.snapshot_failure_per_mille);
        let root = (!fails).then(|| stored.root.clone());
        if fails {
            self.tally.snapshots_failed += 1;
            self.groups.member_mut(id).snapshot_failed = true;
        } else {
            self.store(id, stored)?;
        }
        self.give(id, Input::Captured(root));
        Ok(())
    }

    fn store(&mut self, id: MemberId, stored: Stored) -> Result<(), Violation> {
        self.groups.get(id.group).invariants.stored(id.node, &stored)?;
        let member = self.groups.member_mut(id);
        member.snapshot_failed = false;
        member.disk.store(stored);
        Ok(())
    }

    /// What a member fetches that was offered a snapshot: one that it began to fetch in an earlier
    /// life, if that leads further and is still where it was, as hosts do.
    fn begin_transfer(&mut self, id: MemberId, offered: Install) -> Install {
        let member = &self.groups.member(id);
        let begun = member.disk().transfer.clone().filter(|begun| {
            let kept = self.groups.member(id.group.member(begun.from)).disk().stored(&begun.root);
            kept.is_some() && begun.root.position.index > member.standing().commit
        });
        let install = begun.unwrap_or(offered);
        let member = self.groups.member_mut(id);
        member.disk.transfer = Some(install.clone());
        install
    }

    /// A transfer has ended: well, if both ends are there and the giver still has the snapshot.
    pub(crate) fn fetched(&mut self, id: MemberId, install: Install) -> Result<(), Violation> {
        let Install { from, root } = install;
        let from = id.group.member(from);
        let full = self.groups.member(id).disk.full;
        let fails = full || self.mix.chance(&mut self.rng, self.mix.snapshot_failure_per_mille);
        let reachable = self.is_reachable(id, from);
        let given = self.groups.member(from).disk().stored(&root);
        let Some(stored) = given.filter(|_| reachable && !fails).cloned() else {
            self.groups.member_mut(id).disk.transfer = None;
            self.give(id, Input::Fetched(root, None));
            return Ok(());
        };
        // The member serves on while a machine is made of it.
        let life = self.groups.member(id).life();
        let restored = Happening::Restored(life, root, stored.chunks.clone());
        let restoring_us = self.rng.random_range(0..=self.mix.snapshot_us_max);
        self.agenda.after(restoring_us, restored);
        self.store(id, stored)
    }

    fn send(&mut self, from: MemberId, envelope: Envelope) {
        let now_us = self.agenda.now_us();
        let Envelope { to, message } = self.tamper(envelope);
        let to = self.misdirect(from.group.member(to));
        let kind = match message.kind {
            MessageKind::VoteReply { .. }
            | MessageKind::AppendReply { .. }
            | MessageKind::ReadReply { .. } => Kind::Reply,
            MessageKind::VoteRequest { .. }
            | MessageKind::AppendRequest { .. }
            | MessageKind::SnapshotOffer(_)
            | MessageKind::TimeoutNow
            | MessageKind::ReadRequest { .. } => Kind::Request,
        };
        self.tally.sent += 1;
        self.tally.requests += u64::from(kind == Kind::Request);
        let bytes = bytes_of(&message);
        self.tally.bytes += bytes;
        let link = (from, to);
        if self.network.withholds(link, &message) {
            self.trace.line(now_us, format_args!("{from} > {to} {} (held)", Shown(&message)));
            return;
        }
        let arrivals =
            self.network.arrivals(now_us, Parcel { link, kind, bytes }, &mut self.rng, &self.mix);
        let lost = if arrivals.is_empty() { " (lost)" } else { "" };
        self.trace.line(now_us, format_args!("{from} > {to} {}{lost}", Shown(&message)));
        for time_us in arrivals {
            self.agenda.at(time_us, Happening::Deliver { from, to, message: message.clone() });
        }
    }

    /// Planted bugs of the network.
    fn tamper(&mut self, mut envelope: Envelope) -> Envelope {
        let kind = &mut envelope.message.kind;
        if self.plant == Plant::ForgeVotes
            && let MessageKind::VoteReply { pre_vote: false, granted } = kind
        {
            *granted = true;
        }
        if self.plant == Plant::InflateLogs
            && let MessageKind::VoteRequest { last, .. } = kind
        {
            let term = Term(envelope.message.term.0 - 1);
            *last = Position { term, index: Index(last.index.0 + 1_000) };
        }
        if self.plant == Plant::ForgeAcknowledgements
            && let MessageKind::AppendReply { result: AppendResult::Matched(index), .. } = kind
        {
            index.0 += 1;
        }
        if self.plant == Plant::CorruptEntries
            && let MessageKind::AppendRequest { entries, .. } = kind
            && self.mix.chance(&mut self.rng, 20)
        {
            for entry in entries {
                let forged = CommandId { client: 999, number: entry.index.0 };
                entry.payload = Payload::Command(forged.write_to(0, 0));
            }
        }
        envelope
    }
}

/// What a member takes in, as the trace shows it.
fn trace_input(trace: &mut Trace, now_us: u64, id: MemberId, input: &Input) {
    match input {
        Input::Message { from, message } => {
            let from = id.group.member(*from);
            trace.line(now_us, format_args!("{id} < {from} {}", Shown(message)));
        }
        Input::Tick => {}
        Input::Written(write) => {
            trace.line(now_us, format_args!("{id} written w{write}"));
        }
        Input::Captured(root) => {
            let position = root.as_ref().map(|root| root.position);
            trace.line(now_us, format_args!("{id} captured {position:?}"));
        }
        Input::Fetched(root, chunks) => {
            let outcome = if chunks.is_some() { "has fetched" } else { "can't fetch" };
            let position = root.position;
            trace.line(now_us, format_args!("{id} {outcome} {position}"));
        }
        Input::Read(reader, entries) => {
            let (first, last) = (entries.first(), entries.last());
            let range = (first.map(Entry::position), last.map(Entry::position));
            trace.line(now_us, format_args!("{id} has read {range:?} for {reader:?}"));
        }
        Input::Transfer(to) => {
            let to = id.group.member(*to);
            trace.line(now_us, format_args!("{id} asked to hand over to {to}"));
        }
        Input::Ask { client, number, request } => {
            let kind = match request {
                crate::client::Request::Write { .. } => "write",
                crate::client::Request::Read { .. } => "read",
                crate::client::Request::Change { .. } => "change",
                crate::client::Request::Tick => "tick",
            };
            trace.line(now_us, format_args!("{id} asked c{client}.{number} {kind}"));
        }
    }
}

/// A member asked its disk for something that [`Write`] rules out, or its store broke a promise.
pub(crate) fn broken_disk(id: MemberId, broken: &Broken) -> Violation {
    match broken {
        Broken::Contract(why) => Violation::new("write contract", format!("{id}: {why}")),
        Broken::Store(why) => Violation::new("store", format!("{id}: {why}")),
    }
}
