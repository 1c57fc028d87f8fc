//! A stream's bytes, in pieces, into an exchange.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("frames").expect("a known target")(
    bytes
));
