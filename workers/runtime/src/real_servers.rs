//! Real servers for tests: where the environment says that they are. `tests/services` starts some.

use std::env;

/// What the environment says under `name`, an address say; `None`, said aloud, where it says nothing and need not.
///
/// # Panics
/// Where it says nothing although `ENDCAP_REQUIRE_SERVICES` is `1`.
pub fn named(name: &str) -> Option<String> {
    let value = env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        let required = env::var("ENDCAP_REQUIRE_SERVICES").is_ok_and(|required| required == "1");
        assert!(!required, "ENDCAP_REQUIRE_SERVICES=1, and {name} names no server: start some with tests/services/services up");
        println!("skipped: {name} names no server; see tests/services");
    }
    value
}
