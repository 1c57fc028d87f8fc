//! What a fuzzer calls: one function for each target, from any bytes to nothing. It panics where a rule of the
//! library is broken, and nowhere else. Not stable API: behind the feature `fuzzing`, and part of the unit tests,
//! which replay every input that is kept in `fuzz`. Opens no socket and reads no clock.
//!
//! `input` bytes to numbers, names and real messages · `node` a core and what must hold of it · `core` messages,
//! frames and hellos into one · `script` any calls in any order · `value`, `files` what is read without a core ·
//! `mutate` a driver without coverage · `seeds` real examples to begin with

mod core;
#[cfg(test)]
mod corpus;
mod files;
mod input;
mod mutate;
mod node;
mod script;
mod seeds;
mod value;

pub use self::{
    mutate::{Fault, Mutator},
    seeds::seeds,
};

/// What a fuzzer calls with each input.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 9] = [
    ("message", self::core::message),
    ("frames", self::core::frames),
    ("hello", self::core::hello),
    ("value", value::value),
    ("script", script::script),
    ("config", files::config),
    ("pem", files::pem),
    ("crl", files::crl),
    ("spiffe", files::spiffe),
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
