//! Whose word counts, and who is chosen for what: rendezvous hashing over the live nodes, the same at each of
//! them. Pure.

use std::{collections::BTreeMap, hash::Hasher as _, time::Duration};

use siphasher::sip::SipHasher13;

use crate::NodeId;

/// A table's time: since its own beginning.
pub(crate) type Moment = Duration;

/// The nodes whose word counts, as this node sees them: those alive or suspected, itself included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) me: NodeId,
    /// Each with its zone.
    pub(crate) nodes: BTreeMap<NodeId, Option<String>>,
}

impl Live {
    /// One that knows of nobody else.
    pub(crate) fn alone(me: NodeId) -> Self {
        Self { nodes: BTreeMap::from([(me.clone(), None)]), me }
    }

    pub(super) fn has(&self, node: &NodeId) -> bool {
        self.nodes.contains_key(node)
    }

    pub(super) fn zone_of(&self, node: &NodeId) -> Option<&str> {
        self.nodes.get(node)?.as_deref()
    }

    pub(super) fn my_zone(&self) -> Option<&str> {
        self.zone_of(&self.me)
    }

    /// The `count` nodes with the highest ranks for `key`, the highest first.
    pub(super) fn chosen(&self, key: &[u8], count: usize) -> Vec<&NodeId> {
        chosen(self.nodes.keys(), key, count)
    }

    /// The same among the nodes of one zone.
    pub(super) fn chosen_in(&self, zone: Option<&str>, key: &[u8], count: usize) -> Vec<&NodeId> {
        let in_zone = self.nodes.iter().filter(|(_, of)| of.as_deref() == zone);
        chosen(in_zone.map(|(node, _)| node), key, count)
    }

    /// The first choice of each zone, in the order of zones.
    pub(super) fn chosen_by_zone(&self, key: &[u8]) -> Vec<&NodeId> {
        let mut first: BTreeMap<Option<&str>, &NodeId> = BTreeMap::new();
        for (node, zone) in &self.nodes {
            let chosen = first.entry(zone.as_deref()).or_insert(node);
            if rank(node, key) > rank(chosen, key) {
                *chosen = node;
            }
        }
        first.into_values().collect()
    }

    /// How many live nodes are chosen before `node`.
    pub(super) fn turn_of(&self, node: &NodeId, key: &[u8]) -> usize {
        let own = rank(node, key);
        self.nodes.keys().filter(|other| rank(other, key) > own).count()
    }
}

fn chosen<'a>(nodes: impl Iterator<Item = &'a NodeId>, key: &[u8], count: usize) -> Vec<&'a NodeId> {
    let mut ranked: Vec<_> = nodes.map(|node| (rank(node, key), node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().take(count).map(|(_, node)| node).collect()
}

/// How high a node stands for a key (Thaler and Ravishankar, 1998): whoever comes or goes moves only the keys
/// for which it stands first.
pub(super) fn rank<'a>(node: &'a NodeId, key: &[u8]) -> (u64, &'a NodeId) {
    let mut hasher = SipHasher13::new_with_keys(0x7068_616c_616e_7801, 0x6c62);
    hasher.write_usize_le(node.as_str().len());
    hasher.write(node.as_str().as_bytes());
    hasher.write(key);
    (hasher.finish(), node)
}

/// `write_usize` differs between machines.
trait WriteLe {
    fn write_usize_le(&mut self, number: usize);
}

impl WriteLe for SipHasher13 {
    fn write_usize_le(&mut self, number: usize) {
        self.write(&(number as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(count: usize) -> Live {
        let id = |number| NodeId::new(format!("lb-{number}")).unwrap();
        let zone = |number: usize| (!number.is_multiple_of(3)).then(|| format!("z{}", number % 3));
        Live { me: id(0), nodes: (0..count).map(|number| (id(number), zone(number))).collect() }
    }

    #[test]
    fn each_node_is_chosen_about_as_often_as_any_other() {
        let live = live(10);
        let mut first = BTreeMap::<_, usize>::new();
        for key in 0..10_000_u32 {
            *first.entry(live.chosen(&key.to_be_bytes(), 1)[0]).or_default() += 1;
        }
        assert_eq!(first.len(), 10);
        assert!(first.values().all(|count| (850..1_150).contains(count)), "{first:?}");
    }

    #[test]
    fn who_goes_moves_only_what_was_its_own() {
        let before = live(10);
        let mut after = before.clone();
        let gone = NodeId::new("lb-3").unwrap();
        after.nodes.remove(&gone);
        for key in 0..1_000_u32 {
            let key = key.to_be_bytes();
            let (old, new) = (before.chosen(&key, 1)[0], after.chosen(&key, 1)[0]);
            assert!(old == &gone || old == new);
            assert_eq!(after.turn_of(new, &key), 0);
            assert_eq!(before.turn_of(before.chosen(&key, 4)[3], &key), 3);
        }
    }

    #[test]
    fn each_zone_has_a_first_choice_of_its_own() {
        let live = live(10);
        let chosen = live.chosen_by_zone(b"x");
        assert_eq!(
            chosen.iter().map(|node| live.zone_of(node)).collect::<Vec<_>>(),
            [None, Some("z1"), Some("z2")]
        );
        assert_eq!(live.chosen_in(Some("z1"), b"x", 1), [chosen[1]]);
    }
}
