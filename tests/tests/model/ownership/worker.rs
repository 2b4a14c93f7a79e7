//! The worker's side: sessions, registry, checkpoints and rollback, as the protocol's specification has them (§3.11).

use wallaroo_protocol::decisions::source_server::Phase;

use super::world::{Down, Ending, Entry, Registry, UNKNOWN, Up, World};
use super::{Ownership, STREAM};

impl Ownership {
    pub(crate) fn at_worker(&self, world: &mut World, id: usize) {
        let World { links, registry, rolling_back, .. } = world;
        let Some(link) = links.get_mut(&id) else { return };
        let (Some(frame), Some(server)) = (link.up.pop_front(), link.server.as_mut()) else { return };
        if frame != Up::Hello
            && frame != Up::Fin
            && let Some(credits) = server.charge()
        {
            link.down.push_back(Down::Ack(credits, None));
        }
        match frame {
            Up::Hello => {
                server.hello();
                server.set_rolling_back(*rolling_back);
                assert!(server.accept(), "the first frame");
                link.down.push_back(Down::Ok(self.credits.0));
            }
            Up::Notify(proposal) => {
                let ask = server.notify(STREAM);
                let accepted = ask && registry.owner.is_none();
                let position =
                    if !accepted || !registry.known && !self.leader { proposal } else { registry.acked };
                if ask {
                    server.notify_answered(STREAM, accepted, position);
                }
                if accepted {
                    *registry =
                        Registry { known: true, owner: Some(id), acked: position, ending: Ending::No };
                }
                link.down.push_back(Down::NotifyAck(accepted, position));
            }
            Up::Record(record) => {
                let repeated = record <= link.last;
                link.last = record;
                if !*rolling_back && !server.is_open(STREAM) {
                    world.breaks("a record on a stream that is not open");
                } else if repeated {
                    world.breaks("ids that do not increase in their session");
                } else if server.is_fresh(STREAM, record) {
                    let before = server.stream(STREAM).and_then(|stream| stream.seen);
                    server.seen(STREAM, record);
                    if record > before.or(world.safe).unwrap_or(0) + 1 {
                        world.breaks("a record was passed over");
                    }
                }
            }
            Up::Eos => {
                if server.eos(STREAM) {
                    registry.ending = Ending::Waiting;
                } else {
                    world.breaks("EOS of a stream that is not open");
                }
            }
            Up::Fin => {
                world.session_ends(id);
            }
        }
        // Nobody reads what is said to a connector that is gone.
        if world.connectors.iter().all(|connector| connector.link != Some(id))
            && let Some(link) = world.links.get_mut(&id)
        {
            link.down.clear();
        }
    }

    pub(crate) fn complete(world: &mut World, snapshot: (bool, Option<u64>)) {
        world.completed = snapshot;
        world.safe = world.safe.max(snapshot.1);
        let ids: Vec<usize> = world.links.keys().copied().collect();
        for id in ids {
            let owns = world.registry.owner == Some(id);
            let ending = world.registry.ending;
            let Some(server) = world.links.get_mut(&id).and_then(|link| link.server.as_mut()) else {
                continue;
            };
            if server.phase() != Phase::Streaming {
                continue;
            }
            let acked = server.stream(STREAM).map(|stream| stream.acked).filter(|_| owns);
            let credits = server.refill();
            if owns && ending == Ending::Due {
                server.remove(STREAM);
            }
            let open = acked.filter(|_| ending == Ending::No);
            if credits > 0 || open.is_some() {
                world.say(id, Down::Ack(credits, open.map(Entry)));
            }
            if owns && ending == Ending::Due {
                world.say(id, Down::Ack(0, acked.map(Entry)));
                world.registry =
                    Registry { known: true, owner: None, acked: acked.flatten(), ending: Ending::No };
            }
        }
    }

    pub(crate) fn roll_back(world: &mut World, forget: bool) {
        world.pending = None;
        let ids: Vec<usize> = world.links.keys().copied().collect();
        for id in ids {
            world.session_ends(id);
        }
        if forget {
            world.completed = (false, None);
        }
        let (known, acked) = world.completed;
        world.registry = Registry { known, acked, ..UNKNOWN };
        world.rolling_back = true;
    }
}
