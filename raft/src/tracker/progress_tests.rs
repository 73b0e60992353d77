//! The progress of one follower. Source of the cases: etcd/raft `tracker/progress_test.go`.

use std::string::ToString;

use super::*;

fn progress(state: ProgressState, match_index: u64, next: u64) -> Progress {
    let mut progress = Progress::new(next, Inflights::new(256, 0), false);
    progress.state = state;
    progress.match_index = match_index;
    progress
}

/// TestProgressString.
#[test]
fn everything_worth_knowing_is_printed() {
    let mut progress = Progress::new(2, Inflights::new(1, 0), true);
    progress.match_index = 1;
    progress.inflights.add(123, 1);
    progress.become_snapshot(122);
    progress.inflights.add(123, 1);
    let want = "StateSnapshot match=1 next=123 learner paused pendingSnap=122 inactive inflight=1[full]";
    assert_eq!(progress.to_string(), want);
    progress.recent_active = true;
    progress.is_learner = false;
    progress.become_replicate();
    assert_eq!(progress.to_string(), "StateReplicate match=1 next=2");
}

/// TestProgressIsPaused.
#[test]
fn a_follower_is_paused_by_a_probe_or_a_snapshot() {
    use ProgressState::*;
    for (state, append_paused, want) in [
        (Probe, false, false),
        (Probe, true, true),
        (Replicate, false, false),
        (Replicate, true, true),
        (Snapshot, false, true),
        (Snapshot, true, true),
    ] {
        let mut progress = progress(state, 0, 1);
        progress.append_paused = append_paused;
        assert_eq!(progress.is_paused(), want);
    }
}

/// TestProgressResume.
#[test]
fn an_answer_resumes_a_paused_follower() {
    let mut progress = progress(ProgressState::Probe, 0, 2);
    progress.append_paused = true;
    assert!(progress.maybe_decrease_to(1, 1));
    assert!(!progress.append_paused);
    progress.append_paused = true;
    assert!(progress.maybe_update(2));
    assert!(!progress.append_paused);
}

/// TestProgressBecomeProbe.
#[test]
fn probing_begins_after_what_matches_or_after_the_snapshot() {
    let mut from_replicate = progress(ProgressState::Replicate, 1, 5);
    from_replicate.become_probe();
    assert_eq!((from_replicate.match_index, from_replicate.next), (1, 2));
    let mut from_snapshot = progress(ProgressState::Probe, 1, 5);
    from_snapshot.become_snapshot(10);
    from_snapshot.become_probe();
    assert_eq!((from_snapshot.match_index, from_snapshot.next, from_snapshot.pending_snapshot), (1, 11, 0));
    let mut failed = progress(ProgressState::Probe, 1, 5);
    failed.become_snapshot(10);
    failed.abandon_snapshot();
    assert_eq!((failed.match_index, failed.next), (1, 2));
}

/// TestProgressBecomeReplicate, TestProgressBecomeSnapshot.
#[test]
fn replication_begins_after_what_matches_and_a_snapshot_decides_what_is_next() {
    let mut progress = progress(ProgressState::Probe, 1, 5);
    progress.become_replicate();
    assert_eq!((progress.state, progress.match_index, progress.next), (ProgressState::Replicate, 1, 2));
    progress.become_snapshot(10);
    assert_eq!((progress.state, progress.match_index, progress.next), (ProgressState::Snapshot, 1, 11));
    assert_eq!(progress.pending_snapshot, 10);
}

/// TestProgressUpdate.
#[test]
fn acknowledgements_move_forward_only() {
    for (index, match_index, next, moved) in [(2, 3, 5, false), (3, 3, 5, false), (4, 4, 5, true), (5, 5, 6, true)] {
        let mut progress = progress(ProgressState::Probe, 3, 5);
        assert_eq!(progress.maybe_update(index), moved);
        assert_eq!((progress.match_index, progress.next), (match_index, next));
    }
}

/// TestProgressMaybeDecr.
#[test]
fn rejections_move_back_unless_they_are_stale() {
    use ProgressState::*;
    // State, match and next; the rejection and its hint; whether it counts, and the resulting next.
    let cases = [
        (Replicate, 5, 10, 5, 5, false, 10),
        (Replicate, 5, 10, 4, 4, false, 10),
        (Replicate, 5, 10, 9, 9, true, 6),
        (Probe, 0, 0, 0, 0, false, 0),
        (Probe, 0, 10, 5, 5, false, 10),
        (Probe, 0, 10, 9, 9, true, 9),
        (Probe, 0, 2, 1, 1, true, 1),
        (Probe, 0, 1, 0, 0, true, 1),
        (Probe, 0, 10, 9, 2, true, 3),
        (Probe, 0, 10, 9, 0, true, 1),
        (Probe, 5, 10, 9, 2, true, 6),
    ];
    for (state, match_index, next, rejected, hint, counts, want) in cases {
        let mut progress = progress(state, match_index, next.max(1));
        progress.next = next.max(1);
        if next == 0 {
            // Nothing was sent that could be rejected at this index.
            continue;
        }
        assert_eq!(progress.maybe_decrease_to(rejected, hint), counts, "{state} {rejected} {hint}");
        assert_eq!((progress.match_index, progress.next), (match_index, want));
    }
}

/// The commit index is sent once, as far as it can help.
#[test]
fn a_commit_index_is_sent_only_if_it_can_move_the_follower() {
    let mut progress = progress(ProgressState::Replicate, 5, 11);
    assert!(progress.can_bump_commit(8));
    progress.note_sent_commit(8);
    assert!(!progress.can_bump_commit(8));
    assert!(progress.can_bump_commit(9));
    // The follower will commit all it has: more does not help.
    progress.note_sent_commit(10);
    assert!(!progress.can_bump_commit(12));
    // What was on its way may be lost.
    assert!(progress.maybe_decrease_to(10, 5));
    assert_eq!(progress.next, 6);
    assert!(!progress.can_bump_commit(12));
    progress.sent_entries(3, 10);
    assert!(progress.can_bump_commit(12));
}
