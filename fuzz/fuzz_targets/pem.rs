//! Certificates and a key in PEM, and chains that strangers show.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("pem").expect("a known target")(bytes));
