//! One type's records: where each is, the index by dot, the version vector, what ends when, and the hash of it
//! all, kept together. Checks nothing that came from a peer; that is the store's.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher as _,
    time::Duration,
};

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use super::{
    RECORD_OVERHEAD,
    slots::{Fate, Slot, Slots},
};
use crate::{
    NodeId, StateType, SyncableState, Value,
    proto::{Time, ranges::Ranges, time::wall_time},
    wire::{codec, message::Proof},
};

/// What is known of a type: for each source and epoch, the dots.
pub(crate) type Vector = BTreeMap<(NodeId, u64), Ranges>;

/// A record as it comes and goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) source: NodeId,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) version: u64,
    pub(super) timestamp_ms: u64,
    pub(super) fate: Fate,
    /// Empty if it is a tombstone.
    pub(super) value: Bytes,
    /// Its writer's signature; empty where none is wanted, and of an own record until it is told.
    pub(super) proof: Bytes,
}

/// A record where it is held.
#[derive(Clone, Copy)]
pub(super) struct Held<'a> {
    life: &'a Life,
    slot: &'a Slot,
}

/// One life of a source: what is known of it, and what of that is held.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Life {
    source: NodeId,
    epoch: u64,
    known: Ranges,
    /// The greatest dot whose tombstone was collected, here or where the dot was learnt from; 0 if none was. Who
    /// lacks a dot up to here may hold what that tombstone had deleted.
    floor: u64,
    /// Invariant: exactly the dots of the records held, tombstones included, each with its slot.
    dots: BTreeMap<u64, u32>,
    /// By which certificates the records held are signed, and how many by each.
    signers: BTreeMap<u64, u32>,
}

/// All there is of one type.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Table {
    per_node: bool,
    hash_key: (u64, u64),
    slots: Slots,
    /// The hash of each key, and of its source in a per-node type, with its slot. Half a hash does: whoever
    /// looks compares the key as well.
    index: BTreeSet<(u32, u32)>,
    lives: Vec<Life>,
    /// The number of each life. Numbers are never given back, as what is known of a life never is.
    numbers: BTreeMap<(NodeId, u64), u32>,
    /// What ends, and until when what has ended is kept as a tombstone, each with its slot.
    expiries: BTreeSet<(Time, u32)>,
    tombstones: BTreeSet<(Time, u32)>,
    /// Invariant: the sum of the hashes of the records that live until they are superseded, and of the vector's
    /// entries. What ends by itself does so at each node at a moment of its own, and is told apart by its dot.
    digest: u64,
    live: usize,
}

/// What became of a record that was put in.
pub(super) enum Placed {
    /// It counts now, instead of the other.
    Won(Option<Record>),
    Lost,
}

impl Record {
    pub(super) fn is_deleted(&self) -> bool {
        matches!(self.fate, Fate::Ended(_))
    }

    /// As users see it.
    pub(super) fn to_state(&self, state_type: &StateType, key: &str) -> SyncableState {
        SyncableState {
            state_type: state_type.clone(),
            key: key.into(),
            value: if self.is_deleted() { Value::NIL } else { Value::from_checked(self.value.clone()) },
            version: self.version,
            source_node: self.source.clone(),
            timestamp: wall_time(self.timestamp_ms),
            deleted: self.is_deleted(),
        }
    }
}

