//! Integration tests: kernels, gradients, parity, files and the program itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod cli;
mod data;
mod discover;
mod evaluate;
mod exchange;
mod finetune;
mod formats;
mod full_width;
mod fusion;
mod gradients;
mod harness;
mod interpreter;
mod kernels;
mod layers;
mod metrics;
mod mixed;
mod operations;
mod parity;
mod plans;
mod predict;
mod recompute;
mod report;
mod shaders;
mod steps;
mod tools;
mod tune;
