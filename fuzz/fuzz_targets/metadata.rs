#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestream::fuzz::run("metadata", bytes));
