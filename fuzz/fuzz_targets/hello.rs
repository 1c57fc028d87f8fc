//! A hello or welcome, off the wire or well formed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("hello").expect("a known target")(bytes));
