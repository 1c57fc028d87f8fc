//! What the core counts, and how it explains a member: plain data for readers.

use std::time::Duration;

use serde::Serialize;

use crate::NodeId;

/// Why a member has the status it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemberExplanation {
    /// Why its status changed last, in words.
    pub cause: String,
    /// For how long it has had its status.
    pub since: Duration,
    /// How long ago something arrived from it on its own connection; `None` if never in its present life.
    pub last_heard: Option<Duration>,
    /// Whether a connection to it stands.
    pub connected: bool,
    /// Who accuses it; empty unless it is suspected.
    pub accusers: Vec<NodeId>,
    /// When this node will look for itself and decide; `None` unless it is suspected.
    pub suspicion_ends_in: Option<Duration>,
}

/// What the protocol has counted since the node's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is named for what it counts")]
pub struct ProtoCounters {
    pub messages_sent: u64,
    pub messages_received: u64,
    pub bytes_sent: u64,
    /// From peers that are no members; not looked at.
    pub messages_from_strangers: u64,
    /// Messages and frames that cannot be decoded. A datagram is dropped; on a stream, the connection is
    /// closed.
    pub malformed: u64,
    /// Parts of a later version, skipped.
    pub parts_skipped: u64,
    /// Things said that no honest node says; their connections are closed.
    pub violations: u64,
    pub probes: u64,
    pub indirect_probes: u64,
    /// Probes that only a helper could complete.
    pub probes_saved: u64,
    pub probes_failed: u64,
    /// Probes without any sign of life from anyone: the fault is likelier here.
    pub probes_void: u64,
    /// Requests to ping for another that were not taken on.
    pub helps_refused: u64,
    /// Acks and words of helpers that answer nothing: late, repeated, or made up.
    pub answers_ignored: u64,
    pub suspicions: u64,
    pub self_checks: u64,
    /// Self-checks in which too few others answered.
    pub self_checks_void: u64,
    /// Members this node has convicted.
    pub deaths: u64,
    pub refutations: u64,
    /// Times this process woke up more than 100 ms late.
    pub late_wakeups: u64,
    /// Claims over a limit or that cannot be decoded.
    pub claims_refused: u64,
    /// Claims not looked at, since their teller had told more than its share; anti-entropy brings them.
    pub claims_over_budget: u64,
    /// Accusations of an epoch or incarnation that cannot be, or by a teller that had told more than its share.
    pub accusations_ignored: u64,
    /// Claims whose signature does not hold.
    pub claims_forged: u64,
    pub members_refused: u64,
    /// Claims and batches that this node's own key refused to sign.
    pub sign_failures: u64,
    /// Signs of another process under this node's id.
    pub conflicts: u64,
    /// Records under this node's name that it did not write.
    pub impersonations: u64,
    /// Epochs begun after the first.
    pub epochs_begun: u64,
    /// Batches this node has begun to spread.
    pub batches_spread: u64,
    pub records_spread: u64,
    /// Ranges handed to relays, repeated ones included.
    pub handoffs: u64,
    /// Hand-offs that were not acknowledged in time.
    pub handoffs_lost: u64,
    /// Ranges left to gossip after five tries.
    pub handoffs_given_up: u64,
    /// Ranges that a neighbour served because nobody in them was connected to this node.
    pub detours: u64,
    /// Hand-offs not taken over, since too many were under way.
    pub handoffs_refused: u64,
    /// Copies of batches that had come before.
    pub duplicates: u64,
    pub gossip_sent: u64,
    /// Digests that told of something missing here.
    pub gossip_useful: u64,
    pub pulls_served: u64,
    pub exchanges_begun: u64,
    pub exchanges_completed: u64,
    pub exchanges_refused: u64,
    pub exchanges_stalled: u64,
    /// Exchanges begun ahead of time, since digests differed.
    pub early_syncs: u64,
    pub sync_bytes_sent: u64,
    /// Records that came in exchanges.
    pub records_synced: u64,
    pub records_accepted: u64,
    /// Records that lost against what was held.
    pub records_superseded: u64,
    pub records_known: u64,
    /// Records over a limit; they stay unknown and may be accepted later.
    pub records_refused: u64,
    /// Own records signed; one is signed when it is told first, and under each new certificate.
    pub records_signed: u64,
    /// Records without a signature, of a type that wants one. They stay unknown.
    pub records_unsigned: u64,
    /// Records that their writer did not sign so, and certificates told for them that no authority issued.
    pub records_forged: u64,
    /// Records of which it could not be told: the certificates were not at hand, the teller had told more false
    /// ones than its share, or it had them end before their time. Anti-entropy brings what is good of them.
    pub records_unproved: u64,
    /// Batches that this node did not pass on, since it could not vouch for every record in them.
    pub batches_withheld: u64,
    /// Records dropped because a peer knew that they had been deleted, and no tombstone told of it any more.
    pub records_bygone: u64,
    /// Words of the sort that did not count: of a register whose owner lives, or beside refused records.
    pub bygone_refused: u64,
    /// Times a peer knew the same and held something else.
    pub digests_unexplained: u64,
    /// Records taken, because of that, though their dots were known.
    pub records_healed: u64,
    /// Newer revocation lists that peers brought, and that are in force now.
    pub lists_taken: u64,
    /// Lists that had come before.
    pub lists_known: u64,
    /// Lists that no trusted authority signed, or older than was promised; who brought one is not asked for a
    /// minute.
    pub lists_bad: u64,
    /// Lists that nobody had asked for; not looked at.
    pub lists_unasked: u64,
    pub lists_served: u64,
    /// Requests for a list that came too soon after the last, or for one too long to travel.
    pub lists_withheld: u64,
    /// Lifeguard's local health score now: 0 (well) to 8.
    pub health_score: u32,
    /// Records held now, without removed ones.
    pub records_held: u64,
}
