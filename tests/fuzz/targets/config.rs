//! Configuration files: what is valid can be written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semantic_genesis::config::Config;

fuzz_target!(|text: &str| {
    let Ok(config) = Config::default().overlay_toml(text) else { return };
    if config.validate().is_ok() {
        let again = Config::default().overlay_toml(&config.to_toml()).expect("what was written is read");
        assert_eq!(again.to_toml(), config.to_toml());
    }
});
