//! Golden scripts: what the core does, command by command, in a notation of its own.
//!
//! Every file below `scripts/` is a test, named as the file is; `every_script_is_a_test` keeps the
//! list whole. See `golden/script.rs` for how a script is written and accepted.

mod golden {
    pub(crate) mod disk;
    pub(crate) mod notation;
    pub(crate) mod script;
    pub(crate) mod world;
}

/// Makes a test of each script and a list of them all.
macro_rules! scripts {
    ($($topic:ident: [$($name:ident),+ $(,)?],)+) => {
        $(
            mod $topic {
                $(
                    #[test]
                    fn $name() {
                        crate::golden::script::check(stringify!($topic), stringify!($name));
                    }
                )+
            }
        )+

        const SCRIPTS: &[(&str, &[&str])] =
            &[$((stringify!($topic), &[$(stringify!($name)),+]),)+];
    };
}

scripts! {
    raft_config: [
        add_single,
        bad_changes_are_refused,
        change_that_breaks_the_quorum_is_refused,
        commit_needs_both_majorities,
        datadriven,
        election_needs_both_majorities,
        grown_from_one,
        learner_is_not_counted,
        learner_must_vote,
        learner_never_campaigns,
        membership_in_a_snapshot,
        new_leader_ends_a_change,
        one_change_at_a_time,
        promotion_waits_for_the_log,
        remove_leader,
        remove_leader_of_two,
        removed_member_is_told,
        replace_leader_joint,
        restart_in_a_change,
        silent_member_does_not_count_for_a_new_leader,
        truncated_change_is_undone,
        undone_removal_may_still_lead,
        unheard_learner_is_not_promoted,
    ],
    raft_durability: [
        appended_entries_lost_in_a_crash_are_sent_again,
        candidate_counts_itself_only_when_durable,
        entry_that_returns_is_acknowledged_by_its_own_write,
        leader_counts_itself_only_when_durable,
        one_batch_is_one_write_and_one_message,
        term_is_not_spoken_before_it_is_durable,
        truncated_before_it_was_written,
        truncated_write_acknowledges_nothing,
        vote_is_not_sent_before_it_is_durable,
        write_proves_the_part_that_is_left,
    ],
    raft_election: [
        candidate_meets_leader,
        candidate_yields_to_a_higher_term,
        check_quorum_steps_down,
        follower_takes_over_a_higher_term,
        initial_election,
        late_answers_do_not_count_in_another_election,
        lost_election_returns_to_following,
        only_voter_waits_with_leases,
        pre_vote_blocks_stale_candidate,
        pre_vote_granted_promises_nothing,
        pre_vote_refusal_tells_the_term,
        pre_vote_refused_to_shorter_log,
        re_election,
        rejoin_does_not_disrupt,
        restarted_voter_waits,
        single_member_elects_itself,
        slow_disk_does_not_restart_an_election,
        split_vote_ends_in_another_election,
        unanswered_candidate_starts_over,
        vote_once_per_term_across_restart,
        vote_refused_to_shorter_log,
        word_to_a_leader_outlasts_its_term,
    ],
    raft_leader: [
        leader_of_a_stale_term_learns_the_term,
        leader_steps_down_at_a_higher_term,
        old_term_entry_can_be_replaced_before_that,
        old_term_entry_is_not_committed_by_counting,
        one_follower_is_quorum_enough,
        two_leaders_of_one_term_are_a_contradiction,
        uncommitted_bytes_are_bounded,
    ],
    raft_log: [
        append_below_commit_is_answered,
        commit_does_not_pass_what_the_append_proves,
        conflict_by_term,
        conflict_with_shorter_log,
        duplicate_append_changes_nothing,
        entries_are_sent_once,
        figure_7_logs_converge,
        first_append,
        heartbeat_repairs_a_lost_message,
        inflight_bytes_limit_pauses,
        inflight_limit_pauses,
        lagging_commit,
        leader_that_denies_what_is_committed_is_dropped,
        lost_first_of_several_is_repaired_by_the_second,
        probe_waits_for_its_answer,
        probing_recovers,
        reordered_append_never_truncates_commit,
        stale_refusal_is_ignored,
    ],
    raft_read: [
        answer_to_an_earlier_life_is_ignored,
        answer_to_an_earlier_round_confirms_nothing,
        batch_shares_one_round,
        follower_asks_its_leader,
        follower_refuses_when_it_loses_its_leader,
        learner_asks_its_leader,
        lease_ends,
        lease_expires_on_pause,
        lease_is_a_setting_of_the_group,
        lease_is_void_in_a_transfer,
        lease_needs_both_majorities,
        lease_serves_without_a_round,
        lease_waits_for_own_term,
        lost_question_is_repeated,
        new_leader_waits_for_own_term,
        question_waits_for_own_term,
        questions_are_bounded,
        read_in_minority_blocks,
        read_index_safe,
        reads_that_wait_are_bounded,
        single_member,
        who_follows_nobody_refuses,
    ],
    raft_window: [
        applies_so_much_at_once,
        conflict_below_the_window,
        disk_answers_a_leader_no_more,
        leader_keeps_what_a_follower_lacks,
        learner_is_promoted_whatever_is_in_memory,
        new_leader_keeps_what_it_may,
        restarted_member_applies_from_the_disk,
        slow_follower_is_read_from_the_disk,
        snapshot_on_offer_keeps_its_log,
        unheard_member_costs_little_at_last,
    ],
    raft_transfer: [
        after_snapshot,
        back,
        ignore_proposals,
        late_request_to_campaign_is_harmless,
        lost_request_is_repeated,
        slow_disk_hands_over,
        timeout,
        to_slow_follower,
        to_up_to_date,
    ],
    raft_time: [
        continues_from_the_last_stamp,
        new_leader_never_falls_behind,
        pause_stretches,
    ],
    raft_snapshot: [
        absent_follower_with_full_window,
        acknowledged_when_durable,
        compaction_retains_a_tail,
        discard_divergent_suffix,
        divergent_follower_after_compaction,
        failed_install_is_retried,
        install_keeps_what_is_behind,
        overtaken_install_is_ignored,
        restart_from_snapshot,
        slow_follower_after_compaction,
        succeed_via_app_resp,
        succeed_via_app_resp_behind,
    ],
    raft_message: [
        malformed_is_dropped,
        own_name_is_dropped,
        replies_that_promise_too_much_are_ignored,
        stale_messages_are_dropped,
    ],
}

