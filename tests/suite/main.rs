//! Integration tests: kernels, gradients, parity, files and the program itself.

mod data;
mod harness;
mod kernels;
mod operations;
mod parity;
mod report;
