//! Many independent jobs on several threads, with the progress on standard error. Results come in the order
//! of the jobs, so that the number of threads changes nothing.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::driver::clock;

/// How often the progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Does all jobs.
pub(super) fn work<J: Sync, R: Send>(
    what: &str,
    threads: usize,
    jobs: &[J],
    work: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((0_usize, clock::monotonic()));
    let results: Mutex<Vec<Option<R>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let begun = clock::monotonic();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some((place, job)) = {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(place).map(|job| (place, job))
                } {
                    let result = work(job);
                    results.lock().expect("no job panics while it holds this")[place] = Some(result);
                    let mut done = done.lock().expect("nobody panics while it holds this");
                    done.0 += 1;
                    if done.1.elapsed() >= TELL_EVERY || done.0 == jobs.len() {
                        done.1 = clock::monotonic();
                        tell(what, done.0, jobs.len(), begun.elapsed());
                    }
                }
            });
        }
    });
    let results = results.into_inner().expect("no job panics while it holds this");
    results.into_iter().map(|result| result.expect("every job was done")).collect()
}

fn tell(what: &str, done: usize, all: usize, taken: Duration) {
    let end = if std::io::stderr().is_terminal() && done < all { "\r" } else { "\n" };
    let seconds = taken.as_secs();
    let _ = write!(std::io::stderr(), "{what}: {done} of {all} after {seconds} s{end}");
}
