//! The rules of an assignment one by one, and all orders of everything that can happen to one partition.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::*;

fn partition(number: i32) -> Partition {
    Partition { topic: "t".into(), number }
}

/// Everything that can be done, done.
fn steps(assignment: &mut Assignment) -> Vec<Step> {
    std::iter::from_fn(|| assignment.next_step(true, true)).collect()
}

fn events(assignment: &mut Assignment) -> Vec<Event> {
    std::iter::from_fn(|| assignment.next_event()).collect()
}

const KEY: StreamKey = StreamKey(0);

const RANGE: Range = Range { first: 10, next: 100 };

/// One partition, announced.
fn opened(known: Known) -> Assignment {
    let mut assignment = Assignment::default();
    assignment.assigned(&[partition(0)]);
    assert_eq!(steps(&mut assignment), [Step::Identify(vec![partition(0)])]);
    assignment.identified(&partition(0), "id", known);
    let committed = if let Known::Ours(position) = known { Some(position) } else { None };
    assert_eq!(events(&mut assignment), [Event::Opened { key: KEY, name: "t:id/0".into(), committed }]);
    assignment
}

/// The place that a stream is sought to after this.
fn sought(assignment: &mut Assignment, from: ResumeFrom, start: Start) -> Option<Position> {
    assert!(assignment.resume(KEY, from));
    let located = steps(assignment).into_iter().find_map(|step| match step {
        Step::Locate(wanted) => Some(wanted),
        _ => None,
    });
    let located = located.expect("the range is asked for");
    let start = (located[0].to == Target::Start).then_some(start);
    assignment.located(KEY, located[0].to, RANGE, start);
    let position = steps(assignment).into_iter().find_map(|step| match step {
        Step::Seek { position, .. } => Some(position),
        _ => None,
    })?;
    assignment.sought(KEY, position);
    Some(position)
}

const EARLIEST: Start = Start { at: 10, pin: false };

fn reading(known: Known) -> Assignment {
    let mut assignment = opened(known);
    assert!(sought(&mut assignment, ResumeFrom::After(20), EARLIEST).is_some());
    assert_eq!(steps(&mut assignment), [Step::Flow { partition: partition(0), on: true }]);
    assignment
}

#[test]
fn a_stream_goes_on_where_wallaroo_says_then_where_we_committed_then_at_the_start() {
    for (known, from, position) in [
        (Known::Ours(30), ResumeFrom::After(40), 40),
        (Known::Ours(30), ResumeFrom::Committed, 30),
        (Known::Foreign(50), ResumeFrom::Committed, 50),
        (Known::Nothing, ResumeFrom::Committed, 10),
    ] {
        let mut assignment = opened(known);
        assert_eq!(sought(&mut assignment, from, EARLIEST), Some(position), "{known:?} {from:?}");
        assert_eq!(assignment.reader(&partition(0)), Some((KEY, position)));
    }
}

#[test]
fn what_was_acknowledged_here_counts_more_than_what_was_committed_before() {
    let mut assignment = opened(Known::Ours(30));
    assignment.commit(KEY, 60);
    assert_eq!(sought(&mut assignment, ResumeFrom::Committed, EARLIEST), Some(60));
}

#[test]
fn nothing_is_read_before_resume_nor_while_the_range_is_asked() {
    let mut assignment = opened(Known::Nothing);
    assert_eq!(assignment.reader(&partition(0)), None);
    assignment.resume(KEY, ResumeFrom::After(20));
    assert_eq!(assignment.reader(&partition(0)), None);
    assert!(matches!(steps(&mut assignment)[..], [Step::Locate(_)]));
    assert_eq!(assignment.reader(&partition(0)), None);
}