#[test]
fn every_script_is_a_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut found = std::collections::BTreeSet::new();
    for topic in root.read_dir().expect("the scripts' folder is there") {
        let topic = topic.expect("a folder can be listed").path();
        for script in topic.read_dir().expect("a topic is a folder") {
            let script = script.expect("a folder can be listed").path();
            let script = script.strip_prefix(&root).expect("it is below the root");
            found.insert(script.display().to_string());
        }
    }
    let listed: std::collections::BTreeSet<String> = SCRIPTS
        .iter()
        .flat_map(|(topic, names)| names.iter().map(move |name| format!("{topic}/{name}.txt")))
        .collect();
    assert_eq!(found, listed);
}

/// docs/raft.md leads from the papers to the scripts: every script is named there, and nothing else.
#[test]
fn every_script_is_in_the_index() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/raft.md");
    let index = std::fs::read_to_string(&path).expect("docs/raft.md is there");
    let named: std::collections::BTreeSet<&str> =
        index.split('`').filter(|word| word.starts_with("raft_") && word.contains("::")).collect();
    let scripts: Vec<String> = SCRIPTS
        .iter()
        .flat_map(|(topic, names)| names.iter().map(move |name| format!("{topic}::{name}")))
        .collect();
    let listed: std::collections::BTreeSet<&str> = scripts.iter().map(String::as_str).collect();
    assert_eq!(named, listed);
}
