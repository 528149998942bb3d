//! What the tests share: the devices.

use std::sync::OnceLock;

use semantic_genesis::gpu::Context;

fn open(checked: bool) -> Option<Context> {
    if std::env::var("SEMGEN_GPU").as_deref() == Ok("none") {
        eprintln!("SEMGEN_GPU=none: tests that need an adapter are not run");
        return None;
    }
    let ctx = if checked { Context::with_checks(None) } else { Context::new(None) };
    Some(ctx.unwrap_or_else(|e| panic!("{e} (or set SEMGEN_GPU=none to leave out the tests that need one)")))
}

/// The device with every runtime check in its shaders; `None` only under `SEMGEN_GPU=none`.
pub(crate) fn checked() -> Option<&'static Context> {
    static CTX: OnceLock<Option<Context>> = OnceLock::new();
    CTX.get_or_init(|| open(true)).as_ref()
}

/// The device as users run it.
pub(crate) fn trusted() -> Option<&'static Context> {
    static CTX: OnceLock<Option<Context>> = OnceLock::new();
    CTX.get_or_init(|| open(false)).as_ref()
}