impl<'a> Held<'a> {
    pub(super) fn key(self) -> &'a str {
        self.slot.key()
    }

    pub(super) fn source(self) -> &'a NodeId {
        &self.life.source
    }

    pub(super) fn epoch(self) -> u64 {
        self.life.epoch
    }

    pub(super) fn seq(self) -> u64 {
        self.slot.seq
    }

    pub(super) fn version(self) -> u64 {
        self.slot.version
    }

    pub(super) fn timestamp_ms(self) -> u64 {
        self.slot.timestamp_ms
    }

    pub(super) fn fate(self) -> Fate {
        self.slot.fate
    }

    pub(super) fn is_deleted(self) -> bool {
        self.slot.is_deleted()
    }

    pub(super) fn value(self) -> &'a [u8] {
        self.slot.value()
    }

    /// For who keeps it.
    pub(super) fn value_bytes(self) -> Bytes {
        self.slot.value_bytes()
    }

    pub(super) fn proof(self) -> &'a [u8] {
        self.slot.proof()
    }

    /// What it costs on the wire, about.
    pub(super) fn size(self) -> usize {
        self.key().len() + self.value().len() + self.proof().len() + RECORD_OVERHEAD
    }

    /// For who keeps it.
    pub(super) fn to_record(self) -> Record {
        Record {
            source: self.source().clone(),
            epoch: self.epoch(),
            seq: self.seq(),
            version: self.version(),
            timestamp_ms: self.timestamp_ms(),
            fate: self.fate(),
            value: self.slot.value_bytes(),
            proof: Bytes::copy_from_slice(self.proof()),
        }
    }

    /// As users see it.
    pub(super) fn to_state(self, state_type: &StateType) -> SyncableState {
        self.to_record().to_state(state_type, self.key())
    }

    /// Whether both are one write, whatever its number, and whether or not its time to live is over.
    pub(super) fn is_same_write(self, other: &Record) -> bool {
        (self.source(), self.version(), self.timestamp_ms())
            == (&other.source, other.version, other.timestamp_ms)
    }
}

impl Table {
    pub(super) fn new(per_node: bool, hash_key: (u64, u64)) -> Self {
        Self {
            per_node,
            hash_key,
            slots: Slots::default(),
            index: BTreeSet::new(),
            lives: Vec::new(),
            numbers: BTreeMap::new(),
            expiries: BTreeSet::new(),
            tombstones: BTreeSet::new(),
            digest: 0,
            live: 0,
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }
}

/// What is known.
impl Table {
    /// For each source and epoch of which anything is known, the dots.
    pub(super) fn vector(&self) -> impl Iterator<Item = (&NodeId, u64, &Ranges)> {
        let lives = self.numbers.values().map(|number| &self.lives[*number as usize]);
        lives.filter(|life| !life.known.is_empty()).map(|life| (&life.source, life.epoch, &life.known))
    }

    /// How many of those there may be.
    pub(super) fn lives(&self) -> usize {
        self.lives.len()
    }

    fn life(&self, source: &NodeId, epoch: u64) -> Option<&Life> {
        let number = self.numbers.get(&(source.clone(), epoch))?;
        self.lives.get(*number as usize)
    }

    fn life_number(&mut self, source: &NodeId, epoch: u64) -> u32 {
        let next = u32::try_from(self.lives.len()).expect("far fewer lives than that are let in");
        let number = *self.numbers.entry((source.clone(), epoch)).or_insert(next);
        if number == next {
            let (source, known) = (source.clone(), Ranges::default());
            let (dots, signers) = (BTreeMap::new(), BTreeMap::new());
            self.lives.push(Life { source, epoch, known, floor: 0, dots, signers });
        }
        number
    }

    pub(super) fn ranges(&self, source: &NodeId, epoch: u64) -> Option<&Ranges> {
        self.life(source, epoch).map(|life| &life.known).filter(|known| !known.is_empty())
    }

    /// For each source and epoch of which a tombstone was collected: what is known, and the floor.
    pub(super) fn floors(&self) -> impl Iterator<Item = (&NodeId, u64, &Ranges, u64)> {
        let lives = self.lives.iter().filter(|life| life.floor > 0);
        lives.map(|life| (&life.source, life.epoch, &life.known, life.floor))
    }

    pub(super) fn floor(&self, source: &NodeId, epoch: u64) -> u64 {
        self.life(source, epoch).map_or(0, |life| life.floor)
    }

    /// A dot up to there has no tombstone any more where it was learnt from. Beyond what is known here a floor
    /// means nothing.
    pub(super) fn raise_floor(&mut self, source: &NodeId, epoch: u64, floor: u64) {
        let Some(number) = self.numbers.get(&(source.clone(), epoch)) else { return };
        let life = &mut self.lives[*number as usize];
        life.floor = life.floor.max(floor.min(life.known.max().unwrap_or(0)));
    }