#[test]
fn a_position_that_the_broker_does_not_hold_is_said_and_asked_again_never_jumped_over() {
    for (position, in_range) in [(9, false), (10, true), (100, true), (101, false)] {
        let mut assignment = opened(Known::Nothing);
        let sought = sought(&mut assignment, ResumeFrom::After(position), EARLIEST);
        assert_eq!(sought.is_some(), in_range, "{position}");
        let stuck = OutOfRange { partition: partition(0), position, range: RANGE };
        assert_eq!(assignment.out_of_range(), (!in_range).then_some((KEY, stuck)));
        assert_eq!(assignment.out_of_range(), None, "said once for each question");
        if !in_range {
            assert!(steps(&mut assignment).is_empty(), "not asked without a pause");
            assignment.look_beyond_again();
            assert!(matches!(steps(&mut assignment)[..], [Step::Locate(_)]));
        }
    }
}

#[test]
fn a_start_that_may_not_be_found_again_is_committed_when_it_is_found() {
    let mut assignment = opened(Known::Nothing);
    sought(&mut assignment, ResumeFrom::Committed, Start { at: 100, pin: true });
    assert!(assignment.uncommitted());
    let mut assignment = opened(Known::Nothing);
    sought(&mut assignment, ResumeFrom::Committed, EARLIEST);
    assert!(!assignment.uncommitted());
}

#[test]
fn an_answer_to_an_earlier_question_changes_nothing() {
    let mut assignment = opened(Known::Nothing);
    assignment.resume(KEY, ResumeFrom::After(20));
    steps(&mut assignment);
    assignment.resume(KEY, ResumeFrom::After(30));
    assignment.located(KEY, Target::At(20), RANGE, None);
    assignment.located(KEY, Target::At(30), RANGE, None); // not asked yet
    assert!(matches!(&steps(&mut assignment)[..], [Step::Locate(wanted)] if wanted[0].to == Target::At(30)));
    assignment.sought(KEY, 20);
    assert_eq!(assignment.reader(&partition(0)), None);
}

#[test]
fn one_commit_is_under_way_and_the_newest_position_follows_it() {
    let mut assignment = reading(Known::Nothing);
    let commit = |position| Step::Commit(vec![Commit { partition: partition(0), id: "id".into(), position }]);
    assignment.commit(KEY, 30);
    assert_eq!(steps(&mut assignment), [commit(30)]);
    assignment.commit(KEY, 40);
    assignment.commit(KEY, 35);
    assert_eq!(steps(&mut assignment), []);
    assignment.commit_answer(&partition(0), 30, true);
    assert_eq!(steps(&mut assignment), [commit(40)]);
    assignment.commit_answer(&partition(0), 40, false);
    assert_eq!(steps(&mut assignment), [commit(40)], "made again");
    assignment.commit_answer(&partition(0), 40, true);
    assert_eq!((steps(&mut assignment), assignment.uncommitted()), (vec![], false));
}

#[test]
fn a_revoked_partition_is_given_back_when_it_is_released_and_its_commit_is_through() {
    let mut assignment = reading(Known::Nothing);
    assignment.revoked(&[partition(0), partition(7)], 1_000);
    assert_eq!(events(&mut assignment), [Event::Revoking { key: KEY, deadline: 1_000 }]);
    assert_eq!(assignment.reader(&partition(0)), None);
    assert_eq!(steps(&mut assignment), [Step::Flow { partition: partition(0), on: false }]);
    assignment.commit(KEY, 30);
    assert!(matches!(steps(&mut assignment)[..], [Step::Commit(_)]));
    assignment.release(KEY);
    assert_eq!(steps(&mut assignment), []);
    assignment.commit_answer(&partition(0), 30, true);
    assert_eq!(steps(&mut assignment), [Step::GiveBack(vec![partition(0), partition(7)])]);
    assert!(assignment.is_empty());
}

