//! A message from a peer into a core with peers and state.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("message").expect("a known target")(
    bytes
));