    /// Changes what is known of a source's epoch; told how many records of it are held.
    pub(super) fn learn(&mut self, source: &NodeId, epoch: u64, change: impl FnOnce(&mut Ranges, usize)) {
        let number = self.life_number(source, epoch) as usize;
        let mut known = std::mem::take(&mut self.lives[number].known);
        self.digest = self.digest.wrapping_sub(self.entry_hash(source, epoch, &known));
        change(&mut known, self.lives[number].dots.len());
        self.digest = self.digest.wrapping_add(self.entry_hash(source, epoch, &known));
        self.lives[number].known = known;
    }
}

/// What is held.
impl Table {
    /// Whether `incoming` replaces `held`. Both orders are total, so every node keeps the same record
    /// whatever the order of arrival.
    pub(super) fn wins(per_node: bool, incoming: &Record, held: Held<'_>) -> bool {
        if per_node {
            return (incoming.epoch, incoming.seq) > (held.epoch(), held.seq());
        }
        // Wall clocks have no say: a host that runs a minute ahead would win for a minute. The dot comes
        // last: it tells apart only what says the same.
        let Record { source, epoch, seq, version, value, .. } = incoming;
        (*version, source, incoming.is_deleted(), &value[..], *epoch, *seq)
            > (held.version(), held.source(), held.is_deleted(), held.value(), held.epoch(), held.seq())
    }

    /// Puts a record under a key, if it wins there.
    pub(super) fn place(&mut self, key: &str, record: &Record) -> Placed {
        let found = self.find(key, &record.source);
        if self.at_number(found).is_some_and(|held| !Self::wins(self.per_node, record, held)) {
            return Placed::Lost;
        }
        let Record { source, epoch, seq, version, timestamp_ms, fate, value, proof } = record;
        let life = self.life_number(source, *epoch);
        let slot = Slot::new(key, (value, proof), (life, *seq), (*version, *timestamp_ms), *fate);
        let old = found.and_then(|number| self.take_out(number));
        // The same place again: the last to go was the first to be given back.
        let number = self.slots.insert(slot);
        self.index.insert((self.key_hash(key, source), number));
        self.count(number, true);
        Placed::Won(old)
    }

    /// Takes a record out altogether.
    fn take_out(&mut self, number: u32) -> Option<Record> {
        let record = self.at_number(Some(number))?.to_record();
        self.count(number, false);
        let slot = self.slots.remove(number)?;
        self.index.remove(&(self.key_hash(slot.key(), &record.source), number));
        Some(record)
    }

    /// Takes out the records in the next places that are not of a life to be kept; where the next page begins.
    /// After the last, nothing is known of those lives.
    pub(super) fn drop_page(
        &mut self,
        first: u32,
        places: u32,
        keeps: impl Fn(&NodeId, u64) -> bool,
    ) -> Option<u32> {
        let end = first.saturating_add(places);
        let page: Vec<_> = self.from(first).take_while(|(number, _)| *number < end).collect();
        let gone = page.iter().filter(|(_, held)| !keeps(held.source(), held.epoch()));
        let gone: Vec<_> = gone.map(|(number, _)| *number).collect();
        for number in gone {
            self.take_out(number);
        }
        let next = self.from(end).next().map(|(number, _)| number);
        if next.is_none() {
            let lives: Vec<_> =
                self.numbers.keys().filter(|(source, epoch)| !keeps(source, *epoch)).cloned().collect();
            for (source, epoch) in lives {
                self.learn(&source, epoch, |known, _| *known = Ranges::default());
                let number = self.life_number(&source, epoch) as usize;
                self.lives[number].floor = 0;
            }
        }
        next
    }

    /// The next moment at which something ends.
    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Turns the next record that has ended by `now` into a tombstone where it stands, to be kept for so long; what
    /// it was, with its key.
    pub(super) fn wither(&mut self, now: Time, kept: Duration) -> Option<(String, Record)> {
        let (_, number) = self.expiries.first().copied().filter(|(at, _)| *at <= now)?;
        let held = self.at_number(Some(number))?;
        let before = (held.key().to_owned(), held.to_record());
        self.count(number, false);
        if let Some(slot) = self.slots.get_mut(number) {
            slot.end(now + kept);
        }
        self.count(number, true);
        Some(before)
    }

    /// Forgets the next tombstone that has been kept for long enough; whether there was one.
    pub(super) fn collect(&mut self, now: Time) -> bool {
        let old = self.tombstones.first().copied().filter(|(kept, _)| *kept <= now);
        let Some(gone) = old.and_then(|(_, number)| self.take_out(number)) else { return false };
        self.raise_floor(&gone.source, gone.epoch, gone.seq);
        true
    }

