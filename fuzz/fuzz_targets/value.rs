//! The check of a value, against two other readers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("value").expect("a known target")(bytes));
