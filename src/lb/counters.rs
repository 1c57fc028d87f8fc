//! Counters that the cluster shares: each node has a part of its own, and readers see the sum and the greatest.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Change, ChangeStream, check,
    live::{Live, Moment},
    opinions::{Opinions, Rules},
    registers::{Register, Write},
    table::{Changes, Heart, Table},
};
use crate::{Cluster, Error, NodeId, StateChange, StateType, Subscription};

/// Into how many parts a window is cut: it slides by one at a time, and changes are shared once a part.
const PARTS: u32 = 10;

/// One node's part of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CounterPart {
    /// How much this node has.
    pub value: u64,
    /// Over how long a time it was counted, the present being its end; `None` if it is a level, such as a
    /// number of open connections.
    #[serde(default, rename = "window_ms", with = "super::ms_option")]
    pub window: Option<Duration>,
}

/// A counter as the live nodes' parts make it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CounterView {
    /// All parts together; `u64::MAX` if that is more.
    pub sum: u64,
    /// The greatest part.
    pub max: u64,
    /// The part of each live node that has one.
    pub parts: BTreeMap<NodeId, CounterPart>,
}

/// The rule as a table of opinions wants it.
pub(crate) struct Sums;

impl Rules for Sums {
    type Value = CounterPart;
    type View = CounterView;

    const TYPE: StateType = StateType::COUNTER;
    const URGENT: bool = false;

    fn view(&self, _: &str, said: &BTreeMap<NodeId, Register<CounterPart>>, live: &Live) -> CounterView {
        let parts: BTreeMap<_, _> = said
            .iter()
            .filter(|(node, _)| live.has(node))
            .map(|(node, register)| (node.clone(), register.value))
            .collect();
        CounterView {
            sum: parts.values().fold(0, |sum, part| sum.saturating_add(part.value)),
            max: parts.values().map(|part| part.value).max().unwrap_or(0),
            parts,
        }
    }
}

/// What this node has counted of a key lately.
#[derive(Debug)]
struct Window {
    span: Duration,
    /// The parts in which something was counted: when each began, and how much.
    parts: VecDeque<(Moment, u64)>,
    sum: u64,
    /// When it was told last.
    told: Moment,
    /// When it is looked at again: something is to be shared, or ends.
    due: Moment,
}

impl Window {
    fn part(&self) -> Duration {
        (self.span / PARTS).max(Duration::from_millis(1))
    }

    fn add(&mut self, by: u64, now: Moment) {
        let part = self.part();
        match self.parts.back_mut() {
            Some((begun, count)) if now < *begun + part => *count = count.saturating_add(by),
            _ => self.parts.push_back((now, by)),
        }
        self.sum = self.sum.saturating_add(by);
    }

    /// Lets go of what is older than the window.
    fn slide(&mut self, now: Moment) {
        while let Some((begun, count)) =
            self.parts.front().copied().filter(|(begun, _)| *begun + self.span <= now)
        {
            debug_assert!(begun <= now, "a part lies in the past");
            self.sum -= count.min(self.sum);
            self.parts.pop_front();
        }
    }
}

/// Sums of parts, and this node's own windows.
pub(crate) struct Counted {
    sums: Opinions<Sums>,
    windows: BTreeMap<Arc<str>, Window>,
    due: BTreeSet<(Moment, Arc<str>)>,
}