    /// Drops what lives among the next records with these dots; what that was, with its keys, and from which dot
    /// on it goes on.
    pub(super) fn drop_live(
        &mut self,
        source: &NodeId,
        epoch: u64,
        (lo, hi): (u64, u64),
        most: usize,
    ) -> (Vec<(String, Record)>, Option<u64>) {
        let page: Vec<_> = self.at(source, epoch, lo, hi).take(most).collect();
        let next = page.last().filter(|_| page.len() == most).map(|last| last.seq() + 1);
        let live = page.iter().filter(|held| !held.is_deleted());
        let live: Vec<_> = live.map(|held| held.key().to_owned()).collect();
        let found = live.into_iter().filter_map(|key| {
            let number = self.find(&key, source)?;
            self.take_out(number).map(|record| (key, record))
        });
        (found.collect(), next.filter(|next| *next <= hi))
    }

    fn key_hash(&self, key: &str, source: &NodeId) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(key.as_bytes());
        if self.per_node {
            hasher.write_u8(0xff); // in no text
            hasher.write(source.as_str().as_bytes());
        }
        (hasher.finish() >> 32) as u32
    }

    /// Where a register lies.
    pub(super) fn find(&self, key: &str, source: &NodeId) -> Option<u32> {
        let hash = self.key_hash(key, source);
        let alike = self.index.range((hash, 0)..).take_while(|(of, _)| *of == hash);
        let mut alike = alike.map(|(_, number)| *number);
        alike.find(|number| {
            self.at_number(Some(*number))
                .is_some_and(|held| held.key() == key && (!self.per_node || held.source() == source))
        })
    }

