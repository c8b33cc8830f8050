//! What agreement costs, as the labs count it: requests and bytes between members.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::{Mix, Violation, World};
use raft::NodeId;

const SECOND_US: u64 = 1_000_000;
/// How many commands are agreed on, and how large each is.
const COMMANDS: u64 = 10;
const COMMAND_BYTES: u64 = 5_000;

/// What is left to be sent after all have applied a command.
const QUIET_US: u64 = SECOND_US / 10;

/// A leader that all follow, with nothing on its way but heartbeats.
fn quiet_leader(world: &mut World) -> Result<NodeId, Violation> {
    world.one(3)?;
    world.run_for(QUIET_US)?;
    world.expect_leader()
}

/// Each command goes to each peer once.
#[test]
fn rpc_bytes_once_per_peer() {
    scenario("rpc_bytes_once_per_peer", 3, &Mix::calm(), |world| {
        let leader = quiet_leader(world)?;
        let before = world.tally().bytes;
        for _ in 0..COMMANDS {
            // The name and the register of a command take 17 bytes.
            let command = world.propose(leader, COMMAND_BYTES as usize - 17);
            let applied = world.run_until(SECOND_US, |world| {
                let index = world.ghost().index_of(command);
                index.is_some_and(|index| world.applied(index) == 3)
            })?;
            expect(applied, "all apply the command")?;
        }
        let bytes = world.tally().bytes - before;
        // The labs allow 200,000: 50,000 for each of three members, and as much for the rest. Two
        // peers need half of that, and the rest, heartbeats and answers, is small.
        let least = 2 * COMMANDS * COMMAND_BYTES;
        expect(
            (least..least + least / 2).contains(&bytes),
            format!("{bytes} bytes for {least} of commands"),
        )
    });
}

#[test]
fn rpc_count_election_le_30() {
    scenario("rpc_count_election_le_30", 3, &Mix::calm(), |world| {
        world.expect_leader()?;
        let requests = world.tally().requests;
        expect((1..=30).contains(&requests), format!("{requests} requests for an election"))
    });
}

#[test]
fn rpc_count_10_entries_le_42() {
    scenario("rpc_count_10_entries_le_42", 3, &Mix::calm(), |world| {
        let leader = quiet_leader(world)?;
        let before = world.tally().requests;
        let commands = (0..COMMANDS)
            .map(|_| {
                // A little apart, since those of one moment would share one message.
                world.run_for(SECOND_US / 1_000)?;
                Ok(world.propose(leader, 0))
            })
            .collect::<Result<Vec<_>, Violation>>()?;
        let applied = world.run_until(SECOND_US, |world| {
            let mut indexes = commands.iter().map(|&command| world.ghost().index_of(command));
            indexes.all(|index| index.is_some_and(|index| world.applied(index) == 3))
        })?;
        expect(applied, "all apply all commands")?;
        let requests = world.tally().requests - before;
        expect((1..=42).contains(&requests), format!("{requests} requests for ten entries"))
    });
}

#[test]
fn rpc_count_idle_le_60() {
    scenario("rpc_count_idle_le_60", 3, &Mix::calm(), |world| {
        quiet_leader(world)?;
        let before = world.tally().requests;
        world.run_for(SECOND_US)?;
        let requests = world.tally().requests - before;
        expect((1..=60).contains(&requests), format!("{requests} requests in an idle second"))
    });
}
