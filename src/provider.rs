//! The user's side of shared state: `StateProvider`. Called by the driver only, on a thread of its own.

use std::collections::HashMap;

use crate::{NodeId, StateKey, StateType, SyncableState};

/// What became of the records that a provider was handed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "users build it as the answer of `apply_remote_state`")]
pub struct Applied {
    /// Taken over.
    pub applied: usize,
    /// In conflict with something local, and settled.
    pub conflicts: usize,
    /// Not taken over.
    pub rejected: usize,
}

/// A part of the program whose state is shared: it hears of what others wrote and offers what it holds.
///
/// Its methods run on a thread of the provider's own, one call at a time: a provider that blocks delays only
/// itself, and one that panics is caught, logged, counted, and called again for the next batch. All of them
/// may call back into the [`Cluster`](crate::Cluster).
///
/// # Examples
/// ```
/// use std::{collections::BTreeMap, sync::{Arc, Mutex}};
/// use phalanx::{Applied, Cluster, Config, StateProvider, StateType, SyncableState};
///
/// /// Weights of backends, as some node has set them.
/// #[derive(Default)]
/// struct Weights(Mutex<BTreeMap<String, u32>>);
///
/// impl StateProvider for Weights {
///     fn provider_type(&self) -> StateType {
///         StateType::shared("weights")
///     }
///
///     fn sync_state(&self) -> Vec<SyncableState> {
///         Vec::new() // whoever sets a weight broadcasts it
///     }
///
///     fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied {
///         let (mut weights, mut applied) = (self.0.lock().unwrap(), Applied::default());
///         for state in states {
///             if state.deleted {
///                 weights.remove(&state.key);
///             } else if let Ok(weight) = state.value.decode() {
///                 weights.insert(state.key, weight);
///             } else {
///                 applied.rejected += 1; // of another version, or of a rogue
///                 continue;
///             }
///             applied.applied += 1;
///         }
///         applied
///     }
/// }
///
/// let cluster = Cluster::new(Config::default())?;
/// cluster.register_provider(Arc::new(Weights::default()))?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub trait StateProvider: Send + Sync + 'static {
    /// The type this provider answers for. Asked once, at registration.
    fn provider_type(&self) -> StateType;

    /// What this node holds of the type, each record with this node as its source.
    ///
    /// Called at registration, at each start, and before a push-pull when
    /// [`state_digest`](Self::state_digest) shows something new, so that changes which nobody broadcast still
    /// spread. More than may wait to be spread is taken as there is room for it.
    fn sync_state(&self) -> Vec<SyncableState>;

    /// The version of each key this node holds. Asked for once before each push-pull; while it stays the same,
    /// [`sync_state`](Self::sync_state) is not called and nothing is sent.
    ///
    /// From [`sync_state`](Self::sync_state) unless overridden: override it where that is many records.
    fn state_digest(&self) -> HashMap<StateKey, u64> {
        self.sync_state()
            .into_iter()
            .map(|record| (StateKey { state_type: record.state_type, key: record.key }, record.version))
            .collect()
    }

    /// Takes over what other nodes wrote and removed: in order, each accepted version once, in batches. A
    /// removal is a record whose `deleted` is true.
    ///
    /// A provider slower than the cluster is handed only the newest version of a key that changed meanwhile.
    ///
    /// After a panic the batch's records are handed over once more, one by one. One that makes it panic by
    /// itself is set aside, by key and source, until another version of it comes: counted in
    /// [`ProviderStats::quarantined`](crate::ProviderStats), and named in an event.
    fn apply_remote_state(&self, states: Vec<SyncableState>) -> Applied;

    /// A node is confirmed dead. Does nothing unless overridden.
    fn on_node_failure(&self, node: &NodeId) {
        let _ = node;
    }
}
