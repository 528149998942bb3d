//! The one error type of the program.
//!
//! Every message is one sentence that names the file or field, what was found, what was
//! expected and what to do. [`Error::exit_code`] separates what a user can mend in the call
//! (2) from a run that failed (1).

use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Wrong use of the command line, the configuration or the library: check the named option.
    #[error("{0}")]
    Usage(String),

    /// A file's content is not what it has to be: check the named file.
    #[error("{}: {what}", path.display())]
    Input {
        /// The offending file or directory.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        what: String,
    },

    /// The operating system refused a file operation: check the path and its permissions.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was attempted, as a verb phrase (`"read"`, `"create"`).
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// Shapes do not fit together: check the named operation's operands.
    #[error("{op}: {what}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The shapes found and what was expected.
        what: String,
    },

    /// The adapter cannot hold or run something: use the remedy named.
    #[error("{what} needs {need} but this adapter allows {have}; {remedy}")]
    ExceedsLimit {
        /// Which tensor or dispatch.
        what: String,
        /// How much it needs, with unit.
        need: String,
        /// How much there is, with unit.
        have: String,
        /// Which setting would make it fit.
        remedy: String,
    },

    /// The graphics adapter or its driver failed: check `semgen devices` and the driver.
    #[error("{0}")]
    Gpu(String),

    /// The run itself went wrong (for example a loss that is not finite): see the message.
    #[error("{0}")]
    Failed(String),

    /// The user interrupted the run; everything finished so far is saved.
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    /// An [`Error::Input`] about `path`.
    pub fn input(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// An adapter from [`std::io::Error`]: `map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// An [`Error::Shape`] of operation `op`.
    pub fn shape(op: &'static str, what: impl Into<String>) -> Self {
        Self::Shape { op, what: what.into() }
    }

    /// The process exit status: 2 for wrong usage or input, 1 for a failed run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Input { .. } | Self::Io { .. } | Self::Shape { .. } | Self::ExceedsLimit { .. } => 2,
            Self::Gpu(_) | Self::Failed(_) | Self::Interrupted(_) => 1,
        }
    }
}
