//! A name, and a certificate that holds one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("spiffe").expect("a known target")(
    bytes
));
