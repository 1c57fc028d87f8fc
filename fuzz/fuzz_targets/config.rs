//! A TOML file or an environment.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| phalanx::fuzzing::target("config").expect("a known target")(
    bytes
));
