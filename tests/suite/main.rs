//! Integration tests: kernels, gradients, parity, files and the program itself.

mod data;
mod gradients;
mod harness;
mod interpreter;
mod kernels;
mod layers;
mod operations;
mod parity;
mod plans;
mod report;
mod shaders;
