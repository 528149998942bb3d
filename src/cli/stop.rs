//! Ctrl-C and SIGTERM: the first lets the step end and saves, the second exits at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::text;
use crate::error::{Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Exit status after the second signal: 128 + SIGINT.
const AT_ONCE: i32 = 130;

/// Watches for signals from here on; what comes before ends the program at once.
pub(super) fn watch(json: bool) -> Result<&'static AtomicBool> {
    let installed = ctrlc::try_set_handler(move || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(AT_ONCE);
        }
        text::note(json, "stopping after this step; a second signal stops at once and loses the steps since the last checkpoint");
    });
    match installed {
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(&INTERRUPTED),
        Err(e) => Err(Error::Failed(format!("signals cannot be watched: {e}"))),
    }
}

/// Ends the run between two stages if a signal came.
///
/// # Errors
/// [`Error::Interrupted`].
pub(super) fn check() -> Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted("stopped between two stages; continue with --resume".into())),
        false => Ok(()),
    }
}
