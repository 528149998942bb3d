//! Integration tests: kernels, gradients, parity, files and the program itself.

mod harness;
mod kernels;
