//! Any calls of two cores in any order.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("script").expect("a known target")(
    bytes
));