#[test]
fn a_partition_is_given_back_at_the_deadline_whatever_is_missing() {
    let mut released = reading(Known::Nothing);
    released.commit(KEY, 30);
    released.revoked(&[partition(0)], 1_000);
    steps(&mut released);
    released.release(KEY);
    released.expire(999);
    assert_eq!(steps(&mut released), []);
    released.expire(1_000);
    assert_eq!(steps(&mut released), [Step::GiveBack(vec![partition(0)])]);

    let mut forgotten = reading(Known::Nothing);
    forgotten.revoked(&[partition(0)], 1_000);
    forgotten.expire(1_000 + GRACE_MILLIS);
    assert_eq!(events(&mut forgotten)[1..], [Event::Lost { key: KEY }]);
    assert_eq!(steps(&mut forgotten), [Step::GiveBack(vec![partition(0)])]);
}

#[test]
fn nothing_is_committed_for_a_lost_partition_and_its_next_stream_has_another_handle() {
    let mut assignment = reading(Known::Nothing);
    assignment.lost(&[partition(0)]);
    assert_eq!(events(&mut assignment), [Event::Lost { key: KEY }]);
    assignment.commit(KEY, 30);
    assert_eq!(steps(&mut assignment), []);
    assignment.assigned(&[partition(0)]);
    steps(&mut assignment);
    assignment.identified(&partition(0), "id", Known::Ours(20));
    let name = "t:id/0".to_owned();
    assert_eq!(events(&mut assignment), [Event::Opened { key: StreamKey(1), name, committed: Some(20) }]);
    assignment.release(KEY);
    assert!(!assignment.resume(KEY, ResumeFrom::Committed));
    assert!(assignment.resume(StreamKey(1), ResumeFrom::Committed));
}

#[test]
fn a_partition_that_was_never_announced_leaves_without_a_word() {
    let mut assignment = Assignment::default();
    assignment.assigned(&[partition(0), partition(1)]);
    assignment.revoked(&[partition(0)], 1_000);
    assignment.lost(&[partition(1)]);
    assert_eq!(events(&mut assignment), []);
    assert_eq!(steps(&mut assignment), [Step::GiveBack(vec![partition(0)])]);
}

#[test]
fn a_topic_made_anew_is_another_stream() {
    let mut assignment = reading(Known::Nothing);
    assignment.check_ids(&BTreeMap::from([("t".into(), "id".into()), ("u".into(), "x".into())]));
    assert_eq!(events(&mut assignment), []);
    assignment.check_ids(&BTreeMap::from([("t".into(), "new".into())]));
    assert_eq!(events(&mut assignment), [Event::Lost { key: KEY }]);
    assert_eq!(steps(&mut assignment), [Step::Identify(vec![partition(0)])]);
    assignment.identified(&partition(0), "new", Known::Nothing);
    let name = "t:new/0".to_owned();
    assert_eq!(events(&mut assignment), [Event::Opened { key: StreamKey(1), name, committed: None }]);
}

#[test]
fn with_another_client_a_stream_goes_on_behind_the_last_record_that_was_taken() {
    let mut assignment = reading(Known::Nothing);
    assignment.read(KEY, 50);
    assignment.commit(KEY, 40);
    steps(&mut assignment);
    assignment.replaced();
    assert_eq!((assignment.reader(&partition(0)), steps(&mut assignment)), (None, vec![]));
    assignment.assigned(&[partition(0)]);
    assert_eq!(steps(&mut assignment), [Step::Identify(vec![partition(0)])]);
    assignment.identified(&partition(0), "id", Known::Ours(40));
    let next = steps(&mut assignment);
    assert!(
        matches!(&next[..], [Step::Commit(c), Step::Locate(w)] if c[0].position == 40 && w[0].to == Target::At(50))
    );
    assert_eq!(events(&mut assignment), []);
}

#[test]
fn with_another_client_a_partition_that_went_elsewhere_is_lost() {
    let mut assignment = reading(Known::Nothing);
    assignment.replaced();
    assignment.assigned(&[partition(1)]);
    assert_eq!(events(&mut assignment), [Event::Lost { key: KEY }]);
}