impl Counted {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { sums: Opinions::new(Sums, me), windows: BTreeMap::new(), due: BTreeSet::new() }
    }

    pub(crate) fn set(&mut self, key: &str, value: u64, changes: &mut Changes<CounterView>) {
        self.forget_window(key);
        let part = CounterPart { value, window: None };
        if self.sums.own(key) != Some(&part) {
            self.sums.report(key, part, None, changes);
        }
    }

    pub(crate) fn add(
        &mut self,
        key: &str,
        by: u64,
        span: Duration,
        now: Moment,
        changes: &mut Changes<CounterView>,
    ) {
        let (key, mut window) = match self.windows.remove_entry(key) {
            Some((key, window)) if window.span == span => (key, window),
            other => {
                let key = other.map_or_else(
                    || key.into(),
                    |(key, old)| {
                        self.due.remove(&(old.due, Arc::clone(&key)));
                        key
                    },
                );
                (key, Window { span, parts: VecDeque::new(), sum: 0, told: now, due: now })
            }
        };
        let is_due = window.due <= now;
        window.add(by, now);
        if is_due {
            self.due.remove(&(window.due, Arc::clone(&key)));
            self.share(&key, &mut window, now, changes);
        }
        self.due.insert((window.due, Arc::clone(&key)));
        self.windows.insert(key, window);
    }

    /// Says how much a window holds, and plans to look again.
    fn share(
        &mut self,
        key: &Arc<str>,
        window: &mut Window,
        now: Moment,
        changes: &mut Changes<CounterView>,
    ) {
        window.slide(now);
        let part = CounterPart { value: window.sum, window: Some(window.span) };
        // Whoever hears nothing more of it counts it for one window; so what stays the same is told again.
        if self.sums.own(key) != Some(&part) || now >= window.told + window.span / 2 {
            self.sums.report(key, part, Some(now + window.span), changes);
            window.told = now;
        }
        window.due = now + window.part();
    }

    fn forget_window(&mut self, key: &str) {
        if let Some((key, window)) = self.windows.remove_entry(key) {
            self.due.remove(&(window.due, key));
        }
    }

    pub(crate) fn withdraw(&mut self, key: &str, changes: &mut Changes<CounterView>) -> bool {
        self.forget_window(key);
        self.sums.withdraw(key, changes)
    }

    pub(crate) fn view(&self, key: &str) -> Option<&Arc<CounterView>> {
        self.sums.view(key)
    }
}

impl Heart for Counted {
    type View = CounterView;

    fn types(&self) -> Vec<StateType> {
        self.sums.types()
    }

    fn tell(&mut self, change: &StateChange, now: Moment, changes: &mut Changes<CounterView>) {
        self.sums.tell(change, now, changes);
    }

    fn set_live(&mut self, live: Arc<Live>, now: Moment, changes: &mut Changes<CounterView>) {
        self.sums.set_live(live, now, changes);
    }

    fn begin_reading(&mut self) {
        self.sums.begin_reading();
    }

    fn end_reading(&mut self, now: Moment, changes: &mut Changes<CounterView>) {
        self.sums.end_reading(now, changes);
    }

    fn unlink(&mut self, now: Moment, changes: &mut Changes<CounterView>) {
        self.sums.unlink(now, changes);
    }

    fn say_again(&mut self, now: Moment) {
        self.sums.say_again(now);
    }

    fn handle_timeout(&mut self, now: Moment, changes: &mut Changes<CounterView>) {
        while let Some((_, key)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.due.pop_first();
            let Some(mut window) = self.windows.remove(&key) else { continue };
            window.slide(now);
            if window.sum == 0 && window.parts.is_empty() {
                self.sums.withdraw(&key, changes);
                continue;
            }
            self.share(&key, &mut window, now, changes);
            self.due.insert((window.due, Arc::clone(&key)));
            self.windows.insert(key, window);
        }
        self.sums.handle_timeout(now, changes);
    }

    fn next_timeout(&self) -> Option<Moment> {
        self.due.first().map(|(at, _)| *at).into_iter().chain(self.sums.next_timeout()).min()
    }

    fn has_writes(&self) -> bool {
        self.sums.has_writes()
    }

    fn take_writes(&mut self, now: Moment) -> Vec<Write> {
        self.sums.take_writes(now)
    }

    fn retry(&mut self, write: &Write) {
        self.sums.retry(write);
    }

    fn unreadable(&self) -> u64 {
        self.sums.unreadable()
    }
}