    fn at_number(&self, number: Option<u32>) -> Option<Held<'_>> {
        let slot = self.slots.get(number?)?;
        Some(Held { life: &self.lives[slot.life as usize], slot })
    }

    /// The record that a record of `source` under `key` would have to beat.
    pub(super) fn held(&self, key: &str, source: &NodeId) -> Option<Held<'_>> {
        self.at_number(self.find(key, source))
    }

    /// The records from that place on, with their places.
    pub(super) fn from(&self, first: u32) -> impl Iterator<Item = (u32, Held<'_>)> {
        let slots = self.slots.from(first);
        slots.map(|(number, slot)| (number, Held { life: &self.lives[slot.life as usize], slot }))
    }

    /// The records of a source's epoch with these dots, in their order.
    pub(super) fn at(&self, source: &NodeId, epoch: u64, lo: u64, hi: u64) -> impl Iterator<Item = Held<'_>> {
        let dots = self.life(source, epoch).into_iter().flat_map(move |life| life.dots.range(lo..=hi));
        dots.filter_map(|(_, number)| self.at_number(Some(*number)))
    }

    /// All dots of which something is held.
    pub(super) fn held_dots(&self) -> Vector {
        let mut held = Vector::new();
        for life in self.lives.iter().filter(|life| !life.dots.is_empty()) {
            let dots = held.entry((life.source.clone(), life.epoch)).or_default();
            life.dots.keys().for_each(|seq| dots.insert_range(*seq, *seq));
        }
        held
    }

    /// A source's records, of whatever epoch.
    pub(super) fn of_source(&self, source: &NodeId) -> impl Iterator<Item = Held<'_>> {
        let lives = self.numbers.range((source.clone(), 0)..=(source.clone(), u64::MAX));
        let dots = lives.flat_map(|(_, number)| self.lives[*number as usize].dots.values());
        dots.filter_map(|number| self.at_number(Some(*number)))
    }

    /// Counts a record in or out: its dot, its end, and, if it lives, its hash.
    fn count(&mut self, number: u32, enters: bool) {
        let Some(held) = self.at_number(Some(number)) else { return };
        let (life, seq, fate) = (held.slot.life as usize, held.seq(), held.fate());
        let signer = signer_of(held.proof());
        let hash = if fate == Fate::Stays { self.record_hash(held) } else { 0 };
        let ends = match fate {
            Fate::Stays => None,
            Fate::Ends(at) => Some((&mut self.expiries, at)),
            Fate::Ended(at) => Some((&mut self.tombstones, at)),
        };
        let one = usize::from(!matches!(fate, Fate::Ended(_)));
        if let Some(signer) = signer {
            let signers = &mut self.lives[life].signers;
            let count = signers.entry(signer).or_default();
            *count = if enters { *count + 1 } else { *count - 1 };
            if *count == 0 {
                signers.remove(&signer);
            }
        }
        if enters {
            ends.map(|(ends, at)| ends.insert((at, number)));
            self.lives[life].dots.insert(seq, number);
            self.digest = self.digest.wrapping_add(hash);
            self.live += one;
        } else {
            ends.map(|(ends, at)| ends.remove(&(at, number)));
            self.lives[life].dots.remove(&seq);
            self.digest = self.digest.wrapping_sub(hash);
            self.live -= one;
        }
    }

    /// Puts another proof to a record that is held; whether there is one.
    pub(super) fn set_proof(&mut self, source: &NodeId, epoch: u64, seq: u64, proof: &[u8]) -> bool {
        let number = self.life(source, epoch).and_then(|life| life.dots.get(&seq)).copied();
        let Some(number) = number else { return false };
        self.count(number, false);
        if let Some(slot) = self.slots.get_mut(number) {
            slot.set_proof(proof);
        }
        self.count(number, true);
        true
    }

    /// Whether a record of that source is held that was signed by those certificates.
    pub(super) fn has_signer(&self, source: &NodeId, chain_hash: u64) -> bool {
        let mut lives = self.numbers.range((source.clone(), 0)..=(source.clone(), u64::MAX));
        lives.any(|(_, number)| self.lives[*number as usize].signers.contains_key(&chain_hash))
    }

    fn record_hash(&self, held: Held<'_>) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(held.source().as_str().as_bytes());
        hasher.write_u8(1);
        hasher.write_u64(held.epoch());
        hasher.write_u64(held.seq());
        hasher.write_u64(held.version());
        hasher.write_u64(held.key().len() as u64);
        hasher.write(held.key().as_bytes());
        hasher.write(held.value());
        hasher.finish()
    }

    fn entry_hash(&self, source: &NodeId, epoch: u64, ranges: &Ranges) -> u64 {
        if ranges.is_empty() {
            return 0;
        }
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write(source.as_str().as_bytes());
        hasher.write_u8(2);
        hasher.write_u64(epoch);
        for (lo, hi) in ranges.iter() {
            hasher.write_u64(lo);
            hasher.write_u64(hi);
        }
        hasher.finish()
    }

    /// Compares everything that is kept with what it is kept from.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        let (mut digest, mut live) = (0_u64, 0);
        let mut dots = vec![BTreeMap::new(); self.lives.len()];
        let mut signers = vec![BTreeMap::new(); self.lives.len()];
        let (mut index, mut expiries, mut tombstones) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (number, slot) in self.slots.from(0) {
            let held = Held { life: &self.lives[slot.life as usize], slot };
            live += usize::from(!held.is_deleted());
            match held.fate() {
                Fate::Stays => digest = digest.wrapping_add(self.record_hash(held)),
                Fate::Ends(at) => _ = expiries.insert((at, number)),
                Fate::Ended(at) => _ = tombstones.insert((at, number)),
            }
            assert_eq!(dots[slot.life as usize].insert(slot.seq, number), None, "a dot of two records");
            assert!(index.insert((self.key_hash(held.key(), held.source()), number)));
            assert_eq!(self.find(held.key(), held.source()), Some(number), "two records under one key");
            assert!(held.life.known.contains(slot.seq), "a record outside the vector: {}", held.key());
            if let Some(signer) = signer_of(held.proof()) {
                *signers[slot.life as usize].entry(signer).or_insert(0_u32) += 1;
            }
        }
        for (source, epoch, ranges) in self.vector() {
            digest = digest.wrapping_add(self.entry_hash(source, epoch, ranges));
        }
        let kept: Vec<_> = self.lives.iter().map(|life| life.dots.clone()).collect();
        assert_eq!((digest, live, &dots, &index), (self.digest, self.live, &kept, &self.index));
        assert_eq!((&expiries, &tombstones), (&self.expiries, &self.tombstones));
        let kept: Vec<_> = self.lives.iter().map(|life| life.signers.clone()).collect();
        assert_eq!(signers, kept);
    }
}

/// By which certificates a proof was made.
pub(super) fn signer_of(proof: &[u8]) -> Option<u64> {
    if proof.is_empty() {
        return None;
    }
    codec::decode(proof).ok().map(|proof: Proof| proof.chain_hash)
}
