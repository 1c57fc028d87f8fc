//! A revocation list.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("crl").expect("a known target")(bytes));