/// Shared counters, approximate and convergent: each node has a part of its own under a name, and all see the
/// sum and the greatest. For limits that hold for the fleet, such as a backend's `maxconn` or a client's rate.
///
/// Two kinds, by how they are written: [`set`](Self::set) tells a level, such as open connections;
/// [`add`](Self::add) counts over a sliding window, which travels with the count. A part of a node that dies
/// or leaves stops counting; one of a window that is not written any more ends with its window. A reader is
/// behind by what nodes counted in the last tenth of a window, plus the way.
///
/// A cheap handle; the table is detached when the last clone is dropped.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use phalanx::lb::Counters;
/// # fn example(cluster: &phalanx::Cluster) -> Result<(), phalanx::Error> {
/// let counters = Counters::attach(cluster)?;
/// counters.set("backend-7/connections", 40)?;
/// counters.add("client/198.51.100.9", 1, Duration::from_secs(10))?;
/// assert_eq!((counters.sum("backend-7/connections"), counters.max("backend-7/connections")), (40, 40));
/// assert_eq!(counters.sum("client/198.51.100.9"), 1);
/// # Ok(())
/// # }
/// # example(&phalanx::Cluster::new(phalanx::Config::default())?)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone)]
pub struct Counters(Arc<Table<Counted>>);

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").field("parts", &self.0.look(|heart| heart.sums.len())).finish()
    }
}

impl Counters {
    /// Attaches a table of counters.
    ///
    /// # Errors
    /// [`Error::TableAttached`] if the cluster has one; [`Error::NoThread`].
    pub fn attach(cluster: &Cluster) -> Result<Self, Error> {
        Ok(Self(Arc::new(Table::attach(cluster, Counted::new(cluster.node_id()))?)))
    }

    /// Sets this node's part of a level.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] unless the name has 1 to 512 bytes.
    pub fn set(&self, name: impl AsRef<str>, value: u64) -> Result<(), Error> {
        check::key(name.as_ref())?;
        self.0.act(|heart, _, changes| heart.set(name.as_ref(), value, changes));
        Ok(())
    }

    /// Counts `by` more at this node, for the time of `window`. What was counted over another window under
    /// the same name is forgotten.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] unless the name has 1 to 512 bytes; [`Error::InvalidReport`] unless the window
    /// has 1 ms to 366 days.
    pub fn add(&self, name: impl AsRef<str>, by: u64, window: Duration) -> Result<(), Error> {
        check::key(name.as_ref())?;
        check::period("the window", window)?;
        self.0.act(|heart, now, changes| heart.add(name.as_ref(), by, window, now, changes));
        Ok(())
    }

    /// Takes this node's part of a counter back; whether there was one.
    pub fn withdraw(&self, name: impl AsRef<str>) -> bool {
        self.0.act(|heart, _, changes| heart.withdraw(name.as_ref(), changes))
    }

    /// The live nodes' parts together.
    #[must_use]
    pub fn sum(&self, name: impl AsRef<str>) -> u64 {
        self.0.look(|heart| heart.view(name.as_ref()).map_or(0, |view| view.sum))
    }

    /// The greatest of the live nodes' parts.
    #[must_use]
    pub fn max(&self, name: impl AsRef<str>) -> u64 {
        self.0.look(|heart| heart.view(name.as_ref()).map_or(0, |view| view.max))
    }

    /// Who has how much.
    #[must_use]
    pub fn view(&self, name: impl AsRef<str>) -> CounterView {
        self.0
            .look(|heart| heart.view(name.as_ref()).map(|view| CounterView::clone(view)).unwrap_or_default())
    }

    /// Every counter of which a live node has a part.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, CounterView> {
        let views = self.0.look(|heart| heart.sums.views()).into_iter();
        views.map(|(name, view)| (name, Arc::unwrap_or_clone(view))).collect()
    }

    /// Has `callback` called with every change of a counter, in order, on a thread of its own.
    pub fn on_change(&self, callback: impl Fn(&Change<CounterView>) + Send + Sync + 'static) -> Subscription {
        self.0.subscribe(callback)
    }

    /// The same changes as a stream, from now on.
    pub fn changes(&self) -> ChangeStream<CounterView> {
        self.0.changes()
    }

    /// How many values of other nodes could not be read, and were left out.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.0.look(Heart::unreadable)
    }
}
