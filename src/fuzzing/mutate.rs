//! Fuzzing without coverage, where no tool may be installed: kept inputs, changed at random, into every target.
//! Finds less than libFuzzer in the same time, and runs anywhere. Reads no clock; its caller ends it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{TARGETS, Target};

/// The longest input that is made.
const LEN_MAX: usize = 4_096;
/// Headers that claim more than there is, and numbers at borders.
const WORDS: [&[u8]; 10] = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xf0",
    b"\xdc\xff\xff",
    b"\xc9\x7f\xff\xff\xff\x01",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xcf\x40\x00\x00\x00\x00\x00\x00\x00",
    b"\x80\x80\x80\x80",
    b"\xff\x7f",
];

/// An input on which a target panicked.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "an input, and what was said of it")]
pub struct Fault {
    /// The target's name.
    pub target: &'static str,
    /// What it was given.
    pub input: Vec<u8>,
    /// What it said.
    pub message: String,
}

/// Runs targets in turn on inputs that are like those it was given.
#[derive(Debug)]
pub struct Mutator {
    rng: fastrand::Rng,
    corpora: Vec<(&'static str, Target, Vec<Vec<u8>>)>,
}

impl Mutator {
    /// One that draws from `seed`, with the inputs kept for each target.
    pub fn new(seed: u64, kept: impl Fn(&str) -> Vec<Vec<u8>>) -> Self {
        let corpora = TARGETS.iter().map(|(name, target)| (*name, *target, kept(name))).collect();
        Self { rng: fastrand::Rng::with_seed(seed), corpora }
    }

    /// Runs the target with that number on `times` inputs.
    ///
    /// # Errors
    /// The first input on which it panics.
    pub fn run(&mut self, target: usize, times: usize) -> Result<(), Fault> {
        let Some((name, run, corpus)) = self.corpora.get(target) else { return Ok(()) };
        for _ in 0..times {
            let input = mutated(&mut self.rng, corpus);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&input))) {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                return Err(Fault { target: name, input, message: text.unwrap_or_default() });
            }
        }
        Ok(())
    }
}

fn mutated(rng: &mut fastrand::Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = rng.choice(corpus).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..=6) {
        let at = rng.usize(..=input.len());
        match rng.u8(..9) {
            0 if at < input.len() => input[at] = rng.u8(..),
            1 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            2 if at < input.len() => input[at] = input[at].wrapping_add(rng.u8(..3)).wrapping_sub(1),
            3 => input.truncate(at.max(input.len() / 2)),
            4 => {
                let end = (at + rng.usize(..16)).min(input.len());
                input.drain(at..end);
            }
            5 => {
                let word = WORDS[rng.usize(..WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            6 => {
                let noise: Vec<u8> = (0..rng.usize(1..24)).map(|_| rng.u8(..)).collect();
                input.splice(at..at, noise);
            }
            7 => {
                let end = (at + rng.usize(..64)).min(input.len());
                input.extend_from_within(at..end);
            }
            _ => {
                let other = rng.choice(corpus).cloned().unwrap_or_default();
                let from = rng.usize(..=other.len());
                input.truncate(at);
                input.extend(&other[from..]);
            }
        }
    }
    input.truncate(LEN_MAX);
    input
}
