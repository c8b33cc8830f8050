//! Administrators of the shard controller: each asks for a change until it is answered, whomever it
//! has to ask, always under one name, and now and then two members at once.

use std::sync::Arc;

use raft::NodeId;
use rand::RngExt;
use shardctl::{
    ShardMachine,
    command::{Command, Request},
    ids::{Number, RequestId},
    outcome::{Done, Refusal},
    target::Target,
};

use crate::{
    World,
    agenda::Input,
    application::Service,
    client::{self, OPERATOR, PATIENCE_US, Reply},
    invariants::Violation,
    machine::{CommandId, Question},
};

/// How long administrators go on asking.
const ASKED_WITHIN_US: u64 = 60_000_000;
/// How often they look for answers.
const LOOK_US: u64 = 5_000;
/// Of so many requests one is made to two members at once.
const TWICE_ONE_IN: u32 = 4;

/// What an administrator wants.
struct Petition {
    request: Request,
    id: RequestId,
    /// The attempts whose answers may come, and until when they are waited for.
    attempts: Vec<(CommandId, u64)>,
    leader: Option<NodeId>,
    /// What came of it, and how often it was told that it was done just then.
    answer: Option<Result<Done, Refusal>>,
    firsts: u32,
}

impl World {
    /// Administrators ask for all of these at the same time. What came of each.
    ///
    /// # Errors
    /// A violation; `R23` if one is not answered, `H7` if one request was executed twice.
    pub fn configure_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Result<Done, Refusal>>, Violation> {
        let mut petitions = Vec::new();
        for request in requests {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.next_name().number.to_le_bytes());
            petitions.push(Petition::new(RequestId(id), request));
        }
        let until_us = self.now_us() + ASKED_WITHIN_US;
        while petitions.iter().any(|petition| !petition.is_over()) {
            if self.now_us() > until_us {
                return Err(Violation::new("R23", "an administrator is not answered"));
            }
            for petition in &mut petitions {
                self.attend(petition)?;
            }
            self.run_for(LOOK_US)?;
        }
        Ok(petitions.into_iter().filter_map(|petition| petition.answer).collect())
    }

    /// An administrator asks for a change until it is answered. What came of it.
    ///
    /// # Errors
    /// As [`World::configure_all`].
    pub fn configure(&mut self, request: Request) -> Result<Result<Done, Refusal>, Violation> {
        let mut answers = self.configure_all([request])?;
        Ok(answers.pop().expect("one was asked for"))
    }

    /// A configuration, or the latest, as a linearizable read tells it.
    ///
    /// # Errors
    /// A violation; `R23` if nobody tells.
    pub fn configuration(&mut self, number: Option<u64>) -> Result<Option<Arc<Target>>, Violation> {
        let until_us = self.now_us() + ASKED_WITHIN_US;
        while self.now_us() < until_us {
            let to = self.draw_member(self.spoken_of);
            let name = self.next_name();
            let question = Question::Configuration(number.map(Number));
            let request = client::Request::Read { question };
            self.give(to, Input::Ask { client: OPERATOR, number: name.number, request });
            self.run_until(PATIENCE_US, |world| world.reply_to(name).is_some())?;
            if let Some(Reply::Configuration(_, target)) = self.reply_to(name) {
                return Ok(target);
            }
            self.run_for(LOOK_US)?;
        }
        Err(Violation::new("R23", "nobody tells the configuration"))
    }

    /// A number below this one, by the world's dice.
    pub fn draw(&mut self, below: u32) -> u32 {
        self.rng.random_range(0..below)
    }

    /// The controller of a member that is up.
    pub fn controller_of(&self, id: NodeId) -> Option<&ShardMachine> {
        self.member(id).replica()?.machine().application().shards()
    }

    fn next_name(&mut self) -> CommandId {
        let number = self.groups.get_mut(self.spoken_of).next_operation();
        CommandId { client: OPERATOR, number }
    }

    /// Takes in what was answered, and asks again where it must.
    fn attend(&mut self, petition: &mut Petition) -> Result<(), Violation> {
        let now_us = self.now_us();
        let mut open = Vec::new();
        for (name, until_us) in std::mem::take(&mut petition.attempts) {
            match self.reply_to(name) {
                Some(reply) => petition.take(reply)?,
                None if now_us < until_us => open.push((name, until_us)),
                None => petition.leader = None,
            }
        }
        petition.attempts = open;
        if petition.answer.is_none() && petition.attempts.is_empty() {
            let times = 1 + u32::from(self.rng.random_range(0..TWICE_ONE_IN) == 0);
            for _ in 0..times {
                let drawn = self.draw_member(self.spoken_of);
                let to = petition.leader.take().map_or(drawn, |leader| drawn.group.member(leader));
                let name = self.next_name();
                let Service::Shards { shards } = self.groups.get(to.group).service else {
                    return Err(Violation::new("scenario", "the group is no shard controller"));
                };
                let id = Some(petition.id);
                let command = Command::Request { id, shards, request: petition.request.clone() };
                let request = client::Request::Write { command: name.name(&command.encode()) };
                self.give(to, Input::Ask { client: OPERATOR, number: name.number, request });
                petition.attempts.push((name, now_us + PATIENCE_US));
            }
        }
        Ok(())
    }
}

impl Petition {
    fn new(id: RequestId, request: Request) -> Self {
        Self { request, id, attempts: Vec::new(), leader: None, answer: None, firsts: 0 }
    }

    /// Nothing that was asked may still be answered, and something was.
    fn is_over(&self) -> bool {
        self.answer.is_some() && self.attempts.is_empty()
    }

    fn take(&mut self, reply: Reply) -> Result<(), Violation> {
        match reply {
            Reply::Refused { leader } => self.leader = leader,
            Reply::Configured(_, answer) => {
                let number =
                    |answer: &Result<Done, Refusal>| answer.as_ref().ok().map(|it| it.number);
                let first = answer.as_ref().is_ok_and(|done| !done.duplicate);
                self.firsts += u32::from(first);
                let before = self.answer.get_or_insert_with(|| answer.clone());
                if self.firsts > 1 || number(before) != number(&answer) {
                    let what = format!("{:?} came to {before:?} and to {answer:?}", self.request);
                    return Err(Violation::new("H7", what));
                }
            }
            Reply::Done(_)
            | Reply::Rejected
            | Reply::Unknown
            | Reply::Read(_)
            | Reply::Applied(..)
            | Reply::Found(..)
            | Reply::Configuration(..) => {}
        }
        Ok(())
    }
}
