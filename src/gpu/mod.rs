//! The device: the only module that names `wgpu` types.
//!
//! What runs is described by plain data ([`Dispatch`] over [`View`]s of buffers named by
//! [`BufferId`]); a [`Program`] turns such a list into pipelines, bind groups and one uniform
//! arena once, and replays it without allocating. [`Context`] owns the device, the pipeline
//! cache, uploads and readback. It is not a graph and knows no operation.

mod caps;
mod context;
mod dispatch;
mod pipeline;
mod program;
mod shader;
mod timing;
mod translate;
mod trusted;

pub use caps::{Caps, Kind};
pub use context::{AdapterReport, Buffer, Context, Counters, STAGING, adapters};
pub use dispatch::{BufferId, Choices, Dispatch, Dtype, Recorder, Scalar, View};
pub use program::{Program, run_once};
pub use shader::{Reflection, reflect};
pub use timing::Timing;
pub use translate::{Fault, Target, inspect};
pub use trusted::without_display;
