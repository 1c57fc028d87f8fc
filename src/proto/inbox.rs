//! Messages from peers: decoded whole before the first change, then handed to the part that knows what to do.
//! Holds no rule itself.

use bytes::Bytes;

use crate::{
    NodeId,
    proto::{
        Now, Output, Protocol,
        claims::{Claimed, Told},
    },
    wire::{
        CloseCode,
        codec::{self, Malformed},
        message::{
            Accusation, Ack, AskHeld, Chain, DotList, Forget, Held, ListHeads, Nack, NeedChain, NeedClaim,
            NeedList, Ping, PingReq, Reached, RecordBatch, SignedClaim, Solicit, TheList, Took, kind,
        },
    },
};

/// Parts of a message at most: each may be answered, and a small one with a large answer.
const PARTS_MAX: usize = 256;
/// Parts of a batch that is spread; none of them is answered.
const SPREAD_PARTS_MAX: usize = 1_024;

/// A part of a message, decoded.
pub(super) enum Part {
    Ping(Ping),
    Ack(Ack),
    PingReq(PingReq),
    Nack(Nack),
    Reached(Reached),
    Claim(SignedClaim),
    NeedClaim(NeedClaim),
    Accusation(Accusation),
    Solicit(Solicit),
    Spread(Bytes),
    Took(Took),
    News(DotList),
    Pull(DotList),
    Records(RecordBatch),
    Forget(Forget),
    AskHeld(AskHeld),
    Held(Held),
    Gone,
    NeedChain(NeedChain),
    Chain(Chain),
    Lists(ListHeads),
    NeedList(NeedList),
    List(TheList),
    /// Of a later version; may be skipped.
    Unknown,
}

fn decode(kind: u8, body: &Bytes) -> Result<Part, Malformed> {
    Ok(match kind {
        kind::PING => Part::Ping(codec::decode(body)?),
        kind::ACK => Part::Ack(codec::decode(body)?),
        kind::PING_REQ => Part::PingReq(codec::decode(body)?),
        kind::NACK => Part::Nack(codec::decode(body)?),
        kind::REACHED => Part::Reached(codec::decode(body)?),
        kind::CLAIM => Part::Claim(codec::decode(body)?),
        kind::NEED_CLAIM => Part::NeedClaim(codec::decode(body)?),
        kind::ACCUSATION => Part::Accusation(codec::decode(body)?),
        kind::SOLICIT => Part::Solicit(codec::decode(body)?),
        kind::SPREAD => Part::Spread(body.clone()),
        kind::TOOK => Part::Took(codec::decode(body)?),
        kind::NEWS => Part::News(codec::decode(body)?),
        kind::PULL => Part::Pull(codec::decode(body)?),
        kind::RECORDS => Part::Records(codec::decode(body)?),
        kind::FORGET => Part::Forget(codec::decode(body)?),
        kind::ASK_HELD => Part::AskHeld(codec::decode(body)?),
        kind::HELD => Part::Held(codec::decode(body)?),
        kind::GONE => Part::Gone,
        kind::NEED_CHAIN => Part::NeedChain(codec::decode(body)?),
        kind::CHAIN => Part::Chain(codec::decode(body)?),
        kind::LISTS => Part::Lists(codec::decode(body)?),
        kind::NEED_LIST => Part::NeedList(codec::decode(body)?),
        kind::LIST => Part::List(codec::decode(body)?),
        kind if kind >= codec::OPTIONAL_FROM => Part::Unknown,
        _ => return Err(Malformed("a part of a kind this version does not know and may not skip")),
    })
}

impl Protocol {
    /// A message from a peer on its message stream. After one that cannot be read, nothing on the stream can be
    /// trusted.
    pub(crate) fn handle_message(&mut self, from: &NodeId, bytes: &Bytes, now: Now) {
        if let Err(Malformed(fault)) = self.take_message(from, bytes, now) {
            let (peer, code) = (from.clone(), CloseCode::PROTOCOL_VIOLATION);
            self.outputs.push_back(Output::Close { peer, code, reason: fault });
        }
    }

    /// A message from a peer in a datagram. One that cannot be read is dropped, as if it had been lost: no
    /// other depends on it.
    pub(crate) fn handle_datagram(&mut self, from: &NodeId, bytes: &Bytes, now: Now) {
        let _ = self.take_message(from, bytes, now); // it is counted
    }

