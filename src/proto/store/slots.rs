//! Records in as few bytes as they need: key, proof and value in one allocation, the source as a number, and a
//! place that stays theirs while they are held. Knows no order and no rule of who wins.

use std::sync::Arc;

use bytes::Bytes;

use crate::proto::Time;

/// Slots in a chunk: growing by chunks moves nothing, so that no write waits for a million others to be
/// copied.
const CHUNK: usize = 1_024;
/// A value up to this length is copied for who reads it; a longer one is shared.
const COPIED_MAX: usize = 256;

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lives.
    Stays,
    /// It lives until then, by this node's own clock.
    Ends(Time),
    /// It is a tombstone, which is kept until then.
    Ended(Time),
}

/// A record as it is held.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Slot {
    /// Key, proof, value. Few records have a proof, and only they pay for it.
    payload: Arc<[u8]>,
    pub(super) version: u64,
    pub(super) seq: u64,
    pub(super) timestamp_ms: u64,
    pub(super) fate: Fate,
    /// The number of its source's life.
    pub(super) life: u32,
    key_len: u16,
    proof_len: u16,
}

impl Slot {
    pub(super) fn new(
        key: &str,
        (value, proof): (&[u8], &[u8]),
        (life, seq): (u32, u64),
        (version, timestamp_ms): (u64, u64),
        fate: Fate,
    ) -> Self {
        let key_len = u16::try_from(key.len()).expect("a key is far shorter than 64 KiB: that was checked");
        let (payload, proof_len) = packed(key, proof, value);
        Self { payload, version, seq, timestamp_ms, fate, life, key_len, proof_len }
    }

    pub(super) fn key(&self) -> &str {
        str::from_utf8(&self.payload[..self.key_len.into()]).expect("it was a text when it came here")
    }

    fn value_at(&self) -> usize {
        usize::from(self.key_len) + usize::from(self.proof_len)
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.payload[self.value_at()..]
    }

    /// Its writer's signature; empty without one.
    pub(super) fn proof(&self) -> &[u8] {
        &self.payload[self.key_len.into()..self.value_at()]
    }

    pub(super) fn set_proof(&mut self, proof: &[u8]) {
        (self.payload, self.proof_len) = packed(self.key(), proof, self.value());
    }

    /// The value for who keeps it longer than the slot does.
    pub(super) fn value_bytes(&self) -> Bytes {
        let value = self.value();
        if value.len() <= COPIED_MAX {
            Bytes::copy_from_slice(value)
        } else {
            Bytes::from_owner(Arc::clone(&self.payload)).slice(self.value_at()..)
        }
    }

    /// Leaves a tombstone, to be kept until then. Its proof outlives the value: that says when it was to end.
    pub(super) fn end(&mut self, kept: Time) {
        self.payload = self.payload[..self.value_at()].into();
        self.fate = Fate::Ended(kept);
    }

    pub(super) fn is_deleted(&self) -> bool {
        matches!(self.fate, Fate::Ended(_))
    }
}

fn packed(key: &str, proof: &[u8], value: &[u8]) -> (Arc<[u8]>, u16) {
    let proof_len = u16::try_from(proof.len()).expect("a proof is far shorter than 64 KiB: that was checked");
    let mut payload = Vec::with_capacity(key.len() + proof.len() + value.len());
    payload.extend_from_slice(key.as_bytes());
    payload.extend_from_slice(proof);
    payload.extend_from_slice(value);
    (payload.into(), proof_len)
}

/// All slots of a type, by number. A number is used again once its record is gone.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub(super) struct Slots {
    chunks: Vec<Vec<Option<Slot>>>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn get(&self, number: u32) -> Option<&Slot> {
        let number = number as usize;
        self.chunks.get(number / CHUNK)?.get(number % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Slot> {
        let number = number as usize;
        self.chunks.get_mut(number / CHUNK)?.get_mut(number % CHUNK)?.as_mut()
    }

    /// The number that the next slot would get.
    fn next(&mut self) -> u32 {
        if let Some(number) = self.free.pop() {
            return number;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first grows as it is filled: most types hold few records.
            let room = if self.chunks.is_empty() { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let chunk = self.chunks.last_mut().expect("one was just seen to");
        chunk.push(None);
        u32::try_from(before + chunk.len() - 1).expect("a type holds fewer than four billion records")
    }

    pub(super) fn insert(&mut self, slot: Slot) -> u32 {
        let number = self.next();
        self.chunks[number as usize / CHUNK][number as usize % CHUNK] = Some(slot);
        number
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Slot> {
        let place = number as usize;
        let slot = self.chunks.get_mut(place / CHUNK)?.get_mut(place % CHUNK)?.take()?;
        self.free.push(number);
        Some(slot)
    }

    /// The slots in use from that number on, with their numbers.
    pub(super) fn from(&self, first: u32) -> impl Iterator<Item = (u32, &Slot)> {
        let (chunk, rest) = (first as usize / CHUNK, first as usize % CHUNK);
        let numbers = first..;
        let chunks = self.chunks.iter().skip(chunk).flatten().skip(rest);
        numbers.zip(chunks).filter_map(|(number, slot)| Some((number, slot.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(key: &str, value: &[u8]) -> Slot {
        Slot::new(key, (value, b""), (1, 2), (3, 4), Fate::Stays)
    }

    #[test]
    fn a_record_takes_what_its_parts_need() {
        assert!(size_of::<Option<Slot>>() <= 64, "{}", size_of::<Option<Slot>>());
    }

    #[test]
    fn key_and_value_are_told_apart_whatever_their_lengths() {
        for (key, len) in
            [("k", 0), ("ключ", 1), ("key", COPIED_MAX), ("key", COPIED_MAX + 1), ("k", 100_000)]
        {
            let value = vec![7; len];
            let mut slot = slot(key, &value);
            assert_eq!((slot.key(), slot.value(), &slot.value_bytes()[..]), (key, &value[..], &value[..]));
            slot.set_proof(b"proof");
            assert_eq!((slot.key(), slot.proof(), slot.value()), (key, &b"proof"[..], &value[..]));
            assert_eq!(slot.value_bytes(), value);
            slot.end(Time::ZERO);
            assert_eq!((slot.key(), slot.proof(), slot.value().len()), (key, &b"proof"[..], 0));
            slot.set_proof(b"");
            assert_eq!((slot.key(), slot.proof().len(), slot.is_deleted()), (key, 0, true));
        }
    }

    #[test]
    fn numbers_stay_while_their_records_are_held_and_are_used_again() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..3_000).map(|n| slots.insert(slot(&n.to_string(), b""))).collect();
        assert!(numbers.iter().copied().eq(0..3_000));
        assert_eq!(
            slots.from(1_500).next().map(|(number, slot)| (number, slot.key())),
            Some((1_500, "1500"))
        );
        assert_eq!(slots.remove(7).map(|slot| slot.key().to_owned()), Some("7".into()));
        assert!(slots.remove(7).is_none() && slots.get(7).is_none() && slots.get(3_000).is_none());
        assert_eq!(slots.from(6).next().map(|(number, _)| number), Some(6));
        assert_eq!(slots.from(7).next().map(|(number, _)| number), Some(8));
        assert_eq!(slots.insert(slot("again", b"")), 7);
        assert_eq!(slots.insert(slot("new", b"")), 3_000);
        assert_eq!(slots.from(0).count(), 3_001);
        assert_eq!(slots.from(9_000).count(), 0);
    }
}
