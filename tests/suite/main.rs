//! Integration tests: kernels, gradients, parity, files and the program itself.

mod data;
mod harness;
mod kernels;
mod report;