    fn take_message(&mut self, from: &NodeId, bytes: &Bytes, now: Now) -> Result<(), Malformed> {
        self.enter(now);
        self.counters.messages_received += 1;
        if *from == self.me || self.members.get(from).is_none() {
            self.counters.messages_from_strangers += 1;
            return Ok(());
        }
        let parts = codec::parts(bytes).and_then(|parts| {
            if parts.len() > PARTS_MAX {
                return Err(Malformed("more parts than a message may have"));
            }
            parts.into_iter().map(|(kind, body)| decode(kind, &body)).collect::<Result<Vec<_>, _>>()
        });
        let result = parts.and_then(|parts| {
            self.hear(from, now);
            parts.into_iter().try_for_each(|part| self.handle_part(from, part, now))
        });
        self.acknowledge(from);
        self.counters.malformed += u64::from(result.is_err());
        result
    }

    /// Ends the connection of a peer that has said what no honest node says.
    pub(super) fn on_violation(&mut self, peer: &NodeId, reason: &'static str) {
        self.counters.violations += 1;
        let code = CloseCode::PROTOCOL_VIOLATION;
        self.outputs.push_back(Output::Close { peer: peer.clone(), code, reason });
    }

    fn handle_part(&mut self, from: &NodeId, part: Part, now: Now) -> Result<(), Malformed> {
        match part {
            Part::Ping(ping) => self.on_ping(from, &ping, now),
            Part::Ack(ack) => self.on_ack(from, &ack, now),
            Part::PingReq(request) => self.on_ping_req(from, &request, now),
            Part::Nack(nack) => self.on_nack(from, nack),
            Part::Reached(reached) => self.on_reached(from, reached, now),
            Part::NeedClaim(need) => self.tell_claim(from, &need.node_id),
            Part::Solicit(solicit) => self.on_solicit(from, &solicit, now),
            Part::Spread(body) => self.on_spread(from, &body, now)?,
            Part::Took(took) => self.on_took(from, &took, now),
            Part::News(news) => self.on_news(from, &news, now),
            Part::Pull(pull) => self.on_pull(from, &pull, now),
            Part::AskHeld(ask) => self.on_ask_held(from, &ask),
            Part::Held(held) => self.on_held(from, held),
            Part::Gone => self.sync_early(from, now),
            Part::NeedChain(need) => self.on_need_chain(from, need),
            Part::Chain(chain) => self.on_chain(from, &chain, false, now),
            Part::Lists(heads) => self.on_lists(from, &heads, now)?,
            Part::NeedList(need) => self.on_need_list(from, need, now),
            Part::List(list) => self.on_list(from, list, now),
            part => self.deliver(from, part, now),
        }
        Ok(())
    }

    /// The parts of a batch that is being spread: only what may travel so.
    pub(super) fn spread_parts(payload: &Bytes) -> Result<Vec<Part>, Malformed> {
        let parts = codec::bare_parts(payload)?;
        if parts.len() > SPREAD_PARTS_MAX {
            return Err(Malformed("more parts than a batch may have"));
        }
        let parts = parts.into_iter().map(|(kind, body)| match kind {
            kind::CLAIM | kind::ACCUSATION | kind::RECORDS | kind::FORGET => decode(kind, &body),
            kind if kind >= codec::OPTIONAL_FROM => Ok(Part::Unknown),
            _ => Err(Malformed("a part that may not be spread")),
        });
        parts.collect()
    }

    /// News, whichever way it came.
    pub(super) fn deliver(&mut self, from: &NodeId, part: Part, now: Now) {
        match part {
            Part::Claim(signed) => {
                if self.hear_claim(from, &signed, Told::Relayed, now) == Claimed::News
                    && let Some(body) = Self::read_claim(&signed, now)
                {
                    let signed = SignedClaim { chain: None, ..signed };
                    self.rumour(&body.node_id, kind::CLAIM, &signed);
                }
            }
            Part::Accusation(accusation) => self.hear_accusation(from, &accusation, now),
            Part::Records(batch) => drop(self.take_records(from, batch, now)),
            Part::Forget(forget) => drop(self.bury_forgotten(&forget, now)),
            Part::Unknown => self.counters.parts_skipped += 1,
            _ => debug_assert!(false, "only news is delivered"),
        }
    }
}
