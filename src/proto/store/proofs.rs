//! Writers' signatures beside the records held: compared, replaced, and told again after the key has changed.
//! Makes and judges none.

use super::{PAGE, Store, table::signer_of};
use crate::{
    NodeId, StateType,
    wire::message::{RecordBatch, WireRecord},
};

/// How a record that is told compares with what is held under its dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alike {
    /// Nothing is held there, or something else.
    No,
    /// The same, signed otherwise: by these certificates.
    ButProof(u64),
    Wholly,
}

impl Store {
    /// How a record of that batch compares with what is held under its dot. One that ends by itself is alike
    /// whatever is left of its time.
    pub(crate) fn alike(&self, of: &StateType, batch: &RecordBatch, record: &WireRecord) -> Alike {
        let table = self.tables.get(of);
        let held =
            table.and_then(|table| table.at(&batch.source, batch.epoch, record.seq, record.seq).next());
        let Some(held) = held else { return Alike::No };
        let same = (held.key(), held.version(), held.timestamp_ms(), held.is_deleted())
            == (record.key.as_str(), record.version, record.timestamp_ms, record.deleted)
            && (held.is_deleted() || held.value() == &record.value[..]);
        match (same, held.proof() == &record.proof[..], signer_of(held.proof())) {
            (true, true, _) => Alike::Wholly,
            (true, false, Some(signer)) => Alike::ButProof(signer),
            _ => Alike::No,
        }
    }

    /// Puts another proof to a record that is held under a dot.
    pub(crate) fn set_proof(
        &mut self,
        of: &StateType,
        (source, epoch, seq): (&NodeId, u64, u64),
        proof: &[u8],
    ) {
        if let Some(table) = self.tables.get_mut(of) {
            table.set_proof(source, epoch, seq, proof);
        }
    }

    /// Whether anything is held that was signed by those certificates of a node.
    pub(crate) fn has_signer(&self, source: &NodeId, chain_hash: u64) -> bool {
        self.tables.values().any(|table| table.has_signer(source, chain_hash))
    }

    /// Notes of the next places of a type's table that what this life wrote there must be told again, under the
    /// dots it has, unless those certificates have signed it; where the next page begins.
    pub(crate) fn tell_again(&mut self, of: &StateType, first: u32, chain_hash: u64) -> Option<u32> {
        let table = self.tables.get(of)?;
        let room = self.proof_room(of);
        for (number, held) in table.from(first) {
            if number - first >= PAGE {
                return Some(number);
            }
            let own = (held.source(), held.epoch()) == (&self.config.me, self.config.epoch);
            if own && signer_of(held.proof()) != Some(chain_hash) {
                self.outbox.push(of, &held.key().into(), held.seq(), held.size() + room, false);
            }
        }
        None
    }
}