#[test]
fn a_paused_stream_does_not_flow_and_a_refused_position_is_asked_for() {
    let mut assignment = reading(Known::Nothing);
    assignment.pause(KEY, true);
    assert!(!assignment.yields(KEY) && assignment.is_ours(KEY));
    assert_eq!(steps(&mut assignment), [Step::Flow { partition: partition(0), on: false }]);
    assignment.pause(KEY, false);
    assert_eq!(steps(&mut assignment), [Step::Flow { partition: partition(0), on: true }]);
    assignment.read(KEY, 60);
    assignment.refused(&partition(0));
    let next = steps(&mut assignment);
    assert!(next.contains(&Step::Flow { partition: partition(0), on: false }));
    assert!(matches!(&next[0], Step::Locate(wanted) if wanted[0].to == Target::At(60)));
}

/// What the outside knows in the exhaustive walk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct World {
    assignment: Assignment,
    /// The client has it; the group waits for it to be given back.
    assigned: bool,
    wanted_back: bool,
    /// The stream that the pump knows, and whether the group took it.
    stream: Option<(StreamKey, bool)>,
    dead: Vec<StreamKey>,
    acknowledged: Position,
    identify: bool,
    locate: Option<Locate>,
    seek: Option<(StreamKey, Position)>,
    commit: Option<Position>,
    now: u64,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Assign,
    Revoke,
    Lose,
    Replace,
    Resume,
    Acknowledge,
    Release,
    AnswerIdentify,
    AnswerLocate,
    AnswerSeek,
    AnswerCommit(bool),
    Pass,
}

const MOVES: [Move; 13] = [
    Move::Assign,
    Move::Revoke,
    Move::Lose,
    Move::Replace,
    Move::Resume,
    Move::Acknowledge,
    Move::Release,
    Move::AnswerIdentify,
    Move::AnswerLocate,
    Move::AnswerSeek,
    Move::AnswerCommit(true),
    Move::AnswerCommit(false),
    Move::Pass,
];

const DEADLINE: u64 = 1_000;

impl World {
    /// The world after a move; `None` where it is not possible.
    fn after(&self, step: Move) -> Option<World> {
        let mut world = self.clone();
        let p = partition(0);
        match step {
            Move::Assign if !world.assigned => {
                world.assigned = true;
                world.assignment.assigned(&[p]);
            }
            Move::Revoke if world.assigned && !world.wanted_back => {
                world.wanted_back = true;
                world.assignment.revoked(&[p], world.now + DEADLINE);
            }
            Move::Lose if world.assigned => {
                (world.assigned, world.wanted_back) = (false, false);
                world.assignment.lost(&[p]);
            }
            Move::Replace => {
                (world.assigned, world.wanted_back) = (false, false);
                (world.identify, world.locate, world.seek, world.commit) = (false, None, None, None);
                world.assignment.replaced();
            }
            Move::Resume => {
                let (key, gone) = world.stream?;
                if gone {
                    return None;
                }
                assert!(world.assignment.resume(key, ResumeFrom::After(50)));
            }
            Move::Acknowledge if world.acknowledged < 52 => {
                let (key, _) = world.stream?;
                world.acknowledged = world.acknowledged.max(50) + 1;
                world.assignment.commit(key, world.acknowledged);
            }
            Move::Release => {
                let (key, gone) = world.stream.take()?;
                if !gone {
                    return None;
                }
                world.dead.push(key);
                world.assignment.release(key);
            }
            Move::AnswerIdentify if world.identify => {
                world.identify = false;
                world.assignment.identified(&p, "id", Known::Nothing);
            }
            Move::AnswerLocate => {
                let Locate { key, to, .. } = world.locate.take()?;
                world.assignment.located(key, to, RANGE, None);
            }
            Move::AnswerSeek => {
                let (key, position) = world.seek.take()?;
                world.assignment.sought(key, position);
            }
            Move::AnswerCommit(done) => {
                let position = world.commit.take()?;
                world.assignment.commit_answer(&p, position, done);
            }
            Move::Pass if world.wanted_back && world.now < 2 * DEADLINE => {
                world.now += DEADLINE + GRACE_MILLIS;
                world.assignment.expire(world.now);
            }
            _ => return None,
        }
        world.settle();
        Some(world)
    }

