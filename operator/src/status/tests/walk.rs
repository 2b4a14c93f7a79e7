//! Random lives of a Connector: what holds after every step of every one. The same numbers at each run.

use super::*;

/// Lives, and steps of each.
const LIVES: u64 = 100;
const STEPS: usize = 150;

/// Numbers that look random (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn side(&mut self) -> SideStatus {
        match self.roll(4) {
            0 => SideStatus::Waiting,
            1 => failed(["Refused", "SecretMissing", "no word"][self.roll(3) as usize]),
            _ => SideStatus::Connected,
        }
    }

    fn trouble(&mut self) -> Option<PodTrouble> {
        let reasons =
            [Reason::NodeLost, Reason::CrashLooping, Reason::ImagePullFailed, Reason::QuotaExceeded];
        let reason = *reasons.get(self.roll(12) as usize)?;
        Some(PodTrouble { reason, message: "it does not work".into() })
    }

    fn progress(&mut self) -> Progress {
        let said = || "it cannot be".to_owned();
        match self.roll(16) {
            0 => Progress::Invalid { reason: Reason::ConfigInvalid, message: said() },
            1 => Progress::Refused(said()),
            2 => Progress::Conflict(said()),
            3 => Progress::Waiting(said()),
            4 => Progress::Recreating,
            _ => Progress::Applied,
        }
    }
}

fn change(world: &mut World, dice: &mut Dice) {
    match dice.roll(8) {
        0 => {
            world.generation += 1;
            world.connector.state = [
                connector_crds::State::Running,
                connector_crds::State::Paused,
                connector_crds::State::Stopped,
            ][dice.roll(3) as usize];
        }
        1 => world.progress = dice.progress(),
        2 => {
            world.pods.clear();
            world.workload = (dice.roll(2) == 0).then(Workload::default);
        }
        3 | 4 => {
            let ready = dice.roll(3) > 0;
            world.pod(ready);
            world.pods[0].running = ready || dice.roll(2) == 0;
            world.pods[0].trouble = if ready { None } else { dice.trouble() };
            let workload = world.workload.as_mut().unwrap();
            workload.current = dice.roll(4) > 0;
            workload.rolled_out = dice.roll(4) > 0;
        }
        5 => world.events = dice.trouble(),
        6 => {
            world.runtimes.clear();
        }
        _ => {
            let (wallaroo, external) = (dice.side(), dice.side());
            world.says(wallaroo, external);
            if dice.roll(4) == 0 {
                world.runtimes.insert("orders-0".into(), None);
            }
        }
    }
}

fn examine(before: &ConnectorStatus, world: &World) {
    let status = &world.status;
    let ready = find(&status.conditions, ConditionType::Ready).unwrap();
    if ready.status == ConditionStatus::True {
        assert_eq!(world.progress, Progress::Applied);
        let workload = world.workload.unwrap();
        assert!(workload.current);
        let wanted = crate::build::wanted_replicas(&world.connector);
        assert_eq!(
            (workload.ready, workload.updated, workload.replicas),
            (wanted, wanted, wanted),
            "{status:?}"
        );
        for type_ in [ConditionType::WallarooConnected, ConditionType::ExternalConnected] {
            let Some(end) = find(&status.conditions, type_) else { continue };
            let away = world.now.duration_since(end.last_transition_time.0);
            assert!(
                end.status != ConditionStatus::False || away <= super::super::ends::AWAY_LIMIT,
                "ready for {away:?} without an end: {status:?}"
            );
        }
    }
    for condition in &status.conditions {
        assert!(
            !condition.reason.is_empty() && condition.reason.len() < 64 && condition.message.len() <= 1_024
        );
        let moved = before
            .conditions
            .iter()
            .find(|before| before.type_ == condition.type_)
            .is_none_or(|before| before.status != condition.status);
        assert_eq!(condition.last_transition_time.0 == world.now, moved, "{condition:?}");
    }
}

#[test]
fn whatever_happens_the_contract_holds_and_the_second_look_writes_nothing() {
    for seed in 0..LIVES {
        let mut dice = Dice(seed);
        let spec = if seed % 3 == 0 { redis_sink() } else { kafka_source() };
        let sink = seed % 3 == 0;
        let mut world = World::of(connector(spec));
        for _ in 0..STEPS {
            world.later(1 + dice.roll(90).cast_signed());
            let generation = world.generation;
            change(&mut world, &mut dice);
            let before = world.status.clone();
            if generation != world.generation && dice.roll(2) == 0 {
                world.announce();
            } else {
                world.step();
            }
            if !sink {
                examine(&before, &world);
            }
            world.step();
            let settled = world.status.clone();
            world.step();
            assert_eq!(world.status, settled, "seed {seed}: the same facts, another status");
        }
    }
}
