//! Ctrl-C and SIGTERM: the first lets the step end and saves, the second exits at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Result};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Exit status after the second signal: 128 + SIGINT.
const AT_ONCE: i32 = 130;

/// Watches for signals from here on; what comes before ends the program at once. Both are watched even where the caller
/// had Ctrl-C ignored, as shells do for what they start in the background; a hang-up is left to `nohup`.
pub(super) fn watch() -> Result<&'static AtomicBool> {
    if INTERRUPTED.get().is_none() {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it sees the flag as the signals before left it.
            flag::register_conditional_shutdown(signal, AT_ONCE, interrupted.clone())
                .and_then(|_| flag::register(signal, interrupted.clone()))
                .map_err(|e| Error::Failed(format!("signals cannot be watched: {e}")))?;
        }
        let _ = INTERRUPTED.set(interrupted);
    }
    Ok(INTERRUPTED.get_or_init(Arc::default))
}

/// Ends the run between two stages if a signal came.
///
/// # Errors
/// [`Error::Interrupted`].
pub(super) fn check() -> Result<()> {
    match INTERRUPTED.get().is_some_and(|i| i.load(Ordering::Relaxed)) {
        true => Err(Error::Interrupted("stopped between two stages; continue with --resume".into())),
        false => Ok(()),
    }
}
