//! Integration tests: kernels, gradients, parity, files and the program itself.

mod cli;
mod data;
mod discover;
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
