//! Bytes to what a peer could say: small numbers and few names, so that what is said in one place meets what was
//! said in another, and now and then a number at a border or any at all. Knows no core.

use std::{collections::BTreeMap, net::SocketAddr};

use ::arbitrary::Unstructured;
use bytes::Bytes;

use crate::{
    NodeId, StateType,
    proto::fixtures::{WALL_MS, id, signed},
    wire::{
        codec::{self, Packet},
        hello::Introduction,
        limits,
        message::{
            Accusation, Ack, AskHeld, Bygone, ClaimBody, CoreHello, Covers, Digests, DotList, Dots, Forget,
            Held, MemberRow, Nack, NeedClaim, Open, Ping, PingReq, Reached, RecordBatch, Signed, SignedClaim,
            Solicit, Span, SpreadHead, Standing, Took, TypeName, Wants, WireRanges, WireRecord, kind,
        },
    },
};

/// Who takes part: the core itself, a second one, and those that only the input makes speak.
pub(super) const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Numbers that a core has told, which its peers can tell it again.
const SEEN_MAX: usize = 8;

/// What is left of an input.
pub(super) struct Input<'a> {
    bytes: Unstructured<'a>,
    /// The latest numbers that a core has told.
    seen: [u64; SEEN_MAX],
    next: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: Unstructured::new(bytes), seen: [1; SEEN_MAX], next: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next byte; 0 when there is none.
    pub(super) fn byte(&mut self) -> u8 {
        self.bytes.arbitrary().unwrap_or(0)
    }

    pub(super) fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Rarely true, and not when nothing is left.
    pub(super) fn rarely(&mut self) -> bool {
        self.byte() >= 240
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()].clone()
    }

    pub(super) fn any(&mut self) -> u64 {
        self.bytes.arbitrary().unwrap_or(0)
    }

    /// Up to `most` bytes.
    pub(super) fn raw(&mut self, most: u16) -> &'a [u8] {
        let len = usize::from(self.bytes.arbitrary::<u16>().unwrap_or(0) % (most + 1)).min(self.bytes.len());
        self.bytes.bytes(len).unwrap_or_default()
    }

    pub(super) fn saw(&mut self, number: u64) {
        self.seen[self.next] = number;
        self.next = (self.next + 1) % SEEN_MAX;
    }

    pub(super) fn number(&mut self) -> u64 {
        const BORDERS: [u64; 10] =
            [127, 128, 255, 65_535, 65_536, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, u64::MAX];
        match self.byte() {
            small @ 0..=159 => u64::from(small % 12),
            160..=207 => {
                let seen = self.seen;
                self.pick(&seen)
            }
            208..=239 => self.pick(&BORDERS),
            _ => self.any(),
        }
    }

    /// An epoch or a wall clock, in milliseconds.
    pub(super) fn moment(&mut self) -> u64 {
        const DAY: u64 = 86_400_000;
        match self.byte() {
            near @ 0..=191 => WALL_MS + u64::from(near % 4),
            192..=207 => WALL_MS + DAY - 1 + u64::from(self.below(4)),
            208..=223 => 0,
            224..=239 => WALL_MS + (self.any() % DAY),
            _ => self.number(),
        }
    }

    fn version(&mut self) -> u64 {
        match self.byte() {
            0..=239 => self.number() % 32,
            _ => self.number(),
        }
    }

    pub(super) fn node(&mut self) -> NodeId {
        match self.byte() {
            known @ 0..=247 => id(NAMES[usize::from(known) % NAMES.len()]),
            _ => id(&format!("n{}", self.any() % 1_000)),
        }
    }

    /// Anybody but that one: the transport lets nobody in under a node's own name.
    pub(super) fn peer_of(&mut self, me: &NodeId) -> NodeId {
        let peer = self.node();
        if peer == *me { id("c") } else { peer }
    }

    fn text(&mut self, most: u16) -> String {
        String::from_utf8_lossy(self.raw(most)).into_owned()
    }

    fn type_name(&mut self) -> TypeName {
        let name = match self.byte() {
            known @ 0..=231 => {
                let names = ["routes", "health", "drain", "mine", "conntrack", "counter"];
                names[usize::from(known) % names.len()].into()
            }
            232..=239 => String::new(),
            240..=247 => "t".repeat(limits::TYPE_LEN_MAX + usize::from(self.below(2))),
            _ => self.text(64),
        };
        TypeName { per_node: name == "mine" || self.rarely(), name }
    }

    pub(super) fn state_type(&mut self) -> StateType {
        let names = ["routes", "health", "drain", "mine", "conntrack", "circuit-breaker", "counter"];
        match self.pick(&names) {
            "mine" => StateType::per_node("mine"),
            name => StateType::from(name),
        }
    }

    /// One that a caller may write under.
    pub(super) fn own_key(&mut self) -> String {
        match self.byte() {
            known @ 0..=250 => format!("k{}", known % 5),
            _ => "k".repeat(limits::KEY_LEN_MAX),
        }
    }

    fn key(&mut self) -> String {
        match self.byte() {
            0..=239 => self.own_key(),
            240..=247 => String::new(),
            _ => "k".repeat(limits::KEY_LEN_MAX + 1),
        }
    }

    /// A value that is one.
    pub(super) fn own_value(&mut self) -> Bytes {
        match self.byte() {
            small @ 0..=199 => Bytes::copy_from_slice(&[small & 0x7f]),
            200..=249 => codec::encode(&"up".repeat(usize::from(self.below(32)))).into(),
            _ => codec::encode(&"v".repeat(4_096)).into(),
        }
    }

    fn value(&mut self) -> Bytes {
        if self.rarely() { Bytes::copy_from_slice(self.raw(64)) } else { self.own_value() }
    }

    fn many<T>(&mut self, most: u8, mut of: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| of(self)).collect()
    }

    fn some<T>(&mut self, of: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| of(self))
    }

    fn address(&mut self) -> SocketAddr {
        let port = 7_000 + u16::from(self.below(4));
        if self.rarely() { ([0; 16], port).into() } else { ([10, 0, 0, 1], port).into() }
    }

    fn zone(&mut self) -> Option<String> {
        match self.byte() {
            0..=127 => None,
            128..=251 => Some(self.pick(&["east", "west", ""]).into()),
            _ => Some("z".repeat(limits::ZONE_LEN_MAX + 1)),
        }
    }

    pub(super) fn tags(&mut self) -> BTreeMap<String, String> {
        let tags = self.many(2, |input| (format!("t{}", input.below(3)), format!("v{}", input.below(3))));
        tags.into_iter().collect()
    }

    fn claim_body(&mut self, of: NodeId) -> ClaimBody {
        ClaimBody {
            node_id: of,
            epoch: self.moment(),
            incarnation: self.number(),
            left: self.rarely(),
            address: self.address(),
            zone: self.zone(),
            tags: self.tags(),
        }
    }

    /// Mostly one whose signature holds.
    fn claim_of(&mut self, of: NodeId) -> SignedClaim {
        let body = self.claim_body(of);
        let mut claim = signed(&body);
        match self.byte() {
            0..=207 => {}
            208..=231 => claim.chain = None,
            232..=239 => claim.signature = Bytes::copy_from_slice(self.raw(9)),
            240..=247 => claim.chain_hash = self.number(),
            _ => claim.body = Bytes::copy_from_slice(self.raw(64)),
        }
        claim
    }

    fn claim(&mut self) -> SignedClaim {
        let of = self.node();
        self.claim_of(of)
    }

    fn ranges(&mut self) -> WireRanges {
        if self.rarely() {
            return self.many(3, |input| (input.number(), input.number()));
        }
        let mut lo = 0;
        self.many(3, |input| {
            lo += 1 + u64::from(input.below(4));
            let from = lo;
            lo += u64::from(input.below(4));
            let to = lo;
            lo += 1;
            (from, to)
        })
    }

    fn dots(&mut self) -> Dots {
        Dots {
            state_type: self.type_name(),
            source: self.node(),
            epoch: self.moment(),
            ranges: self.ranges(),
        }
    }

    fn record(&mut self) -> WireRecord {
        WireRecord {
            seq: self.number(),
            key: self.key(),
            version: self.version(),
            timestamp_ms: self.moment(),
            deleted: self.below(5) == 4,
            ttl_ms: if self.below(5) == 4 { Some(self.number()) } else { None },
            value: self.value(),
            proof: Bytes::new(),
        }
    }

    fn batch(&mut self) -> RecordBatch {
        RecordBatch {
            state_type: self.type_name(),
            source: self.node(),
            epoch: self.moment(),
            records: self.many(3, Self::record),
            carried: if self.flag() { self.ranges() } else { Vec::new() },
        }
    }

    fn digests(&mut self) -> Digests {
        Digests { state: self.number(), members: self.number(), settled: self.flag() }
    }

    fn life(&mut self) -> (NodeId, u64, u64) {
        (self.node(), self.moment(), self.number())
    }

    fn accusation(&mut self) -> Accusation {
        let ((node_id, epoch, incarnation), dead) = (self.life(), self.flag());
        Accusation { node_id, epoch, incarnation, dead, accuser: self.node() }
    }

    fn forget(&mut self) -> Forget {
        let (node_id, epoch, incarnation) = self.life();
        Forget { node_id, epoch, incarnation }
    }

    fn span(&mut self) -> Span {
        let (lo, hi) = match self.byte() {
            0..=127 => (0, u64::MAX),
            _ => (self.any(), self.any()),
        };
        Span { zone: self.zone(), lo, hi }
    }

    fn row(&mut self) -> MemberRow {
        let (node_id, epoch, incarnation) = self.life();
        let standings =
            [Standing::Alive, Standing::Suspect, Standing::Dead, Standing::Left, Standing::Closed];
        MemberRow { node_id, epoch, incarnation, standing: self.pick(&standings), since_ms: self.number() }
    }

    fn wants(&mut self) -> Wants {
        Wants {
            types: self.many(3, Self::type_name),
            digests: self.many(3, Self::number),
            compared: self.many(2, Self::type_name),
            vectors: self.many(3, Self::dots),
            held: self.many(2, Self::dots),
            members: self.some(|input| input.many(4, Self::row)),
            last: self.flag(),
        }
    }

    fn covers(&mut self) -> Covers {
        let vectors = self.many(4, Self::dots);
        let floors = match self.byte() {
            0..=15 => self.many(4, Self::number),
            _ => vectors.iter().map(|_| self.number()).collect(),
        };
        Covers { vectors, floors }
    }

    fn open(&mut self) -> Open {
        Open {
            clock: self.version(),
            members: self.number(),
            types: self.many(3, |input| (input.type_name(), input.number())),
            disabled: if self.rarely() { self.many(2, Self::type_name) } else { Vec::new() },
        }
    }

    fn spread(&mut self, packet: &mut Packet) {
        let (handoff, origin, epoch) = (self.number(), self.node(), self.moment());
        let head = SpreadHead { handoff, origin, epoch, number: self.number(), span: self.span() };
        let mut payload = Packet::new();
        for _ in 0..=self.below(3) {
            match self.below(8) {
                0 | 1 => payload.push(kind::CLAIM, &self.claim()),
                2 => payload.push(kind::ACCUSATION, &self.accusation()),
                3 => payload.push(kind::FORGET, &self.forget()),
                4 => payload.push_raw(codec::OPTIONAL_FROM, &[b"later"]),
                _ => payload.push(kind::RECORDS, &self.batch()),
            }
        }
        let head = codec::encode(&head);
        packet.push_raw(kind::SPREAD, &[&codec::prefix(head.len()), &head, &payload.into_parts()]);
    }

    /// A message of a few parts.
    pub(super) fn message(&mut self) -> Bytes {
        let mut packet = Packet::new();
        for _ in 0..=self.below(3) {
            self.part(&mut packet);
        }
        packet.into_bytes()
    }

    fn part(&mut self, packet: &mut Packet) {
        match self.below(20) {
            0 => packet.push(kind::PING, &Ping { seq: self.number(), digests: self.digests() }),
            1 => packet.push(kind::ACK, &Ack { seq: self.number(), digests: self.digests() }),
            2 => {
                let (seq, target) = (self.number(), self.node());
                packet.push(kind::PING_REQ, &PingReq { seq, target, nack_ms: u32::from(self.byte()) });
            }
            3 => packet.push(kind::NACK, &Nack { seq: self.number() }),
            4 => packet.push(kind::REACHED, &Reached { seq: self.number() }),
            5 => packet.push(kind::CLAIM, &self.claim()),
            6 => packet.push(kind::NEED_CLAIM, &NeedClaim { node_id: self.node() }),
            7 | 8 => packet.push(kind::ACCUSATION, &self.accusation()),
            9 => {
                let (node_id, epoch, incarnation) = self.life();
                packet.push(kind::SOLICIT, &Solicit { node_id, epoch, incarnation });
            }
            10 | 11 => self.spread(packet),
            12 => packet.push(kind::TOOK, &Took { handoffs: self.many(4, Self::number) }),
            13 => packet.push(kind::NEWS, &DotList { dots: self.many(4, Self::dots) }),
            14 => packet.push(kind::PULL, &DotList { dots: self.many(4, Self::dots) }),
            15 => packet.push(kind::RECORDS, &self.batch()),
            16 => packet.push(kind::FORGET, &self.forget()),
            17 => {
                let (ticket, state_type) = (self.number(), self.type_name());
                let (source, epoch, seq) = self.life();
                packet.push(kind::ASK_HELD, &AskHeld { ticket, state_type, source, epoch, seq });
            }
            18 => packet.push(kind::HELD, &Held { ticket: self.number() }),
            _ => packet.push_raw(kind::GONE, &[]),
        }
    }

    /// A frame of an exchange.
    pub(super) fn frame(&mut self) -> Bytes {
        let mut packet = Packet::new();
        for _ in 0..=self.below(3) {
            match self.below(10) {
                0 => packet.push(kind::OPEN, &self.open()),
                1 | 2 => packet.push(kind::WANTS, &self.wants()),
                3 => packet.push(kind::CLAIM, &self.claim()),
                4 => packet.push(kind::FORGET, &self.forget()),
                5 => packet.push(kind::RECORDS, &self.batch()),
                6 => packet.push(kind::COVERS, &self.covers()),
                7 => packet.push(kind::BYGONE, &Bygone { dots: self.many(4, Self::dots) }),
                8 => packet.push(kind::ANEW, &self.batch()),
                _ => packet.push_raw(kind::DONE, &[]),
            }
        }
        packet.into_bytes()
    }

    /// What a peer says at a connection's beginning.
    pub(super) fn introduction(&mut self, of: &NodeId) -> Introduction {
        let claim = self.claim_of(of.clone());
        let epoch = codec::decode::<ClaimBody>(&claim.body).map_or(WALL_MS, |body| body.epoch);
        let hello = CoreHello {
            signed: Signed::None,
            claim,
            clock: self.version(),
            disabled: if self.rarely() { self.many(2, Self::type_name) } else { Vec::new() },
        };
        Introduction {
            versions: (1, 1),
            cluster: "edge".into(),
            node_id: of.clone(),
            epoch,
            incarnation: 0,
            zone: None,
            listen: Some(self.address()),
            your_epoch: if self.rarely() { self.moment() } else { 0 },
            core: codec::encode(&hello).into(),
        }
    }
}
