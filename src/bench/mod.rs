//! Measuring kernels: what an adapter can do at best, what each operation makes of it, and how two results compare.
//!
//! A [`op::Problem`] is an operation on a shape with contents and a reference; [`op::Prepared`] has it on the device
//! and yields a [`result::Row`]: outputs are checked first, and a wrong kernel gets no number. [`measure`] repeats
//! until the noise is small, [`peak`] knows the adapter's roof, [`result`] is the document that everything is written to.

pub mod accept;
pub mod catalogue;
pub mod classes;
pub mod compare;
pub mod conv;
pub mod loader;
pub mod measure;
pub mod op;
pub mod ops;
pub mod page;
pub mod peak;
pub mod pick;
pub mod probe;
pub mod result;
pub mod shape;
pub mod step;
pub mod suite;
pub mod tune;
pub mod wgsl;
