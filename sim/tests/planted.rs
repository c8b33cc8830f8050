//! The checkers can fail: bugs that are planted around the core, each caught by every invariant
//! that it breaks, with that invariant alone switched on.
//!
//! With `--nocapture` each test tells which seed was the first to catch its bug.

use flotilla_sim::{HISTORY, KV_HISTORY, Mix, Options, Plant, run};

/// A bug that has not been caught after so many seeds never will be.
const SEEDS_MAX: u64 = 400;

#[track_caller]
fn caught(plant: Plant, invariant: &'static str) {
    caught_in(plant, invariant, false);
}

/// The same in a world of clerks and keys.
#[track_caller]
fn caught_by_clerks(plant: Plant, invariant: &'static str) {
    caught_in(plant, invariant, true);
}

#[track_caller]
fn caught_in(plant: Plant, invariant: &'static str, kv: bool) {
    for seed in 0..SEEDS_MAX {
        let members = 3 + 2 * (seed % 2);
        let options = Options { plant, only: Some(invariant), kv, ..Options::new(seed, members) };
        let failure = run(options, None).failure;
        if let Some(failure) = failure
            && failure.violation.invariant == invariant
        {
            println!("{plant:?} is caught by {invariant} in seed {seed}: {}", failure.violation);
            return;
        }
    }
    panic!("{plant:?} is not caught by {invariant} in {SEEDS_MAX} seeds");
}

#[test]
fn acknowledging_before_durable() {
    caught(Plant::AnswerBeforeDurable, "R10");
    caught(Plant::AnswerBeforeDurable, "R6");
    caught(Plant::AnswerBeforeDurable, "R11");
}

#[test]
fn dropping_the_wait_on_term_and_vote() {
    caught(Plant::SkipHardStateWait, "R9");
    caught(Plant::SkipHardStateWait, "R11");
}

#[test]
fn losing_a_vote_in_a_crash() {
    caught(Plant::LoseVote, "R9");
    caught(Plant::LoseVote, "R8");
}

#[test]
fn losing_entries_in_a_crash() {
    caught(Plant::LoseEntries, "R6");
    caught(Plant::LoseEntries, "R4");
    caught(Plant::LoseEntries, "R5");
}

#[test]
fn counting_refused_votes() {
    caught(Plant::ForgeVotes, "R1");
}

#[test]
fn changing_entries_on_their_way() {
    caught(Plant::CorruptEntries, "R3");
    caught(Plant::CorruptEntries, "R5");
}

#[test]
fn acknowledging_too_much() {
    caught(Plant::ForgeAcknowledgements, "R6");
}

#[test]
fn forgetting_to_execute() {
    caught(Plant::SkipApply, "R5");
}

#[test]
fn reading_without_a_quorum() {
    caught(Plant::StaleReads, "R19");
}

#[test]
fn telling_clerks_what_is_not_so() {
    caught_by_clerks(Plant::StaleReads, KV_HISTORY);
    caught_by_clerks(Plant::SwapAnswers, KV_HISTORY);
    caught_by_clerks(Plant::SwapAnswers, "S2");
}

#[test]
fn rejecting_what_is_unknown() {
    caught(Plant::RejectUnknown, "R12");
}

#[test]
fn clocks_that_stand_still() {
    caught(Plant::StoppedClocks, "R23");
}

#[test]
fn voting_for_a_log_that_is_behind() {
    caught(Plant::InflateLogs, "R13");
    caught(Plant::InflateLogs, "R4");
}

#[test]
fn writing_what_is_committed_again() {
    caught(Plant::WriteCommittedAgain, "R14");
}

#[test]
fn snapshots_that_lack_something() {
    caught(Plant::CutSnapshots, "R15");
}

#[test]
fn keeping_the_log_that_a_snapshot_replaces() {
    caught(Plant::KeepReplacedLog, "R16");
}

#[test]
fn starting_without_the_vote() {
    caught(Plant::StartWithoutVote, "R17");
    caught(Plant::StartWithoutVote, "R9");
}

#[test]
fn leading_without_a_quorum() {
    caught(Plant::ForgeAnswers, "R20");
}

#[test]
fn campaigning_without_having_asked() {
    caught(Plant::ForgePreVotes, "R21");
}

#[test]
fn listening_to_other_groups() {
    caught(Plant::HearOtherGroups, "R5");
    caught(Plant::HearOtherGroups, "R10");
}

/// Here nothing is known but what clients saw.
#[test]
fn clients_see_what_is_stale() {
    caught(Plant::StaleReads, HISTORY);
}

#[test]
fn clients_see_what_was_done_twice() {
    caught(Plant::AskTwice, HISTORY);
}

#[test]
fn clients_see_the_answers_of_others() {
    caught(Plant::SwapAnswers, HISTORY);
}

#[test]
fn clients_see_what_was_rejected() {
    caught(Plant::RejectUnknown, HISTORY);
}

#[test]
fn ignoring_limits() {
    caught(Plant::IgnoreLimits, "R22");
}

/// Bugs of the model are planted without the real store, and nothing then asks for it.
#[test]
fn planted_bugs_do_without_the_store() {
    let drawn = |seed: &u64| Mix::draw(*seed).majority_lost;
    for seed in (0..100).filter(drawn).take(3) {
        let (plant, only) = (Plant::LoseVote, Some("R24"));
        let report = run(Options { plant, only, ..Options::new(seed, 3) }, None);
        assert!(report.failure.is_none(), "{}", report.failure.expect("there is one"));
        assert_eq!(report.tally.recoveries, 0);
    }
}
