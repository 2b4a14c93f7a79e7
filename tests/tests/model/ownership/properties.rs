//! What must hold, and what must be possible, around one stream and its owners.

use stateright::Property;
use wallaroo_protocol::decisions::source_server::Phase;

use super::Ownership;
use super::world::{Down, Up, World, holders};

/// A commit lets the external system forget: the cluster must never need the record again.
pub(crate) const SURVIVES: &str = "what is committed lies in a completed checkpoint";
/// No record is passed over, and every frame fits its session.
pub(crate) const KEPT: &str = "no rule is broken";
/// Both ends count the same credits: nothing is spent that was not granted, EOS is charged.
pub(crate) const CREDITS: &str = "both ends count the same credits";

/// For each connection: what the connector has left, what is on its way to it, and what the worker has not read yet
/// make up the worker's own count.
fn credits_agree(world: &World) -> bool {
    world.connectors.iter().all(|connector| {
        let Some(link) = connector.link.and_then(|id| world.links.get(&id)) else { return true };
        let Some(server) = link.server.as_ref().filter(|server| server.phase() == Phase::Streaming) else {
            return true;
        };
        let granted: u64 = link
            .down
            .iter()
            .map(|frame| match frame {
                Down::Ok(credits) | Down::Ack(credits, _) => u64::from(*credits),
                Down::NotifyAck(..) | Down::Fin => 0,
            })
            .sum();
        let unread = link.up.iter().filter(|frame| match frame {
            Up::Notify(_) | Up::Record(_) | Up::Eos => true,
            Up::Hello | Up::Fin => false,
        });
        u64::from(server.credits()) == connector.core.credits() + granted + unread.count() as u64
    })
}

pub(crate) fn properties(model: &Ownership) -> Vec<Property<Ownership>> {
    let mut properties = vec![
        Property::always(SURVIVES, |_, world: &World| world.committed <= world.safe),
        Property::always(KEPT, |_, world: &World| world.broken.is_none()),
        Property::always(CREDITS, |_, world: &World| credits_agree(world)),
        Property::always("the stream is open in one session at most", |_, world: &World| {
            holders(world) <= usize::from(world.registry.owner.is_some())
        }),
        Property::always("nothing gets stuck", |model: &Ownership, world: &World| {
            let mut steps = Vec::new();
            model.progress(world, &mut steps);
            model.is_done(world) || world.broken.is_some() || !steps.is_empty()
        }),
        Property::sometimes("everything is committed", |model: &Ownership, world| model.is_done(world)),
        Property::sometimes("a stream is asked for while another session has it", |_, world: &World| {
            world.links.values().any(|link| link.down.contains(&Down::NotifyAck(false, None)))
                && !world.rolling_back
        }),
        Property::sometimes("a stream is asked for during a rollback", |_, world: &World| {
            world.rolling_back
                && world.links.values().any(|link| link.down.contains(&Down::NotifyAck(false, None)))
        }),
        Property::sometimes("an answer runs ahead of what is completed", |_, world: &World| {
            let answers = world.links.values().flat_map(|link| &link.down);
            answers.into_iter().any(|frame| match frame {
                Down::NotifyAck(true, position) => *position > world.safe,
                Down::NotifyAck(false, _) | Down::Ok(_) | Down::Ack(..) | Down::Fin => false,
            })
        }),
    ];
    if model.leader {
        properties.push(Property::sometimes(
            "a new cluster knows nothing of what is committed",
            |_, world: &World| {
                world.committed.is_some()
                    && world.registry.owner.is_some()
                    && world.registry_position().is_none()
            },
        ));
    }
    if model.moves > 0 {
        properties.push(Property::sometimes("the other connector finishes", |model: &Ownership, world| {
            model.is_done(world) && world.owner == 1
        }));
    }
    properties
}