    /// Does what the assignment asks for and checks what must hold.
    fn settle(&mut self) {
        while let Some(event) = self.assignment.next_event() {
            match event {
                Event::Opened { key, .. } => {
                    assert!(self.assigned, "a stream of a partition that is not ours");
                    assert!(!self.dead.contains(&key));
                    // The pump still holds the earlier one until it releases it: here it does so at once.
                    if let Some((earlier, gone)) = self.stream.replace((key, false)) {
                        assert!(gone, "two streams of one partition");
                        self.dead.push(earlier);
                        self.assignment.release(earlier);
                    }
                }
                Event::Revoking { key, .. } => {
                    assert_eq!(self.stream, Some((key, false)));
                    self.stream = Some((key, true));
                }
                Event::Lost { key } => {
                    assert_eq!(self.stream.map(|(key, _)| key), Some(key));
                    self.stream = Some((key, true));
                }
            }
        }
        let busy = self.identify || self.locate.is_some();
        while let Some(step) = self.assignment.next_step(!busy, self.commit.is_none()) {
            match step {
                Step::Commit(commits) => {
                    assert!(self.assigned, "a commit without the partition");
                    assert_eq!(commits.len(), 1);
                    assert!(commits[0].position <= self.acknowledged, "a commit ran ahead");
                    self.commit = Some(commits[0].position);
                }
                Step::GiveBack(partitions) => {
                    assert!(self.wanted_back && partitions == [partition(0)]);
                    let held = self.stream.is_some_and(|(_, gone)| !gone);
                    assert!(!held, "given back while the pump holds it");
                    (self.assigned, self.wanted_back) = (false, false);
                }
                Step::Identify(_) => {
                    assert!(self.assigned);
                    self.identify = true;
                }
                Step::Locate(mut wanted) => self.locate = wanted.pop(),
                Step::Seek { key, position, .. } => {
                    assert!(self.assigned && !self.dead.contains(&key));
                    self.seek = Some((key, position));
                }
                Step::Flow { .. } => assert!(self.assigned, "flow of a partition that is not ours"),
            }
            if self.identify || self.locate.is_some() {
                break;
            }
        }
        if let Some((key, _)) = self.assignment.reader(&partition(0)) {
            assert_eq!(self.stream, Some((key, false)), "records of a stream that the pump does not read");
            assert!(self.assigned);
        }
    }

    /// From here the partition can be given back with nobody's help but time's.
    fn can_leave(&self) {
        let mut world = self.clone();
        if !world.wanted_back {
            return;
        }
        world.now += 10 * DEADLINE;
        world.assignment.expire(world.now);
        world.settle();
        assert!(!world.wanted_back, "the group waits for ever: {world:?}");
    }
}

#[test]
fn in_every_order_of_everything_commits_stay_behind_and_the_group_gets_its_partition_back() {
    const DEPTH: usize = 14;
    let mut seen = HashSet::new();
    let mut frontier = VecDeque::from([(World::default(), 0)]);
    let mut walked = 0;
    while let Some((world, depth)) = frontier.pop_front() {
        if !seen.insert(world.clone()) {
            continue;
        }
        walked += 1;
        world.can_leave();
        if depth < DEPTH {
            frontier
                .extend(MOVES.iter().filter_map(|step| world.after(*step)).map(|world| (world, depth + 1)));
        }
    }
    println!("{walked} states");
    assert!(walked > 1_000, "only {walked} states");
}
