//! Integration tests: kernels, gradients, parity, files and the program itself.

mod cli;
mod data;
mod discover;
mod harness;
mod kernels;
mod operations;
mod parity;
mod report;
